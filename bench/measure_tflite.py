"""ONNX files as TFLite files: those of the zoo as they are, and ONNX's own operator tests.

`python bench/measure_tflite.py` converts what has no row yet in float32, without any search, compares the answers of
LiteRT with those of onnxruntime, and writes the section of bench/RESULTS.md.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import figures_file
import numpy as np
import onnx
from block_tables import decibels, kilobytes, markdown_table, one_line
from cases import MODELS
from operator_suite import Case, cases, difference, variants
from results_page import put_section
from zoo_files import SEEDED, ZOO, ModelFile

from edgepack.backends.backend import Session
from edgepack.backends.registry import backend
from edgepack.backends.tflite.converter import ConverterProcess, TfliteEmitter
from edgepack.backends.tflite.read import operators
from edgepack.data import Samples, example, feeds, rename
from edgepack.errors import ModelError
from edgepack.metrics.values import LEAST_ERROR, sqnr_db
from edgepack.model.model import Model
from edgepack.model.types import Array
from edgepack.natives import native
from edgepack.pipeline.datasets import with_open_sides
from edgepack.sources.onnx import OnnxFile
from edgepack.sources.recipe import PythonRecipe
from edgepack.workspace import Cache, Workspace

NAME = "tflite"
KEPT = f"experiments/{NAME}"
COMMAND = "python bench/measure_tflite.py"
ENCODER = "MiniLM"
MOST_S = 180
"""For a file; a case of the suite gets a third."""
SAVED = 25
"""Cases of the suite, after which they are kept."""
COMPARED = 8
"""Samples of a file with real ones."""
ABOUT = f"""Each ONNX file of the zoo was converted as it is, in float32, with one thread. *SQNR*: of LiteRT's
answers against onnxruntime's, in the output that loses most, on up to {COMPARED} real samples where the zoo has them,
else (\\*) on a seeded one; differences of less than {LEAST_ERROR:g} count for nothing. *Operators* and *transposes*: in
the TFLite file. *Ideal*: transposes of the source itself, and one for each input and output of three axes or more of a
model with convolutions, which a TFLite file computes with channels last. *Seconds*: of CPU, of the conversion
in a process with one thread that has imported its libraries, with the comparison of the file."""
SUITE = """ONNX's operator tests as TFLite files that LiteRT runs, right where it gives the suite's own results: {cases}
of the section on ONNX operators in torch. Of each the first variant that converts counts: the case as it is, then with
more and more of its inputs as constants. What an operator makes of constants alone, such as a window, is added to
inputs of zeros. *Cannot*: an
input or output has a type that TFLite files have no operators for (float64, unsigned and 16-bit integers), or the
opset is newer than onnxruntime, with which every conversion is compared."""
_MAKERS = {"BlackmanWindow", "Constant", "ConstantOfShape", "HammingWindow", "HannWindow", "MelWeightMatrix", "Range"}
"""Operators whose inputs say no more than which constant they make."""
_TYPES = {"float32", "float16", "int32", "int64", "bool", "int8", "uint8"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, convert, write."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--only", action="append", metavar="NAME", help="files whose name has this, converted again")
    parser.add_argument("--fresh", action="store_true", help="forget earlier figures")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every Nth operator test")
    parser.add_argument("--no-suite", action="store_true", help="without the operator tests")
    parser.add_argument("--render", action="store_true", help="convert nothing")
    options = parser.parse_args(arguments)
    if options.render:
        stored = figures_file.load(KEPT)
        put_section(NAME, COMMAND, stored, render(stored["figures"]))
        return
    figures = {"rows": [], "suite": {}}
    if not options.fresh and (figures_file.RESULTS / f"{KEPT}.json").exists():
        figures = figures_file.load(KEPT)["figures"]
    with closing(ConverterProcess()) as process:
        emitter = converter(process)
        files(emitter, figures, options.only or (), process)
        if "encoder" not in figures or any(part in ENCODER for part in options.only or ()):
            figures["encoder"] = encoder(emitter, process)
            _keep(figures)
        if not options.no_suite and not options.only:
            suite(emitter, figures, options.every)


def files(emitter: TfliteEmitter, figures: dict[str, Any], only: Sequence[str], process: ConverterProcess) -> None:
    """Convert the files of the zoo that have no row yet, or those that are named."""
    rows = {row["name"]: row for row in figures["rows"]}
    found = [file for file in ZOO if file.format == "onnx"]
    for file in sorted(found, key=lambda each: each.file.stat().st_size):
        if any(part in file.name for part in only) or (not only and file.name not in rows):
            rows[file.name] = row = {"name": file.name, "bytes": file.file.stat().st_size} | converted(
                emitter, file, process
            )
            figures["rows"] = [rows[each.name] for each in found if each.name in rows]
            _keep(figures)
            print(" ".join(f"{name}={value}" for name, value in row.items()), file=sys.stderr)


def encoder(emitter: TfliteEmitter, process: ConverterProcess) -> dict[str, Any]:
    """What the conversion of a torch program of 91 MB comes to."""
    with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as name:
        folder = Path(name)
        opened = PythonRecipe().open(f"{MODELS / 'minilm.py'}:recipe", ENCODER, folder, ["tflite"])
        program, recipe = opened.program, opened.recipe
        assert program is not None
        assert recipe is not None
        names = (spec.name for spec in opened.inputs)
        given = [dict(zip(names, (each.numpy() for each in recipe.example_inputs), strict=True))]
        process.start()
        begun = _cpu_s(process)
        emitter.load_program(program, given)
        emitter.emit(folder / "model.tflite")
        seconds = _cpu_s(process) - begun
        dense = native(opened.native).session(opened.content, {}, threads=1)
        noise = _noise(dense, backend("tflite").load(folder / "model.tflite"), given)
        return {"bytes": program.stat().st_size, "sqnr_db": _rounded(noise), "seconds": round(seconds, 1)}


def suite(emitter: TfliteEmitter, figures: dict[str, Any], every: int) -> None:
    """Convert the cases of the operator tests that have no verdict yet, or one of an earlier state."""
    verdicts, earlier, figures["every"] = figures["suite"], figures.setdefault("earlier", []), every
    left = [case for case in list(cases())[::every] if case.name not in verdicts or case.name in earlier]
    for at, case in enumerate(left, 1):
        verdicts[case.name] = [case.opset, sorted(case.operators), *verdict(emitter, case)]
        if case.name in earlier:
            earlier.remove(case.name)
        if at % SAVED == 0 or at == len(left):
            print(f"{len(verdicts)} cases: {dict(Counter(each[2] for each in verdicts.values()))}", file=sys.stderr)
            _keep(figures)


def _keep(figures: Mapping[str, Any]) -> None:
    put_section(NAME, COMMAND, figures_file.store(KEPT, figures), render(figures))


def converter(process: ConverterProcess) -> TfliteEmitter:
    """A converter that has imported its libraries."""
    emitter = TfliteEmitter(process)
    with tempfile.TemporaryDirectory() as folder:
        emitter.load_onnx(_identity(Path(folder)), {"x": (1,)})
    return emitter


def _cpu_s(process: ConverterProcess) -> float:
    """What it has taken of the CPU since it began, seconds."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def _identity(folder: Path) -> Path:
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["x"], ["y"])], "g", ends[:1], ends[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(folder / "model.onnx"))
    return folder / "model.onnx"


