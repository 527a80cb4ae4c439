"""Replace the activations of a trained network by polynomials, and train them in."""

import logging
from functools import partial

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from privacy.arguments import number, of_kind, whole
from privacy.inference.compiler import MAX_DEGREE, Polynomial, logit_bound
from privacy.inference.errors import ReplacementError
from privacy.inference.input_range import input_range as written_range
from privacy.inference.replacement.data import PrivateData, PublicData, PublicInputs
from privacy.inference.replacement.fitting import (
    Fit,
    Values,
    chosen_degree,
    degrees_within,
    fitted,
    observed,
)
from privacy.inference.replacement.measuring import reported
from privacy.inference.replacement.places import Separated, copied, put, separate
from privacy.inference.replacement.private import tune_privately
from privacy.inference.replacement.report import Replacement
from privacy.inference.replacement.tuning import Imitation, Ranges, targets_of, tune

_EPOCHS, _LEARNING_RATE, _BATCH = 5, 1e-3, 128
_FITTED_INPUTS = 4096
"""Inputs on which ranges are observed, at most."""
_log = logging.getLogger(__name__)


def replace_activations(
    model: nn.Module,
    *,
    data: PublicData | PrivateData,
    degree: int | None = None,
    levels: int | None = None,
    average_pools: bool = False,
    epochs: int | None = None,
    learning_rate: float | None = None,
    batch_size: int = _BATCH,
    input_range: tuple[ArrayLike, ArrayLike] | None = None,
    logit_bits: float | None = None,
    seed: int = 0,
) -> Replacement:
    """Turn a trained network's activations into polynomials that CKKS evaluates.

    From the first layer to the last each activation becomes the polynomial closest to it on the
    values that it meets, behind the polynomials before it. Then all weights and coefficients are
    trained to answer as the original does (no labels are needed; where there are some, also to be
    right), with a penalty on values outside the ranges. Activations may be modules or functions
    that ``torch.fx`` sees: ReLU, LeakyReLU, PReLU, ELU, SELU, CELU, GELU, SiLU, Mish, Hardswish,
    Hardtanh, Hardsigmoid, Sigmoid, Tanh, Softplus, Softsign, shrinkages, clamps and the like.

    An input whose values leave a range is answered all the same, by the same polynomials, under
    encryption as in the clear, and the proof of headroom holds for it; but there the polynomial is
    no longer like the activation, and the class may be wrong. ``report`` says how often that is.

    **Guarantee.** With :class:`PrivateData` the result is differentially private, as stated there.
    With :class:`PublicData` none is needed, or given.

    **Assumptions.** Data given as public are public.

    **Not covered.** The training of the original model.

    Parameters
    ----------
    model : nn.Module
        A classifier with outputs of shape (inputs, logits). It stays as it is.
    data : PublicData or PrivateData
        Says whether the data may be learned by everybody.
    degree : int, optional
        2 to 7 for every polynomial. By default 2, or 3 where a parabola is no better than a
        straight line, as for tanh around zero. Each degree costs levels; above 2 the range of
        logits over all inputs grows fast (see ``logit_bits``).
    levels : int, optional
        In ``degree``'s place: a budget as the compiler counts levels, spent where polynomials are
        farthest from their activations.
    average_pools : bool
        Put an average pool in the place of each max pool, which otherwise is refused.
    epochs, learning_rate
        Of training on public data: 5, and 0.001 with Adam, falling as a cosine. 0 epochs fit only.
        ``PrivateData`` has its own.
    batch_size : int
        Inputs in a step on public data, or at a time.
    input_range, logit_bits : optional
        Both: training then keeps :func:`logit_bound`, that of the logits over all inputs in the
        range, near 2^``logit_bits``, so that a plan holds them; 20 is a good start where
        ``compile_model`` finds no plan or only a slow one. Public data only.
    seed : int
        Of the order of inputs and of those held out. The same seed gives the same model on the same
        machine.

    Returns
    -------
    Replacement
        Of the original's type where each activation is a module of its own, else an
        ``fx.GraphModule`` (of which functional dropout is switched off). Layers are in the modes in
        which the original's are, coefficients are parameters.

    Raises
    ------
    UnsupportedLayerError
        If something in the model has no polynomial, by name with a remedy, or the model cannot be
        traced.
    CannotPlanError
        If ``levels`` does not hold degree 2 everywhere.
    ReplacementError
        If training diverges.
    LocalBudgetError
        If the ledger of private data does not allow the training.
    TypeError, ValueError
        If an argument is of another kind or does not fit.
    """
    of_kind("model", model, nn.Module, "a trained nn.Module")
    of_kind("data", data, (PublicData, PrivateData), "PublicData(...) or PrivateData(...)")
    if degree is not None and levels is not None:
        raise ValueError("degree and levels are both given; give one of them")
    if degree is not None:
        degree = whole("degree", degree, least=2, most=MAX_DEGREE)
    if levels is not None:
        levels = whole("levels", levels, least=2)
    batch_size = whole("batch_size", batch_size, least=1)
    seed = whole("seed", seed, least=0)
    if isinstance(data, PrivateData):
        _refuse_with_private(epochs=epochs, learning_rate=learning_rate, logit_bits=logit_bits)
    epochs = _EPOCHS if epochs is None else whole("epochs", epochs, least=0)
    rate = _LEARNING_RATE if learning_rate is None else learning_rate
    rate = number("learning_rate", rate, above=0)
    if (input_range is None) != (logit_bits is None):
        raise ValueError("input_range and logit_bits go together; give both, or none")
    public = PublicInputs.of(data, seed=seed)
    shape = tuple(public.training.shape[1:])
    if input_range is not None:
        input_range = written_range("input_range", input_range, shape)
        logit_bits = number("logit_bits", logit_bits)
    teacher = copied(model)
    few = _checked(teacher, public)
    separated = separate(teacher, few, average_pools=average_pools)
    new = separated.model
    fits = _replace(separated, public.training[:_FITTED_INPUTS], batch_size, degree, levels)
    ranges: Ranges = {name: (each.low, each.high) for name, (each, _) in fits.items()}
    taught = targets_of(teacher, public.training[:_FITTED_INPUTS], None, batch_size)
    spread = float(taught.std()) or 1.0
    result = None
    if isinstance(data, PrivateData):
        result = tune_privately(
            new, teacher, data, spread=spread, ranges=ranges, batch_size=batch_size
        )
    elif epochs:
        bound = None
        if input_range is not None:
            bound = partial(_bound, new, shape, input_range)
        tune(
            new,
            public.training,
            targets_of(teacher, public.training, public.labels, batch_size),
            loss=Imitation(spread, public.labels is not None),
            ranges=ranges,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=rate,
            bound=bound,
            bits=0.0 if logit_bits is None else logit_bits,
            seed=seed,
        )
    report = reported(
        separated,
        fits,
        teacher,
        public,
        batch_size=batch_size,
        private=isinstance(data, PrivateData),
    )
    modes = {name: each.training for name, each in model.named_modules(remove_duplicate=False)}
    for name, module in new.named_modules(remove_duplicate=False):
        module.training = modes.get(name, model.training)
    return Replacement(new, report, result)


