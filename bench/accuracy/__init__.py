"""What compression costs in accuracy: files of four models, each written in many ways, scored in their runtime."""
