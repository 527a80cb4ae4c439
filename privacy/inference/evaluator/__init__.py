"""The evaluator: encrypted answers in a process, a pool, or here, without a secret key."""
