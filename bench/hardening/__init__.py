"""Wrong inputs for every command, and what becomes of them."""
