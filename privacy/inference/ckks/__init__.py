"""CKKS on TenSEAL and on residues: rings, ciphertexts, seeded uniform polynomials."""
