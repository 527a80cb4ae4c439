"""A training run, assembled from its settings on the server and on nodes."""
