"""Composition of the stages: one module per command that does work."""
