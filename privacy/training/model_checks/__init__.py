"""Whether a model and a loss can be trained with per-example clipping; tried before a step."""
