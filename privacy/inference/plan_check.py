"""A plan that a stranger sent, looked at before it is believed."""

import math
from dataclasses import dataclass

from privacy.arguments import of_kind
from privacy.inference.ckks import Ring
from privacy.inference.errors import PlanRefusedError
from privacy.inference.plan import Plan

MAX_ROUND_BYTES = 20_000_000
"""What a node sends in a round, at most: keys and questions together."""

_LONGEST_PLAN = 1 << 22  # characters
_MARGIN_BITS = 3  # two numbers in a complex slot, a sign, and rounding
FAULTS_OF_A_PLAN = (ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class InputContract:
    """What a node knows by itself of the models it is asked to test.

    Parameters
    ----------
    input_shape : tuple of int
        Of one input.
    input_range : tuple of float
        The lowest and highest value that an element of an input can have.
    classes : int
        How many. A model may decide between two with two logits or with one.
    max_bytes : int
        What it is ready to send in a round.
    """

    input_shape: tuple[int, ...]
    input_range: tuple[float, float]
    classes: int
    max_bytes: int = MAX_ROUND_BYTES

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise ValueError(
                f"classes is {self.classes}; give 2 or more (a single logit decides between 2)"
            )


def accept_plan(text: str, contract: InputContract) -> Plan:
    """Read a plan that a stranger sent, and refuse what could harm.

    Parameters
    ----------
    text : str
        As ``Plan.to_json`` writes it.
    contract : InputContract

    Returns
    -------
    Plan
        With parameters that hold 128 bits of security, for inputs of exactly the expected shape
        and range, and within the expected bytes. The digest of it, which every message carries,
        is computed here.

    Raises
    ------
    PlanRefusedError
        If it is not.
    TypeError
        If ``text`` is no text, or ``contract`` none.

    Notes
    -----
    Whether an input fits is never asked of the plan: a plan with a narrower range, or with a
    scale at which large inputs overflow, would have the node's refusal tell of its data.
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
    for name in ("input_shape", "input_range", "classes"):
        found, wanted = getattr(plan, name), getattr(contract, name)
        if found != wanted:
            raise PlanRefusedError(f"the plan has {name} {found}, this node's data {wanted}")
    if plan.parties:
        raise PlanRefusedError("the plan is for encrypted weights, which no round evaluates")
    if plan.input_scale_bits < 0:
        raise PlanRefusedError(f"inputs scaled by 2^{plan.input_scale_bits} keep no precision")
    largest = max(abs(bound) for bound in contract.input_range)
    room = sum(plan.prime_bits[: plan.levels])
    if plan.input_scale_bits + math.log2(max(largest, 1.0)) + _MARGIN_BITS > room:
        raise PlanRefusedError(
            f"inputs scaled by 2^{plan.input_scale_bits} need not fit the plan's {room} bits"
        )
    least = plan.public_bytes + plan.query_bytes
    if not 0 < least <= contract.max_bytes:
        raise PlanRefusedError(
            f"keys and one question take {least:,} bytes, {contract.max_bytes:,} are allowed"
        )
    # What is read later, with the node's data beside it, must not fail there.
    Ring(plan.degree, plan.prime_bits)
    if plan.packing_kind != "batch":
        _ = plan.taps
