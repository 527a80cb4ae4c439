"""A silo by itself: requests far beyond use, layers that draw, a ledger that nobody keeps."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from torch import Tensor, nn

from privacy.mechanisms import SiloGaussian
from privacy.training import DataPolicy, Persons
from strategies.distributed_dpsgd import answer_silo
from strategies.distributed_dpsgd.requests import INVITED_FOR, GradientSum
from strategies.distributed_dpsgd.silo_sums import _answers, _largest_is_right
from strategies.secure_aggregation.messages import KEY, protocol_record

STEP = GradientSum(
    unit="person",
    persons=1000,
    clipping_norm=1.0,
    sampling_rate=0.1,
    noise_multiplier=1.0,
    mechanism=SiloGaussian(5, 1),
    planned=10,
)


def policy(**changes: Any) -> DataPolicy:
    return DataPolicy(**({"dataset": "d", "max_epsilon": 100.0, "max_delta": 1e-5} | changes))


@pytest.fixture
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture
def log_lines() -> Iterator[list[str]]:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    flower = logging.getLogger("flwr")
    flower.addHandler(handler)
    yield lines
    flower.removeHandler(handler)


def invited(
    owner: DataPolicy,
    node: dict[str, Any] | None = None,
    state: RecordDict | None = None,
    **changes: Any,
) -> Message:
    """What a silo answers to a step's first message."""
    record = protocol_record(b"no message of the protocol")
    STEP.write_into(record)
    record[INVITED_FOR] = 100
    record.update(changes)
    message = Message(RecordDict({KEY: record}), message_type="train", dst_node_id=1)
    context = Context(
        run_id=1, node_id=1, node_config=node or {}, state=state or RecordDict(), run_config={}
    )

    def no_task() -> Any:
        raise AssertionError("nothing is computed for an invitation")

    return answer_silo(message, context, task=no_task, policy=owner)


@pytest.mark.parametrize(
    "extreme",
    [
        {"noise-multiplier": 1e-9},
        {"noise-multiplier": 5e-324},
        {"noise-multiplier": 1e300},
        {"sampling-rate": 1e-200},
        {"sampling-rate": 5e-324},
        {"min-silos": 2**62},
    ],
    ids=str,
)
@pytest.mark.usefixtures("identity")
def test_what_cannot_be_accounted_is_declined_with_a_sentence(extreme: dict[str, Any]) -> None:
    answer = invited(policy(), **extreme)
    assert answer.has_error()
    assert "cannot be accounted" in answer.error.reason


@pytest.mark.usefixtures("identity")
def test_a_deployed_silo_without_a_ledgers_file_says_that_it_forgets(log_lines: list[str]) -> None:
    invited(policy())
    assert sum("the next one has the whole budget again" in line for line in log_lines) == 1


@pytest.mark.usefixtures("identity")
def test_simulated_silos_and_those_with_a_file_forget_nothing(
    log_lines: list[str], tmp_path: Any
) -> None:
    invited(policy(), {"partition-id": 0, "num-partitions": 4})
    invited(policy(ledger=tmp_path / "ledger.jsonl"))
    assert not any("whole budget again" in line for line in log_lines)


@pytest.mark.parametrize("before", [{"unit": "row"}, {"dataset": "another"}], ids=str)
@pytest.mark.usefixtures("identity")
def test_a_ledger_in_the_nodes_state_is_of_the_policys_data_set_and_unit(
    before: dict[str, Any],
) -> None:
    kept = ConfigRecord(policy(**before).open_ledger().as_record())
    answer = invited(policy(), state=RecordDict({"silo-ledger": kept}))
    assert "cannot keep its ledger" in answer.error.reason
    own = ConfigRecord(policy().open_ledger().as_record())
    answer = invited(policy(), state=RecordDict({"silo-ledger": own}))
    assert "cannot keep its ledger" not in answer.error.reason


class Dropping(nn.Module):
    """It draws when it is evaluated too."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(nn.functional.dropout(x, 0.5))
        return out


def test_one_row_does_not_move_what_random_layers_draw_for_the_others() -> None:
    torch.manual_seed(3)
    model, x, y = Dropping(), torch.randn(401, 8), torch.randint(0, 2, (401,))
    seen: list[Tensor] = []
    handle = model.linear.register_forward_pre_hook(lambda _, given: seen.append(given[0] != 0))

    def drawn(rows: slice) -> Tensor:
        seen.clear()
        torch.manual_seed(0)  # as an app's first line
        _answers(model, Persons((x[rows], y[rows])), _largest_is_right)
        return torch.cat(seen)

    for rows in (slice(0, 401), slice(1, 401)):
        places = drawn(rows)
        assert (places == places[0]).all(), "each row draws the same, whoever is before it"
    handle.remove()
