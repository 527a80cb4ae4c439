"""A compiled model answers as PyTorch runs the model, or is refused by name."""

import copy
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrizations, prune

from privacy.inference import (
    Evaluator,
    MeasurementOwner,
    Polynomial,
    Square,
    certify,
    compile_model,
)
from privacy.inference.errors import CannotPlanError, UnsupportedLayerError

SHAPE, RANGE = (4,), (0.0, 1.0)


class Negated(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


class Adapted(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.sum(dim=1, keepdim=True)


class Cubed(Square):
    def forward(self, x: Tensor) -> Tensor:
        return x**3


class Called(nn.Sequential):
    def __call__(self, x: Tensor) -> Tensor:
        return 2 * super().__call__(x)


def net(*, act: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), act or Square(), nn.Linear(5, 3)).eval()


def _hook(model: nn.Sequential) -> nn.Sequential:
    model[1].register_forward_hook(lambda module, given, made: made * 2)
    return model


def _pre_hook(model: nn.Sequential) -> nn.Sequential:
    model[2].register_forward_pre_hook(lambda module, given: (given[0] + 1,))
    return model


def _hook_on_whole(model: nn.Sequential) -> nn.Sequential:
    model.register_forward_hook(lambda module, given, made: -made)
    return model


def _hook_on_nothing(model: nn.Sequential) -> nn.Sequential:
    dropout = nn.Dropout()
    dropout.register_forward_hook(lambda module, given, made: made + 1)
    return nn.Sequential(model, dropout).eval()


def _own_forward(model: nn.Sequential) -> nn.Sequential:
    model[0].forward = lambda x: x[:, [0, 0, 1, 2, 3]]
    return model


def _own_forward_of_whole(model: nn.Sequential) -> nn.Sequential:
    model.forward = lambda x: model[2](model[0](x))  # type: ignore[method-assign]
    return model


def _parametrized(model: nn.Sequential) -> nn.Sequential:
    parametrizations.weight_norm(model[0])
    return model


def _old_weight_norm(model: nn.Sequential) -> nn.Sequential:
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(model[0])
    return model


def _pruned(model: nn.Sequential) -> nn.Sequential:
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    return model


def _plain_weight(model: nn.Sequential) -> nn.Sequential:
    weight = model[0].weight.detach().double()
    del model[0].weight
    model[0].weight = weight
    return model


def _dropout_left_on(model: nn.Sequential) -> nn.Sequential:
    dropping = nn.Sequential(*model, nn.Dropout()).eval()
    dropping[3].train()
    return dropping


def _within_itself(model: nn.Sequential) -> nn.Sequential:
    model.add_module("again", model)
    return model


REFUSED: dict[str, tuple[Callable[[nn.Sequential], nn.Module], str]] = {
    "a call of its own": (lambda m: Called(*m), "model has a __call__ of its own"),
    "the same, inside": (lambda m: nn.Sequential(Called(*m)), r"0 \(Called\) has a __call__"),
    "a forward hook": (_hook, r"1 \(Square\) has a forward hook"),
    "a forward pre-hook": (_pre_hook, r"2 \(Linear\) has a forward hook"),
    "a hook on the model": (_hook_on_whole, "model has a forward hook"),
    "a hook on what does nothing": (_hook_on_nothing, r"1 \(Dropout\) has a forward hook"),
    "a forward put onto a layer": (_own_forward, r"0 \(Linear\) has another forward"),
    "a forward put onto the model": (_own_forward_of_whole, "model has another forward"),
    "a parametrization": (_parametrized, "remove_parametrizations"),
    "the old weight norm": (_old_weight_norm, "remove_weight_norm"),
    "pruning": (_pruned, r"prune\.remove"),
    "a weight that is no parameter": (_plain_weight, "weight outside its parameters"),
    "dropout left on": (_dropout_left_on, r"3 \(Dropout\) is in training mode"),
    "a model within itself": (_within_itself, "contains itself"),
    "a layer that mixes images": (
        lambda m: nn.Sequential(nn.Flatten(0)),
        r"0 \(Flatten\).*mixes the images",
    ),
}


TRACED: dict[str, Callable[[nn.Sequential], nn.Module]] = {
    "a Sequential with a forward of its own": lambda m: Negated(*m),
    "the same, inside": lambda m: nn.Sequential(Negated(*m)),
    "a Linear with an adapter": lambda m: nn.Sequential(Adapted(4, 3)),
    "a Square that is none": lambda m: net(act=Cubed()),
    "a single layer": lambda m: nn.Linear(4, 3),
}


@pytest.mark.parametrize("name", TRACED)
def test_a_forward_of_its_own_is_compiled_as_it_is_and_not_as_its_base(name: str) -> None:
    model = TRACED[name](net()).eval()
    compiled = compile_model(model, input_shape=SHAPE, input_range=RANGE)
    x = np.random.default_rng(0).uniform(*RANGE, (3, 4))
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(compiled.network(x.T).T, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_more_than_its_layers_is_refused_by_name(name: str) -> None:
    change, words = REFUSED[name]
    with pytest.raises((UnsupportedLayerError, TypeError), match=words):
        compile_model(change(net()), input_shape=SHAPE, input_range=RANGE)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "register",
    [
        torch_module.register_module_forward_hook,
        torch_module.register_module_forward_pre_hook,
    ],
)
def test_a_hook_on_every_module_is_refused(
    register: Callable[..., Any],
) -> None:
    handle = register(lambda *_: None)
    try:
        with pytest.raises(UnsupportedLayerError, match="for all modules"):
            compile_model(net(), input_shape=SHAPE, input_range=RANGE)
    finally:
        handle.remove()
    compile_model(net(), input_shape=SHAPE, input_range=RANGE)


def test_hooks_that_leave_answers_alone_do_not_stand_in_the_way() -> None:
    model = net()
    model[0].register_full_backward_hook(lambda module, given, made: None)
    compile_model(model, input_shape=SHAPE, input_range=RANGE)


def test_a_class_that_does_something_else_everywhere_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What no look at a module shows, the comparison with PyTorch does."""
    with monkeypatch.context() as patched:
        patched.setattr(nn.Linear, "forward", lambda self, x: torch.tanh(x @ self.weight.T))
        with pytest.raises(UnsupportedLayerError, match=r"0 \(Linear\) does something else"):
            compile_model(net(), input_shape=SHAPE, input_range=RANGE)
    with monkeypatch.context() as patched:
        patched.setattr(Square, "forward", lambda self, x: x * x * x)
        with pytest.raises(UnsupportedLayerError, match="does not answer as PyTorch runs it"):
            compile_model(net(), input_shape=SHAPE, input_range=RANGE)


def test_a_module_that_stands_twice_is_evaluated_twice() -> None:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(4, 4), Square())
    model = nn.Sequential(block, nn.Identity(), block, nn.Linear(4, 2)).eval()
    compiled = compile_model(model, input_shape=SHAPE, input_range=RANGE)
    assert len(compiled.network.activations) == 2
    x = np.random.default_rng(0).uniform(*RANGE, (3, 4))
    owner = MeasurementOwner(compiled.plan)
    evaluator = Evaluator(compiled, owner.public_material())
    logits = [owner.logits(evaluator.evaluate(owner.encrypt(row)))[0] for row in x]
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(torch.from_numpy(x)).numpy()
    assert np.abs(logits - expected).max() < 2 * 2.0**compiled.plan.error_bits


def test_the_certificate_is_about_the_model_and_not_about_what_was_compiled() -> None:
    """A plan of a compiler that got the model wrong must not look right."""
    compiled = compile_model(net(), input_shape=SHAPE, input_range=RANGE)
    other = copy.deepcopy(compiled.model)
    with torch.no_grad():
        other[2].weight.neg_()
        other[2].bias.neg_()
    wrong = type(compiled)(compiled.plan, compiled.program, compiled.network, other)
    x = np.random.default_rng(0).uniform(*RANGE, (5, 4))
    with torch.no_grad():
        labels = other(torch.from_numpy(x)).argmax(1).numpy()
    certificate = certify(wrong, x, labels)
    assert certificate.plain_accuracy == 1.0
    assert certificate.agreement == 0.0
    assert certificate.beyond_prediction == certificate.beyond_worst_prediction == 5
    honest = certify(compiled, x, labels)
    assert honest.beyond_prediction == honest.beyond_worst_prediction == 0


MAKERS: list[Callable[[int, int], nn.Module]] = [
    nn.Linear,
    Adapted,
    lambda inputs, outputs: nn.Sequential(nn.Linear(inputs, outputs), Square()),
    lambda inputs, outputs: Negated(nn.Linear(inputs, outputs)),
    lambda inputs, outputs: nn.Sequential(nn.BatchNorm1d(inputs), nn.Linear(inputs, outputs)),
    lambda inputs, outputs: parametrizations.weight_norm(nn.Linear(inputs, outputs)),
]
ELEMENTWISE: list[Callable[[], nn.Module]] = [
    Square,
    Cubed,
    nn.Identity,
    nn.Dropout,
    lambda: Polynomial([0.1, 0.5, 0.3]),
    lambda: Polynomial([0.2, 0.5, 0.0, 0.1]),
]


@st.composite
def modules(draw: st.DrawFn) -> nn.Sequential:
    """Layers in a row: some stand at several places, some are not what they seem."""
    torch.manual_seed(draw(st.integers(0, 10**6)))
    width = draw(st.integers(1, 5))
    pool = [draw(st.sampled_from(MAKERS))(width, width) for _ in range(draw(st.integers(1, 3)))]
    pool += [draw(st.sampled_from(ELEMENTWISE))() for _ in range(draw(st.integers(1, 2)))]
    row: list[nn.Module] = draw(st.lists(st.sampled_from(pool), min_size=1, max_size=4))
    if draw(st.booleans()):
        row.append(nn.Sequential(*draw(st.lists(st.sampled_from(row), min_size=1, max_size=2))))
    model = nn.Sequential(*row, nn.Linear(width, draw(st.integers(2, 4))))
    change = draw(st.sampled_from([None, None, "hook", "pre-hook", "forward", "training"]))
    given_inputs = [m for name, m in model.named_modules() if "parametrizations" not in name]
    chosen = draw(st.sampled_from(given_inputs))
    model.eval()
    if change == "hook":
        chosen.register_forward_hook(lambda module, given, made: made * 1.5)
    elif change == "pre-hook":
        chosen.register_forward_pre_hook(lambda module, given: (given[0] * 1.5,))
    elif change == "forward":
        inner = chosen.forward
        chosen.forward = lambda *given: inner(*given) + 1.0
    elif change == "training" and chosen is not model:
        chosen.train()
    return model


@given(model=modules())
@settings(
    max_examples=25,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_answers_are_those_of_pytorch_or_there_is_a_refusal_by_name(model: nn.Sequential) -> None:
    inputs = next(m for m in model.modules() if isinstance(m, nn.Linear)).in_features
    x = np.random.default_rng(0).uniform(*RANGE, (6, inputs))
    with torch.no_grad():
        # As it is given: whatever it runs, in whatever mode its layers are.
        expected = model.double()(torch.from_numpy(x)).numpy()
    try:
        compiled = compile_model(
            model.float(), input_shape=(inputs,), input_range=RANGE, tolerance=1.0
        )
    except CannotPlanError:
        return  # too deep, which says nothing of what the layers are
    except (UnsupportedLayerError, TypeError) as refusal:
        if re.search(r"\b(layer \d|model (is|has))", str(refusal)) is None:
            raise
        return
    np.testing.assert_allclose(compiled.predict(x), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(compiled.network(x.T).T, expected, rtol=1e-5, atol=1e-5)
