"""One audit: flip the canaries' coins, run, guess the coins, and bound ε."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privacy.accounting.gaussian import gaussian_epsilon
from privacy.arguments import maybe_infinite, number, whole
from privacy.audit.statistics import epsilon_lower_bound
from privacy.audit.trade_off import PrivacyCurve, curve_p_value, mu_lower_bound
from privacy.mechanisms import Randomness, SystemRandomness

_log = logging.getLogger(__name__)

LESS_NOISE = "noise: there is less of it than is claimed"
Scores = NDArray[np.float64]
Run = Callable[[NDArray[np.bool_]], Mapping[str, Scores]]


@dataclass(frozen=True)
class Attack:
    """The result of one way of guessing.

    Attributes
    ----------
    name : str
    guesses, correct : int
        r and v.
    epsilon_lower : float
        The lower bound on ε that this attack alone shows, at its share of the error, whatever was
        released.
    mu_lower : float
        The lower bound on μ that it shows, likewise, if Gaussian noise was released.
    curve_p_value : float or None
        How likely so many right guesses are under the claim's whole curve, if that was given.
    """

    name: str
    guesses: int
    correct: int
    epsilon_lower: float
    mu_lower: float
    curve_p_value: float | None = None


@dataclass(frozen=True)
class AuditResult:
    """A lower bound on ε beside the claim.

    Attributes
    ----------
    claimed_epsilon, delta : float
        The ledger's.
    confidence : float
        A true claim is contradicted in at most a fraction ``1 - confidence`` of audits.
    canaries : int
        m.
    attacks : tuple of Attack
        Each had an equal share of the error ``1 - confidence``.
    cohort_p_value : float or None
        How unusual the cohorts' sizes were under the claimed Poisson sampling, if that was
        tested; it then had a share of the error too.
    noise_p_value : float or None
        How unusual it was that the noise where no canary is was so small, likewise.
    p_values : dict of str to float
        Of further tests, by what a small one says.
    blind : bool
        Whether no guesses could have contradicted the claim, not even if all had been right; of
        :func:`privacy.audit.audit_training` also whether they did not where noise was left out.
    """

    claimed_epsilon: float
    delta: float
    confidence: float
    canaries: int
    attacks: tuple[Attack, ...]
    cohort_p_value: float | None = None
    noise_p_value: float | None = None
    p_values: dict[str, float] = field(default_factory=dict)
    blind: bool = False

    @property
    def epsilon_lower(self) -> float:
        """The largest lower bound, at the stated confidence, whatever was released."""
        return max(attack.epsilon_lower for attack in self.attacks)

    @property
    def gaussian_epsilon_lower(self) -> float:
        """The largest lower bound, at the stated confidence, if Gaussian noise was released.

        It is the ε at ``delta`` of the least noise that the guesses do not refute; infinite where
        they refute something and ``delta`` is 0.
        """
        mu = max(attack.mu_lower for attack in self.attacks)
        if mu == 0:
            return 0.0
        return gaussian_epsilon(1 / mu, self.delta) if self.delta > 0 else math.inf

    @property
    def findings(self) -> tuple[str, ...]:
        """The contradictions of the claim, in words."""
        findings = [self._words(attack) for attack in self.attacks if self.contradicts(attack)]
        tests = _tests(self.cohort_p_value, self.noise_p_value, self.p_values)
        findings += [f"{says} (p = {p:.2g})" for says, p in tests.items() if p < self._share]
        return tuple(findings)

    def contradicts(self, attack: Attack) -> bool:
        """Whether the guesses contradict the curve if there is one, else the ε at the one δ."""
        if attack.curve_p_value is None:
            return attack.epsilon_lower > self.claimed_epsilon
        return attack.curve_p_value < self._share

    def _words(self, attack: Attack) -> str:
        right = f"{attack.name}: {attack.correct} of {attack.guesses} guesses are right"
        if attack.curve_p_value is None:
            return (
                f"{right}, so ε ≥ {attack.epsilon_lower:.3f}, and {self.claimed_epsilon:.3f} was "
                "claimed"
            )
        return (
            f"{right}, which has a probability of {attack.curve_p_value:.2g} at most under the "
            f"claimed ε = {self.claimed_epsilon:.3f}"
        )

    @property
    def _share(self) -> float:
        """Of the error, each test's."""
        tests = _tests(self.cohort_p_value, self.noise_p_value, self.p_values)
        return _share_of_error(self.confidence, len(self.attacks), tests)

    @property
    def passed(self) -> bool:
        """Whether nothing contradicts the claim. It does not prove the claim."""
        return not self.findings

    def as_dict(self) -> dict[str, Any]:
        """For JSON; what is infinite becomes null."""

        def finite(value: float) -> float | None:
            return value if math.isfinite(value) else None

        return asdict(self) | {
            "claimed_epsilon": finite(self.claimed_epsilon),
            "epsilon_lower": self.epsilon_lower,
            "gaussian_epsilon_lower": finite(self.gaussian_epsilon_lower),
            "passed": self.passed,
            "findings": list(self.findings),
        }


