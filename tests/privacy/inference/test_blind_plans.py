"""Plans for encrypted weights: what cannot be evaluated is refused where the plan is read."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from privacy.inference import Plan, Square, ThreeParties, compile_model
from privacy.inference.rescaling import AFTER, BOTH

PARTIES = ThreeParties("laboratory", "clinic", "cloud")


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.square = Square()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.square(self.first(x))
        return self.last(self.square(self.middle(h) + h) + h)


@cache
def good() -> Plan:
    torch.manual_seed(0)
    return compile_model(Residual(), input_shape=16, input_range=(-1, 1), parties=PARTIES).plan


def layer(index: int, **changes: Any) -> dict[str, Any]:
    """One layer with other fields."""
    layers = list(good().blind_layers)
    layers[index] = layers[index]._replace(**changes)
    return {"blind_layers": tuple(layers)}


def map_of(index: int, **changes: Any) -> dict[str, Any]:
    """The first map of a layer with other fields."""
    first, *others = good().blind_layers[index].maps
    return layer(index, maps=(first._replace(**changes), *others))


def products(index: int) -> tuple[int, ...]:
    return good().blind_layers[index].maps[0].products


CHANGES: dict[str, Callable[[], dict[str, Any]]] = {
    "the query at another level": lambda: layer(0, level=good().levels - 1),
    "more levels than a source has": lambda: layer(1, level=good().levels),
    "no level left to rescale": lambda: layer(1, level=1, rescale=AFTER),
    "no level left to rescale twice": lambda: layer(1, level=2, rescale=BOTH),
    "no such rescaling": lambda: layer(1, rescale=3),
    "an answer above its sources": lambda: {"answer_level": good().levels},
    "a value made later": lambda: map_of(1, source=2),
    "steps beyond the slots": lambda: map_of(1, window=1, products=(0, 2**30)),
    "as many steps as slots": lambda: map_of(1, window=1, products=(0, good().degree // 2)),
    "baby steps without a key": lambda: map_of(1, window=2048, products=(0, 777)),
    "giant steps without a key": lambda: map_of(1, window=5, products=(0, 5)),
    "sums without a key": lambda: map_of(1, sums=((5,),)),
    "sums beyond the slots": lambda: map_of(0, sums=((2**31 - 1,),)),
    "sums without end": lambda: map_of(0, sums=((0,),) * 3000),
    "products twice": lambda: map_of(1, products=products(1) * 2),
    "ciphertexts of the query twice": lambda: map_of(0, products=(0, 0, 1, 2)),
    "the same sources many times": lambda: {"blind_sources": (1,) * 300},
    "no key for products": lambda: {"relin_level": 0},
    "a key for products of one level": lambda: {"relin_level": 1},
    "keys at lower levels": lambda: {
        "rotation_levels": tuple((element, 1) for element, _ in good().rotation_levels)
    },
    "no layers, and an answer below the query": lambda: {
        "blind_layers": (),
        "blind_sources": (),
        "answer_level": 1,
    },
    "layers for nobody": lambda: {"parties": ()},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_plan_that_cannot_be_evaluated_is_refused(change: str) -> None:
    """Kernels read where the plan says, and evaluate as long as it says."""
    changed = CHANGES[change]()
    with pytest.raises(ValueError, match=r"blind_|relin_level|answer_level"):
        replace(good(), **changed)


def test_the_plan_that_was_changed_is_a_plan() -> None:
    assert Plan.from_json(good().to_json()) == good()
    assert json.loads(good().to_json())["blind_sources"] == [1, 2]
