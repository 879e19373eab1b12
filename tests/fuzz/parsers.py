"""Everything that reads bytes from outside: what it reads, how its files are put together, and how it is called."""

from __future__ import annotations

import io
import json
import lzma
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from edgepack.model.types import TensorSpec
from edgepack.workspace import shipped


@dataclass(frozen=True)
class Parser:
    """One door.

    Attributes:
        name: also of its folder under `corpus/`.
        file: that it is given, in a folder of its own.
        seeds: sound content.
        parse: reads the file; raises only what `edgepack.errors` has.
        wrap: makes the file of content that was changed.
        share: of all cases, by what one takes.
    """

    name: str
    file: str
    seeds: Callable[[], list[bytes]]
    parse: Callable[[Path], object]
    wrap: Callable[[bytes], bytes] = field(default=lambda content: content)
    share: float = 1.0


def zipped(name: str, others: Callable[[], dict[str, bytes]] = dict) -> Callable[[bytes], bytes]:
    """A zip archive with content under a name, and what else such an archive has."""
    kept: dict[str, bytes] = {}

    def wrap(content: bytes) -> bytes:
        kept.update(kept or others())
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w") as archive:
            for part, held in {**kept, name: content}.items():
                archive.writestr(part, held)
        return made.getvalue()

    return wrap


def _onnx() -> list[bytes]:
    from tests.bench_models import write_mlp

    with _folder() as folder:
        return [write_mlp(folder / "m.onnx", [16, 12, 4], batch="n").read_bytes()]


def _tflite() -> list[bytes]:
    from edgepack.backends.tflite.layer_file import Part, write_layer
    from edgepack.backends.tflite.schemes import SCHEMES

    inputs = np.linspace(-1, 1, 32, dtype=np.float32).reshape(2, 16)
    made = []
    with _folder() as folder:
        for scheme in SCHEMES[:3]:
            weight = np.linspace(-1, 1, 12 * 16, dtype=np.float32).reshape(12, 16)
            write_layer(folder / "m.tflite", [Part(weight, np.zeros(12, np.float32))], scheme, 1, inputs)
            made.append((folder / "m.tflite").read_bytes())
    return made


def _npy() -> list[bytes]:
    made = []
    rows = np.arange(8 * 16, dtype=np.float32).reshape(8, 16)
    for array in (rows, rows.astype("<f2"), np.asfortranarray(rows)):
        file = io.BytesIO()
        np.save(file, array)
        made.append(file.getvalue())
    return made


def _row() -> list[bytes]:
    file = io.BytesIO()
    np.save(file, np.arange(16, dtype=np.float32))
    return [file.getvalue()]


@cache
def _program_parts() -> dict[str, bytes]:
    import torch

    with _folder() as folder:
        net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()).eval()
        torch.export.save(torch.export.export(net, (torch.zeros(1, 4),)), str(folder / "m.pt2"))
        with zipfile.ZipFile(folder / "m.pt2") as archive:
            return {name: archive.read(name) for name in archive.namelist()}


def _program_part(end: str) -> Callable[[], list[bytes]]:
    return lambda: [content for name, content in _program_parts().items() if name.endswith(end)]


def _keras_configuration() -> list[bytes]:
    start = {"module": "keras.layers", "class_name": "InputLayer", "config": {"batch_shape": [None, 16], "name": "i"}}
    dense = {"module": "keras.layers", "class_name": "Dense", "config": {"units": 4, "name": "d", "activation": "relu"}}
    made = {"module": "keras", "class_name": "Sequential", "config": {"name": "s", "layers": [start, dense]}}
    return [json.dumps(made).encode()]


def _h5() -> bytes:
    import h5py

    made = io.BytesIO()
    with h5py.File(made, "w") as file:
        file["layers/d/vars/0"] = np.zeros((16, 4), np.float32)
    return made.getvalue()


def _manifest() -> list[bytes]:
    from tests.manifests import document

    return [json.dumps(document({"files": {"baseline/fp32.onnx": {"scheme": "fp32", "size_bytes": 10}}})).encode()]


def _result() -> list[bytes]:
    from edgepack.benchmark.results_file import save_result
    from tests.benchmark.test_emulated_results import RESULT as EMULATED
    from tests.benchmark.test_results import RESULT

    made = []
    with _folder() as folder:
        for result in (RESULT, EMULATED):
            save_result(result, folder / "r.json")
            made.append((folder / "r.json").read_bytes())
    return made


