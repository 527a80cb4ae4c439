"""Gradients of single examples: captured layer by layer, clipped and summed."""
