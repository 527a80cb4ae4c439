"""Six hospitals learn from their tables who sees a doctor, privately for each patient."""