def _archive() -> list[bytes]:
    from edgepack.archive.archive import pack

    return [pack("model.onnx", bytes(range(256)) * 8)]


def _tar() -> list[bytes]:
    return [lzma.decompress(_archive()[0])]


def _targets() -> list[bytes]:
    own = b"schema_version: 1\ntargets:\n  mine:\n    extends: rpi4\n    title: A board\n"
    return [own, *(text.encode() for text in shipped("targets.yaml").read_text().split("\n\n")[:3])]


def _project() -> list[bytes]:
    return [b"model: a.onnx\ntarget: rpi4\nmax-drop: 0.5\nkeep: [a, b]\n"]


SPECS = (TensorSpec("x", (None, 16), np.dtype(np.float32)),)


def _read_onnx(path: Path) -> object:
    from edgepack.sources.onnx import open_onnx

    return open_onnx(path)


def _read_tflite(path: Path) -> object:
    from edgepack.backends.tflite.sites import tflite_model

    return tflite_model(path.read_bytes(), path.name)


def _read_npz(path: Path) -> object:
    from edgepack.data import read_npz

    return read_npz(path, SPECS)


def _read_folder(path: Path) -> object:
    from edgepack.sources.samples import read_samples

    return read_samples(path.parent, SPECS)


def _read_program(path: Path) -> object:
    from edgepack.torchgraph import load_program

    return load_program(path)


def _read_keras(path: Path) -> object:
    from edgepack.sources.keras import import_keras
    from edgepack.sources.keras_file import check_file

    import_keras()
    return check_file(path)


def _read_pack(path: Path) -> object:
    from edgepack.pack.manifest import read_manifest

    return read_manifest(path.parent)


def _read_result(path: Path) -> object:
    from edgepack.benchmark.results_file import load_emulated, load_results

    return load_results(path.parents[1]), load_emulated(path.parents[1])


def _read_archive(path: Path) -> object:
    from edgepack.archive.archive import extract

    return extract(path.read_bytes(), "archive")


def _read_targets(path: Path) -> object:
    from edgepack.targets.file import check_file

    return check_file(path)


def _read_project(path: Path) -> object:
    from edgepack.cli.project import read_project

    return read_project(path, {"model": "model", "target": "target", "max-drop": "max_drop", "keep": "keep"})


PARSERS: tuple[Parser, ...] = (
    Parser("onnx", "m.onnx", _onnx, _read_onnx, share=0.05),
    Parser("tflite", "m.tflite", _tflite, _read_tflite, share=0.1),
    Parser("npy-in-npz", "x.npz", _npy, _read_npz, zipped("x.npy")),
    Parser("npz", "x.npz", lambda: [zipped("x.npy")(one) for one in _npy()], _read_npz),
    Parser("npy", "x.npy", _row, _read_folder),
    Parser(
        "program",
        "m.pt2",
        _program_part("models/model.json"),
        _read_program,
        zipped("m/models/model.json", _program_parts),
        share=0.01,
    ),
    Parser(
        "program-samples",
        "m.pt2",
        _program_part("sample_inputs/model.pt"),
        _read_program,
        zipped("m/data/sample_inputs/model.pt", _program_parts),
        share=0.01,
    ),
    Parser(
        "keras",
        "m.keras",
        _keras_configuration,
        _read_keras,
        zipped("config.json", lambda: {"model.weights.h5": _h5(), "metadata.json": b"{}"}),
        share=0.1,
    ),
    Parser(
        "keras-weights",
        "m.keras",
        lambda: [_h5()],
        _read_keras,
        zipped("model.weights.h5", lambda: {"config.json": _keras_configuration()[0], "metadata.json": b"{}"}),
        share=0.1,
    ),
    Parser("manifest", "manifest.json", _manifest, _read_pack),
    Parser("results", "results/r.json", _result, _read_result),
    Parser("archive", "m.tar.xz", _archive, _read_archive),
    Parser("archive-members", "m.tar.xz", _tar, _read_archive, lzma.compress, share=0.2),
    Parser("targets", "targets.yaml", _targets, _read_targets, share=0.2),
    Parser("project", "edgepack.yaml", _project, _read_project),
)


@contextmanager
def _folder() -> Iterator[Path]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
