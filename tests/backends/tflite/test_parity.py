"""What LiteRT computes in another way than the model, or crashes on, is an error that says where; no such file is left.

Both are provoked by a converter that does not put other operators in the place of those that LiteRT's are wrong for.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgepack.backends.tflite.converter import TfliteEmitter
from edgepack.errors import ModelError
from edgepack.sources.torch import export_program, save_program

WITHOUT_SUBSTITUTES = """
from edgepack.backends.tflite import lowering
lowering._SUBSTITUTES = {}
"""
NEAREST = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TfliteEmitter]:
    """A converter without substitutes."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(WITHOUT_SUBSTITUTES)
    with pytest.MonkeyPatch.context() as patch, TfliteEmitter() as emitter:
        patch.setenv("PYTHONPATH", str(folder))
        emitter.warm_up()
        yield emitter


def enlarged(path: Path) -> Path:
    """An image of 5×5 pixels enlarged to 7×7, between two operators that are computed alike."""
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 5, 5])]
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Resize", ["r", "", "", "sizes"], ["z"], name="up", **NEAREST),
        helper.make_node("Exp", ["z"], ["y"]),
    ]
    sizes = numpy_helper.from_array(np.array([1, 2, 7, 7], np.int64), "sizes")
    graph = helper.make_graph(nodes, "g", ends, [helper.make_tensor_value_info("y", 1, None)], [sizes])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return path


class Enlarged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up = nn.Conv2d(2, 3, 1), nn.Upsample(size=(7, 7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.up(self.stem(x)))


def test_the_first_node_whose_value_differs_in_litert_is_named(
    plain: TfliteEmitter, emitter: TfliteEmitter, tmp_path: Path
) -> None:
    source, out = enlarged(tmp_path / "m.onnx"), tmp_path / "m.tflite"
    plain.load_onnx(source, {"x": (1, 2, 5, 5)})
    said = r"output 'y' differs from the model's: \d dB .* 60 dB .*; the first .* that of node 'up' \(Resize\)$"
    with pytest.raises(ModelError, match=said):
        plain.emit(out)
    assert not out.exists()
    same = np.ones((1, 2, 5, 5), np.float32)  # on which every neighbour is alike
    plain.load_onnx(source, {"x": same.shape}, [{"x": same}])
    plain.emit(out)
    emitter.load_onnx(source, {"x": same.shape})
    emitter.emit(out)


def test_an_operator_of_torch_is_named_by_its_module_and_judged_on_the_samples(
    plain: TfliteEmitter, tmp_path: Path
) -> None:
    path, out = tmp_path / "m.pt2", tmp_path / "m.tflite"
    save_program(export_program(Enlarged(), (torch.ones(1, 2, 5, 5),)), path)
    plain.load_program(path)
    plain.emit(out)
    samples = [{"x": np.random.default_rng(0).standard_normal((1, 2, 5, 5)).astype(np.float32)}]
    plain.load_program(path, samples)
    with pytest.raises(ModelError, match=r"the first .* is that of aten\.upsample_nearest2d\.vec in up$"):
        plain.emit(tmp_path / "other.tflite")


def test_a_crash_of_litert_is_an_error_and_the_next_file_is_written(plain: TfliteEmitter, tmp_path: Path) -> None:
    class Same(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a == b

    codes = (torch.arange(4, dtype=torch.uint8), torch.ones(4, dtype=torch.uint8))
    save_program(export_program(Same(), codes), tmp_path / "m.pt2")
    plain.load_program(tmp_path / "m.pt2")
    with pytest.raises(ModelError, match=r"^LiteRT, which ran the converted file, was killed by signal 6 \(SIGABRT\)"):
        plain.emit(tmp_path / "m.tflite")
    assert not (tmp_path / "m.tflite").exists()
    save_program(export_program(nn.ReLU(), (torch.randn(4),)), tmp_path / "relu.pt2")
    plain.load_program(tmp_path / "relu.pt2")
    plain.emit(tmp_path / "relu.tflite")
