"""Arguments of the wrong kind are told by name where they are given, before anything is spent."""

import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.supercore.utils import get_flwr_home

from privacy.accounting import Full, GaussianRelease, LedgerError
from strategies import (
    AdaptiveClipping,
    CappedWeights,
    DPFedAvg,
    EncryptedRound,
    FixedSize,
    FlatClipping,
    NoisedMetrics,
    PerLayerClipping,
    Poisson,
    Population,
    PublicMetrics,
    ServerAdam,
    ServerSGD,
    UniformWeights,
)
from tests.strategies.federation import grid_of, model, noiseless

NOT_NUMBERS: list[Any] = ["0.1", True, [0.1], b"1", torch.tensor([0.1]), {}]

WRONG: dict[str, list[Any]] = {
    "population": [1.5, 4.0, True, "4", None, [1, 2], np.float64(4), ("a", "b")],
    "sampling": [0.5, 4, None, "full", Full, Poisson],
    "clipping": [None, "0.1", True, math.nan, math.inf, 0, -1, FlatClipping, [1.0], "adaptive"],
    "target_delta": [None, *NOT_NUMBERS, math.nan, 0, 1],
    "noise_multiplier": [*NOT_NUMBERS, math.nan, math.inf, -1],
    "target_epsilon": [*NOT_NUMBERS, math.nan, math.inf, 0, -1],
    "reserve": [None, GaussianRelease(1.0, Full()), [1.0], ["event"], "event"],
    "weighting": [UniformWeights, "uniform", 1.0],
    "mechanism": ["lattice", 3],
    "optimizer": [
        ServerSGD,
        "adam",
        0.1,
        torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1),
    ],
    "iterate_average": [None, *NOT_NUMBERS, math.nan, 1, -0.1],
    "train_metrics": [PublicMetrics, "loss", {"loss": (0, 1)}],
    "evaluate_metrics": [NoisedMetrics, "loss"],
    "fraction_evaluate": [None, *NOT_NUMBERS, math.nan],
    "accountant": ["gdp", 1, True],
    "ledger": [None, 3, b"/tmp/ledger", ["a"], "", "ledger.jsonl", Path("folder/ledger"), "/"],
    "checkpoint": [3, b"/tmp/checkpoint", "", "checkpoint", Path(), "/"],
    "resume": [3, b"/tmp/checkpoint", "", "checkpoint", "/"],
    "min_available_nodes": [None, 1.5, "2", True, -1, 5],
    "secure_aggregation": [True, 3, "malicious"],
    "randomness": [0, np.random.default_rng(), "system"],
    "weighted_by_key": [None, 3, ""],
    "arrayrecord_key": [None, 3, ""],
    "configrecord_key": [None, 3, ""],
}
CASES = [(name, value) for name, values in WRONG.items() for value in values]


@pytest.mark.parametrize(
    ("name", "value"), CASES, ids=[f"{n}-{i}" for i, (n, _) in enumerate(CASES)]
)
def test_a_setting_of_the_wrong_kind_is_refused_by_name(
    name: str, value: Any, tmp_path: Path
) -> None:
    with pytest.raises((TypeError, ValueError), match=name.replace("clipping", "clipping|norm")):
        noiseless(tmp_path, **{name: value})
    assert not list(tmp_path.iterdir()), "a ledger was begun"


def test_every_argument_of_the_strategy_is_in_that_list() -> None:
    assert set(DPFedAvg.__init__.__annotations__) - {"return"} == set(WRONG)


STARTS: dict[str, list[Any]] = {
    "grid": [None, 4, "grid"],
    "initial_arrays": [
        None,
        [np.zeros(3, np.float32)],
        torch.nn.Linear(2, 2).state_dict(),
        torch.nn.Linear(2, 2),
        OrderedDict(a=np.zeros(3)),
        np.zeros(3),
        "model.safetensors",
    ],
    "num_rounds": [None, 0, -1, 1.0, "3", True],
    "timeout": [None, 0, -1, "60", True, math.nan],
    "train_config": [{"lr": 0.1}, 3],
    "evaluate_config": [{"lr": 0.1}, 3],
    "evaluate_fn": [3, "accuracy", lambda: None, lambda number: None],
}
START_CASES = [(name, value) for name, values in STARTS.items() for value in values]


@pytest.mark.parametrize(
    ("name", "value"), START_CASES, ids=[f"{n}-{i}" for i, (n, _) in enumerate(START_CASES)]
)
def test_an_argument_of_start_of_the_wrong_kind_is_refused_by_name(
    name: str, value: Any, tmp_path: Path
) -> None:
    usual: dict[str, Any] = {"grid": grid_of(4), "initial_arrays": model(), "num_rounds": 1}
    strategy = noiseless(tmp_path)
    with pytest.raises((TypeError, ValueError), match=name):
        strategy.start(**usual | {name: value})
    assert not strategy.epsilon_by_round


