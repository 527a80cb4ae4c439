"""Hospitals learn to tell tumours apart, privately."""
