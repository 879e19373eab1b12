"""Files in the other formats: TFLite, torch, Keras, samples, archives, targets, packs and their results."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hardening.case import Case
from hardening.graphs import mutated
from hardening.things import Things

MUTATED = 60
BOMB_BYTES = 15 * 10**8
DIGITS = "9" * 400
BUILD = ("--target", "rpi4", "--rank", "2", "--formats", "onnx", "--max-drop", "100", "--out", "{out}")


def wrong_tflite(things: Things, seed: int) -> Iterator[Case]:
    """TFLite files, inspected."""
    return _changed("tflite", things.tflite, {}, ("inspect", "{}"), things, seed)


def wrong_programs(things: Things, seed: int) -> Iterator[Case]:
    """Exported torch programs, inspected."""
    return _changed("pt2", things.program, _programs(things.program), ("inspect", "{}"), things, seed)


def wrong_data(things: Things, seed: int) -> Iterator[Case]:
    """Samples, built with: archives of arrays, and folders."""
    command = ("build", str(things.onnx), "--data", "{}", *BUILD)
    yield from _changed("data", things.data, _arrays(), command, things, seed)
    for name, path in _folders(things.wrong).items():
        yield Case("data", name, _filled(command, path))


def wrong_archives(things: Things, seed: int) -> Iterator[Case]:
    """Archives of model files, extracted."""
    return _changed("archive", things.archive, _archives(), ("extract", "{}", "--out", "{out}"), things, seed)


def wrong_targets(things: Things, seed: int) -> Iterator[Case]:
    """Targets files, checked."""
    return _changed("targets", _targets(things), _yamls(), ("targets", "check", "{}"), things, seed)


def wrong_keras(things: Things, seed: int) -> Iterator[Case]:
    """Keras models, inspected."""
    for name, path in _keras(things.wrong, random.Random(seed)).items():
        yield Case("keras", name, ("inspect", str(path)))


def wrong_packs(things: Things, seed: int) -> Iterator[Case]:
    """Packs with one file changed, by the commands that read them in turn."""
    commands = (("compare", "{}"), ("inspect", "{}"), ("run", "{}"), ("compare", "{}", "--json"))
    for number, (name, path) in enumerate(_packs(things, random.Random(seed)).items()):
        yield Case("packs", name, _filled(commands[number % len(commands)], path))


def _changed(
    family: str, good: Path, more: Mapping[str, bytes], command: Sequence[str], things: Things, seed: int
) -> Iterator[Case]:
    """What a sound file becomes by chance, and what was made by hand."""
    content, rng = good.read_bytes(), random.Random(seed)
    files = {**_plain(content), **more, **{f"mutated {n}": mutated(content, rng) for n in range(MUTATED)}}
    for number, (name, wrong) in enumerate(files.items()):
        path = (
            things.wrong
            / f"{family}-{number}{''.join(good.suffixes[-2:] if '.tar' in good.name else good.suffixes[-1:])}"
        )
        path.write_bytes(wrong)
        yield Case(family, name, _filled(command, path))


def _filled(command: Sequence[str], path: Path) -> tuple[str, ...]:
    return tuple(part.replace("{}", str(path)) for part in command)


def _plain(good: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "half": good[: len(good) // 2],
        "but one": good[:-1],
        "twice": good * 2,
        "text": b"hello\n" * 99,
        "zeros": b"\0" * 4096,
        "ones": b"\xff" * 4096,
        "onnx": b"\x08\x08" * 100,
        "pickle": b"\x80\x04cos\nsystem\n.",
    }


def _npy(header: str, data: bytes = b"\0" * 64, version: int = 1) -> bytes:
    text = header.encode("latin1")
    size = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes((version, 0)) + size + text + data


def _zip(parts: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return made.getvalue()


def _bomb(name: str, head: bytes) -> bytes:
    """A zip archive with a part that unpacks to gigabytes of zeros."""
    made = io.BytesIO()
    with (
        zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(name, "w", force_zip64=True) as part,
    ):
        part.write(head)
        for _ in range(BOMB_BYTES >> 24):
            part.write(bytes(1 << 24))
    return made.getvalue()


def _arrays() -> dict[str, bytes]:
    shape = "{'descr': '<f4', 'fortran_order': False, 'shape': %s, }"
    headers = {
        "2**60 rows": shape % "(1152921504606846976, 16)",
        "2**31 rows": shape % "(2147483647, 16)",
        "shape minus": shape % "(-1, 16)",
        "shape of text": shape % "('a', 16)",
        "shape of bools": shape % "(True, 16)",
        "shape deep": shape % ("(" * 900 + ")" * 900),
        "shape huge": shape % f"({DIGITS}, 16)",
        "shape float": shape % "(1e400, 16)",
        "no shape": "{'descr': '<f4', 'fortran_order': False}",
        "call": "{'descr': __import__('os').system('touch canary'), 'fortran_order': False, 'shape': (1,)}",
        "objects": "{'descr': '|O', 'fortran_order': False, 'shape': (4,)}",
        "nothing": "",
        "unclosed": "{'descr': ",
        "nul": "{'descr': '<f4\0', 'fortran_order': False, 'shape': (4, 16)}",
        "void": shape.replace("<f4", "|V2147483647") % "(4,)",
        "wide text": shape.replace("<f4", "<U536870911") % "(4, 16)",
        "fields": "{'descr': [('a', '<f4')] * 4, 'shape': (4,)}",
        "records": "{'descr': [('a', '<f4', (2147483647,))], 'fortran_order': False, 'shape': (4,)}",
        "dates": shape.replace("<f4", "<M8[ns]") % "(4, 16)",
        "keyword": "{**{'descr': '<f4'}}",
        "lambda": "lambda: 0",
        "dtype of commas": shape.replace("<f4", "f4," * 3000) % "(4, 16)",
        "list": "[1, 2]",
        "tab": "\t" * 200,
        "fortran": "{'descr': '<f4', 'fortran_order': 7, 'shape': (4, 16), }",
        "many axes": shape % ("(" + "1," * 100 + ")"),
        "long header": shape % "(4, 16)" + " " * 60000,
    }
    made = {f"header {name}": _zip({"x.npy": _npy(header)}) for name, header in headers.items()}
    made |= {
        f"version {version}": _zip({"x.npy": _npy(headers["2**31 rows"], version=version)}) for version in (0, 2, 3, 9)
    }
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((64, 16)).astype(np.float32)
    values = {
        "1e38": rows * 3e37,
        "1e30": rows * 1e30,
        "nan": rows * np.nan,
        "zero": rows * 0,
        "one row": rows[:1],
        "no rows": rows[:0],
        "wrong axes": rows.T,
        "flat": rows.ravel(),
        "int64": (rows * 1e18).astype(np.int64),
        "complex": rows * 1j,
        "bool": rows > 0,
        "f16": (rows * 1e4).astype(np.float16),
        "1e-45": rows * 1e-45,
        "text": np.full((64, 16), "a"),
        "huge doubles": rows.astype(np.float64) * 1e300,
    }
    for name, array in values.items():
        file = io.BytesIO()
        np.savez(file, x=array)
        made[f"values {name}"] = file.getvalue()
    for name, labels in (
        ("text", np.full(64, "a")),
        ("nan", np.full(64, np.nan)),
        ("2**62", np.full(64, 2**62)),
        ("minus", -np.arange(64)),
        ("few", np.arange(3)),
        ("scalar", np.array(1)),
    ):
        file = io.BytesIO()
        np.savez(file, x=rows, y=labels)
        made[f"labels {name}"] = file.getvalue()
    head = shape % f"({BOMB_BYTES // 64}, 16)"
    made["unpacks to gigabytes"] = _bomb("x.npy", _npy(head, b""))
    made["unpacks to gigabytes beside"] = _bomb("z.npy", _npy(head, b""))
    made["10,000 parts"] = _zip({f"{number}.npy": b"" for number in range(10000)})
    made["path"] = _zip({"../../x.npy": _npy(shape % "(4, 16)")})
    made["lies of size"] = _lying(_zip({"x.npy": _npy(shape % "(1, 16)")}))
    return made


def _lying(archive: bytes) -> bytes:
    """A directory that claims that a part is four gigabytes."""
    at = archive.rindex(b"PK\x01\x02")
    return archive[: at + 24] + b"\xff\xff\xff\xfe" + archive[at + 28 :]


def _programs(good: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(good) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    program = next(name for name in parts if name.endswith("models/model.json"))
    samples = next(name for name in parts if name.endswith("sample_inputs/model.pt"))
    config = next(name for name in parts if name.endswith("model_weights_config.json"))
    said = json.loads(parts[program])

    def changed(name: str, content: bytes) -> bytes:
        return _zip({**parts, name: content})

    def sizes(size: object) -> bytes:
        text = json.dumps(said)
        return text.replace('"as_int": 16', f'"as_int": {size}').replace('"as_int": 12', f'"as_int": {size}').encode()

    made = {
        f"sizes {str(size)[:20]}": changed(program, sizes(size))
        for size in (2**60, 2**31, 10**9, -1, 0, DIGITS, "null", '"a"', "1e400", "true", "[]")
    }
    made |= {
        "deep": changed(program, b"[" * 10**6 + b"]" * 10**6),
        "deep graph": changed(program, b'{"graph_module":' * 10**5 + b"1" + b"}" * 10**5),
        "empty program": changed(program, b"{}"),
        "null program": changed(program, b"null"),
        "no nodes": changed(program, json.dumps({**said, "graph_module": {}}).encode()),
        "deep configuration": changed(config, b"[" * 10**6),
        "no configuration": changed(config, b'{"config": {}}'),
        "samples of noise": changed(samples, b"\x80\x02" + bytes(range(256)) * 4),
        "samples pickled": changed(samples, b"cos\nsystem\n(S'touch canary'\ntR."),
        "no samples": changed(samples, b""),
        "stack": changed(samples, b"\x80\x020000."),
        "memo": changed(samples, b"\x80\x02h\x01h\x02."),
        "weights cut": _zip({name: part[:4] if "weight_" in name else part for name, part in parts.items()}),
        "weights none": _zip({name: part for name, part in parts.items() if "/weight_" not in name}),
        "part gigabytes": _bomb(program, b"{"),
    }
    rng = random.Random(1)
    made |= {f"program mutated {n}": changed(program, mutated(parts[program], rng)) for n in range(25)}
    made |= {f"samples mutated {n}": changed(samples, mutated(parts[samples], rng)) for n in range(25)}
    return made


def _archives() -> dict[str, bytes]:
    import lzma

    return {
        "gigabytes": lzma.compress(bytes(10**8)) * 8,
        "one stream of gigabytes": lzma.compress(bytes(5 * 10**8), preset=0),
        "no tar": lzma.compress(b"hello"),
        "gzip": zlib.compress(b"hello"),
    }


def _targets(things: Things) -> Path:
    from edgepack.workspace import shipped

    path = things.wrong / "targets.good.yaml"
    shutil.copy(shipped("targets.yaml"), path)
    return path


def _yamls() -> dict[str, bytes]:
    head = "schema_version: 1\ntargets:\n  mine:\n"
    texts = {
        "laughs": "a: &a [x, x]\n"
        + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}, *{chr(97 + n)}]\n" for n in range(20)),
        "deep": "[" * 100000,
        "object": "!!python/object/apply:os.system ['touch canary']",
        "tag": "!x y",
        "merge": "<<: *a",
        "digits": f"schema_version: {DIGITS}",
        "date": "a: 2001-99-99",
        "version": "schema_version: 2\ntargets: {}",
        "list": "- 1",
        "no targets": "schema_version: 1\ntargets: []",
        "null": "schema_version: 1\ntargets: null",
        "cores": f"{head}    cores: {DIGITS}\n",
        "cores minus": f"{head}    cores: -1\n",
        "cycle": f"{head}    extends: mine\n",
        "name": "schema_version: 1\ntargets:\n  '\x1b[31m': {}\n",
        "ssh": f"{head}    hosts: ['-oProxyCommand=touch canary']\n",
        "keys": "? [a, b]\n: c\n",
        "documents": "--- 1\n--- 2\n",
        "utf16": "\ufeff" + head,
        "unknown": f"{head}    wings: 2\n",
        "many": head + "".join(f"    k{n}: 1\n" for n in range(9000)),
        "infinite": f"{head}    clock: .inf\n",
    }
    return {name: text.encode() for name, text in texts.items()}


def _keras(folder: Path, rng: random.Random) -> dict[str, Path]:
    import h5py

    dense = {"module": "keras.layers", "class_name": "Dense", "config": {"units": 2**40, "name": "d"}}
    start = {"module": "keras.layers", "class_name": "InputLayer", "config": {"batch_shape": [None, 16], "name": "i"}}
    code = {"module": "keras.layers", "class_name": "Lambda", "config": {"function": "touch canary"}}

    def model(*layers: Mapping[str, Any]) -> bytes:
        made = {"module": "keras", "class_name": "Sequential", "config": {"name": "s", "layers": layers}}
        return json.dumps(made).encode()

    weights = io.BytesIO()
    with h5py.File(weights, "w") as file:
        file["layers/d/vars/0"] = np.zeros((16, 4), np.float32)
    h5 = weights.getvalue()
    configurations = {
        "2**40 units": model(start, dense),
        "code": model(start, code),
        "deep": b"[" * 10**6,
        "none": b"null",
        "empty": model(),
        "units of text": model(start, {**dense, "config": {"units": "a"}}),
        "digits": DIGITS.encode(),
        "units minus": model(start, {**dense, "config": {"units": -5}}),
        "layer of numbers": model({"class_name": 7}),
        "huge batch": model({**start, "config": {"batch_shape": [10**9, 10**9]}}),
        "no config": b"{}",
    }
    files = {
        name: _zip({"config.json": text, "model.weights.h5": h5, "metadata.json": b"{}"})
        for name, text in configurations.items()
    }
    files |= {
        f"weights mutated {n}": _zip(
            {
                "config.json": model(start, {**dense, "config": {"units": 4, "name": "d"}}),
                "model.weights.h5": mutated(h5, rng),
                "metadata.json": b"{}",
            }
        )
        for n in range(20)
    }
    files |= {"no zip": b"hello", "nothing": b"", "bomb": _bomb("config.json", b"[")}
    found = {}
    for number, (name, content) in enumerate(files.items()):
        found[name] = folder / f"keras-{number}.keras"
        found[name].write_bytes(content)
    for number in range(10):
        found[f"h5 mutated {number}"] = folder / f"keras-{number}.h5"
        found[f"h5 mutated {number}"].write_bytes(mutated(h5, rng))
    return found


def _folders(folder: Path) -> dict[str, Path]:
    """Folders as `--data`."""
    png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\x7f\xff\xff\xff\x7f\xff\xff\xff\x08\x02\0\0\0" + b"\0" * 50
    npy = io.BytesIO()
    np.save(npy, np.zeros(16, np.float32))
    contents = {
        "nothing in it": {},
        "noise": {"a.png": b"noise"},
        "image of 2**31": {"a.png": png},
        "kinds": {"a.npy": npy.getvalue(), "b.png": png},
        "alike": {f"{n}.npy": npy.getvalue() for n in range(5)},
        "cut": {"a.npy": npy.getvalue()[:-3]},
        "npy of 2**60": {"a.npy": _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1152921504606846976,), }")},
        "npy deep": {"a.npy": _npy("(" * 5000)},
        "npy nothing": {"a.npy": b""},
        "text": {"a.txt": b"x"},
    }
    found = {}
    for number, (name, files) in enumerate(contents.items()):
        found[name] = folder / f"data-folder-{number}"
        found[name].mkdir()
        for file, content in files.items():
            (found[name] / file).write_bytes(content)
    found["pipe in it"] = folder / "data-folder-pipe"
    found["pipe in it"].mkdir()
    os.mkfifo(found["pipe in it"] / "a.npy")
    return found


def _packs(things: Things, rng: random.Random) -> dict[str, Path]:
    """Copies of the sound pack with one file changed."""
    manifest = things.pack / "manifest.json"
    result = next(iter((things.pack / "results").glob("*.json")))
    found: dict[str, Path] = {}

    def add(name: str, file: Path, content: bytes | None) -> None:
        pack = things.wrong / f"pack-{len(found)}"
        shutil.copytree(things.pack, pack, copy_function=os.link)
        place = pack / file.relative_to(things.pack)
        place.unlink()
        if content is None:
            os.mkfifo(place)
        else:
            place.write_bytes(content)
        found[name] = pack

    for file in (manifest, result):
        text, kind = file.read_bytes(), file.parent.name if file is result else "manifest"
        said = json.loads(text)
        add(f"{kind} pipe", file, None)
        for name, content in _plain(text).items():
            add(f"{kind} {name}", file, content)
        add(f"{kind} deep", file, b"[" * 10**6)
        for number in range(40):
            add(f"{kind} value {number}", file, json.dumps(_with_another(said, rng)).encode())
        for number in range(20):
            add(f"{kind} mutated {number}", file, mutated(text, rng))
    for file in ("model.onnx", "example_inputs.npz", "baseline/fp32.onnx"):
        content = (things.pack / file).read_bytes()
        add(f"{file} pipe", things.pack / file, None)
        for number in range(6):
            add(f"{file} mutated {number}", things.pack / file, mutated(content, rng))
    return found


STRANGE: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**63,
    int(DIGITS),
    1e308,
    -1e308,
    "",
    "\x1b[2J",
    "../../etc/passwd",
    "x" * 10**5,
    [],
    {},
    [[[]]],
    {"a": None},
    "\udcff",
    float("nan"),
    float("inf"),
    [1] * 10**4,
)


def _with_another(said: Any, rng: random.Random) -> Any:
    """The document with one value that is another."""
    whole = json.loads(json.dumps(said))
    at = whole
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            return whole
        key = rng.choice(keys)
        if not isinstance(at[key], dict | list) or not at[key] or rng.random() < 0.15:
            at[key] = rng.choice(STRANGE)
            return whole
        at = at[key]
