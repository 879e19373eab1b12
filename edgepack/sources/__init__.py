"""The doors for models: Python recipes, exported torch programs, ONNX files."""
