"""Arguments of the wrong kind are told by name where they are given, before anything is spent."""

import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.supercore.utils import get_flwr_home

from privacy.accounting import (
    GaussianRelease,
    read_ledger,
)
from privacy.accounting.errors import LedgerError
from strategies import (
    AdaptiveClipping,
    Budget,
    CappedWeights,
    Checkpointing,
    DPFedAvg,
    EncryptedRound,
    FixedSize,
    FlatClipping,
    Full,
    Metrics,
    NoisedMetrics,
    PerLayerClipping,
    Poisson,
    Population,
    PublicMetrics,
    RecordKeys,
    SecureAggregation,
    ServerAdam,
    ServerSGD,
    UniformWeights,
)
from strategies._arguments import OLD_NAMES
from tests.strategies.federation import grid_of, model, noiseless

NOT_NUMBERS: list[Any] = ["0.1", True, [0.1], b"1", torch.tensor([0.1]), {}]

WRONG: dict[str, list[Any]] = {
    "population": [1.5, 4.0, True, "4", None, [1, 2], np.float64(4), ("a", "b")],
    "sampling": [0.5, 4, None, "full", Full, Poisson],
    "clipping": [None, "0.1", True, math.nan, math.inf, 0, -1, FlatClipping, [1.0], "adaptive"],
    "budget": [None, 3.0, (3.0, 1e-5), Budget],
    "noise_multiplier": [*NOT_NUMBERS, math.nan, math.inf, -1],
    "reserve": [None, GaussianRelease(1.0, Full()), [1.0], ["event"], "event"],
    "weighting": [UniformWeights, "uniform", 1.0],
    "mechanism": ["lattice", 3],
    "optimizer": [
        ServerSGD,
        "adam",
        0.1,
        torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1),
    ],
    "metrics": [Metrics, PublicMetrics(), "loss", {"loss": (0, 1)}],
    "ledger": [None, 3, b"/tmp/ledger", ["a"], "", "ledger.jsonl", Path("folder/ledger"), "/"],
    "checkpointing": [3, "/home/me/run", Path("/home/me/run"), Checkpointing],
    "min_available_nodes": [None, 1.5, "2", True, -1, 5],
    "secure_aggregation": [True, 3, "malicious"],
    "randomness": [0, np.random.default_rng(), "system"],
    "on_round": [3, "print", [print]],
    "record_keys": ["arrays", {"arrays": "model"}, RecordKeys],
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


PARTS: dict[Any, dict[str, list[Any]]] = {
    Metrics: {
        "train": [PublicMetrics, "loss", {"loss": (0, 1)}],
        "evaluate": [NoisedMetrics, "loss"],
        "fraction_evaluate": [None, *NOT_NUMBERS, math.nan],
    },
    Checkpointing: {
        "path": [3, b"/tmp/checkpoint", "", "checkpoint", Path(), "/"],
        "resume": [3, b"/tmp/checkpoint", "", "checkpoint", "/"],
    },
    RecordKeys: {name: [None, 3, ""] for name in ("arrays", "config", "weighted_by")},
    ServerSGD: {"iterate_average": [None, *NOT_NUMBERS, math.nan, 1, -0.1]},
    ServerAdam: {"iterate_average": [None, *NOT_NUMBERS, math.nan, 1, -0.1]},
}


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [(part, name, v) for part, names in PARTS.items() for name, vs in names.items() for v in vs],
)
def test_a_part_of_the_wrong_kind_is_refused_by_name(part: Any, name: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=name):
        part(**{name: value})


