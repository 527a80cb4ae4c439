"""Records go where the model is, and nothing depends on the default device.

"meta" stands in for another device: what is made there by mistake holds no numbers and fails.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset

from privacy.audit import match_gradient, one_hot_records
from privacy.mechanisms import SeededRandomness
from privacy.training import (
    ClientLedger,
    ClipAndNoise,
    ClipOnly,
    GradientDescent,
    NominalCount,
    PoissonBatches,
    replace_unsupported,
    train,
)
from privacy.training.model_checks.check import refuse_device
from privacy.training.optimizer import NoisyOptimizer
from privacy.training.per_example.capture import Capture
from privacy.training.per_example.gradients import clipped_sum
from privacy.training.per_example.loss import ExampleLoss
from privacy.training.records import on_device_of, records_of

NOISED = ClipAndNoise(
    clipping_norm=1.0, noise_multiplier=1.0, delta=1e-5, count=NominalCount(records=12)
)
NUMBERS, TOKENS, CLASSES = torch.rand(12, 4, 6), torch.arange(48).view(12, 4), torch.arange(12) % 3


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.GRU(6, 5, batch_first=True)
        self.last = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inside(x)[0][:, -1])  # type: ignore[no-any-return]


class Weighted(nn.Module):
    """A parameter of its own, zero at first."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight).mean(1)  # type: ignore[no-any-return]


def models() -> dict[str, nn.Module]:
    attention = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
    return {
        "linear": nn.Sequential(nn.Flatten(), nn.Linear(24, 5), nn.Dropout(), nn.Linear(5, 3)),
        "convolution": nn.Sequential(
            nn.Conv1d(4, 4, 2), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(20, 3)
        ),
        "recurrent": Recurrent(),
        "attention": nn.Sequential(attention, nn.Flatten(), nn.Linear(24, 3)),
        "own parameter": Weighted(),
        "table": nn.Sequential(nn.Embedding(48, 4), nn.Flatten(), nn.Linear(16, 3)),
    }


class Mapped(Dataset[Any]):
    """Records of an array and a plain number."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, row: int) -> tuple[Any, int]:
        return NUMBERS[row].numpy(), int(CLASSES[row])


def own_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


def step(model: nn.Module, data: Any, protection: ClipOnly | ClipAndNoise, loss: Any) -> Tensor:
    train(
        model,
        data,
        loss=loss,
        optimizer=GradientDescent(model.parameters(), learning_rate=0.1),
        protection=protection,
        batches=PoissonBatches(sampling_rate=0.5, steps=2),
        ledger=ClientLedger(dataset="d"),
        randomness=SeededRandomness(1),
    )
    return nn.utils.parameters_to_vector(model.parameters()).detach().cpu()


@pytest.mark.parametrize("name", models())
@pytest.mark.parametrize("loss", [F.cross_entropy, own_loss], ids=["torch's", "own"])
@pytest.mark.parametrize("protection", [NOISED, ClipOnly(clipping_norm=1.0)], ids=["noise", "clip"])
def test_the_default_device_has_no_part_in_a_training(
    name: str, loss: Any, protection: ClipOnly | ClipAndNoise
) -> None:
    data: list[Any] = [(TOKENS, CLASSES)] if name == "table" else [(NUMBERS, CLASSES), Mapped()]
    model = models()[name]
    with torch.device("meta"):
        replaced = replace_unsupported(model)
        for records in data:
            assert step(replaced, records, protection, loss).isfinite().all()


def test_the_default_device_has_no_part_in_an_audit() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    update = [torch.rand_like(p) for p in model.parameters()]
    with torch.device("meta"):
        records = one_hot_records(3, (4,), height=2.0)
        assert records.device.type == "cpu"
        result = match_gradient(model, update, shape=(4,), label=1, restarts=1, steps=2)
    assert result.device.type == "cpu"


def test_records_are_moved_to_the_models_device_and_tried_there() -> None:
    model = nn.Linear(6, 3, device="meta")
    for data in ((NUMBERS, CLASSES), Mapped()):
        records = on_device_of(model, records_of(data))
        assert [each.device.type for each in records.take(torch.tensor([0, 3]))] == ["meta"] * 2
        assert [device.type for _, _, device in next(records.formats())] == ["meta"] * 2


def test_for_a_model_on_several_devices_records_stay_where_they_are() -> None:
    model = nn.Sequential(nn.Linear(6, 3, device="meta"), nn.Linear(3, 3, device="cpu"))
    records = on_device_of(model, records_of((NUMBERS, CLASSES)))
    assert records.take(torch.arange(2))[0].device.type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", models())
def test_a_model_on_a_gpu_trains_on_records_in_memory_as_on_the_cpu(name: str) -> None:
    data = (TOKENS, CLASSES) if name == "table" else (NUMBERS, CLASSES)
    torch.manual_seed(0)
    model = replace_unsupported(models()[name]).eval()
    start = {key: value.clone() for key, value in model.state_dict().items()}
    expected = step(model, data, NOISED, F.cross_entropy)
    model.load_state_dict(start)
    result = step(model.cuda(), data, NOISED, F.cross_entropy)
    torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-4)


class ElsewhereOnly(TorchDispatchMode):
    """Lets a model on another device be worked on there alone, and counts what passes between.

    A tensor on "meta" has no numbers, so that none can come back; a number that is read from one,
    as 1, is counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.numbers_read = 0
        self.sent: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and args[0].device.type == "meta":
            self.numbers_read += 1
            return 1.0
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        places = {each.device.type for each in tensors if each.dim()}
        out = func(*args, **kwargs)
        if func is torch.ops.aten._to_copy.default and places == {"cpu"}:
            if out.device.type == "meta":
                self.sent.append(out.numel())
        elif len(places) > 1:
            raise AssertionError(f"{func} takes tensors of several devices")
        return out


# An embedding counts the rows that a batch uses, which "meta" cannot.
@pytest.mark.parametrize("name", [name for name in models() if name != "table"])
def test_a_step_stays_on_the_models_device_but_for_its_noise(name: str) -> None:
    model = replace_unsupported(models()[name]).to("meta")
    numbers = NUMBERS.to("meta")
    optimizer = NoisyOptimizer(
        GradientDescent(model.parameters(), learning_rate=0.1),
        randomness=SeededRandomness(1),
        noise_multiplier=1.0,
        sensitivity=0.1,
    )
    loss, classes = ExampleLoss(F.cross_entropy), CLASSES.to("meta")
    with Capture(model) as capture, optimizer.drawing(), ElsewhereOnly() as elsewhere:
        optimizer.begin()
        for _ in range(2):
            layers = list(capture.gradients(loss(model(numbers), classes)).values())
            read = elsewhere.numbers_read
            optimizer.add_clipped(clipped_sum(layers, clipping_norm=1.0))
            # Single numbers alone: whether all norms are finite, and sizes of a linear layer's.
            assert elsewhere.numbers_read - read <= 1 + 2 * len(layers)
        assert elsewhere.sent == []
        optimizer.step()
    assert elsewhere.sent == [sum(each.numel() for each in model.parameters())]


def test_a_device_without_double_precision_is_refused_in_words() -> None:
    refuse_device(torch.device("cpu"))
    refuse_device(torch.device("cuda", 1))
    with pytest.raises(ValueError, match=r"on mps, .* no double precision.*to the CPU"):
        refuse_device(torch.device("mps"))
