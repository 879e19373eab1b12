"""Surgery on ONNX graphs: read, find linear layers, put others in their place, observe, write."""
