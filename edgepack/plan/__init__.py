"""What becomes of each layer: candidates, their cost, and the search for a plan. Returns data, touches no model."""
