"""A model of two linear layers for the tests of estimates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

SIDE, ROWS = 128, 3


def write_model(path: Path, *, shared: bool, rows: int | str = ROWS) -> Path:
    """Two layers, which may share one weight; `rows` rows per inference."""
    rng = np.random.default_rng(0)
    names = ("w", "w" if shared else "v")
    weights = {name: rng.standard_normal((SIDE, SIDE)) / SIDE for name in names}
    constants = [numpy_helper.from_array(weight.astype(np.float32), name) for name, weight in weights.items()]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, rows, SIDE]) for name in "xy")
    nodes = [
        helper.make_node("MatMul", ["x", names[0]], ["h"]),
        helper.make_node("Relu", ["h"], ["p"]),
        helper.make_node("MatMul", ["p", names[1]], ["y"]),
    ]
    graph = helper.make_graph(nodes, "two", [x], [y], constants)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path
