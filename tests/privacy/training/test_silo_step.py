"""A silo's noisy sum over persons: whose gradients, how long, how noisy, and paid when."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import Dataset

from privacy.accounting import Budget, Full, Poisson, Repeated
from privacy.mechanisms import SeededRandomness, SiloGaussian, SystemRandomness
from privacy.training import ClientLedger, Persons, SiloStep, silo_sum, trained_parameters
from privacy.training.errors import GradientError, LocalBudgetError, UnsupportedModelError

FALSE_ALARM = 1e-6
R = 1 << 16


def step(**changed: Any) -> SiloStep:
    usual: dict[str, Any] = {
        "mechanism": SiloGaussian(3, 1),
        "clipping_norm": 1.0,
        "noise_multiplier": 1.0,
        "sampling_rate": 1.0,
        "persons": 10_000,
    }
    return SiloStep(**usual | changed)


def summed(
    model: nn.Module,
    data: Any,
    ids: Any = None,
    *,
    loss: Callable[..., Tensor] = cross_entropy,
    size: int = 64,
    seed: int = 7,
    **changed: Any,
) -> Any:
    """The sum less its noise, which is the sum of a silo without records and with that seed."""
    settings = step(**changed)
    mapped = isinstance(data, Dataset)
    nobody = Persons.empty() if mapped else Persons([each[:0] for each in data])
    noisy, noise = (
        silo_sum(
            model,
            persons,
            loss=loss,
            step=settings,
            ledger=None,
            physical_batch_size=size,
            randomness=SeededRandomness(seed),
        )
        for persons in (Persons(data, ids), nobody)
    )
    assert settings.sampling_rate == 1  # coins would come before the noise
    return noisy - noise


def table(rows: int, columns: int = 5, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    inputs = torch.randn(rows, columns, generator=generator)
    return inputs, torch.randint(0, classes, (rows,), generator=generator)


TABLE = table(23)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


def expected(model: nn.Module, data: Any, groups: Sequence[Sequence[int]], norm: float) -> Any:
    """Torch's own gradient of each person's mean loss, in double precision, clipped and summed."""
    double = nn.Sequential(*model).double() if isinstance(model, nn.Sequential) else model.double()
    total = 0
    for rows in groups:
        double.zero_grad()
        cross_entropy(double(data[0][rows].double()), data[1][rows]).backward()
        vector = np.concatenate([p.grad.flatten().numpy() for p in double.parameters()])
        total = total + vector * min(1, norm / np.linalg.norm(vector))
    model.float()
    return total


IDS = [3, 1, 1, 2, 3, 9, 4, 1, 5, 6, 7, 7, 8, 0, 3, 10, 11, 1, 12, 13, 14, 15, 1]


@pytest.mark.parametrize("ids", [None, IDS, [f"patient {i}" for i in IDS], np.array(IDS)])
@pytest.mark.parametrize("norm", [0.02, 1.0, 1e6])
@pytest.mark.parametrize("size", [1, 4, 64])
def test_it_is_the_sum_of_the_persons_clipped_mean_gradients(
    ids: Any, norm: float, size: int
) -> None:
    model = small()
    groups: Any = [[row] for row in range(23)]
    if ids is not None:
        groups = [[row for row, of in enumerate(IDS) if of == one] for one in set(IDS)]
    sums = summed(model, TABLE, ids, size=size, clipping_norm=norm)
    wanted = expected(model, TABLE, groups, norm) * R / norm
    assert np.abs(sums - wanted).max() <= 1 + len(groups) * R * 2.0**-19 + 1e-6 * R / norm


def test_a_person_counts_as_one_whatever_the_number_of_rows() -> None:
    """The same row many times is the same person; also beside others, and across blocks."""
    model, (inputs, targets) = small(), TABLE
    repeated = inputs[:1].expand(9, -1), targets[:1].expand(9)
    for norm in (0.1, 100.0):
        once = summed(model, (inputs[:1], targets[:1]), clipping_norm=norm)
        many = summed(model, repeated, [5] * 9, size=4, clipping_norm=norm)
        assert np.abs(once - many).max() <= 1
        nine = summed(model, repeated, size=4, clipping_norm=norm)
        assert np.abs(9 * once - nine).max() <= 9


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 3), (6,)),
    "perceptron": (lambda: nn.Sequential(nn.Linear(6, 33), nn.ReLU(), nn.Linear(33, 3)), (6,)),
    "sequence": (
        lambda: nn.Sequential(
            nn.Unflatten(1, (2, 3)), nn.Linear(3, 40), nn.Flatten(), nn.Linear(80, 3)
        ),
        (6,),
    ),
    "normalised": (
        lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3)),
        (6,),
    ),
    "convolution": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2),
            nn.Flatten(),
            nn.Linear(144, 3),
        ),
        (1, 8, 8),
    ),
}


def within(moved: Any, radius: int) -> bool:
    """Whether the norm is at most R + √d, exactly."""
    square, size = sum(int(i) ** 2 for i in moved), len(moved)
    beyond = square - radius**2 - size
    return beyond <= 0 or beyond**2 <= 4 * radius**2 * size


ANY = st.one_of(
    st.floats(width=32, allow_nan=True, allow_infinity=True),
    st.floats(-3, 3, width=32),
    st.sampled_from([0.0, 1e-38, 3e38, -3e38]),
)


@pytest.mark.parametrize("kind", MODELS)
@settings(max_examples=25, deadline=None)
@given(
    values=st.lists(ANY, min_size=6, max_size=6),
    labels=st.lists(st.integers(0, 2), min_size=1, max_size=9),
    place=st.integers(0, 10),
    size=st.sampled_from([1, 4, 16]),
    norm=st.sampled_from([1e-6, 0.1, 10.0, 1e6]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.float64]),
    bits=st.sampled_from([0, 4, 16]),
)
def test_no_person_moves_the_sum_by_more_than_is_charged(
    kind: str,
    values: list[float],
    labels: list[int],
    place: int,
    size: int,
    norm: float,
    dtype: torch.dtype,
    bits: int,
) -> None:
    """Any values in any number of rows, put anywhere among others: every other bit stays."""
    make, shape = MODELS[kind]
    torch.manual_seed(1)
    model = make().to(dtype)
    others, targets = table(10, math.prod(shape))
    rows = torch.tensor(values).repeat(math.ceil(math.prod(shape) / 6))[: math.prod(shape)]
    rows = rows * torch.linspace(1, 0.25, len(labels))[:, None]
    inputs = torch.cat([others[:place], rows, others[place:]]).reshape(-1, *shape).to(dtype)
    classes = torch.cat([targets[:place], torch.tensor(labels), targets[place:]])
    ids = [*range(place), *[99] * len(labels), *range(place, 10)]
    given_settings: dict[str, Any] = {
        "size": size,
        "clipping_norm": norm,
        "noise_multiplier": 8.0,
        "mechanism": SiloGaussian(3, 1, radius=1 << bits),
    }
    without = summed(model, (others.reshape(-1, *shape).to(dtype), targets), **given_settings)
    moved = summed(model, (inputs, classes), ids, **given_settings) - without
    assert within(moved, 1 << bits)
    if not torch.isfinite(inputs).all() and len(labels) == 1:
        assert not moved.any()


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("size", [1, 8, 64])
def test_a_person_who_adds_nothing_changes_no_bit(kind: str, size: int) -> None:
    """Where a batch's size, or a row's place in it, changed others' bits, this would show."""
    make, shape = MODELS[kind]
    torch.manual_seed(2)
    model = make()
    inputs, targets = table(70, math.prod(shape))
    inputs = inputs.reshape(-1, *shape)
    without = summed(model, (inputs, targets), size=size)
    for place in (0, 5, 63, 70):
        broken = torch.full((1, *shape), math.nan)
        more = torch.cat([inputs[:place], broken, inputs[place:]])
        classes = torch.cat([targets[:place], targets[:1], targets[place:]])
        assert np.array_equal(summed(model, (more, classes), size=size), without)
    order = torch.randperm(70, generator=torch.Generator().manual_seed(3))
    assert np.array_equal(summed(model, (inputs[order], targets[order]), size=size), without)


