"""What every layer kind, every backend and every source keeps: a new one joins by an example in a table."""