def _refuse_with_private(**given: float | None) -> None:
    for name, value in given.items():
        if value is not None:
            raise ValueError(
                f"{name} is given with PrivateData, whose batches, learning_rate and protection "
                f"say how to train; leave {name} out"
            )


def _checked(teacher: nn.Module, public: PublicInputs) -> Tensor:
    """A few inputs, as the model takes them."""
    like = next(teacher.parameters(), None)
    if like is None:
        raise ValueError("model has no weights; give a trained model")
    if like.dtype == torch.float16:
        raise ValueError("model is in float16, too coarse to train in; give model.float()")
    inputs: Tensor = public.training[:2].to(like)
    try:
        with torch.no_grad():
            logits = teacher(inputs.clone())
    except Exception as error:
        raise ValueError(
            f"model does not take inputs of shape {tuple(inputs.shape[1:])}: {error}"
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(inputs):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"model makes {shape} of 2 inputs; give one with outputs (inputs, logits), (inputs, 1) "
            "of a single logit"
        )
    classes = max(2, logits.shape[1])
    for labels in (public.labels, public.held_out_labels):
        if labels is not None and int(labels.max()) >= classes:
            raise ValueError(
                f"labels hold {int(labels.max())}; the model decides between {classes} classes, "
                "the whole numbers from 0"
            )
    return inputs


def _replace(
    separated: Separated,
    inputs: Tensor,
    batch_size: int,
    degree: int | None,
    levels: int | None,
) -> dict[str, tuple[Values, Fit]]:
    """Put the fitted polynomials into the model, from the first to the last."""
    model, places = separated.model, separated.places
    like = next(model.parameters())
    batches = [batch.to(like) for batch in inputs.split(batch_size)]
    degrees: list[int | None] = [degree] * len(places)
    if levels is not None:
        degrees = [*degrees_within(separated, observed(model, places, batches), levels)]
    fits = {}
    for place, own in zip(places, degrees, strict=True):
        (values,) = observed(model, [place], batches)
        fit = fitted(values, own or chosen_degree(values, place), place)
        polynomial = Polynomial(fit.coefficients, trainable=True)
        put(model, place.name, polynomial.to(like).eval())
        fits[place.name] = values, fit
        _log.info(
            "replace_activations: %s became a polynomial of degree %d between %.3g and %.3g",
            *(place.label, fit.degree, values.low, values.high),
        )
    return fits


def _bound(
    model: nn.Module, shape: tuple[int, ...], input_range: tuple[ArrayLike, ArrayLike]
) -> Tensor:
    bound = logit_bound(model, input_shape=shape, input_range=input_range)
    if not bool(torch.isfinite(bound)):
        raise ReplacementError(
            f"the bound of the logits over input_range is beyond {bound.dtype}; give a lower "
            "degree, or model.double()"
        )
    return bound
