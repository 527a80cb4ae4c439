"""A malformed record adds nothing, as if it were not there; its client trains like any other."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset

from privacy.accounting import Full, GaussianRelease, Repeated
from privacy.mechanisms import SeededRandomness
from privacy.training import (
    ClientLedger,
    ClipAndNoise,
    ClipOnly,
    FullBatch,
    NoisyCount,
    NominalCount,
    PoissonBatches,
    PublicCount,
    TrainingResult,
    train,
)
from privacy.training.errors import GradientError

N = 24
Protection = ClipOnly | ClipAndNoise
Data = tuple[Tensor, Tensor] | Dataset[tuple[Tensor, ...]]


def noisy(count: NominalCount | NoisyCount | PublicCount | None = None) -> ClipAndNoise:
    return ClipAndNoise(
        clipping_norm=1.0,
        noise_multiplier=1.0,
        delta=1e-5,
        count=NominalCount(records=N) if count is None else count,
    )


def records() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(N, 5, generator=generator)
    return inputs, torch.randint(0, 3, (N,), generator=generator)


def trained(
    data: Data,
    *,
    protection: Protection | None = None,
    ledger: ClientLedger | None = None,
    loss: Callable[..., Tensor] = cross_entropy,
    size: int = 512,
    batches: FullBatch | PoissonBatches | None = None,
) -> tuple[Tensor, TrainingResult]:
    """The change of the parameters, with the same noise at every call."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    result = train(
        model,
        data,
        loss=loss,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        protection=noisy() if protection is None else protection,
        batches=FullBatch(steps=2) if batches is None else batches,
        ledger=ClientLedger(dataset="d") if ledger is None else ledger,
        physical_batch_size=size,
        randomness=SeededRandomness(7),
    )
    return nn.utils.parameters_to_vector(model.parameters()).detach() - before, result


@settings(max_examples=20, deadline=None)
@given(
    bad=st.sets(st.integers(0, N - 1), max_size=N - 1),
    label=st.sampled_from([3, 7, -1, 10**9]),
    size=st.integers(1, 2 * N),
)
def test_labels_that_are_no_class_change_nothing(bad: set[int], label: int, size: int) -> None:
    """Whichever they are, the first among them, and however the batch is cut."""
    inputs, targets = records()
    well_formed = [row for row in range(N) if row not in bad]
    spoilt = targets.clone()
    spoilt[sorted(bad)] = label
    moved, result = trained((inputs, spoilt), size=size)
    torch.testing.assert_close(moved, trained((inputs[well_formed], targets[well_formed]))[0])
    assert result.weight == N


class Files(Dataset[tuple[Tensor, ...]]):
    """Records as files: one cannot be opened, one is of another size."""

    def __init__(self, *, unreadable: int | None = None, other_shape: int | None = None) -> None:
        self._records = records()
        self._unreadable, self._other_shape = unreadable, other_shape

    def __len__(self) -> int:
        return N

    def __getitem__(self, row: int) -> tuple[Tensor, ...]:
        if row == self._unreadable:
            raise OSError(f"record-{row}.png is truncated")
        inputs, targets = self._records
        return (inputs[row, :4] if row == self._other_shape else inputs[row]), targets[row]


@pytest.mark.parametrize("row", [0, 11, N - 1])
def test_a_record_that_cannot_be_read_changes_nothing(
    row: int, caplog: pytest.LogCaptureFixture
) -> None:
    inputs, targets = records()
    rest = [other for other in range(N) if other != row]
    expected = trained((inputs[rest], targets[rest]))[0]
    for files, said in (
        (Files(unreadable=row), f"record-{row}.png is truncated"),
        (Files(other_shape=row), "mat1 and mat2 shapes cannot be multiplied"),
    ):
        caplog.clear()
        torch.testing.assert_close(trained(files)[0], expected)
        assert f"1 of the records add nothing: training on them fails (records {row}" in caplog.text
        assert said in caplog.text


