"""ONNX and ONNX Runtime as data."""

from __future__ import annotations

from edgepack.backends.facts import ConstexprFacts, Facts, Schemes
from edgepack.backends.onnx.schemes import CONSTEXPR, DENSE_INT8, FP32, SCHEMES
from edgepack.errors import install_command

FACTS = Facts(
    title="ONNX",
    schemes=Schemes(SCHEMES, DENSE_INT8, FP32, CONSTEXPR),
    install=install_command("torch"),
    packages=(),
    converters={"torch": ("onnxscript",)},
    closed={"tflite": "nothing converts a TFLite file to ONNX"},
    purposes={"onnxruntime": "runs .onnx files", "onnx-ir": "reads and writes .onnx files"},
    runtimes=("onnxruntime",),
    tested="1.31.1",
    tool="onnxruntime_perf_test",
    browser_package="onnxruntime-web",
    timed_call="InferenceSession.run_with_iobinding",
    call_instructions=22000,
    float_values=(2.0, 5.0),
    integer_values=(5.0, 36.0),
    patch_value=4.2,
    # The runtime folds a decoded matrix into its graph.
    constexpr=ConstexprFacts(bytes_per_instruction=110, decoded=1.0, direct=0.5, convolved=6.0),
    open_shapes=True,
    folds=False,
)
