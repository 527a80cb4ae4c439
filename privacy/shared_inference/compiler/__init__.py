"""The compiler: from a model and the range of its inputs to integers, scales and proved widths."""