class _TooLongError(KeyboardInterrupt):
    """As if the user had stopped it, upon which the converter ends its process."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise `ModelError` in what takes longer."""

    def stop(number: int, frame: object) -> None:
        raise _TooLongError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _TooLongError as err:
        raise ModelError(f"not converted after {seconds:g} s") from err
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def converted(emitter: TfliteEmitter, file: ModelFile, process: ConverterProcess) -> dict[str, Any]:
    """What of a row the conversion says: the figures, or the reason."""
    with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as name:
        folder = Path(name)
        opened = OnnxFile().open(str(file.file), "model", folder, ["tflite"])
        given = _samples(file, opened, Workspace(Cache(folder / "cache"), folder))
        shapes = {name: array.shape for name, array in given[0].items()}
        path = folder / "model.tflite"
        process.start()  # after a crash
        begun = _cpu_s(process)
        try:
            with at_most(MOST_S):
                emitter.load_onnx(opened.files["onnx"], shapes, given if file.inputs != SEEDED else ())
                emitter.emit(path)
            seconds = _cpu_s(process) - begun
            noise = _noise(backend("onnx").load(file.file), backend("tflite").load(path), given)
        except ModelError as err:
            return {"reason": _told(err).replace(str(file.file), file.name)}
        counts = Counter(operators(path))
        return {
            "sqnr_db": _rounded(noise),
            "operators": counts.total(),
            "transposes": counts["TRANSPOSE"],
            "ideal": _ideal(opened.files["onnx"], shapes),
            "real": file.inputs != SEEDED,
            "seconds": round(seconds, 1),
        }


