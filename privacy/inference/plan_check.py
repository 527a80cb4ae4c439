"""The check of a plan that a stranger sent, before anything is made of it."""

import math
from dataclasses import dataclass

import numpy as np

from privacy.arguments import convert, of_kind, renamed, sizes, whole
from privacy.inference.ckks import Ring
from privacy.inference.errors import PlanRefusedError
from privacy.inference.input_range import (
    InputRange,
    bounds,
    by_feature,
    input_range,
    label,
    to_unit,
)
from privacy.inference.plan import Plan

MAX_ROUND_BYTES = 20_000_000
"""Bytes that a node sends in a round, at most: keys and questions together."""

_LONGEST_PLAN = 1 << 22  # characters
_MARGIN_BITS = 3  # two numbers in a complex slot, a sign, and rounding
FAULTS_OF_A_PLAN = (ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class InputContract:
    """The inputs and classes that a node has by its own knowledge, not by the plan's word.

    Parameters
    ----------
    input_shape : tuple of int
        Of one input.
    input_range : tuple of float, or of arrays
        The lowest and highest value that an element of an input can have; arrays that broadcast to
        ``input_shape`` where features have ranges of their own.
    classes : int
        How many. A model may decide between two with two logits or with one.
    max_bytes : int
        Keys and questions that it sends in a round, at most.
    multi_label : bool
        Whether ``classes`` are labels of which several may hold.
    feature_names : tuple of str
        What the elements of an input are called, in their order. A plan with other names, or these
        in another order, is refused; not one that names none.
    """

    input_shape: tuple[int, ...]
    input_range: InputRange
    classes: int
    max_bytes: int = MAX_ROUND_BYTES
    multi_label: bool = False
    feature_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "input_shape", sizes("input_shape", self.input_shape, "a shape, as (1, 28, 28)")
        )
        object.__setattr__(
            self, "input_range", input_range("input_range", self.input_range, self.input_shape)
        )
        convert(self, "max_bytes", whole, least=1)
        convert(self, "classes", whole)
        of_kind("multi_label", self.multi_label, bool, "True where several labels may hold")
        of_kind("feature_names", self.feature_names, tuple, "a tuple of names, or ()")
        size = math.prod(self.input_shape)
        if len(self.feature_names) not in (0, size):
            raise ValueError(
                f"feature_names has {len(self.feature_names)} names; an input has {size} elements"
            )
        if self.classes < 2:
            raise ValueError(
                f"classes is {self.classes}; give 2 or more (a single logit decides between 2)"
            )


@renamed(expectation="contract")
def accept_plan(text: str, contract: InputContract) -> Plan:
    """Read a plan that a stranger sent, and refuse one that could harm.

    Parameters
    ----------
    text : str
        As ``Plan.to_json`` writes it.
    contract : InputContract

    Returns
    -------
    Plan
        With parameters that hold 128 bits of security, for inputs of exactly the contract's shape
        and range, and within its bytes.

    Raises
    ------
    PlanRefusedError
        If it is not.
    TypeError
        If ``text`` is no text, or ``contract`` none.

    Notes
    -----
    The contract alone decides which inputs fit: under a plan with a narrower range, or with a
    scale at which large inputs overflow, the node's refusal would reveal something of its data.
    """
    of_kind("text", text, str, "the plan's text, as in plan.to_json()")
    of_kind("contract", contract, InputContract, "InputContract(shape, range, classes=…)")
    if len(text) > _LONGEST_PLAN:
        raise PlanRefusedError(f"the plan has {len(text):,} characters, more than any needs")
    try:
        plan = Plan.from_json(text)
        _refuse(plan, contract)
    except PlanRefusedError:
        raise
    except FAULTS_OF_A_PLAN as error:
        raise PlanRefusedError(f"the plan is refused: {error}") from error
    return plan


def _refuse(plan: Plan, contract: InputContract) -> None:
    for name in ("input_shape", "input_range", "classes", "multi_label"):
        theirs, ours = getattr(plan, name), getattr(contract, name)
        if theirs != ours:
            if name == "input_range":
                raise PlanRefusedError(_other_range(plan, contract))
            raise PlanRefusedError(f"the plan has {name} {theirs}, this node's data {ours}")
    for place, (theirs, ours) in enumerate(
        zip(plan.feature_names, contract.feature_names, strict=False)
    ):
        if theirs != ours:
            raise PlanRefusedError(
                f"the plan takes {theirs[:100]!r} where this node's data have {ours[:100]!r}, as "
                f"element {place} of an input, counted from 0"
            )
    if plan.parties:
        raise PlanRefusedError("the plan is for encrypted weights, which no round evaluates")
    if plan.input_scale_bits < 0:
        raise PlanRefusedError(f"inputs scaled by 2^{plan.input_scale_bits} keep no precision")
    centre, radius = to_unit(contract.input_range, contract.input_shape)
    largest = max(
        float(np.abs((end.ravel() - centre) / radius).max())
        for end in bounds(contract.input_range, contract.input_shape)
    )
    room = sum(plan.prime_bits[: plan.levels])
    if plan.input_scale_bits + math.log2(max(largest, 1.0)) + _MARGIN_BITS > room:
        raise PlanRefusedError(
            f"inputs scaled by 2^{plan.input_scale_bits} need not fit the plan's {room} bits"
        )
    needed = plan.public_bytes + plan.query_bytes
    if not 0 < needed <= contract.max_bytes:
        raise PlanRefusedError(
            f"keys and one question take {needed:,} bytes, {contract.max_bytes:,} are allowed"
        )
    # Faults that would only show beside the node's data must show here.
    Ring(plan.degree, plan.prime_bits)
    if plan.packing_kind != "batch":
        _ = plan.taps


def _other_range(plan: Plan, contract: InputContract) -> str:
    """How the plan's range differs from the contract's; of features, the first that does."""
    if not by_feature(plan.input_range) and not by_feature(contract.input_range):
        return (
            f"the plan has input_range {plan.input_range}, this node's data {contract.input_range}"
        )
    theirs = bounds(plan.input_range, plan.input_shape)
    ours = bounds(contract.input_range, contract.input_shape)
    differs = np.argwhere((theirs[0] != ours[0]) | (theirs[1] != ours[1]))
    at = tuple(differs[0].tolist())
    return (
        f"the plan has input_range [{theirs[0][at]:g}, {theirs[1][at]:g}] at feature {label(at)}, "
        f"this node's data [{ours[0][at]:g}, {ours[1][at]:g}]"
    )
