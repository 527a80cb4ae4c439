"""Server-side federated algorithms that drop into any Flower project."""
