"""A row's gradient, to the last bit, is the same whoever else is there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from math import inf

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from privacy.training._padded_rows import PaddedRows, Vectors
from privacy.training.per_example.loss import ExampleLoss
from privacy.training.records import records_of

ROWS = 60


class Uneven(nn.Module):
    """Rounds every second row of a batch otherwise, as a kernel might; or high ones alone."""

    def __init__(self, above: float = -inf) -> None:
        super().__init__()
        self.layer = nn.Linear(17, 3)
        self.above = above

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.layer(x)
        otherwise = (x[:, 0] > self.above) & (torch.arange(len(x)) % 2 == 1)
        return outputs * (1 + 2.0**-22 * otherwise)[:, None]


class Crowded(nn.Module):
    """Rounds otherwise beside other values."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(17, 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.layer(x)
        return outputs * (1 + 2.0**-20 * (x.detach().abs().sum().clamp(max=1e6).floor() % 64))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "two classes": lambda: nn.Linear(17, 2),
    "perceptron": lambda: nn.Sequential(nn.Linear(17, 33), nn.ReLU(), nn.Linear(33, 3)),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 17)), nn.Conv1d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(120, 3)
    ),
    "uneven": Uneven,
    "seldom": lambda: Uneven(above=1.6),  # a row in eighteen
    "crowded": Crowded,
}


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def gradients(model: nn.Module, data: tuple[Tensor, Tensor], size: int) -> Vectors:
    """Of all rows."""
    loss = ExampleLoss(cross_entropy, one_by_one=True)
    records, parameters = records_of(data), list(model.parameters())
    formats = list(records.formats())
    with PaddedRows(model, loss, parameters, records, formats, size=size) as of_rows:
        parts = torch.arange(len(data[0])).split(of_rows.at_once)
        return np.concatenate([of_rows(part) for part in parts])


def table() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(ROWS, 17, generator=generator)
    inputs[40:50] = inputs[30]  # equal rows, some with another label
    return inputs, torch.randint(0, 2, (ROWS,), generator=generator)


def model_of(kind: str) -> nn.Module:
    torch.manual_seed(1)
    return MODELS[kind]()


@cache
def _of_all(kind: str, size: int, threads: int) -> Vectors:
    return gradients(model_of(kind), table(), size)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(("size", "count"), [(3, 1), (32, 1), (32, 2)])
@settings(max_examples=8, deadline=None)
@given(st.data())
def test_no_bit_of_a_row_depends_on_who_else_is_there(
    kind: str, size: int, count: int, data: st.DataObject
) -> None:
    """Any rows, in any order, some twice, beside others that were never there before."""
    model, (inputs, targets) = model_of(kind), table()
    some = data.draw(st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=ROWS))
    strangers = data.draw(st.integers(0, 40))
    scale = data.draw(st.sampled_from([0.0, 1.0, 1e30]))
    places = data.draw(st.permutations(range(len(some) + strangers)))
    beside = scale * torch.randn(strangers, 17)
    mixed = torch.cat([inputs[some], beside])[places]
    classes = torch.cat([targets[some], torch.ones(strangers, dtype=torch.long)])[places]
    with threads(count):
        before = _of_all(kind, size, count)
        among = gradients(model, (mixed, classes), size)
    for at, place in enumerate(places):
        if place < len(some):
            assert among[at].tobytes() == before[some[place]].tobytes()


def test_a_place_that_seldom_counts_is_found() -> None:
    model, (inputs, targets) = Uneven(above=1.6), table()
    inputs[:2, 0] = 2.0
    one_way = gradients(model, (inputs[:2], targets[:2]), 3)
    other_way = gradients(model, (inputs[:2].flip(0), targets[:2].flip(0)), 3)
    assert other_way[::-1].tobytes() == one_way.tobytes()


def test_rows_have_places_of_their_own_in_whole_blocks() -> None:
    """Not one at a time; and equal rows, which all have one place, cost one block together."""
    model, calls = Uneven(), []
    model.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    inputs = torch.randn(512, 17, generator=torch.Generator().manual_seed(3))
    for rows, most in ((inputs, 2.2), (inputs[:1].expand(512, -1), 0.1)):
        calls.clear()
        gradients(model, (rows, torch.zeros(len(rows), dtype=torch.long)), 32)
        trial = 12  # in blocks
        assert calls.count(32) <= trial + most * 512 / 32
        assert 1 not in calls


def test_rows_are_alone_where_others_values_change_their_bits() -> None:
    model, calls = Crowded(), []
    model.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    gradients(model, table(), 32)
    assert calls.count(1) == ROWS
