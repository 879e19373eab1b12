"""File formats: how models are read, written and run in each."""
