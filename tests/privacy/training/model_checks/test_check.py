"""Models are refused with the layer's name and the remedy, or mended on request."""

import pytest
import torch
from opacus.layers import DPLSTM
from torch import nn

from privacy.training import ClipOnly, FullBatch, check_model, replace_unsupported, train
from privacy.training.errors import UnsupportedModelError


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    return model


class Counting(nn.Module):
    """Parameters and a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("seen", torch.zeros(1))


REFUSED = [
    (nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)), "'1' (BatchNorm2d)", "GroupNorm(4, 4)"),
    (nn.Sequential(nn.BatchNorm1d(3, affine=False), nn.Linear(3, 3)), "'0'", "GroupNorm"),
    (
        nn.Sequential(nn.InstanceNorm1d(3, track_running_stats=True), nn.Linear(3, 3)),
        "'0' (InstanceNorm1d)",
        "track_running_stats=False",
    ),
    (nn.ModuleDict({"rnn": nn.LSTM(3, 3)}), "'rnn' (LSTM)", "DPLSTM"),
    (nn.ModuleDict({"rnn": nn.GRU(3, 3)}), "'rnn' (GRU)", "DPGRU"),
    (nn.ModuleDict({"rnn": nn.RNN(3, 3)}), "'rnn' (RNN)", "DPRNN"),
    (nn.ModuleDict({"a": nn.MultiheadAttention(4, 2)}), "'a'", "replace_unsupported"),
    (nn.Sequential(nn.Embedding(3, 3, max_norm=1.0)), "'0' (Embedding)", "leave them out"),
    (nn.Sequential(nn.EmbeddingBag(3, 3)), "'0' (EmbeddingBag)", "nn.Embedding"),
    (nn.Sequential(Counting()), "'0' (Counting)", "submodules"),
    (tied(), "tied to '0.weight'", "own parameter"),
]


@pytest.mark.parametrize(("model", "layer", "remedy"), REFUSED)
def test_a_layer_that_breaks_gradients_is_named_with_the_remedy(
    model: nn.Module, layer: str, remedy: str
) -> None:
    with pytest.raises(UnsupportedModelError) as refusal:
        check_model(model)
    assert layer in str(refusal.value)
    assert remedy in str(refusal.value)
    assert len(refusal.value.problems) == 1


def test_every_problem_is_listed() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    with pytest.raises(UnsupportedModelError) as refusal:
        check_model(model)
    assert [problem.layer for problem in refusal.value.problems] == ["0", "2"]


def test_train_checks_first() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    with pytest.raises(UnsupportedModelError):
        train(
            model,
            (torch.randn(4, 3), torch.zeros(4, dtype=torch.long)),
            loss=nn.CrossEntropyLoss(),
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            protection=ClipOnly(clipping_norm=1.0),
            batches=FullBatch(),
        )


def test_a_frozen_layer_in_evaluation_is_let_be() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3).eval().requires_grad_(False), nn.Linear(3, 3))
    check_model(model)


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="no trainable parameter"):
        check_model(nn.Linear(3, 3).requires_grad_(False))


def test_what_can_be_replaced_is_replaced_in_a_copy() -> None:
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6, 2))
    fixed = replace_unsupported(model)
    assert isinstance(fixed[1], nn.GroupNorm)
    assert isinstance(model[1], nn.BatchNorm2d)
    torch.testing.assert_close(fixed[0].weight, model[0].weight)
    recurrent = nn.ModuleDict({"rnn": nn.LSTM(3, 4, batch_first=True)})
    other = replace_unsupported(recurrent)
    x = torch.randn(2, 5, 3)
    assert isinstance(other["rnn"], DPLSTM)
    torch.testing.assert_close(other["rnn"](x)[0], recurrent["rnn"](x)[0])


def test_what_has_no_replacement_is_still_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="EmbeddingBag"):
        replace_unsupported(nn.Sequential(nn.EmbeddingBag(3, 3), nn.BatchNorm1d(3)))
