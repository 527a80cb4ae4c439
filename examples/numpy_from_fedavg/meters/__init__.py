"""Households learn when a car is charged, in numpy alone."""
