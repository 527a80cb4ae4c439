"""What a privacy budget buys, before any training."""