class Uneven(nn.Module):
    """Rounds every second row of a batch otherwise, as a kernel might."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.layer(x)
        uneven = 1 + 2.0**-12 * (torch.arange(len(x)) % 2)
        return outputs * uneven[:, None]


class Sized(nn.Module):
    """Rounds otherwise in batches of other sizes, as kernels do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.layer(x)
        return outputs * (1 + 2.0**-20 * (len(x) % 7))


def test_every_block_has_the_same_size() -> None:
    """One row more would change the size of the last block, and so the others' bits."""
    torch.manual_seed(6)
    model, (inputs, targets) = Sized(), TABLE
    fine: dict[str, Any] = {"mechanism": SiloGaussian(3, 1, radius=1 << 20), "size": 8}
    without = summed(model, (inputs, targets), **fine)
    for place in (0, 23):
        more = torch.cat([inputs[:place], torch.full((1, 5), math.nan), inputs[place:]])
        classes = torch.cat([targets[:place], targets[:1], targets[place:]])
        assert np.array_equal(summed(model, (more, classes), **fine), without)


def test_the_order_of_rows_changes_no_bit_where_their_place_would() -> None:
    torch.manual_seed(4)
    model, (inputs, targets) = Uneven(), TABLE
    order = torch.randperm(23, generator=torch.Generator().manual_seed(5))
    one = summed(model, (inputs, targets), clipping_norm=1e-3)
    other = summed(model, (inputs[order], targets[order]), clipping_norm=1e-3)
    assert np.array_equal(one, other)