def test_an_argument_of_another_name_gets_the_name_of_ours(tmp_path: Path) -> None:
    """One error for all: what earlier versions, and Flower's FedAvg, call otherwise."""
    with pytest.raises(
        TypeError, match=r"^target_epsilon, target_delta, resume: .*; give "
    ) as error:
        DPFedAvg(  # type: ignore[call-arg]
            population=4,
            sampling=Full(),
            clipping=1.0,
            target_epsilon=3.0,
            target_delta=1e-5,
            ledger=tmp_path / "ledger.jsonl",
            resume=tmp_path / "checkpoint",
        )
    assert str(error.value).count("Budget(epsilon=…, delta=…)") == 1
    assert "Checkpointing(path, resume=…)" in str(error.value)
    taken = set(DPFedAvg.__init__.__annotations__)
    for name, instead in OLD_NAMES.items():
        assert name not in taken
        with pytest.raises(TypeError, match=f"^{name}: ") as error:
            noiseless(tmp_path, **{name: 1})
        assert instead in str(error.value)
        assert instead.partition("=")[0].partition(",")[0].split(":")[0] in {*taken, "nothing"}
    with pytest.raises(TypeError, match=r"target_delta: .*Budget"):
        EncryptedRound(population=4, images=2, target_delta=1e-5)  # type: ignore[call-arg]
    for name, near in (
        ("clipping_norm", "clipping"),
        ("num_sampled_clients", "sampling"),
        ("max_grad_norm", "clipping"),
        ("noise_scale", "noise_multiplier"),
        ("noise_multiplyer", "noise_multiplier"),
        ("server_optimizer", "optimizer"),
        ("target_eps", "budget=Budget"),
        ("min_available_clients", "min_available_nodes"),
        ("secure_aggregator", "secure_aggregation"),
    ):
        with pytest.raises(TypeError, match=f"^{name}: not an argument here; give {near}"):
            noiseless(tmp_path, **{name: 1})
    with pytest.raises(TypeError, match=r"^min_client, adversery: .* give min_clients; adversary$"):
        SecureAggregation(min_client=3, adversery=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
        noiseless(tmp_path, nonsense=1)
    assert not list(tmp_path.iterdir())


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
        budget=Budget(np.float32(8.0), np.float64(1e-5)),  # type: ignore[arg-type]
        min_available_nodes=np.int16(2),
        checkpointing=Checkpointing(tmp_path / "checkpoint"),
    )
    result = strategy.start(grid_of(4), model(), num_rounds=np.int64(2))
    assert result.privacy is not None
    assert result.privacy.rounds == 2
    again = noiseless(
        tmp_path,
        clipping=0.5,
        noise_multiplier=2.0,
        budget=Budget(8.0, 1e-5),
        checkpointing=Checkpointing(resume=tmp_path / "checkpoint"),
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
        {"budget": 3.0},
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
        "budget": Budget(math.inf, 1e-5),
    }
    with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
        EncryptedRound(**usual | wrong)


def test_a_relative_path_is_refused_wherever_the_program_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two projects with one relative name would share a ledger, wherever Flower puts it."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"ledger is .*relative.*{tmp_path}"):
        noiseless(tmp_path, ledger="privacy-ledger.jsonl")
    for name in ("path", "resume"):
        with pytest.raises(ValueError, match=rf"checkpointing\.{name} is .*relative.*{tmp_path}"):
            Checkpointing(**{name: "checkpoint"})
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


def test_settings_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    rule = NoisedMetrics(ranges={"loss": (0.0, 1.0)}, noise_multiplier=1.0)
    fixed = FixedSize(2, 4)
    for settings, reason in (
        ({"noise_multiplier": None}, "budget.epsilon is inf"),
        ({"population": 0}, "population"),
        ({"sampling": FixedSize(2, 5)}, "population of 5"),
        ({"sampling": fixed, "clipping": AdaptiveClipping()}, "adaptive"),
        (
            {"sampling": fixed, "metrics": Metrics(fraction_evaluate=0.5, evaluate=rule)},
            "evaluation",
        ),
        ({"clipping": 0.0}, "clipping norm"),
        ({"weighting": CappedWeights(cap=1, total_weight=5)}, "total_weight"),
        ({"noise_multiplier": -1.0}, "noise_multiplier"),
    ):
        with pytest.raises(ValueError, match=reason):
            noiseless(tmp_path, **settings)
    for fraction in (0.5, 1.5, -0.5, math.nan):
        with pytest.raises(ValueError, match=r"metrics\.fraction_evaluate"):
            Metrics(fraction_evaluate=fraction, evaluate=None if fraction == 0.5 else rule)
    for optimizer in (ServerSGD, ServerAdam):
        with pytest.raises(ValueError, match="iterate_average"):
            optimizer(iterate_average=1.0)
    for ranges in ({}, {"a": (1.0, 1.0)}, {"a": (-1e308, 1e308)}, {"a": (0.0, math.inf)}):
        with pytest.raises(ValueError, match="range"):
            NoisedMetrics(ranges=ranges, noise_multiplier=1.0)


def test_the_callers_objects_are_left_alone(tmp_path: Path) -> None:
    """Two runs from one strategy, or with one optimizer, begin alike."""
    optimizer = ServerSGD(momentum=0.9)
    clipping = AdaptiveClipping(initial_norm=1.0)
    strategy = noiseless(tmp_path, optimizer=optimizer, clipping=clipping)
    grid = grid_of(4, lambda p, r, a: [np.full_like(x, 0.1) for x in a])
    results = [
        strategy.start(grid, model((1,)), num_rounds=3).arrays.to_numpy_ndarrays()[0][0]
        for _ in range(2)
    ]
    assert results[0] == pytest.approx(results[1], rel=1e-6)
    assert clipping.norm == 1.0
    assert optimizer.state_dict() == {}
    runs = {record.run for record in read_ledger(tmp_path / "ledger.jsonl").records}
    assert len(runs) == 2
