"""Benchmarks: the measuring protocol, the devices it runs on, and the statistics of its raw values."""
