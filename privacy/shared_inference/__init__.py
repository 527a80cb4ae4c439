"""Secret-shared inference: a question in shares, answered by two workers that do not collude."""