class Unsteady(nn.Module):
    """Rounds otherwise every time."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(5, 3), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        outputs: Tensor = self.layer(x)
        return outputs * (1 + 2.0**-22 * (self.calls % 3))


def test_kernels_that_round_otherwise_every_time_are_refused() -> None:
    with pytest.raises(GradientError, match="use_deterministic_algorithms"):
        summed(Unsteady(), TABLE)


class Broken(Dataset[tuple[Tensor, ...]]):
    """Rows of a table of which some raise, have another shape or a label that is no class."""

    def __init__(self, wrong: dict[int, Any]) -> None:
        self.wrong = wrong

    def __len__(self) -> int:
        return 23

    def __getitem__(self, row: int) -> tuple[Tensor, ...]:
        wrong = self.wrong.get(row)
        if wrong == "raise":
            raise OSError("no such file")
        if wrong == "shape":
            return TABLE[0][row, :2], TABLE[1][row]
        if wrong == "label":
            return TABLE[0][row], torch.tensor(77)
        if wrong == "nan":
            return TABLE[0][row] * math.nan, TABLE[1][row]
        return TABLE[0][row], TABLE[1][row]


def test_a_malformed_row_adds_zero_and_changes_nothing_else(caplog: Any) -> None:
    model = small()
    whole = summed(model, Broken({}), IDS)
    # Row 5 is all that person 9 has; row 7 is one of person 1's five.
    for wrong in ("raise", "shape", "label", "nan"):
        rest = [row for row in range(23) if row != 5]
        without = summed(model, [each[rest] for each in TABLE], [IDS[row] for row in rest])
        assert np.array_equal(summed(model, Broken({5: wrong}), IDS), without)
        other = summed(model, Broken({7: wrong}), IDS)
        assert within(other - whole, 2 * R)
        assert (other != whole).any()
    assert "add nothing" in caplog.text


def test_a_silo_whose_every_record_fails_sends_noise() -> None:
    for data in (
        Broken(dict.fromkeys(range(23), "raise")),
        (TABLE[0] * math.nan, TABLE[1]),
        [each[:0] for each in TABLE],
    ):
        noise = silo_sum(
            small(),
            Persons(data),
            loss=cross_entropy,
            step=step(noise_multiplier=50.0),
            ledger=None,
            randomness=SeededRandomness(1),
        )
        assert noise.dtype == np.int64
        assert noise.any()


def test_the_share_of_noise_is_of_the_claimed_spread() -> None:
    """Chi-square over many steps of an empty silo: a false alarm in 10⁶ runs."""
    settings = step(mechanism=SiloGaussian(8, 2), noise_multiplier=1.5)
    empty = Persons([each[:0] for each in TABLE])
    draws = [
        silo_sum(small(), empty, loss=cross_entropy, step=settings, ledger=None) for _ in range(40)
    ]
    assert len({draw.tobytes() for draw in draws}) == len(draws)
    noise = np.concatenate(draws) / (1.5 * R) * math.sqrt(6)
    square, size = float(np.square(noise).sum()), noise.size
    assert (
        stats.chi2.isf(1 - FALSE_ALARM / 2, size) < square < stats.chi2.isf(FALSE_ALARM / 2, size)
    )


class Tagged(nn.Module):
    """Each row has an input of its own, so that the sum shows who was drawn."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.layer = nn.Linear(rows, 1, bias=False)
        nn.init.zeros_(self.layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.layer(x)
        return outputs


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_every_person_is_drawn_at_the_rate_by_coins_of_their_own(rate: float) -> None:
    """Binomial tests of persons and of steps: a false alarm in 10⁶ runs together."""
    persons, steps = 60, 60
    inputs = torch.eye(persons).repeat_interleave(3, 0)  # three rows each
    data = Persons((inputs, torch.full((3 * persons, 1), 8.0)), np.arange(persons).repeat(3))
    model = Tagged(persons)
    settings = step(sampling_rate=rate, noise_multiplier=0.01)
    drawn = np.array(
        [
            silo_sum(model, data, loss=mse_loss, step=settings, ledger=None) < -R / 2
            for _ in range(steps)
        ]
    )
    tail = FALSE_ALARM / 4 / persons
    for counts in (drawn.sum(axis=0), drawn.sum(axis=1)):
        assert counts.min() >= stats.binom.ppf(tail, persons, rate)
        assert counts.max() <= stats.binom.isf(tail, persons, rate)
    # Cohorts vary in size as coins do: shuffled batches of fixed size would not.
    assert drawn.sum(axis=1).std() > 0.3 * math.sqrt(persons * rate * (1 - rate))


def test_it_is_paid_before_a_record_is_tried() -> None:
    class Watched(Broken):
        def __getitem__(self, row: int) -> tuple[Tensor, ...]:
            seen.append(len(ledger.events))
            return super().__getitem__(row)

    seen: list[int] = []
    ledger = ClientLedger(dataset="ward-7")
    data = Persons(Watched({}), IDS)
    seen.clear()
    settings = step(sampling_rate=0.5)
    silo_sum(small(), data, loss=cross_entropy, step=settings, ledger=ledger)
    assert ledger.events == (settings.event(39),)
    assert set(seen) == {1}


def test_a_budget_that_is_spent_declines_without_a_number() -> None:
    settings = step(sampling_rate=0.1)
    run = Repeated(settings.event(39), 20)
    ledger = ClientLedger(dataset="ward-7", budget=Budget(5.0, 1e-5))
    ledger.charge(run)
    spent = ledger.epsilon(delta=1e-5)
    for _ in range(20):  # paid already
        silo_sum(small(), Persons(TABLE), loss=cross_entropy, step=settings, ledger=None)
    assert ledger.epsilon(delta=1e-5) == spent
    with pytest.raises(LocalBudgetError) as declined:
        ledger.charge(*[run] * 20)
    assert not any(character.isdigit() for character in str(declined.value))


def test_the_event_is_the_mechanisms() -> None:
    settings = step(sampling_rate=0.25, noise_multiplier=0.75)
    assert settings.sampling == Poisson(0.25)
    assert step().sampling == Full()
    assert settings.event(39) == SiloGaussian(3, 1).account(
        parameters=39, noise_multiplier=0.75, sampling=Poisson(0.25)
    )


def test_the_vector_is_that_of_the_trained_parameters_in_order() -> None:
    model = small()
    assert isinstance(model, nn.Sequential)
    model[0].weight.requires_grad_(False)
    assert list(trained_parameters(model)) == ["0.bias", "2.weight", "2.bias"]
    sums = summed(model, TABLE, clipping_norm=100.0) * 100.0 / R
    model.double()
    loss = cross_entropy(model(TABLE[0].double()), TABLE[1], reduction="sum")
    gradients = torch.autograd.grad(loss, list(trained_parameters(model).values()))
    assert sums == pytest.approx(torch.cat([g.flatten() for g in gradients]).numpy(), abs=0.01)


def test_the_model_stays_as_it_is() -> None:
    model = nn.Sequential(small(), nn.Dropout(0.5))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    summed(model, TABLE)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_dropout_does_not_follow_a_seed_of_the_process() -> None:
    """With one, another person would move the others' masks; the process's own stream stays."""
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 3))
    sums = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        before = torch.get_rng_state()
        faint = step(noise_multiplier=1e-3, clipping_norm=100.0)
        sums.append(silo_sum(model, Persons(TABLE), loss=cross_entropy, step=faint, ledger=None))
        assert torch.equal(torch.get_rng_state(), before)
    noise = 1e-3 * R / math.sqrt(2)
    assert np.abs(sums[0] - sums[1]).max() > 8 * noise


