"""Encrypted evaluation of the trained model, and the encrypted round among clients."""
