"""Replacements compute what the originals do, or are refused by name."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from privacy.inference import compile_model
from privacy.inference.errors import UnsupportedLayerError
from privacy.training import (
    ClientLedger,
    ClipAndNoise,
    ClipOnly,
    FullBatch,
    GradientDescent,
    NominalCount,
    check_model,
    replace_unsupported,
    train,
)
from privacy.training.errors import UnsupportedModelError


def replaced(layer: nn.Module) -> nn.Module:
    return replace_unsupported(nn.ModuleDict({"layer": layer}))["layer"]  # type: ignore[index]


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, tuple):
        for mine, theirs in zip(one, other, strict=True):
            assert_same(mine, theirs)
    elif one is None:
        assert other is None
    else:
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    heads=st.sampled_from([1, 2, 4]),
    batch_first=st.booleans(),
    bias=st.booleans(),
    extra=st.tuples(st.booleans(), st.booleans()),
    widths=st.sampled_from([(None, None), (5, 7)]),
    attn=st.sampled_from([None, "bool", "float", "each"]),
    padding=st.sampled_from([None, "bool", "float"]),
    weights=st.booleans(),
    average=st.booleans(),
    causal=st.booleans(),
)
def test_attention_gives_the_same_whatever_it_is_asked(
    seed: int,
    heads: int,
    batch_first: bool,
    bias: bool,
    extra: tuple[bool, bool],
    widths: tuple[int | None, int | None],
    attn: str | None,
    padding: str | None,
    weights: bool,
    average: bool,
    causal: bool,
) -> None:
    torch.manual_seed(seed)
    attention = nn.MultiheadAttention(
        8,
        heads,
        bias=bias,
        add_bias_kv=extra[0],
        add_zero_attn=extra[1],
        kdim=widths[0],
        vdim=widths[1],
        batch_first=batch_first,
    )
    n, target, source = 3, 4, 6
    q = torch.randn(n, target, 8)
    k, v = (torch.randn(n, source, width or 8) for width in widths)
    if not batch_first:
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    hidden = torch.rand(target, source) < 0.3
    hidden[:, 0] = False
    masks = {
        None: None,
        "bool": hidden,
        "float": torch.randn(target, source),
        "each": torch.randn(n * heads, target, source),
    }
    late = torch.arange(source).expand(n, -1) >= torch.tensor([[6], [3], [5]])
    how = {
        "attn_mask": masks[attn],
        "key_padding_mask": {None: None, "bool": late, "float": late * -3.0}[padding],
        "need_weights": weights,
        "average_attn_weights": average,
        "is_causal": causal and attn == "bool",
    }
    if how["is_causal"]:
        how["attn_mask"] = torch.ones(target, source, dtype=torch.bool).triu(1)
    other = replaced(attention)
    assert_same(attention(q, k, v, **how), other(q, k, v, **how))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_transformers_give_the_same(batch_first: bool, norm_first: bool) -> None:
    torch.manual_seed(0)
    options = {"dropout": 0.0, "batch_first": batch_first, "norm_first": norm_first}
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, **options), 2)
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, **options), 2)
    source, target = torch.randn(3, 5, 8), torch.randn(3, 4, 8)
    padding = torch.arange(5).expand(3, -1) >= torch.tensor([[5], [3], [4]])
    causal = nn.Transformer.generate_square_subsequent_mask(4)
    if not batch_first:
        source, target = source.transpose(0, 1), target.transpose(0, 1)
    for training in (True, False):
        encoder.train(training), decoder.train(training)
        new_encoder, new_decoder = replace_unsupported(encoder), replace_unsupported(decoder)
        assert new_encoder.training == training
        with torch.set_grad_enabled(training):
            memory = encoder(source, src_key_padding_mask=padding)
            given_memory = new_encoder(source, src_key_padding_mask=padding)
            seen = ~padding if batch_first else ~padding.T
            torch.testing.assert_close(given_memory[seen], memory[seen], rtol=1e-4, atol=1e-5)
            how = {"tgt_mask": causal, "tgt_is_causal": True, "memory_key_padding_mask": padding}
            memory = memory.nan_to_num()
            assert_same(decoder(target, memory, **how), new_decoder(target, memory, **how))


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.LSTM(3, 4, 2, batch_first=True, bidirectional=True),
        lambda: nn.LSTM(3, 4, bias=False),
        lambda: nn.GRU(3, 4, 2, batch_first=True).double(),
        lambda: nn.RNN(3, 4, nonlinearity="relu"),
        lambda: nn.RNN(3, 4, 2, bidirectional=True).eval(),
    ],
)
def test_recurrent_layers_give_the_same(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    layer = make()
    next(layer.parameters()).requires_grad_(False)
    other = replaced(layer)
    inputs = torch.randn(3, 5, 3, dtype=next(layer.parameters()).dtype)
    assert_same(layer(inputs), other(inputs))
    assert other.training == layer.training
    assert [p.dtype for p in other.parameters()] == [p.dtype for p in layer.parameters()]
    assert not next(other.parameters()).requires_grad


def doubled(module: nn.Module, inputs: object, outputs: Any) -> Any:
    return 2 * outputs[0], *outputs[1:]


@pytest.mark.parametrize("layer", [nn.LSTM(3, 4, proj_size=2), nn.GRU(3, 4)])
def test_what_has_no_same_replacement_is_refused_by_name(layer: nn.Module) -> None:
    """Opacus has none for projections, and none knows what a hook does."""
    if isinstance(layer, nn.GRU):
        layer.register_forward_hook(doubled)
    with pytest.raises(UnsupportedModelError, match=r"'layer' .*replacement"):
        replaced(layer)


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_replaced_transformer_trains_by_its_own_gradient(batch_first: bool) -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(20, 8)
            self.encoder = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=batch_first)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.table(x)
            h = self.encoder(h) if batch_first else self.attended(h)
            return self.head(h.mean(1))  # type: ignore[no-any-return]

        def attended(self, h: Tensor) -> Tensor:
            turned = h.transpose(0, 1)
            outputs: Tensor = self.encoder.self_attn(turned, turned, turned)[0]
            return outputs.transpose(0, 1)

    torch.manual_seed(0)
    model = replace_unsupported(Encoder())
    ids, targets = torch.randint(0, 20, (9, 5)), torch.randint(0, 3, (9,))
    before = copy.deepcopy(model)
    how: dict[str, Any] = {
        "loss": cross_entropy,
        "optimizer": GradientDescent(model.parameters(), learning_rate=1.0),
        "batches": FullBatch(),
    }
    train(model, (ids, targets), protection=ClipOnly(clipping_norm=1e6), **how)
    loss = cross_entropy(before(ids), targets)
    expected = torch.autograd.grad(
        loss, list(before.parameters()), allow_unused=True, materialize_grads=True
    )
    for new, old, gradient in zip(model.parameters(), before.parameters(), expected, strict=True):
        torch.testing.assert_close(new.detach(), old.detach() - gradient, rtol=1e-4, atol=1e-5)
    noise = ClipAndNoise(
        clipping_norm=1.0, noise_multiplier=1.0, delta=1e-5, count=NominalCount(records=9)
    )
    train(model, (ids, targets), protection=noise, ledger=ClientLedger(dataset="d"), **how)


@pytest.mark.parametrize(
    ("norm", "inputs"),
    [
        (nn.BatchNorm1d(10), torch.randn(4, 10)),
        (nn.BatchNorm1d(2), torch.randn(4, 2)),
        (nn.BatchNorm2d(50), torch.randn(4, 50, 3, 3)),
        (nn.BatchNorm2d(3, affine=False).double(), torch.randn(4, 3, 5, 5).double()),
    ],
)
def test_batch_norm_becomes_a_group_norm_that_passes_something_on(
    norm: nn.Module, inputs: Tensor
) -> None:
    model = nn.Sequential(norm, nn.Flatten(), nn.Linear(2, 2).to(inputs.dtype))
    other = replace_unsupported(model)
    assert isinstance(other[0], nn.GroupNorm)
    assert isinstance(model[0], type(norm))
    assert float(other[0](inputs).detach().std()) > 0.5


def test_what_advice_on_normalisation_says_is_taken_by_training_and_by_encryption() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    how = {"input_shape": (1, 3, 3), "input_range": (0.0, 1.0)}
    with pytest.raises(UnsupportedLayerError) as encrypted:
        compile_model(replace_unsupported(model), **how)  # type: ignore[arg-type]
    for half in ("without it", "nn.BatchNorm2d", "eval() and requires_grad_(False)"):
        assert half in str(encrypted.value)
    with pytest.raises(UnsupportedModelError) as refusal:
        train(
            model,
            (torch.ones(2, 1, 3, 3), torch.zeros(2, dtype=torch.long)),
            loss=cross_entropy,
            optimizer=GradientDescent(model.parameters(), learning_rate=1.0),
            protection=ClipOnly(clipping_norm=1.0),
            batches=FullBatch(),
        )
    for half in ("GroupNorm(4, 4)", "encrypted inference", "eval() and requires_grad_(False)"):
        assert half in str(refusal.value)
    model[1].eval().requires_grad_(False)
    check_model(model)
    compile_model(model.eval(), **how)  # type: ignore[arg-type]


class Shared(nn.Module):
    """A layer under three names, and in a block that is there twice."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.layers = nn.ModuleList([layer])
        self.block = nn.Sequential(layer)
        self.again = self.block


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(8),
        nn.GRU(8, 8, batch_first=True),
        nn.MultiheadAttention(8, 2, batch_first=True),
        nn.InstanceNorm1d(8, affine=True, track_running_stats=True),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_layer_under_several_names_has_one_replacement_under_all(layer: nn.Module) -> None:
    model = replace_unsupported(Shared(layer))
    assert model.layer is model.layers[0] is model.again[0]  # type: ignore[index]
    assert model.block is model.again
    assert type(model.layer) is not type(layer) or not model.layer.track_running_stats


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
@pytest.mark.parametrize("kind", [nn.BatchNorm1d(8), nn.GRU(8, 8), nn.Identity()])
def test_what_has_no_replacement_is_named_before_anything_is_copied(kind: nn.Module) -> None:
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(8, 8)), kind)
    with pytest.raises(UnsupportedModelError, match=r"'0' \(Linear\).*remove_weight_norm"):
        replace_unsupported(model)


def test_a_model_that_cannot_be_copied_is_named() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    model.computed = model[0].weight * 2  # type: ignore[assignment]
    with pytest.raises(UnsupportedModelError, match=r"\(model\).*cannot be copied"):
        replace_unsupported(model)


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_recurrent_replacement_takes_batches_alone_and_is_called_as_pytorchs(
    kind: type[nn.RNNBase], batch_first: bool
) -> None:
    layer = kind(8, 6, batch_first=batch_first)
    other = replaced(layer)
    with pytest.raises(ValueError, match=r"input has shape \(5, 8\): give .* a batch"):
        other(torch.randn(5, 8))
    inputs = torch.randn(4, 4, 8)
    state: Any = torch.randn(1, 4, 6)
    if kind is nn.LSTM:
        state = state, torch.randn(1, 4, 6)
    assert_same(layer(inputs), other(inputs))
    assert_same(layer(inputs, state), other(inputs, state))
    assert_same(layer(inputs, hx=state), other(inputs, hx=state))
    assert_same(other(inputs), copy.deepcopy(other)(inputs))
    before = other(inputs)
    other.flatten_parameters()  # type: ignore[operator]
    assert_same(before, other(inputs))