def focal(outputs: Tensor, targets: Tensor) -> Tensor:
    log_p = torch.log_softmax(outputs, 1).gather(1, targets[:, None])[:, 0]
    return -((1 - log_p.exp()) ** 2) * log_p


def test_a_loss_of_ones_own_gets_one_example_at_a_time() -> None:
    """A malformed row must not change how the others' losses are computed."""
    inputs, targets = TABLE
    without = summed(small(), (inputs, targets), loss=focal)
    more = torch.cat([inputs[:3], inputs[:1], inputs[3:]])
    classes = torch.cat([targets[:3], torch.tensor([77]), targets[3:]])
    assert np.array_equal(summed(small(), (more, classes), loss=focal), without)


@pytest.mark.parametrize(
    ("model", "error", "match"),
    [
        (nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)), UnsupportedModelError, "BatchNorm1d"),
        (nn.Sequential(nn.Linear(4, 3)), RuntimeError, "made up in the data's shapes"),
        (nn.Linear(5, 3).requires_grad_(False), ValueError, "trainable"),
        ("a model", TypeError, "model"),
    ],
)
def test_models_are_refused_as_in_client_training(model: Any, error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        summed(model, TABLE)


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"person_ids": [1] * 22}, ValueError, "22 ids for 23 rows"),
        ({"person_ids": "a" * 23}, TypeError, "one id a row"),
        ({"person_ids": 23}, TypeError, "one id a row"),
        ({"person_ids": [1.5] * 23}, TypeError, r"person_ids\[0\]"),
        ({"person_ids": [None] * 23}, TypeError, r"person_ids\[0\]"),
        ({"person_ids": [True] * 23}, TypeError, r"person_ids\[0\]"),
        ({"data": TABLE[0]}, TypeError, "data is one tensor"),
    ],
)
def test_ids_are_one_a_row(given: Any, error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        Persons(**{"data": TABLE} | given)


def test_persons_are_counted() -> None:
    persons = Persons(TABLE, torch.tensor(IDS))
    assert (len(persons), persons.rows) == (16, 23)
    assert [list(rows) for rows in persons.groups[:2]] == [[0, 4, 14], [1, 2, 7, 17, 22]]


@pytest.mark.parametrize("same", ["7", 7.0, " 7", "007", "7.0", np.str_("7"), np.float32(7)])
def test_a_whole_number_is_one_id_however_it_is_written(same: Any) -> None:
    persons = Persons(TABLE, [7, *range(100, 121), same])
    assert list(persons.groups[0]) == [0, 22]
    assert len(persons) == 22
    assert len(Persons(TABLE, ["P7", 7, "7a", "1e5", 100000, "-7", *range(200, 217)])) == 23


@pytest.mark.parametrize(
    "odd", [None, math.nan, "", "  ", "nan", "N/A", True, 1.5, 1e300, (1,), np.float64("nan")]
)
def test_a_row_whose_id_cannot_be_used_costs_that_row_alone(odd: Any, caplog: Any) -> None:
    model, rest = small(), list(range(22))
    without = summed(model, [each[rest] for each in TABLE], IDS[:22])
    persons = Persons(TABLE, [*IDS[:22], odd])
    assert persons.person_of_row[22] == -1
    assert 22 not in np.concatenate(persons.groups)
    assert np.array_equal(summed(model, TABLE, [*IDS[:22], odd]), without)
    assert "1 of 23 rows add nothing" in caplog.text


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs - targets) ** 2).flatten(1).sum(1)


