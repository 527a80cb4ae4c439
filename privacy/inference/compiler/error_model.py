"""The error of a logit, predicted from the noise of every operation."""

from collections.abc import Sequence
from itertools import accumulate

from privacy.inference.arithmetic.scales import LayerScales, Scales
from privacy.inference.compiler.candidates import PackedMap, PackingCandidate
from privacy.inference.compiler.sensitivity import Stage
from privacy.inference.rescaling import BOTH, FIRST, SUMMED, rescaled_after

FRESH_NOISE = 3.24
"""Standard deviation of the centred binomial noise, per coefficient."""
SIGMAS = 6.0
ROUNDING = 1 / 12
"""Variance of rounding to an integer."""


def switch_noise(primes: Sequence[int], degree: int, level: int) -> float:
    """Variance of a key switch, per coefficient; ``primes`` in bits, the special one last.

    Digits are centred: their variance is a twelfth of their prime's square.
    """
    return _switch_noises([*primes[:level], primes[-1]], degree)[-1]


def _switch_noises(primes: Sequence[int], degree: int) -> list[float]:
    """The same at level 1, 2 and so on."""
    ratios = accumulate(4.0 ** (bits - primes[-1]) for bits in primes[:-1])
    each = FRESH_NOISE**2 * degree * ROUNDING
    return [each * ratio + rescale_noise(degree) for ratio in ratios]


def rescale_noise(degree: int) -> float:
    """Variance of a rescaling, per coefficient; the secret is ternary."""
    return (1 + 2 * degree / 3) * ROUNDING


def public_noise(degree: int) -> float:
    """Variance of an encryption under a public key, per coefficient; the secret is ternary."""
    return FRESH_NOISE**2 * (1 + 4 * degree / 3)


def predicted_logit_error(
    candidate: PackingCandidate,
    scales: Scales,
    layers: Sequence[LayerScales],
    stages: Sequence[Stage],
) -> float:
    """Six standard deviations of a logit's predicted error.

    An array where scales are arrays, of many choices.
    """
    degree, half = candidate.degree, candidate.degree / 2
    variance = 0.0
    rescale = half * rescale_noise(degree)
    # The third polynomial's rounding meets the square of the secret.
    rescale_large = half * (2 * degree / 3) ** 2 * ROUNDING
    # The rounding of a plaintext meets every slot; that of an integer only its own product.
    plain = ROUNDING if candidate.batch else half * ROUNDING
    # SEAL encrypts with one prime more and divides by it, which leaves the noise of that.
    sealed = rescale_noise(degree) if candidate.encrypted else 0.0
    plain += half * sealed
    noises = enumerate(_switch_noises(scales.primes, degree), start=1)
    switches = {level: half * noise for level, noise in noises}
    fresh = half * (FRESH_NOISE**2 + ROUNDING)
    for index, stage in enumerate(stages[:-1]):
        layer, packed = layers[index], candidate.layers[index]
        if not packed.degree:
            variance += stage.outputs * fresh / layer.inputs[0] ** 2
            continue
        rescale_at, switch = candidate.layer_rescales[index], switches[layer.level]
        entered = half * sealed / layer.entry.scale**2
        if rescale_at in (SUMMED, BOTH):
            entered += rescale / layer.entry.scale**2
        for number, part in enumerate(packed.maps):
            inputs, weights = layer.inputs[number], layer.weights[number]
            if part.source == 0:
                variance += stage.inputs[number] * fresh / inputs**2
            elif part.turned:
                # All of the weights may be on rotations: a matrix can leave its diagonal empty.
                variance += stage.inputs[number] * switch / inputs**2
            # Weights that repeat leave most coefficients of their plaintext zero, and those exact.
            share = averaged(candidate, index, part) if candidate.encrypted else part.repeats
            rounding = plain / weights**2 * share
            if packed.paired:
                rounding *= 4
            unread = stage.gaps[number] + stage.outputs * (part.terms - stage.widest[number])
            variance += (stage.products[number] + unread * stage.elsewhere[number]) * rounding
            doublings = part.doublings
            early = 0 if rescale_at == FIRST else doublings
            sums = 2.0**early * part.giants
            added = (sums - 1) * switch
            if candidate.encrypted:
                added += sums * switch
            later = 2.0 ** (doublings - early)
            entered += added / layer.product**2 * later
            if rescale_at == FIRST:
                # What is left of the tree adds up as many roundings.
                summed = later * rescale + (later - 1) * switches[layer.entry.level]
                entered += summed / layer.entry.scale**2
        variance += stage.outputs * entered
        if rescaled_after(rescale_at):
            own = layer.narrowings[-len(stage.narrowings) :]
            for gain, narrowing in zip(stage.narrowings, own, strict=True):
                variance += gain * switches[narrowing.level] / narrowing.before**2
                variance += gain * rescale / narrowing.after**2
        else:
            square, level = layer.entry.scale**2, layer.entry.level
            variance += stage.narrowings[0] * switches[level] / square**2
        if index in candidate.large:
            if rescaled_after(rescale_at):
                large = rescale_large / layer.narrowings[-1].after ** 2
                variance += stage.narrowings[-1] * large
            (user,) = candidate.users[index + 1]
            following, gain = layers[user], stages[user].outputs
            variance += gain * switches[following.level] / following.product**2
        for gain, constant in zip(stage.constants, layer.constants, strict=True):
            variance += gain * ROUNDING / constant**2
    rounding = ROUNDING + sealed
    # By Parseval, a rounded polynomial meets the mean of what is in the slots.
    met = stages[-1].products if candidate.batch else stages[-1].energies
    for energy, weights in zip(met, layers[-1].weights, strict=True):
        variance += rounding * energy / weights**2
    closing = (
        sealed
        + switch_noise(scales.primes, degree, candidate.answer_level)
        + rescale_noise(degree)
        + public_noise(degree)
    )
    variance += (half if candidate.batch else 1) * closing / 4.0**scales.answer
    deviation: float = variance**0.5
    return SIGMAS * deviation


def averaged(candidate: PackingCandidate, index: int, part: PackedMap) -> float:
    """The share that is left of the noise of a map's encrypted weights, as logits see it.

    Logits average over all copies of a value that the last layer alone reads. The noise of an
    encryption differs from slot to slot: of C copies, each a sum of T slots, a slot's noise is in T
    at most, and the mean has T/C of the variance of one.
    """
    last = len(candidate.layers) - 1
    if candidate.users[index + 1] != (last,):
        return 1.0
    return min(1.0, 2.0**part.doublings / candidate.copies)
