"""The error of a logit, predicted from the noise of every operation."""

from collections.abc import Sequence

from privacy.inference.arithmetic.scales import AFTER, FIRST, LayerScales, Scales
from privacy.inference.compiler.candidates import PackingCandidate
from privacy.inference.compiler.sensitivity import Stage

FRESH_NOISE = 3.24
"""Standard deviation of the centred binomial noise, per coefficient."""
SIGMAS = 6.0
ROUNDING = 1 / 12
"""Variance of rounding to an integer."""


def switch_noise(primes: Sequence[int], degree: int, level: int) -> float:
    """Variance of a key switch, per coefficient; ``primes`` in bits, the special one last.

    Digits are centred: their variance is a twelfth of their prime's square.
    """
    ratio = sum(4.0 ** (bits - primes[-1]) for bits in primes[:level])
    return FRESH_NOISE**2 * degree * ROUNDING * ratio + rescale_noise(degree)


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
    levels = range(1, candidate.levels + 1)
    switches = {level: half * switch_noise(scales.primes, degree, level) for level in levels}
    for index, stage in enumerate(stages[:-1]):
        layer, doublings = layers[index], candidate.doublings(index)
        switch = switches[layer.level]
        if index == 0:
            fresh = half * (FRESH_NOISE**2 + ROUNDING) / layer.inputs**2
            variance += stage.inputs * fresh
        else:
            rotated = 1 - 1 / candidate.baby_steps[index]
            variance += stage.inputs * rotated * switch / layer.inputs**2
        # Weights that repeat leave most coefficients of their plaintext zero, and those exact.
        rounding = (
            plain / layer.weights**2 * (1.0 if candidate.encrypted else candidate.repeats[index])
        )
        if index == 0 and candidate.paired:
            rounding *= 4
        variance += stage.outputs * candidate.terms[index] * stage.energy * rounding
        rescale_at = candidate.rescales[index]
        early = 0 if rescale_at == FIRST else doublings
        sums = 2.0**early * candidate.giant_steps[index]
        added = (sums - 1) * switch
        if candidate.encrypted:
            added += sums * switch
        product, later = (layer.inputs * layer.weights) ** 2, 2.0 ** (doublings - early)
        entered = added / product * later + half * sealed / layer.entry.scale**2
        if rescale_at >= 0:
            # What is left of the tree adds up as many roundings.
            summed = later * rescale + (later - 1) * switches[layer.entry.level]
            entered += summed / layer.entry.scale**2
        variance += stage.outputs * entered
        if rescale_at == AFTER:
            for gain, narrowing in zip(stage.narrowings, layer.narrowings, strict=True):
                variance += gain * switches[narrowing.level] / narrowing.before**2
                variance += gain * rescale / narrowing.after**2
        else:
            square, level = layer.entry.scale**2, layer.entry.level
            variance += stage.narrowings[0] * switches[level] / square**2
        if candidate.leaves_large(index):
            if rescale_at == AFTER:
                large = rescale_large / layer.narrowings[-1].after ** 2
                variance += stage.narrowings[-1] * large
            following, gain = layers[index + 1], stages[index + 1].outputs
            product = (following.inputs * following.weights) ** 2
            variance += gain * switches[following.level] / product
        for gain, constant in zip(stage.constants, layer.constants, strict=True):
            variance += gain * ROUNDING / constant**2
    rounding = ROUNDING + sealed
    variance += rounding * candidate.terms[-1] * stages[-1].energy / layers[-1].weights ** 2
    closing = (
        sealed
        + switch_noise(scales.primes, degree, candidate.answer_level)
        + rescale_noise(degree)
        + public_noise(degree)
    )
    variance += (half if candidate.batch else 1) * closing / 4.0**scales.answer
    deviation: float = variance**0.5
    return SIGMAS * deviation
