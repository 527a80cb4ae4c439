"""Which activations are found, in models of any form; what cannot be replaced is refused."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F  # noqa: N812

from privacy.inference import (
    Polynomial,
    PublicData,
    Replacement,
    Square,
    certify,
    compile_model,
    replace_activations,
)
from privacy.inference.compiler import TRACING
from privacy.inference.errors import UnsupportedLayerError
from tests.privacy.inference.replacement.replacement_models import drawn, mlp, public, trained


def replaced(model: nn.Module, **options: bool) -> Replacement:
    data = PublicData(drawn()[0])
    return replace_activations(model, data=data, epochs=0, degree=2, **options)


def polynomials(model: nn.Module) -> list[Polynomial]:
    return [each for each in model.modules() if isinstance(each, Polynomial)]


def has_no_activation(model: fx.GraphModule) -> bool:
    functions = [node for node in model.graph.nodes if node.op in ("call_function", "call_method")]
    names = {getattr(node.target, "__name__", str(node.target)) for node in functions}
    kinds = {type(each).__name__ for each in model.modules()}
    return not (names | kinds) & {"ReLU", "relu", "relu_", "Tanh", "tanh", "GELU", "gelu"}


def test_one_module_at_two_places_becomes_two_polynomials() -> None:
    activation = nn.ReLU()
    shared = nn.Linear(6, 6)
    torch.manual_seed(0)
    model = nn.Sequential(
        shared, activation, nn.Linear(6, 6), activation, shared, activation, nn.Linear(6, 4)
    )
    new = replaced(model).model
    assert type(new) is nn.Sequential
    one, two, three = polynomials(new)
    assert not torch.equal(one.coefficients, two.coefficients)
    assert not torch.equal(two.coefficients, three.coefficients)
    assert new[0] is new[4]
    assert new[0] is not shared
    assert [type(each) for each in model][1:4:2] == [nn.ReLU, nn.ReLU]


def test_one_block_at_two_places_keeps_its_weights_and_gets_two_polynomials() -> None:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(6, 6), nn.GELU())
    model = nn.Sequential(block, nn.Linear(6, 6), block, nn.Linear(6, 4))
    result = replaced(model)
    new = result.model
    assert type(new) is nn.Sequential
    assert [row.name for row in result.report.activations] == ["0.1", "2.1"]
    first, second = new[0], new[2]
    assert isinstance(first, nn.Sequential)
    assert isinstance(second, nn.Sequential)
    assert first[0] is second[0]
    assert first[1] is not second[1]
    assert len(polynomials(new)) == 2


class OwnModules(nn.Module):
    """As people write a network: a module for each activation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)
        self.middle = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.middle(self.relu(self.first(x))))
        return logits


def test_a_model_with_a_module_for_each_activation_keeps_its_type() -> None:
    new = replaced(OwnModules()).model
    assert type(new) is OwnModules
    assert isinstance(new.relu, Polynomial)
    assert isinstance(new.middle[1], Polynomial)


