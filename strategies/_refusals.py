"""Settings of a strategy that do not go together, refused by name when it is made."""

from privacy.mechanisms import LatticeGaussian, SumMechanism
from strategies.clipping import AdaptiveClipping, Clipping
from strategies.metrics import NoisedMetrics, PublicMetrics
from strategies.secure_aggregation.settings import SecureAggregation
from strategies.weighting import CappedWeights, UniformWeights, Weighting


def check_accounted_by_replacement(
    *,
    clipping: Clipping,
    fraction_evaluate: float,
    evaluate_metrics: PublicMetrics | NoisedMetrics | None,
) -> None:
    """Refuse what is accounted by adding or removing a client only.

    Raises
    ------
    ValueError
    """
    if isinstance(clipping, AdaptiveClipping):
        raise ValueError(
            "adaptive clipping is not accounted for a cohort of fixed size; use Poisson "
            "sampling or a fixed norm"
        )
    if fraction_evaluate and isinstance(evaluate_metrics, NoisedMetrics):
        raise ValueError(
            "noised evaluation metrics are not accounted beside a cohort of fixed size; use "
            "Poisson sampling, or set fraction_evaluate to 0"
        )


def check_needs_no_single_reply(
    secure: SecureAggregation,
    *,
    mechanism: SumMechanism,
    weighting: Weighting,
    clipping: Clipping,
    train_metrics: PublicMetrics | NoisedMetrics | None,
    fraction_evaluate: float,
    expected_cohort: float,
) -> None:
    """Refuse what would need to see a single client's reply.

    Raises
    ------
    ValueError
    """
    if not isinstance(mechanism, LatticeGaussian):
        raise ValueError(
            f"mechanism is {mechanism.name!r}; secure aggregation adds up integers: "
            "leave it at LatticeGaussian()"
        )
    if not isinstance(weighting, UniformWeights | CappedWeights):
        raise ValueError(
            f"weighting is {type(weighting).__name__}; under secure aggregation clients "
            "weigh themselves by UniformWeights() or CappedWeights(...)"
        )
    if isinstance(clipping, AdaptiveClipping):
        raise ValueError(
            "clipping is adaptive, which counts who was clipped; secure aggregation opens "
            "nothing but the sum: give a fixed norm"
        )
    if train_metrics is not None:
        raise ValueError(
            "train_metrics is set; under secure aggregation clients send no metrics: leave it unset"
        )
    if fraction_evaluate:
        raise ValueError(
            f"fraction_evaluate is {fraction_evaluate}; evaluation would send metrics in "
            "the clear beside secure aggregation: set it to 0 and use evaluate_fn"
        )
    if expected_cohort < secure.minimum:
        raise ValueError(
            f"secure_aggregation.minimum is {secure.minimum}, but a round draws "
            f"{expected_cohort:g} clients on average: lower it, or draw more"
        )
