"""Rules that pick one candidate per layer, to set against the exact plan."""
