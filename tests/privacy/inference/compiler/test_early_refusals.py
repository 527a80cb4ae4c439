"""Refusals that need no matrix, and affine layers in a row."""

import pytest
import torch
from torch import nn

from privacy.inference import Polynomial, Square, compile_model
from privacy.inference.compiler.lowering import composition, operation
from privacy.inference.compiler.lowering.lower import lower
from privacy.inference.errors import CannotPlanError, LayerInputError

WIDE = 16_384


def no_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a matrix was made")

    monkeypatch.setattr(operation.Operation, "affine", refuse)


@pytest.mark.parametrize(
    ("model", "shape", "words"),
    [
        (nn.Linear(40_000, 100), (40_000,), "32,000,000 bytes or more.*the model has 100 outputs"),
        (
            nn.Sequential(nn.Linear(4000, 900), Square(), nn.Linear(900, 10)),
            (4000,),
            r"32,768,000 bytes or more.*layer 0 \(Linear\) has 900 outputs that read 4,000 inputs",
        ),
        (
            nn.Sequential(
                nn.Conv2d(3, 8, 31, padding=15), Square(), nn.Flatten(), nn.Linear(8192, 10)
            ),
            (3, 32, 32),
            "has 8,192 outputs that read 2,883 inputs",
        ),
    ],
)
def test_a_query_that_is_sure_to_be_too_large_is_refused_before_a_matrix_is_made(
    model: nn.Module, shape: tuple[int, ...], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_matrices(monkeypatch)
    with pytest.raises(CannotPlanError, match=words):
        compile_model(model, input_shape=shape, input_range=(0, 1))


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(64, 10),
        nn.Sequential(nn.Linear(64, 33), Square(), nn.Linear(33, 10)),
        nn.Sequential(nn.Linear(64, 20), Polynomial([0.1, 1.0]), nn.Linear(20, 4)),
        nn.Sequential(nn.Linear(64, 20), Polynomial([0.1, 1.0, 1e-15]), nn.Linear(20, 4)),
        nn.Sequential(nn.Linear(64, 20), Polynomial([0.1, 1.0, 0.2, 0.1]), nn.Linear(20, 4)),
        nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, 4, 3, padding=1),
            Square(),
            nn.Flatten(),
            nn.Linear(256, 4),
        ),
    ],
)
def test_the_bound_is_below_what_a_query_takes(model: nn.Module) -> None:
    needed = compile_model(model, input_shape=64, input_range=(-1, 1)).plan.query_bytes
    lower(model, (64,), widest=WIDE, max_query_bytes=needed)


class Branches(nn.Module):
    """Affine layers in a row and side by side, the output narrow or wide."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.last = nn.Linear(48, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.last((x + self.second(x) - 2 * x[:, [1, 0, 2]]).flatten(1))


def test_affine_layers_are_one_map_whichever_end_they_are_multiplied_from() -> None:
    torch.manual_seed(0)
    model = Branches(40)
    wide, narrow = model, Branches(3)
    narrow.load_state_dict(
        {**wide.state_dict(), "last.weight": wide.last.weight[:3], "last.bias": wide.last.bias[:3]}
    )
    (whole,) = lower(wide, (2, 4, 4)).layers[0].affines
    (part,) = lower(narrow, (2, 4, 4)).layers[0].affines
    difference = whole.matrix.toarray()[:3] - part.matrix.toarray()
    assert abs(difference).max() < 1e-12
    assert abs(whole.bias[:3] - part.bias).max() < 1e-12
    assert (whole.structure.toarray()[:3] == part.structure.toarray()).all()


@pytest.mark.parametrize("outputs", [3, 40])
def test_a_product_of_too_many_weights_is_refused_by_name(
    outputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(composition, "_MAX_ENTRIES", 50)
    with pytest.raises(CannotPlanError, match=r"layer .*are one matrix of about [0-9,]+ weights"):
        lower(Branches(outputs), (2, 4, 4))


def test_layers_that_do_not_go_together_are_a_public_error() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(4, 2))
    with pytest.raises(LayerInputError, match="does not take inputs"):
        compile_model(model, input_shape=4, input_range=(0, 1))
