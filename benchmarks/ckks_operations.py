"""Operations on CKKS ciphertexts beside SEAL's, with the same primes, in turns."""

from collections.abc import Callable
from typing import Any

import numpy as np
from tenseal import sealapi as seal

from benchmarks.harness import Log, Row, interleave_clocks
from privacy.inference.ckks import PublicKey, Ring, SecretKey, warm_up
from privacy.inference.ckks.seal_keys import SealKeys

_PEER = "SEAL"
_RINGS = {4096: (36, 36, 37), 8192: (50, 40, 40, 50), 16384: (50, *[40] * 6, 50)}
_STEPS = tuple(range(1, 9))
_BITS = 30
"""Of a plaintext's scale."""


def run(*, quick: bool, log: Log) -> list[Row]:
    """Milliseconds an operation, by the wall's clock and by the processor's."""
    warm_up()
    rows = []
    for degree, bits in _RINGS.items():
        if quick and degree > 8192:
            continue
        ours, theirs = _ours(Ring(degree, bits)), _theirs(Ring(degree, bits))
        log(f"N = {degree}, primes of {bits} bits")
        for operation, work in ours.items():
            ways = {"ours": work}
            if operation in theirs:
                ways[_PEER] = theirs[operation]
            clocks = interleave_clocks(ways, repetitions=10 if quick else 60)
            for metric, times in zip(("time", "processor"), clocks, strict=True):
                peer = times.get(_PEER)
                name = None if peer is None else _PEER
                case = f"N={degree}, {operation}"
                rows.append(Row(case, metric, "ms", times["ours"], peer, name))
    return rows


def _ours(ring: Ring) -> dict[str, Callable[[], object]]:
    """Each operation of ours, on a ciphertext that has all primes."""
    secret = SecretKey(ring)
    level = ring.levels
    elements = [ring.galois_element(step) for step in _STEPS]
    keys = ring.rotation_keys(
        {element: secret.rotation_key(element, level) for element in elements}
    )
    relinearisation = ring.switching_key(secret.relinearisation_key(level))
    public = PublicKey(ring, *secret.public_key())
    slots = np.random.default_rng(0).normal(size=ring.slots)
    plain = ring.encode(slots, 2.0**_BITS, level)
    encoded = ring.encode(slots, 2.0**_BITS, level, hoisted=True)
    weights = ring.weights(dict.fromkeys(range(len(_STEPS)), encoded))
    value = ring.ciphertext(public.encrypt(plain), plain.scale)
    product = ring.multiply(value, value)

    def relinearise() -> None:
        ring.relinearise(ring.at_level(product, level), relinearisation)

    def weighted_sum() -> None:
        ring.divided(ring.combine(ring.hoist(ring.extended(value), _STEPS, keys), weights))

    return {
        "transforms of a ciphertext": lambda: ring.coefficient_residues(value),
        "rotation": lambda: ring.rotate_many(value, (1,), keys),
        "eight rotations, hoisted": lambda: ring.rotate_many(value, _STEPS, keys),
        "eight rotations, weighted and summed": weighted_sum,
        "relinearisation": relinearise,
        "rescaling": lambda: ring.rescale(ring.at_level(value, level)),
        "square": lambda: ring.multiply(value, value),
        "product with a plaintext": lambda: ring.multiply_plain(value, plain),
        "encoding": lambda: ring.encode(slots, 2.0**_BITS, level),
        "encryption": lambda: secret.encrypt(plain),
        "encryption of zero at level 1": lambda: public.encrypt_zero(1),
    }


def _theirs(ring: Ring) -> dict[str, Callable[[], object]]:
    """The same in SEAL, through TenSEAL."""
    keys = SealKeys(ring.degree, ring.primes)
    elements = [ring.galois_element(step) for step in _STEPS]
    rotation, relinearisation = seal.GaloisKeys(), seal.RelinKeys()
    keys.generator.create_galois_keys(elements, rotation)
    keys.generator.create_relin_keys(relinearisation)
    evaluator, encoder = seal.Evaluator(keys.context), seal.CKKSEncoder(keys.context)
    encryptor = seal.Encryptor(keys.context, keys.key)
    slots = np.random.default_rng(0).normal(size=ring.slots).tolist()
    identity = keys.identity(ring.levels)

    def encoded() -> Any:
        plain = seal.Plaintext()
        encoder.encode(slots, identity, 2.0**_BITS, plain)
        return plain

    def made(operation: Callable[..., None], *operands: Any) -> Any:
        result = seal.Ciphertext()
        operation(*operands, result)
        return result

    plain = encoded()
    value = made(encryptor.encrypt_symmetric, plain)
    product = made(evaluator.square, value)

    def weighted_sum() -> None:
        total = None
        for element in elements:
            term = made(evaluator.apply_galois, value, element, rotation)
            term = made(evaluator.multiply_plain, term, plain)
            if total is None:
                total = term
            else:
                evaluator.add_inplace(total, term)

    return {
        "transforms of a ciphertext": lambda: made(evaluator.transform_from_ntt, value),
        "rotation": lambda: made(evaluator.apply_galois, value, elements[0], rotation),
        "eight rotations, hoisted": lambda: [
            made(evaluator.apply_galois, value, element, rotation) for element in elements
        ],
        "eight rotations, weighted and summed": weighted_sum,
        "relinearisation": lambda: made(evaluator.relinearize, product, relinearisation),
        "rescaling": lambda: made(evaluator.rescale_to_next, value),
        "square": lambda: made(evaluator.square, value),
        "product with a plaintext": lambda: made(evaluator.multiply_plain, value, plain),
        "encoding": encoded,
        "encryption": lambda: made(encryptor.encrypt_symmetric, plain),
    }
