"""What we take from Opacus, loaded when it is first asked for.

Opacus and what it imports take over a CPU second to load, and a deployed client starts a process
for every message. Clipping in linear, convolutional and embedding layers, which have ways of
their own here, needs none of it.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from privacy._logging import untouched_root_logger

PerExample = Callable[[nn.Module, list[Tensor], Tensor], Mapping[nn.Parameter, Tensor]]

_RECURRENT = "opacus.layers.dp_rnn"


def registered_sampler(kind: type[nn.Module]) -> PerExample | None:
    """The function that builds every example's gradient of such a layer, if Opacus has one."""
    with untouched_root_logger():
        from opacus.grad_sample import GradSampleModule
    found: PerExample | None = GradSampleModule.GRAD_SAMPLERS.get(kind)
    return found


def functorch_sampler() -> PerExample:
    """The function that builds every example's gradient of any module, by ``torch.func``."""
    with untouched_root_logger():
        from opacus.grad_sample.functorch import ft_compute_per_sample_gradient
    found: PerExample = ft_compute_per_sample_gradient
    return found


def complaints(module: nn.Module) -> list[Exception]:
    """What Opacus has to say against training this module, its children apart."""
    with untouched_root_logger():
        from opacus.validators import ModuleValidator
    validator = ModuleValidator.VALIDATORS.get(type(module))
    return [] if validator is None else list(validator(module))


def replacement(module: nn.Module) -> nn.Module:
    """Opacus's layer in place of this one, with its weights."""
    with untouched_root_logger():
        from opacus.validators import ModuleValidator
    if not isinstance(module, nn.RNNBase):
        fixed: nn.Module = ModuleValidator.FIXERS[type(module)](module)
        return fixed
    with untouched_root_logger():
        from privacy.training.model_checks.recurrent import BatchedGRU, BatchedLSTM, BatchedRNN
    kinds: dict[type, Any] = {nn.RNN: BatchedRNN, nn.GRU: BatchedGRU, nn.LSTM: BatchedLSTM}
    options = ["num_layers", "bias", "batch_first", "dropout", "bidirectional"]
    options += ["proj_size"] * bool(module.proj_size)
    options += ["nonlinearity"] * isinstance(module, nn.RNN)
    made: nn.Module = kinds[type(module)](
        module.input_size, module.hidden_size, **{each: getattr(module, each) for each in options}
    )
    made.load_state_dict(module.state_dict())
    return made


def is_recurrent(module: nn.Module) -> bool:
    """Whether this is one of Opacus's recurrent layers."""
    if _RECURRENT not in sys.modules:  # then there cannot be one
        return False
    from opacus.layers.dp_rnn import DPGRU, DPLSTM, DPRNN

    return isinstance(module, (DPRNN, DPLSTM, DPGRU))


def is_cell_linear(kind: type[nn.Module]) -> bool:
    """Whether this is the linear layer in the cells of Opacus's recurrent layers."""
    if _RECURRENT not in sys.modules:
        return False
    from opacus.layers.dp_rnn import RNNLinear

    return kind is RNNLinear