def test_a_loss_that_fails_on_a_record_leaves_out_that_one() -> None:
    inputs, targets = records()

    def strict(outputs: Tensor, targets: Tensor) -> Tensor:
        if bool((targets == 7).any()):
            raise KeyError("no such class")
        return cross_entropy(outputs, targets, reduction="none")

    spoilt = targets.clone()
    spoilt[4] = 7
    rest = [row for row in range(N) if row != 4]
    torch.testing.assert_close(
        trained((inputs, spoilt), loss=strict)[0], trained((inputs[rest], targets[rest]))[0]
    )


def test_drawn_batches_leave_it_out_too() -> None:
    """The others are drawn as they were: what is malformed is found after the drawing."""
    inputs, targets = records()
    batches = PoissonBatches(sampling_rate=0.5, steps=4)
    nothing = inputs.clone()
    nothing[3] = torch.nan  # a gradient that is not finite adds nothing
    spoilt = targets.clone()
    spoilt[3] = 7
    torch.testing.assert_close(
        trained((inputs, spoilt), batches=batches)[0],
        trained((nothing, targets), batches=batches)[0],
    )


def test_a_client_without_records_takes_the_same_noisy_steps() -> None:
    """Or it would be told from one that has a record, with certainty."""
    ledger = ClientLedger(dataset="d")
    inputs, targets = records()
    moved, result = trained((inputs[:0], targets[:0]), ledger=ledger)
    assert bool((moved != 0).all())
    assert (result.weight, result.guarantee.level) == (N, "none")  # seeded
    assert ledger.events == (Repeated(GaussianRelease(1.0, Full()), 2),)
    moved, result = trained(
        (inputs[:0], targets[:0]),
        protection=noisy(NoisyCount(noise_multiplier=5.0)),
        batches=PoissonBatches(sampling_rate=0.5, steps=3),
    )
    assert bool((moved != 0).all())
    assert result.weight >= 1


@pytest.mark.parametrize("protection", [ClipOnly(clipping_norm=1.0), noisy(PublicCount())])
def test_without_noise_or_with_a_public_count_an_empty_data_set_is_reported(
    protection: Protection,
) -> None:
    ledger = ClientLedger(dataset="d")
    inputs, targets = records()
    with pytest.raises(ValueError, match="data holds no record"):
        trained((inputs[:0], targets[:0]), protection=protection, ledger=ledger)
    assert not ledger.events


@pytest.mark.parametrize("protection", [ClipOnly(clipping_norm=1.0), noisy()])
@pytest.mark.parametrize("bad", [0, N])
def test_a_program_that_is_wrong_is_refused_whatever_the_records_are(
    protection: Protection, bad: int
) -> None:
    inputs, targets = records()
    targets[:bad] = 99
    for data, loss, error in (
        ((inputs[:, :4], targets), cross_entropy, RuntimeError),
        ((inputs, targets), lambda outputs, targets: outputs.sum(), ValueError),
        ((inputs, targets), lambda outputs, targets: 0 / 0, RuntimeError),
        ((inputs, targets), lambda outputs, targets: outputs.sum(1) / 0, RuntimeError),
    ):
        with pytest.raises(error, match="made up in the data's shapes"):
            trained(data, protection=protection, loss=loss)


def test_without_noise_a_training_in_which_no_record_takes_part_is_reported() -> None:
    inputs, targets = records()
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    before = model.weight.detach().clone()
    with pytest.raises(IndexError):
        train(
            model,
            (inputs, targets + 3),
            loss=cross_entropy,
            optimizer=torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=0.1),
            protection=ClipOnly(clipping_norm=1.0),
            batches=FullBatch(),
        )
    assert torch.equal(model.weight, before)


@settings(max_examples=15, deadline=None)
@given(bad=st.integers(0, 80), good=st.integers(0, 3), where=st.booleans())
def test_with_noise_no_number_of_malformed_records_ends_a_training(
    bad: int, good: int, where: bool
) -> None:
    """Not the first 32, nor all: one record more would decide whether the others count."""
    inputs, targets = torch.ones(bad + good, 5), torch.zeros(bad + good, dtype=torch.long)
    malformed = slice(0, bad) if where else slice(good, bad + good)
    targets[malformed] = 99
    ledger = ClientLedger(dataset="d")
    moved, _ = trained((inputs, targets), ledger=ledger)
    assert ledger.events == (Repeated(GaussianRelease(1.0, Full()), 2),)
    well_formed = targets != 99
    torch.testing.assert_close(moved, trained((inputs[well_formed], targets[well_formed]))[0])