class Residual(OwnModules):
    """One ReLU for all, functions, and an addition."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        x = x + self.relu(self.middle[0](x))
        logits: Tensor = self.last(F.gelu(x))
        return logits


def test_activations_of_any_forward_are_replaced_each_by_its_own() -> None:
    torch.manual_seed(0)
    model = Residual()
    result = replaced(model)
    assert isinstance(result.model, fx.GraphModule)
    assert [row.activation for row in result.report.activations] == ["ReLU", "ReLU", "gelu"]
    assert len({row.name for row in result.report.activations}) == 3
    assert len({row.high for row in result.report.activations}) == 3
    assert has_no_activation(result.model)
    for name in ("first", "middle.0", "last"):
        expected = model.get_submodule(name).weight
        assert torch.equal(result.model.get_submodule(name).weight, expected)
    # Along the longest path; the short cut of the addition takes one less.
    assert result.report.levels == 4


def test_levels_are_those_of_the_longest_path() -> None:
    class TwoWays(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(6, 6) for _ in range(4)])
            self.square = Square()

        def forward(self, x: Tensor) -> Tensor:
            long = torch.relu(self.layers[1](torch.relu(self.layers[0](x))))
            short = torch.relu(self.layers[2](x))
            logits: Tensor = self.layers[3](self.square(long) + short * short)
            return logits

    torch.manual_seed(0)
    assert replaced(TwoWays()).report.levels == 4


@pytest.mark.parametrize("exponent", range(1, 8))
@pytest.mark.parametrize("written", ["operator", "function", "method", "keyword"])
def test_powers_count_as_the_compiler_counts_them(exponent: int, written: str) -> None:
    class Powers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.first(x))
            powers = {
                "operator": lambda: x**exponent,
                "function": lambda: torch.pow(x, exponent),
                "method": lambda: x.pow(exponent),
                "keyword": lambda: x.pow(exponent=exponent),
            }
            logits: Tensor = self.last(powers[written]())
            return logits

    torch.manual_seed(0)
    depths = {1: 0, 2: 1, 3: 2, 4: 2, 5: 3, 6: 3, 7: 3}
    assert replaced(Powers()).report.levels == 2 + depths[exponent]


def test_the_polynomials_of_a_model_stay_and_are_counted() -> None:
    model = nn.Sequential(nn.Linear(6, 6), Square(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4))
    result = replaced(model)
    assert isinstance(result.model, nn.Sequential)
    assert isinstance(result.model[1], Square)
    assert result.report.levels == 3


@pytest.mark.parametrize("average", [False, True])
def test_a_max_pool_is_averaged_on_request_only(average: bool) -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(1, 3, 3, padding=1), nn.Linear(12, 4)
            self.pool = nn.MaxPool2d(3, stride=2, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.max_pool2d(torch.relu(self.pool(self.conv(x))), 2)
            logits: Tensor = self.last(F.adaptive_max_pool2d(x, 2).flatten(1))
            return logits

    torch.manual_seed(0)
    data = PublicData(torch.randn(40, 1, 16, 16, generator=torch.Generator().manual_seed(0)))
    if not average:
        with pytest.raises(UnsupportedLayerError, match="average_pools=True"):
            replace_activations(Pooled(), data=data, epochs=0)
        return
    result = replace_activations(Pooled(), data=data, epochs=0, average_pools=True)
    assert len(result.report.pools) == 3
    kinds = [type(each) for each in result.model.modules() if "Pool" in type(each).__name__]
    assert sorted(kinds, key=str) == [nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.AvgPool2d]
    pool = next(each for each in result.model.modules() if getattr(each, "padding", 0) == 1)
    x = torch.ones(1, 3, 16, 16)
    averaged = [each for each in result.model.modules() if isinstance(each, nn.AvgPool2d)]
    assert pool is not None
    assert all(torch.equal(each(x), torch.ones_like(each(x))) for each in averaged)
    assert "averages in place of maxima" in str(result.report)


class Forward(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.function = nn.Linear(6, 6), nn.Linear(6, 4), function

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.function(self.first(x)))
        return logits


def _reads_after(x: Tensor) -> Tensor:
    return x.relu_() + 2 * x


REFUSED: list[tuple[nn.Module, str]] = [
    (nn.Sequential(nn.Linear(6, 4)), "no activation"),
    (Forward(lambda x: torch.relu(x) if x.sum() > 0 else x), "torch.fx cannot trace"),
    (Forward(lambda x: torch.softmax(torch.relu(x), 1)), "softmax.*leave it out"),
    (Forward(lambda x: torch.relu(x).max(1, keepdim=True)[0] + x), "compares"),
    (Forward(lambda x: torch.maximum(torch.relu(x), x)), "compares"),
    (Forward(lambda x: torch.relu(x) / (1 + x * x)), "a division"),
    (Forward(lambda x: F.layer_norm(torch.relu(x), (6,))), "nn.BatchNorm"),
    (Forward(lambda x: torch.clamp(x, min=-x)), "several values"),
    (Forward(_reads_after), "in-place"),
    (nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.LayerNorm(6), nn.Linear(6, 4)), "BatchNorm"),
    (nn.Sequential(nn.Linear(6, 6), nn.PReLU(6), nn.Linear(6, 4)), "a slope for each channel"),
    (nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 1), nn.Sigmoid()), "leave it out"),
    (nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.LogSoftmax(1)), "leave it out"),
    (nn.Sequential(nn.Linear(6, 6), nn.Threshold(100.0, 0.0), nn.Linear(6, 4)), "is dead"),
]


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_what_has_no_polynomial_is_refused_with_a_remedy(case: int) -> None:
    model, reason = REFUSED[case]
    with pytest.raises(UnsupportedLayerError, match=reason):
        replaced(model)


def test_a_sigmoid_that_ends_the_model_is_seen_behind_layers_that_do_nothing() -> None:
    class Ends(OwnModules):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sigmoid(self.last(self.relu(self.first(x)))).view(-1, 4)

    with pytest.raises(UnsupportedLayerError, match="ends the model"):
        replaced(Ends())


def test_a_constant_divisor_is_no_division_by_values() -> None:
    replaced(Forward(lambda x: torch.relu(x) / 2 + torch.relu(x).div(3)))


def test_a_refusal_names_the_layer() -> None:
    model = nn.Sequential(mlp(), nn.Softmax(dim=1), nn.Linear(4, 4))
    with pytest.raises(UnsupportedLayerError, match=re.escape("layer 1 (Softmax)")):
        replaced(model)


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    model = mlp()
    model.kept = model(drawn()[0])  # type: ignore[assignment]
    with pytest.raises(UnsupportedLayerError, match="cannot be copied"):
        replaced(model)


def test_a_model_of_several_paths_answers_under_encryption() -> None:
    torch.manual_seed(0)
    result = replace_activations(trained(Residual(), public()), data=public(), epochs=1)
    assert isinstance(result.model, fx.GraphModule)
    compiled = compile_model(result.model, input_shape=6, input_range=(-1.0, 1.0))
    inputs, labels = drawn(5)
    certificate = certify(compiled, inputs, labels)
    assert certificate.beyond_prediction == 0
    assert certificate.agreement == 1.0


@pytest.mark.parametrize("way", ["subclass", "class"])
def test_a_graph_module_with_a_call_of_its_own_is_not_compiled(way: str) -> None:
    model = fx.symbolic_trace(nn.Sequential(nn.Linear(6, 4)))
    compile_model(model, input_shape=6, input_range=(-1.0, 1.0))

    def call(self: fx.GraphModule, x: Tensor) -> Tensor:
        return self.forward(x) + 1

    if way == "subclass":
        other = type("Other", (fx.GraphModule,), {"__call__": call})
        model = other(model, model.graph)
    else:
        type(model).__call__ = call  # type: ignore[method-assign, assignment]
    inputs, _ = drawn(3)
    assert torch.equal(model(inputs), model.forward(inputs) + 1)
    with pytest.raises(UnsupportedLayerError, match="__call__"):
        compile_model(model, input_shape=6, input_range=(-1.0, 1.0))


TRACED: list[bool] = []


class Watching(nn.Module):
    """A forward that notes whether it is traced under the lock of all tracing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, fx.Proxy):
            TRACED.append(TRACING.locked())
        return self.last(F.relu(self.first(x)))


def test_models_are_traced_one_at_a_time_by_whichever_part_traces() -> None:
    torch.manual_seed(0)
    TRACED.clear()
    model = Watching()
    assert polynomials(replaced(model).model)
    assert TRACED
    by_replacement = len(TRACED)
    with pytest.raises(UnsupportedLayerError):  # a ReLU is traced, and then refused
        compile_model(model, input_shape=(6,), input_range=(-1.0, 1.0))
    assert len(TRACED) > by_replacement
    assert all(TRACED)