def _rounded(noise_db: float) -> float | None:
    """None for answers that are equal."""
    return None if math.isinf(noise_db) else round(noise_db, 1)


def _told(err: ModelError) -> str:
    """The first line of what an error says, without the folder that was worked in."""
    return re.sub(r"[^\s\"']*/edgepack-\w+-\w+/", "", err.message.partition("\n")[0])


def _samples(file: ModelFile, opened: Model, workspace: Workspace) -> list[dict[str, Array]]:
    """Inputs of single runs; seeded ones are not negative, as some models look up tables by them."""
    if file.inputs == SEEDED:
        seeded = example(None, with_open_sides(opened, None, workspace).inputs, 0)
        return [{name: np.asarray(np.abs(array)) for name, array in seeded.items()}]
    from zoo_inputs import inputs  # which are those of bench/models as well

    samples = Samples(inputs(file.inputs, backend("onnx").load(file.file)))
    spread = samples.take(np.linspace(0, len(samples) - 1, COMPARED).astype(int))
    return [feed for feed, _ in feeds(rename(spread, opened.inputs), opened.inputs, dynamic_batch=1)]


def _noise(source: Session, packed: Session, given: Sequence[Mapping[str, Array]]) -> float:
    """SQNR in dB of the output that loses most."""
    expected, answered = ([one.run(feed) for feed in given] for one in (source, packed))
    pairs = zip(zip(*answered, strict=True), zip(*expected, strict=True), strict=True)
    joined = ([np.concatenate([np.ravel(each) for each in runs]) for runs in pair] for pair in pairs)
    return min(sqnr_db(answer, reference, LEAST_ERROR) for answer, reference in joined)


def _ideal(path: Path, shapes: Mapping[str, Sequence[int]]) -> int:
    """Transposes that the file needs."""
    model = onnx.load(str(path))
    kinds = Counter(node.op_type for node in model.graph.node)
    if not kinds["Conv"] + kinds["ConvTranspose"]:
        return kinds["Transpose"]
    ranks = [len(shape) for shape in shapes.values()]
    ranks += [len(value.type.tensor_type.shape.dim) for value in model.graph.output]
    return kinds["Transpose"] + sum(rank > 2 for rank in ranks)


def verdict(emitter: TfliteEmitter, case: Case) -> tuple[str, str]:
    """`right`, `wrong`, `refused` or `cannot`, and why."""
    types = {str(np.asarray(each).dtype) for each in (*case.inputs, *case.outputs)} - _TYPES
    if types:
        return "cannot", ", ".join(sorted(types))
    said = "no variant has inputs"
    with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as name:
        for variant in variants(case):
            if not variant.inputs and not case.operators <= _MAKERS:
                continue
            variant = variant if variant.inputs else _beside_inputs(variant)
            try:
                with at_most(MOST_S / 3):
                    results = _run(emitter, variant, Path(name))
            except ModelError as err:
                said = _told(err)
                continue
            wrong = difference(variant, results)
            return ("right", "") if wrong is None else ("wrong", wrong)
    return "cannot" if "onnxruntime cannot load" in said else "refused", said


