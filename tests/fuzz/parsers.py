"""Everything that reads bytes from outside: what it reads, how its files are put together, and how it is called."""

from __future__ import annotations

import io
import json
import lzma
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from edgepack.errors import StableDeviceError
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
            made += _with_and_without_seal(folder / "r.json")
    return made


def _with_and_without_seal(path: Path) -> list[bytes]:
    """A file whose changed bytes its seal tells, and the same without one, whose changed bytes are read."""
    raw = path.read_bytes()
    return [raw, re.sub(rb',"sha256":"[0-9a-f]{64}"\}\s*\Z', b"}", raw)]


def _figures() -> list[bytes]:
    from tests.check.test_base import recorded
    from tests.check.test_changes import BASE

    return [json.dumps(recorded(BASE)).encode()]


def _counted() -> list[bytes]:
    from edgepack.cost.emulated import save_table
    from tests.cost.test_emulated import TABLE

    with _folder() as folder:
        save_table(TABLE, folder / "t.json")
        return _with_and_without_seal(folder / "t.json")


def _measured() -> list[bytes]:
    from edgepack.cost.measured import save_measured
    from tests.cost.test_measured import LAYER, made

    with _folder() as folder:
        save_measured(made([LAYER]), folder)
        return [one for path in folder.rglob("*.json") for one in _with_and_without_seal(path)]


def _probe() -> list[bytes]:
    from edgepack.targets.file import get_target
    from tests.devices.probed_reports import probe_report

    report = probe_report(
        get_target("rpi4"), kernel="6.6", libc="glibc 2.36", python="3.11", counters={"available": True}
    )
    return [json.dumps(report).encode()]


def _page() -> list[bytes]:
    answer = {"name": "y", "dtype": "float32", "shape": [1, 1], "data": "AACAPw=="}
    times = {"seconds": 0.3, "first_inference_s": 0.1, "runtime_s": 0.2, "session_s": 0.3}
    report = {"latency_s": [1e-4, 2e-4], "runs_per_sample": 1000, "answers": [answer], **times}
    return [json.dumps(one).encode() for one in (report, {"error": "no such operator"})]


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


def _thresholds() -> list[bytes]:
    return [b"model: a.onnx\ncheck: {size: 5%, drop: 0.5, misses: 10%}\n", b"check:\n  size: 1%\n"]


def _native() -> list[bytes]:
    from tests.devices.test_native import BENCHMARK_MODEL

    return [BENCHMARK_MODEL.encode()]


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


def _read_thresholds(path: Path) -> object:
    from edgepack.cli.project import read_thresholds

    return read_thresholds(path)


def _read_native(path: Path) -> object:
    from edgepack.devices.native_probe import read_benchmark_model, read_perf_test

    text = path.read_bytes().decode(errors="replace")
    try:
        read_perf_test("run", text, text, warmup_runs=1, warmup_s=0.0)
    except StableDeviceError:
        return read_benchmark_model("run", text)
    return text


def _read_figures(path: Path) -> object:
    from edgepack.check.figures import read_figures

    return read_figures(path)


def _read_counted(path: Path) -> object:
    from edgepack.cost.emulated import load_table

    return load_table(path)


def _read_measured(path: Path) -> object:
    from edgepack.cost.measured import load_measured

    return load_measured(path)


def _read_probe(path: Path) -> object:
    from edgepack.devices.device import read_reply
    from edgepack.devices.facts import facts_from_probe
    from edgepack.targets.probe import target_from_probe

    report = read_reply("probe", 0, path.read_bytes(), path.read_bytes()[:300])
    return facts_from_probe(report, "device").title, target_from_probe(report, "device").main_cluster


def _read_page(path: Path) -> object:
    """What the page of `bench --browser` sends of a run, with the answers in it."""
    from edgepack.devices import browser

    found = browser._read(browser.Report, path.read_bytes(), "page")
    if isinstance(found, browser.Report):
        return list(browser._problems(found)), [browser._array(answer, "page") for answer in found.answers]
    return found


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
    Parser("thresholds", "edgepack.yaml", _thresholds, _read_thresholds),
    Parser("native-tool", "said.txt", _native, _read_native),
    Parser("figures", "base.json", _figures, _read_figures, share=0.4),
    Parser("counted-costs", "t.json", _counted, _read_counted, share=0.1),
    Parser("measured-costs", "t.json", _measured, _read_measured, share=0.1),
    Parser("probe", "reply.json", _probe, _read_probe),
    Parser("page", "report.json", _page, _read_page, share=0.3),
)


@contextmanager
def _folder() -> Iterator[Path]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
