"""Compiled models' arithmetic on ciphertexts: products, squares, masks."""
