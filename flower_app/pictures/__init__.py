"""Image files and arrays, brought to what a model was trained on."""
