"""One module per kind of layer that is more than a product: how it is found in an ONNX graph, and how it is written."""
