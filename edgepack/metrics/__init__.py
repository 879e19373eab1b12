"""How answers are scored, and how much of a score a compressed model loses."""