def _beside_inputs(case: Case) -> Case:
    """A model of constants alone, with zeros as inputs that are added to its outputs."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    graph, zeros = model.graph, tuple(np.zeros_like(each) for each in case.outputs)
    ends = list(graph.output)
    del graph.output[:]
    for value, zero in zip(ends, zeros, strict=True):
        names = [f"{part}_{value.name}" for part in ("zeros", "sum")]
        kind = value.type.tensor_type.elem_type
        given, taken = (onnx.helper.make_tensor_value_info(name, kind, zero.shape) for name in names)
        graph.node.append(
            onnx.helper.make_node("Or" if zero.dtype == bool else "Add", [value.name, names[0]], names[1:])
        )
        graph.input.append(given)
        graph.output.append(taken)
    return replace(case, model=model, inputs=zeros)


@dataclass(frozen=True)
class _Result:
    """An array, as the suite compares them."""

    array: Array

    def numpy(self) -> Array:
        return self.array


def _run(emitter: TfliteEmitter, case: Case, folder: Path) -> list[Any]:
    """What LiteRT answers, in the types that are expected: the converter writes 64-bit integers in 32 bits."""
    onnx.save(case.model, str(folder / "model.onnx"))
    constants = {tensor.name for tensor in case.model.graph.initializer}
    names = [value.name for value in case.model.graph.input if value.name not in constants]
    given = {name: np.asarray(array) for name, array in zip(names, case.inputs, strict=True)}
    emitter.load_onnx(folder / "model.onnx", {name: array.shape for name, array in given.items()})
    emitter.emit(folder / "model.tflite")
    answers = backend("tflite").load(folder / "model.tflite").run(given)
    wanted = [np.asarray(each) for each in case.outputs]
    return [
        _Result(answer.astype(want.dtype) if {answer.dtype.name, want.dtype.name} == {"int32", "int64"} else answer)
        for answer, want in zip(answers, wanted, strict=True)
    ]


def render(figures: Mapping[str, Any]) -> str:
    """The section of bench/RESULTS.md."""
    rows = figures["rows"]
    done = [row for row in rows if "reason" not in row]
    headers = ["file", "source, kB", "SQNR, dB", "operators", "transposes", "ideal", "s"]
    parts = [
        ABOUT,
        f"{len(done)} of {len(rows)} files were converted.",
        markdown_table(headers, [_cells(row) for row in done], right=headers[1:]),
    ]
    if found := figures.get("encoder"):
        parts.append(
            f"{ENCODER}, a program of torch.export of {kilobytes(found['bytes'])} kB: {found['seconds']:.1f} s, "
            f"SQNR against torch {decibels(found['sqnr_db'])}."
        )
    stopped = [[row["name"], kilobytes(row["bytes"]), one_line(row["reason"])] for row in rows if "reason" in row]
    if stopped:
        parts += ["Not converted:", markdown_table(["file", "source, kB", "reason"], stopped, right=["source, kB"])]
    if figures["suite"]:
        parts += [SUITE.format(cases=_which(figures["every"])), *_of_suite(figures["suite"])]
        if earlier := figures.get("earlier"):
            parts.append(f"{len(earlier)} of the cases have the verdict of the converter before its last changes.")
    return "\n\n".join(parts)


def _which(every: int) -> str:
    return "all cases" if every == 1 else f"one in {every} of the cases"


def _of_suite(verdicts: Mapping[str, Any]) -> Iterator[str]:
    by_opset: dict[int, Counter[str]] = {}
    by_operator: dict[str, set[str]] = {}
    for opset, kinds, found, _ in verdicts.values():
        by_opset.setdefault(opset, Counter())[found] += 1
        for kind in kinds:
            by_operator.setdefault(kind, set()).add(found)
    headers = ["opset", "cases", "right", "wrong", "refused", "cannot", "share"]
    lines = [[str(opset), *_counts(by_opset[opset])] for opset in sorted(by_opset)]
    lines.append(["all", *_counts(sum(by_opset.values(), Counter()))])
    yield markdown_table(headers, lines, right=headers)
    expressible = {kind: found for kind, found in by_operator.items() if found != {"cannot"}}
    never = sorted(kind for kind, found in expressible.items() if "right" not in found)
    share = (len(expressible) - len(never)) / max(len(expressible), 1)
    yield (
        f"{len(expressible) - len(never)} of {len(expressible)} operators ({share:.0%}) have a case that is right; "
        f"never: {', '.join(never) or 'none'}."
    )


def _counts(counts: Counter[str]) -> list[str]:
    tried = counts.total() - counts["cannot"]
    share = f"{counts['right'] / tried:.0%}" if tried else "–"
    return [str(counts.total()), *(str(counts[each]) for each in ("right", "wrong", "refused", "cannot")), share]


def _cells(row: Mapping[str, Any]) -> list[str]:
    noise = decibels(row["sqnr_db"])
    counts = [str(row[name]) for name in ("operators", "transposes", "ideal")]
    return [
        row["name"],
        kilobytes(row["bytes"]),
        noise + ("" if row["real"] else " \\*"),
        *counts,
        f"{row['seconds']:.1f}",
    ]


if __name__ == "__main__":
    sys.path.insert(1, str(Path(__file__).parent / "models"))
    main()