class Pairs(Dataset[tuple[Tensor, ...]]):
    def __init__(self, pairs: list[tuple[Tensor, ...]]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, row: int) -> tuple[Tensor, ...]:
        return self.pairs[row]


@pytest.mark.parametrize("place", [0, 7, 23])
def test_a_record_that_model_and_loss_refuse_adds_zero_wherever_it_is(place: int) -> None:
    """A scalar target meets the loss's batch axis: trials of its format raise."""
    model = nn.Linear(5, 3)
    pairs = [(x, x[:3]) for x in TABLE[0]]
    odd = TABLE[0][0], torch.tensor(1.0)
    without = summed(model, Pairs(pairs), loss=squared)
    more = Pairs([*pairs[:place], odd, *pairs[place:]])
    assert np.array_equal(summed(model, more, loss=squared), without)


def test_whose_every_record_is_refused_adds_nothing(caplog: Any) -> None:
    odd = TABLE[0][0], torch.tensor(1.0)
    for pairs in ([odd], [odd] * 3):
        assert not summed(nn.Linear(5, 3), Pairs(pairs), loss=squared).any()
    assert "No record can be trained on" in caplog.text


def test_rows_and_their_persons_can_be_taken() -> None:
    persons = Persons(TABLE, IDS)
    owners = persons.person_of_row
    assert [list(np.flatnonzero(owners == one)) for one in range(16)] == [
        list(rows) for rows in persons.groups
    ]
    inputs, targets = persons.take(torch.tensor([2, 5]))
    assert torch.equal(inputs, TABLE[0][[2, 5]])
    assert torch.equal(targets, TABLE[1][[2, 5]])