def test_numpys_numbers_are_numbers(tmp_path: Path) -> None:
    strategy = noiseless(
        tmp_path,
        population=np.int64(4),
        clipping=np.float32(0.5),
        noise_multiplier=np.int32(2),
        target_delta=np.float64(1e-5),
        target_epsilon=np.float32(8.0),
        min_available_nodes=np.int16(2),
        checkpoint=tmp_path / "checkpoint",
    )
    result = strategy.start(grid_of(4), model(), num_rounds=np.int64(2))
    assert result.privacy is not None
    assert result.privacy.rounds == 2
    again = noiseless(
        tmp_path,
        clipping=0.5,
        noise_multiplier=2.0,
        target_epsilon=8.0,
        resume=tmp_path / "checkpoint",
    )
    assert again.start(grid_of(4), model(), num_rounds=3).privacy is not None


@pytest.mark.parametrize(
    "make",
    [
        lambda: FlatClipping("1"),  # type: ignore[arg-type]
        lambda: FlatClipping(True),
        lambda: PerLayerClipping([1.0]),  # type: ignore[arg-type]
        lambda: PerLayerClipping({"a": "1"}),  # type: ignore[dict-item]
        lambda: AdaptiveClipping(initial_norm="1"),  # type: ignore[arg-type]
        lambda: AdaptiveClipping(quantile=None),  # type: ignore[arg-type]
        lambda: CappedWeights(cap="3", total_weight=1.0),  # type: ignore[arg-type]
        lambda: CappedWeights(cap=3, total_weight=None),  # type: ignore[arg-type]
        lambda: ServerSGD(learning_rate="0.1"),  # type: ignore[arg-type]
        lambda: ServerSGD(momentum=None),  # type: ignore[arg-type]
        lambda: ServerAdam(beta1="a"),  # type: ignore[arg-type]
        lambda: NoisedMetrics(ranges=["loss"], noise_multiplier=1.0),  # type: ignore[arg-type]
        lambda: NoisedMetrics(ranges={"loss": 1.0}, noise_multiplier=1.0),  # type: ignore[dict-item]
        lambda: NoisedMetrics(ranges={"loss": (0.0, 1.0)}, noise_multiplier="1"),  # type: ignore[arg-type]
        lambda: Population("abc"),  # type: ignore[arg-type]
        lambda: Population((1, 2)),  # type: ignore[arg-type]
    ],
)
def test_parts_of_a_strategy_refuse_the_wrong_kind_by_name(make: Any) -> None:
    with pytest.raises(TypeError, match=r"is .*; (give|it must be)"):
        make()


@pytest.mark.parametrize(
    "wrong",
    [
        {"population": 1.5},
        {"images": 2.5},
        {"images": 0},
        {"metrics": None},
        {"target_delta": "1e-5"},
        {"target_epsilon": True},
        {"ledger": "ledger.jsonl"},
        {"start_evaluator": None},
        {"workers": 0},
        {"max_bytes": "1 MB"},
    ],
)
def test_an_encrypted_round_refuses_the_wrong_kind_by_name(
    wrong: dict[str, Any], tmp_path: Path
) -> None:
    usual: dict[str, Any] = {
        "population": 4,
        "start_evaluator": lambda: None,
        "images": 2,
        "metrics": PublicMetrics(),
        "target_delta": 1e-5,
    }
    with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
        EncryptedRound(**usual | wrong)


def test_a_relative_path_is_refused_wherever_the_program_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two projects with one relative name would share a ledger, wherever Flower puts it."""
    monkeypatch.chdir(tmp_path)
    for name in ("ledger", "checkpoint", "resume"):
        with pytest.raises(ValueError, match=f"{name} is .*relative.*{tmp_path}"):
            noiseless(tmp_path, **{name: "privacy-ledger.jsonl"})
    monkeypatch.setenv("HOME", str(tmp_path))
    noiseless(tmp_path, ledger="~/of-this-user.jsonl")
    assert (tmp_path / "of-this-user.jsonl").exists()


def test_a_ledger_inside_an_app_as_flower_unpacks_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    app = get_flwr_home() / "apps" / "me.app.1.0.0.1234abcd"
    app.mkdir(parents=True)
    with pytest.raises(ValueError, match="inside the app as Flower unpacked it"):
        noiseless(tmp_path, ledger=app / "ledger.jsonl")
    assert not list(app.iterdir())


def test_a_ledger_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for ledger in (tmp_path / "nowhere" / "ledger.jsonl", tmp_path / "file" / "ledger.jsonl"):
        with pytest.raises(LedgerError, match=str(ledger)):
            noiseless(tmp_path, ledger=ledger)
    with pytest.raises(ValueError, match="cannot express FixedSize"):
        noiseless(tmp_path, sampling=FixedSize(2, 4), accountant="pld")