@pytest.mark.parametrize("value", [-999.0, 1e38, float("nan"), float("inf"), 0.0])
@pytest.mark.parametrize("first", [nn.LayerNorm(5), nn.Identity(), nn.Softmax(1)])
def test_no_records_values_end_a_training(first: nn.Module, value: float) -> None:
    inputs, targets = records()
    for rows in (slice(0, 1), slice(None)):
        inputs[rows] = value
        model = nn.Sequential(first, nn.Linear(5, 3))
        train(
            model,
            (inputs, targets),
            loss=cross_entropy,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            protection=noisy(),
            batches=FullBatch(),
            ledger=ClientLedger(dataset="d"),
        )


class Odd(Dataset[tuple[Tensor, ...]]):
    """The first records are of another kind than the last."""

    def __init__(self, odd: object, number: int, good: int) -> None:
        self._odd, self._number, self._good = odd, number, good

    def __len__(self) -> int:
        return self._number + self._good

    def __getitem__(self, row: int) -> tuple[Tensor, ...]:
        if row >= self._number:
            return torch.ones(5), torch.tensor(1)
        if isinstance(self._odd, Exception):
            raise self._odd
        return self._odd  # type: ignore[return-value]


@pytest.mark.parametrize(
    "odd", [OSError("gone"), {"x": 1}, (torch.ones(4), torch.tensor(1)), (torch.ones(5),)], ids=str
)
@pytest.mark.parametrize("number", [1, 31, 32, 33, 70])
def test_records_of_another_kind_add_nothing_however_many_come_first(
    odd: object, number: int
) -> None:
    moved, _ = trained(Odd(odd, number, 4))
    expected = torch.ones(4, 5), torch.ones(4, dtype=torch.long)
    torch.testing.assert_close(moved, trained(expected)[0])


def test_records_of_which_none_can_be_read_are_as_none() -> None:
    inputs, targets = records()
    moved, _ = trained(Odd(OSError("gone"), 40, 0))
    torch.testing.assert_close(moved, trained((inputs[:0], targets[:0]))[0])


class Counting(nn.Linear):
    """Says that something is wrong, or remembers, where it sees a certain value."""

    def __init__(self, *, remembers: bool) -> None:
        super().__init__(5, 3)
        self.register_buffer("seen", torch.zeros(()))
        self.remembers = remembers

    def forward(self, x: Tensor) -> Tensor:
        if bool((x == 77).any()):
            if not self.remembers:
                raise GradientError("I do not like 77")
            self.seen += 1
        return super().forward(x)


@pytest.mark.parametrize("remembers", [False, True])
def test_a_model_that_goes_another_way_for_one_record_ends_no_training_with_noise(
    remembers: bool,
) -> None:
    inputs, targets = records()
    inputs[3] = 77
    head, model = Counting(remembers=remembers).requires_grad_(False), nn.Linear(3, 3)
    whole = nn.Sequential(head, model)
    train(
        whole,
        (inputs, targets),
        loss=cross_entropy,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        protection=noisy(),
        batches=FullBatch(steps=2),
        ledger=ClientLedger(dataset="d"),
        physical_batch_size=5,
    )
    assert not head.seen


@pytest.mark.parametrize("most", [1, 5, 23])
def test_want_of_memory_with_noise_is_met_by_smaller_batches(most: int) -> None:
    """It may be one record's doing."""

    def greedy(outputs: Tensor, targets: Tensor) -> Tensor:
        if len(targets) > most and outputs.requires_grad:
            raise MemoryError
        return cross_entropy(outputs, targets, reduction="none")

    inputs, targets = records()
    moved, _ = trained((inputs, targets), loss=greedy, size=16)
    torch.testing.assert_close(moved, trained((inputs, targets))[0])


def test_without_noise_want_of_memory_is_raised() -> None:
    calls = []

    def greedy(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(len(targets))
        if len(calls) > 9:
            raise MemoryError
        return cross_entropy(outputs, targets, reduction="none")

    with pytest.raises(MemoryError):
        trained(records(), loss=greedy, protection=ClipOnly(clipping_norm=1.0))
