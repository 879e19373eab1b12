"""What a model is made of: layers, and how their weights may be stored."""
