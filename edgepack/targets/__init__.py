"""CPUs as data: their facts, the files that list them, and probing this machine."""
