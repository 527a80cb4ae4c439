"""Image files and arrays, brought to the form of a model's training data."""
