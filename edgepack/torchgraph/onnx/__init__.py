"""ONNX graphs as torch modules: one function an operator, by themes; `build.py` strings them together."""
