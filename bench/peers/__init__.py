"""Other tools, each in an environment of its own, on the same models and data."""
