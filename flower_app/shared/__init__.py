"""Inference in shares among organisations: each party's folder, and what goes into it."""
