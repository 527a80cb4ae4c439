"""Bars and crosses, with PyTorch."""
