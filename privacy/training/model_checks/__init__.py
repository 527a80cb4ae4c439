"""Whether a model and a loss can be trained with per-example clipping: checks before a step."""