def default_guesses(canaries: int) -> int:
    """Half of the canaries, an even number: those with the most extreme scores."""
    return max(2, 2 * (canaries // 4)) if canaries > 1 else 1


def count_correct(scores: Scores, included: NDArray[np.bool_], *, guesses: int) -> int:
    """Guess that the highest scores were included, the lowest not; count the right guesses.

    Parameters
    ----------
    scores : ndarray of float, (m,)
        Higher: rather included.
    included : ndarray of bool, (m,)
        The truth.
    guesses : int
        r ≤ m; the upper half of them, rounded up, are guessed to be included.

    Raises
    ------
    ValueError
        If shapes or the number do not fit, or a score is not a number.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.shape != included.shape or values.ndim != 1:
        raise ValueError(
            f"scores has shape {values.shape} and included {included.shape}; both must be (m,)"
        )
    if np.isnan(values).any():
        raise ValueError("a score is not a number; give every canary a score")
    if not 0 <= guesses <= len(values):
        raise ValueError(f"guesses is {guesses}; it must lie between 0 and {len(values)} canaries")
    order = np.argsort(values, kind="stable")
    upper = (guesses + 1) // 2
    highest, lowest = order[len(order) - upper :], order[: guesses - upper]
    return int(included[highest].sum() + (~included[lowest]).sum())


def _tests(
    cohort_p_value: float | None, noise_p_value: float | None, further: Mapping[str, float]
) -> dict[str, float]:
    """The p-values of the tests that were made beside the attacks, by what a small one says."""
    sizes = "cohorts: their sizes are not those of Poisson sampling"
    tests = {sizes: cohort_p_value, LESS_NOISE: noise_p_value, **further}
    return {says: p for says, p in tests.items() if p is not None}


def _share_of_error(confidence: float, attacks: int, tests: Mapping[str, float]) -> float:
    """Each one's, of the error ``1 - confidence``, of so many attacks and these tests."""
    return (1 - confidence) / (attacks + len(tests))


@lru_cache(maxsize=1024)
def _shown(
    canaries: int,
    guesses: int,
    correct: int,
    delta: float,
    share: float,
    curve: PrivacyCurve | None,
) -> tuple[float, float, float | None]:
    """The bounds on ε and μ and the curve's p-value that so many right guesses show.

    Audits that are repeated have few different numbers of them.
    """
    counts = {"canaries": canaries, "guesses": guesses, "correct": correct}
    return (
        epsilon_lower_bound(**counts, delta=delta, confidence=1 - share),
        mu_lower_bound(**counts, confidence=1 - share),
        None if curve is None else curve_p_value(curve, **counts),
    )


def judge(
    scores: Mapping[str, Scores],
    included: NDArray[np.bool_],
    *,
    claimed_epsilon: float,
    delta: float,
    confidence: float = 0.95,
    guesses: int | None = None,
    curve: PrivacyCurve | None = None,
    cohort_p_value: float | None = None,
    noise_p_value: float | None = None,
    p_values: Mapping[str, float] | None = None,
) -> AuditResult:
    """Hold scores against the coins and a claim.

    Parameters
    ----------
    scores : mapping of str to ndarray of float, (m,)
        Each attack's, higher where the canary was rather included.
    included : ndarray of bool, (m,)
        The coins.
    claimed_epsilon, delta : float
        The ledger's.
    confidence : float
        Of all tests together.
    guesses : int, optional
        r, fixed without looking at the scores. Default: half of the canaries.
    curve : PrivacyCurve, optional
        The whole curve that is claimed. With it, it is the curve that the guesses are held
        against, which shows more; ``claimed_epsilon`` is its ε at ``delta``.
    cohort_p_value : float, optional
        Of the cohorts' sizes.
    noise_p_value : float, optional
        Of the noise.
    p_values : mapping of str to float, optional
        Of further tests, by what a small one says.

    Raises
    ------
    TypeError, ValueError
        If there are no scores, they are ill-shaped, or a number is out of range.
    """
    if not scores:
        raise ValueError("there are no scores; give at least one attack's")
    confidence = number("confidence", confidence, above=0, below=1)
    claimed_epsilon = maybe_infinite(
        "claimed_epsilon", claimed_epsilon, least=0, give="a number of at least 0, or infinity"
    )
    delta = number("delta", delta, least=0, below=1)
    if cohort_p_value is not None:
        cohort_p_value = number("cohort_p_value", cohort_p_value, least=0, most=1)
    if noise_p_value is not None:
        noise_p_value = number("noise_p_value", noise_p_value, least=0, most=1)
    canaries = len(included)
    if guesses is not None:
        guesses = whole("guesses", guesses, least=0, most=canaries)
    count = default_guesses(canaries) if guesses is None else guesses
    further = {
        name: number(name, value, least=0, most=1) for name, value in (p_values or {}).items()
    }
    share = _share_of_error(confidence, len(scores), _tests(cohort_p_value, noise_p_value, further))

    def attack(name: str, correct: int) -> Attack:
        return Attack(name, count, correct, *_shown(canaries, count, correct, delta, share, curve))

    result = AuditResult(
        claimed_epsilon,
        delta,
        confidence,
        canaries,
        tuple(
            attack(name, count_correct(values, included, guesses=count))
            for name, values in scores.items()
        ),
        cohort_p_value,
        noise_p_value,
        further,
    )
    if not result.contradicts(attack("all right", count)):
        if claimed_epsilon == math.inf:
            _log.warning("This audit is blind: nothing can contradict a claim of ε = ∞.")
        else:
            _log.warning(
                "This audit is blind: with %d guesses about %d canaries, not even right guesses "
                "alone would contradict the claimed ε = %.3f at δ = %g. Give more canaries or more "
                "guesses.",
                count,
                canaries,
                claimed_epsilon,
                delta,
            )
        return replace(result, blind=True)
    return result


def audit(
    run: Run,
    *,
    canaries: int,
    claimed_epsilon: float | Callable[[], float],
    delta: float | Callable[[], float],
    confidence: float = 0.95,
    guesses: int | None = None,
    curve: Callable[[], PrivacyCurve | None] | None = None,
    cohort_p_value: Callable[[], float | None] | None = None,
    p_values: Callable[[], Mapping[str, float]] | None = None,
    randomness: Randomness | None = None,
) -> AuditResult:
    """Audit anything that trains, with one run of it.

    **Guarantee.** If ``run``'s output to the attacks is (claimed ε, δ)-differentially private under
    adding or removing one canary, the audit contradicts the claim with probability at most
    ``1 - confidence`` (Theorem 5.2 of Steinke, Nasr and Jagielski 2023, or with a ``curve``
    :func:`privacy.audit.curve_p_value`; the error is divided evenly among the tests).

    **Assumptions.** Those of :func:`privacy.audit.p_value`.

    **Not covered.** An audit that contradicts nothing proves nothing: it knows one attack.

    Parameters
    ----------
    run : callable
        Given the coins (ndarray of bool, shape (m,)), trains once with the included canaries and
        returns each attack's scores by its name, ndarray of float (m,), higher where the canary
        was rather included. Which attacks it returns must not depend on the coins.
    canaries : int
        m. A hundred that are all guessed right show ε ≥ 3.5 at 95 %, a thousand ε ≥ 5.8.
    claimed_epsilon, delta : float or callable
        The ε that the ledger claims at this δ; a callable is called after the run.
    confidence : float
        Of all tests together.
    guesses : int, optional
        r, fixed before the run. Default: half of the canaries. Fewer see a small fault better: a
        quarter shows up to a third more, and less where nothing is hidden at all.
    curve : callable, optional
        Called after the run: the whole curve that is claimed, which shows more than its ε at one
        δ; or None.
    cohort_p_value : callable, optional
        Called after the run: the p-value of the cohorts' sizes, or None.
    p_values : callable, optional
        Called after the run: those of further tests, by what a small one says.
    randomness : Randomness, optional
        Of the coins. Default: the operating system's.

    Raises
    ------
    TypeError, ValueError
        If a number is out of range, or ``run`` returned no scores or ill-shaped ones.
    """
    canaries = whole("canaries", canaries, least=1)
    source = SystemRandomness() if randomness is None else randomness
    included = source.bernoulli(0.5, canaries)
    scores = run(included.copy())
    return judge(
        scores,
        included,
        claimed_epsilon=claimed_epsilon() if callable(claimed_epsilon) else claimed_epsilon,
        delta=delta() if callable(delta) else delta,
        confidence=confidence,
        guesses=guesses,
        curve=None if curve is None else curve(),
        cohort_p_value=None if cohort_p_value is None else cohort_p_value(),
        p_values=None if p_values is None else p_values(),
    )
