"""TFLite and LiteRT as data."""

from __future__ import annotations

from edgepack.backends.facts import ConstexprFacts, Facts

FACTS = Facts(
    title="TFLite",
    install="pip install 'edgepack[tflite]'",
    packages=("torch", "litert-torch", "litert-quantizer", "ai-edge-litert"),
    converters={"onnx": ("pnnx",)},
    runtimes=("ai-edge-litert", "tflite-runtime"),
    tool="benchmark_model",
    timed_call="Interpreter.invoke",
    call_instructions=5500,
    float_values=(2.0, 5.0),
    integer_values=(4.0, 6.0),
    # A decoded matrix is kept in a variable, which is copied at every inference.
    constexpr=ConstexprFacts(bytes_per_instruction=130, decoded=3.5, direct=0.75, convolved=4.0),
    folds=True,
)
