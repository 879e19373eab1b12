"""Read .tflite files: their linear operators and their constants.

The flatbuffer is read through the schema that ai-edge-litert ships: no interpreter, no TensorFlow. Every table and
constant is checked against the file's bounds first: a damaged file is an error here and not a crash in a runtime.
"""
