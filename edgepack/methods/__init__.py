"""Methods other than low-rank factors, by name, and the protocol of plug-ins."""