def test_by_row_every_row_is_a_unit_of_its_own() -> None:
    rows = Persons(TABLE, IDS).by_row()
    assert sorted(map(tuple, rows.groups)) == [(row,) for row in range(23)]
    whole = Persons(TABLE, IDS)
    whole.by_row()
    assert len(whole) == 16


def test_nobody_sends_noise_whatever_the_model() -> None:
    nobody = Persons.empty()
    assert (len(nobody), nobody.rows, nobody.person_of_row.shape) == (0, 0, (0,))
    for model in (small(), nn.Conv2d(1, 2, 3)):
        noise = silo_sum(model, nobody, loss=cross_entropy, step=step(), ledger=None)
        assert noise.any()


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"sampling_rate": 0.0}, "sampling_rate"),
        ({"sampling_rate": 1.5}, "sampling_rate"),
        ({"noise_multiplier": 0.0}, "noise_multiplier"),
        ({"clipping_norm": 1e13}, "clipping_norm"),
    ],
)
def test_impossible_steps_are_refused(given: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        step(**given)


@pytest.mark.parametrize("name", ["persons", "step", "ledger", "randomness", "physical_batch_size"])
def test_arguments_of_another_kind_are_named(name: str) -> None:
    usual = {"persons": Persons(TABLE), "step": step(), "ledger": None}
    with pytest.raises(TypeError, match=f"^{name} "):
        silo_sum(small(), **{"loss": cross_entropy} | usual | {name: "x"})  # type: ignore[arg-type]


def test_the_systems_randomness_is_the_default() -> None:
    assert SystemRandomness.private
    draws = [
        silo_sum(small(), Persons(TABLE), loss=cross_entropy, step=step(), ledger=None)
        for _ in range(2)
    ]
    assert not np.array_equal(*draws)
