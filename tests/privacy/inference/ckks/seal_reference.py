"""SEAL's own arithmetic, through TenSEAL, on the residues of our ciphertexts."""

from typing import Any

import numpy as np
from tenseal import sealapi as seal

from privacy.inference.ckks import Residues, Ring
from privacy.inference.ckks.seal_keys import (
    SealKeys,
    ciphertext_residues,
    save,
    switching_key_residues,
)


class SealReference(SealKeys):
    """A ring with a secret key in SEAL; residues go in and come out."""

    def __init__(self, ring: Ring) -> None:
        super().__init__(ring.degree, ring.primes)
        self.ring = ring
        self.evaluator = seal.Evaluator(self.context)
        self.encoder = seal.CKKSEncoder(self.context)
        self.encryptor = seal.Encryptor(self.context, self.key)
        self.relinearisation_keys = seal.RelinKeys()
        self.galois_keys = seal.GaloisKeys()

    def make_keys(self, elements: list[int]) -> tuple[Residues, dict[int, Residues]]:
        """A relinearisation key and Galois keys, (parts, 2, primes, N), which it uses itself."""
        self.generator.create_relin_keys(self.relinearisation_keys)
        self.generator.create_galois_keys(elements, self.galois_keys)
        whole = switching_key_residues(self.galois_keys)
        order = sorted(elements, key=lambda element: (element - 1) // 2)
        parts = whole.reshape(len(order), self.ring.levels, *whole.shape[1:])
        relinearisation = switching_key_residues(self.relinearisation_keys)
        return relinearisation, dict(zip(order, parts, strict=True))

    def encoded(self, values: Any, scale: float, level: int) -> Residues:
        """The residues of SEAL's plaintext, (level, N)."""
        return self.residues(self.plain(values, scale, level), level)

    def residues(self, plain: Any, level: int) -> Residues:
        """The residues of a plaintext, (level, N), from the end of its stream."""
        count = level * self.ring.degree
        return np.frombuffer(save(plain)[-8 * count :], dtype="<u8").reshape(level, -1)

    def plain(self, values: Any, scale: float, level: int) -> Any:
        """SEAL's plaintext of slots, or of a number in all of them."""
        plain = seal.Plaintext()
        given = values.tolist() if isinstance(values, np.ndarray) else values
        self.encoder.encode(given, self.identity(level), scale, plain)
        return plain

    def encrypt(self, values: Any, scale: float, level: int) -> Residues:
        """SEAL's encryption under the secret key."""
        ciphertext = seal.Ciphertext()
        self.encryptor.encrypt_symmetric(self.plain(values, scale, level), ciphertext)
        return ciphertext_residues(ciphertext)

    def of(self, operation: str, residues: Residues, *others: Any, scale: float = 1.0) -> Residues:
        """The residues of what an operation of SEAL's evaluator makes of a ciphertext."""
        result = seal.Ciphertext()
        operands = [
            self.load(other, scale) if isinstance(other, np.ndarray) else other for other in others
        ]
        getattr(self.evaluator, operation)(self.load(residues, scale), *operands, result)
        return ciphertext_residues(result)
