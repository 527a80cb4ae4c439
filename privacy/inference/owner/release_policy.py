"""Release policies: which part of a decrypted answer leaves the data owner.

A CKKS decryption is the message plus noise that depends on the secret key: whoever sees enough
of them in full precision learns the key (Li and Micciancio 2021).
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from privacy.arguments import convert, number, whole
from privacy.inference.decision import decide, decide_each
from privacy.inference.errors import ReleaseError
from privacy.inference.plan import Plan
from privacy.mechanisms import SystemRandomness, add_gaussian

Logits = NDArray[np.float64]
# The range of doubles: beyond these every step is infinite, and every noise.
_MAX_DECIMALS = 300
_MAX_STATISTICAL_BITS = 1000
_MAX_QUERIES = 2**64


@dataclass(frozen=True)
class Answer:
    """An answer as the release policy lets it out.

    Attributes
    ----------
    labels : tuple of int
        The class that each image's logits decide for, one an image; empty with ``label_sets``.
    top : tuple of tuple of int, or None
        The classes with the largest logits, largest first, one tuple an image.
    logits : ndarray or None
        Rounded or flooded, shape (images, logits).
    label_sets : tuple of tuple of int, or None
        All labels of an image, rising, one tuple an image.
    names : tuple of str, or None
        What the plan calls the classes in ``labels``; None where it names none.
    name_sets : tuple of tuple of str, or None
        What the plan calls the labels in ``label_sets``; None where it names none.
    """

    labels: tuple[int, ...]
    top: tuple[tuple[int, ...], ...] | None = None
    logits: Logits | None = None
    label_sets: tuple[tuple[int, ...], ...] | None = None
    names: tuple[str, ...] | None = None
    name_sets: tuple[tuple[str, ...], ...] | None = None

    @property
    def label(self) -> int:
        """The class of the only image.

        Raises
        ------
        ValueError
            If the query held several images, or an image has a set of labels.
        """
        if self.label_sets is not None:
            raise ValueError("an image has a set of labels; read label_sets, or name_sets")
        if len(self.labels) != 1:
            raise ValueError(f"the query held {len(self.labels)} images; read labels")
        return self.labels[0]

    @property
    def name(self) -> str:
        """What the plan calls the class of the only image.

        Raises
        ------
        ValueError
            If the query held several images, or the plan names no classes.
        """
        label = self.label
        if self.names is None:
            raise ValueError(
                f"the plan names no classes, this is number {label}; the model's owner names them "
                "with compile_model(..., class_names=...)"
            )
        return self.names[0]


class ReleasePolicy(Protocol):
    """Decides which part of a decryption leaves the data owner."""

    def check(self, plan: Plan) -> None:
        """Raise :class:`ReleaseError` if the plan cannot carry this policy."""

    def release(self, logits: Logits, plan: Plan, released: int) -> Answer:
        """The answer from logits of shape (images, logits), after ``released`` earlier ones."""


@dataclass(frozen=True)
class ClassOnly:
    """The class with the largest logit; of a single logit, on which side of a threshold it lies.

    **Guarantee.** None that is proved. One answer holds at most log2(classes) bits an image.

    **Assumptions.** Few queries, and nobody who chooses them adaptively close to where two classes
    meet. One threshold: whoever sees decisions at many of them brackets the logit.

    **Not covered.** Noise decides between two logits that are nearly equal, or for one next to the
    threshold, so such an answer leaks about the noise; and a class leaks about the model.

    Parameters
    ----------
    threshold : float
        Where a single logit decides: class 1 above it. Models with several logits have none.
    """

    threshold: float = 0.0

    def __post_init__(self) -> None:
        convert(self, "threshold", number)

    def check(self, plan: Plan) -> None:
        """A threshold other than 0 needs a single logit, and must be below 2^logit_bits."""
        _check_classes("ClassOnly", plan)
        _check_reachable(self.threshold, plan)

    def release(self, logits: Logits, plan: Plan, released: int) -> Answer:
        """The classes."""
        return Answer(_labels(logits, self.threshold))


@dataclass(frozen=True)
class EachLabel:
    """The labels that hold, of a multi-label model: whose logits are above a threshold.

    As :class:`ClassOnly`, with one bit a label. Each logit is decided by itself, and their order
    is not released. For labels with thresholds of their own, subtract them from the biases of the
    model's last layer.
    """

    threshold: float = 0.0

    def __post_init__(self) -> None:
        convert(self, "threshold", number)

    def check(self, plan: Plan) -> None:
        """The plan must be of a multi-label model, and the threshold below 2^logit_bits."""
        if not plan.multi_label:
            raise ReleaseError(
                "EachLabel is for models compiled with multi_label=True; of this one's classes one "
                "holds: use ClassOnly()"
            )
        _check_bounded(self.threshold, plan)

    def release(self, logits: Logits, plan: Plan, released: int) -> Answer:
        """The labels of each image."""
        return _answer(logits, plan, self.threshold)


@dataclass(frozen=True)
class TopClasses:
    """The ``count`` classes with the largest logits, in order, without their logits.

    As :class:`ClassOnly`, with more bits an answer. A single logit orders its two classes.
    """

    count: int
    threshold: float = 0.0

    def __post_init__(self) -> None:
        convert(self, "threshold", number)
        convert(self, "count", whole, least=1)

    def check(self, plan: Plan) -> None:
        """The plan must have that many classes."""
        _check_classes("TopClasses", plan)
        if self.count > plan.classes:
            raise ReleaseError(f"count is {self.count}; the model has {plan.classes} classes")
        _check_reachable(self.threshold, plan)

    def release(self, logits: Logits, plan: Plan, released: int) -> Answer:
        """The classes in falling order."""
        if plan.logits == 1:
            first = decide(logits, threshold=self.threshold)
            order = np.stack([first, 1 - first], axis=1)
        else:
            order = np.argsort(-logits, axis=1, kind="stable")
        top = tuple(tuple(row) for row in order[:, : self.count].tolist())
        return Answer(_labels(logits, self.threshold), top=top)


@dataclass(frozen=True)
class RoundedLogits:
    """Logits rounded to ``decimals`` decimal places.

    **Guarantee.** None that is proved: rounding hides noise that is much smaller than a step,
    except for logits next to a boundary between two steps.

    **Assumptions.** As :class:`ClassOnly`; a step is at least 2^8 times the plan's error for the
    worst input, which is checked. That error is six standard deviations of a noise model, and the
    data owner trusts whoever made the plan for it: a plan that names a smaller error than its
    weights have lets the noise show.

    **Not covered.** Whoever sees many roundings of chosen inputs learns about the noise. The class
    is decided before rounding: it reveals on which side a logit lies that rounds to the threshold.
    """

    decimals: int
    threshold: float = 0.0

    def __post_init__(self) -> None:
        convert(self, "threshold", number)
        convert(self, "decimals", whole, least=-_MAX_DECIMALS, most=_MAX_DECIMALS)

    def check(self, plan: Plan) -> None:
        """The step must be far above the error."""
        _check_reachable(self.threshold, plan)
        if 10.0**-self.decimals < 2.0 ** (plan.worst_error_bits + 8):
            allowed = math.floor(-(plan.worst_error_bits + 8) * math.log10(2))
            # Both errors shrink together, as a rule.
            bits = math.floor(-self.decimals * math.log2(10)) - 8
            tolerance = 2.0 ** (bits + plan.error_bits - plan.worst_error_bits)
            raise ReleaseError(
                f"decimals is {self.decimals}; the plan's error for the worst input is about "
                f"2^{plan.worst_error_bits}, a step must be 2^8 times that: give "
                f"decimals={allowed} or less, or compile with a tolerance of about {tolerance:.2g}"
                ", or with a narrower input_range"
            )

    def release(self, logits: Logits, plan: Plan, released: int) -> Answer:
        """The rounded logits."""
        rounded = np.round(logits, self.decimals) + 0.0
        return _answer(logits, plan, self.threshold, rounded)


@dataclass(frozen=True)
class FloodedLogits:
    """Logits with Gaussian noise that covers the noise of the encryption.

    The noise has standard deviation σ = B·sqrt(12·Q·n)·2^(s/2), where B bounds the error of a
    logit, n is the number of logits in an answer, Q the number of queries and s the statistical
    parameter (Li, Micciancio, Schultz and Sorrell 2022, the Gaussian mechanism).

    **Guarantee.** All Q answers together are within a Kullback-Leibler divergence of
    Q·n·B²/(2σ²) = 2^-s/24 of exact logits with the same noise, which depend on no key.

    **Assumptions.** Inputs in the declared range. B is the plan's error for the worst input, six
    standard deviations of a noise model and no bound for every coin that SEAL may toss; the data
    owner trusts whoever made the plan for it. The noise is drawn from the operating system's
    randomness.

    **Not covered.** What exact logits reveal about the model or the input.

    Parameters
    ----------
    statistical_bits : int
        s; 30 or more against whoever can see many answers.
    queries : int
        Q, how many answers may be released under one key; further ones are refused.
    threshold : float
        As :class:`ClassOnly`; the class is taken from the noised logit.
    """

    statistical_bits: int
    queries: int
    threshold: float = 0.0

    def __post_init__(self) -> None:
        convert(self, "threshold", number)
        convert(self, "statistical_bits", whole, least=1, most=_MAX_STATISTICAL_BITS)
        convert(self, "queries", whole, least=1, most=_MAX_QUERIES)

    def noise(self, plan: Plan) -> float:
        """σ, the standard deviation of the noise on a logit."""
        error = 2.0**plan.worst_error_bits
        logits = plan.logits * plan.batch_size
        return float(
            error * math.sqrt(12 * self.queries * logits) * 2.0 ** (self.statistical_bits / 2)
        )

    def check(self, plan: Plan) -> None:
        """Noise must leave something of the logits."""
        _check_reachable(self.threshold, plan)
        noise, largest = self.noise(plan), 2.0**plan.logit_bits
        if noise > largest / 8:
            raise ReleaseError(
                f"flooding {self.queries} queries to {self.statistical_bits} bits takes noise of "
                f"{noise:.3g} on logits below {largest:.3g}: the plan has no bits for it. Compile "
                "with a smaller tolerance or a narrower input_range, or allow fewer queries"
            )

    def release(self, logits: Logits, plan: Plan, released: int) -> Answer:
        """The noised logits; the class is taken from them too."""
        if released >= self.queries:
            raise ReleaseError(
                f"{released} answers were released under this key, queries is {self.queries}; "
                "make new keys"
            )
        noised = np.array(logits, dtype=np.float64, order="C")
        add_gaussian(noised, sigma=self.noise(plan), randomness=SystemRandomness())
        return _answer(noised, plan, self.threshold, noised)


def _check_reachable(threshold: float, plan: Plan) -> None:
    """Refuse a threshold where none is meant, or beyond the plan's bound of every logit.

    The bound is in whole bits, so that what passes can still lie beyond every logit.
    """
    if threshold == 0.0:
        return
    if plan.logits > 1 and not plan.multi_label:
        raise ReleaseError(
            f"threshold is {threshold:g}; of the model's {plan.logits} logits the largest decides: "
            "leave threshold out"
        )
    _check_bounded(threshold, plan)


def _check_bounded(threshold: float, plan: Plan) -> None:
    if threshold != 0.0 and abs(threshold) >= 2.0**plan.logit_bits:
        raise ReleaseError(
            f"threshold is {threshold:g}; every logit of this model lies between "
            f"±{2.0**plan.logit_bits:g}, so that one class would never be answered"
        )


def _check_classes(policy: str, plan: Plan) -> None:
    """Refuse a policy about one class where several labels may hold."""
    if plan.multi_label:
        raise ReleaseError(
            f"{policy} releases the class of the largest logit, and this model's {plan.logits} "
            "labels are independent of each other: use EachLabel()"
        )


def _answer(logits: Logits, plan: Plan, threshold: float, shown: Logits | None = None) -> Answer:
    """The class or the labels of logits, and the logits that may be shown."""
    if plan.multi_label:
        holding = decide_each(logits, threshold=threshold)
        sets = tuple(tuple(np.flatnonzero(row).tolist()) for row in holding)
        return Answer((), logits=shown, label_sets=sets)
    return Answer(_labels(logits, threshold), logits=shown)


def _labels(logits: Logits, threshold: float) -> tuple[int, ...]:
    return tuple(decide(logits, threshold=threshold).tolist())
