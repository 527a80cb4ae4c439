"""The compiler: from a model's layers to a packing, scales, ranges and an error."""
