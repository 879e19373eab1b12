"""Whether the drop that was allowed holds on data that no build has seen."""
