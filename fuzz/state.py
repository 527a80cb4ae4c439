"""What a server or a node kept of an earlier run, and goes on from."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import (
    GaussianPrivacyEvent,
    NeighboringRelation,
    PrivacyConfig,
    SamplingMethod,
)
from numpy.typing import NDArray

from flower_app.errors import SettingError
from flower_app.report.results_folder import trained_model
from flower_app.settings import Settings
from flower_app.training.resumption import check_resumed
from fuzz.target import Target, read_all
from privacy.accounting import Budget, Full, GaussianRelease, Position
from privacy.accounting.errors import LedgerError
from privacy.accounting.flower import FlowerAccountant
from privacy.json_text import read_json
from privacy.mechanisms import SiloGaussian
from privacy.training import ClientLedger
from privacy.training.errors import LocalBudgetError
from privacy.training.step_payments import StepPayments
from strategies import AdaptiveClipping, ServerAdam
from strategies.checkpoint import Checkpoint, RunState
from strategies.distributed_dpsgd.requests import GradientSum
from strategies.errors import CheckpointError

_DELTA = 1e-5


def accountant() -> Target:
    """The state of an accountant of Flower's protocol, as JSON: all that it takes counts."""
    config = PrivacyConfig(
        _DELTA, 1000, NeighboringRelation.ADD_OR_REMOVE_ONE, SamplingMethod.POISSON
    )
    made = FlowerAccountant(config, "rdp")
    made.compose(GaussianPrivacyEvent(1.1, 100, 1000), count=3)
    made.compose(GaussianPrivacyEvent(2.0, 10, 1000))
    state = made.state_dict()

    def read(content: bytes) -> None:
        given = read_json(content.decode(errors="replace"))
        if not isinstance(given, dict):
            return  # no state_dict
        restored = FlowerAccountant(config, "rdp")
        restored.load_state_dict(given)
        counts = [each["count"] for each in map(dict, given["compositions"])]
        assert restored.num_releases == sum(counts) and all(count >= 1 for count in counts)
        again = FlowerAccountant(config, "rdp")
        again.load_state_dict(json.loads(json.dumps(restored.state_dict())))
        assert again.num_releases == restored.num_releases

    seeds = (json.dumps(state), json.dumps({**state, "compositions": []}), "{}", "[]")
    return Target(read, (ValueError, TypeError), tuple(seed.encode() for seed in seeds))


def node_state() -> Target:
    """A node's ledger and its steps paid ahead, of its Flower state: two texts, a zero between."""
    event = GradientSum(
        unit="row",
        persons=1000,
        clipping_norm=0.5,
        sampling_rate=0.02,
        noise_multiplier=1.5,
        mechanism=SiloGaussian(5, 2),
    ).event(10)
    budget = Budget(1e3, _DELTA)
    paid = ClientLedger(dataset="ward", budget=budget)
    paid.charge(GaussianRelease(1.1, Full()))
    payments = StepPayments(paid)
    payments.take(event, planned=3)
    ledger, ahead = paid.as_record()["ledger"].encode(), payments.as_record()["ahead"].encode()

    def read(content: bytes) -> None:
        texts = [part.decode(errors="replace") for part in content.partition(b"\0")[::2]]
        restored = ClientLedger.from_record({"ledger": texts[0]}, budget=budget)
        before = len(restored.events)
        left = StepPayments(restored, record={"ahead": texts[1]} if texts[1] else None)
        left.check(event)
        left.take(event, planned=2)
        assert len(restored.events) >= before

    seeds = (ledger + b"\0" + ahead, ledger, b"\0" + ahead, ledger + b'\0{"left": {}}')
    return Target(read, (LedgerError, LocalBudgetError), seeds)


def resumed() -> Target:
    """The arrays of a checkpoint with a digest that fits: each byte pair changes one."""
    initial = ArrayRecord([np.zeros((2, 3), np.float32)])
    schema_arrays = [np.full((2, 3), 0.5)]
    optimizer = ServerAdam(iterate_average=0.5)
    optimizer.step(schema_arrays, schema_arrays)
    arrays: dict[str, NDArray[Any]] = {
        "model/0": np.zeros((2, 3), np.float32),
        **{f"optimizer/{name}": array for name, array in optimizer.state_dict().items()},
        "average/0": np.zeros((2, 3), np.float32),
        "clipping/norm": np.array([1.0]),
        "privacy/rounds": np.array([1, 2]),
        "privacy/epsilon": np.array([0.5, 0.7]),
        "privacy/aborted": np.array([2]),
    }

    def read(content: bytes) -> None:
        changed = dict(arrays)
        for which, how in zip(content[::2], content[1::2], strict=False):
            name = sorted(arrays)[which % len(arrays)]
            if name in changed:
                _change(changed, name, how)
        kept = Checkpoint("run", 2, 1.0, Position(2, "ab"), "{}", changed)
        state = RunState.fresh(AdaptiveClipping(initial_norm=1.0), ServerAdam(), None)
        state.latest_average(state.restore(kept, initial))

    pairs = (bytes([which, how]) for which in range(len(arrays)) for how in range(6))
    return Target(read, (CheckpointError,), (b"", *pairs))


def _change(arrays: dict[str, NDArray[Any]], name: str, how: int) -> None:
    """Take an array away, rename it, or give it another type, shape or values."""
    array = arrays.pop(name)
    if how % 6 == 1:
        arrays[f"{name}.{how}"] = array
    elif how % 6 == 2:
        arrays[name] = array.astype(("int8", "float64", "bool", "complex64")[how // 6 % 4])
    elif how % 6 == 3:
        arrays[name] = array.reshape(-1)[: how // 6]
    elif how % 6 == 4:
        arrays[name] = np.where(array == array, np.nan, array)
    elif how % 6 == 5:
        arrays[name] = array[None]


def run_folder() -> Target:
    """A run's ``config.json``: of one that broke off, to go on, and of one whose model is taken."""
    broken, whole = (Path(tempfile.mkdtemp(prefix="fuzz-")) for _ in range(2))
    for name in ("checkpoint.safetensors", "privacy-ledger.jsonl"):
        broken.joinpath(name).touch()
    whole.joinpath("model.safetensors").touch()
    settings = Settings(resume=str(broken))
    config = {**settings.as_config(), "population": 100}

    def read(content: bytes) -> None:
        for folder in (broken, whole):
            folder.joinpath("config.json").write_bytes(content)
        read_all(
            (lambda: check_resumed(settings, population=100), lambda: trained_model(whole)),
            SettingError,
        )

    others: tuple[Any, ...] = ({**config, "epsilon": [3]}, {**config, "model": {}}, {}, [])
    return Target(
        read, (SettingError,), tuple(json.dumps(each).encode() for each in (config, *others))
    )
