"""Low-rank factors of a weight matrix, and their refit to activations."""
