"""ONNX → torch by edgepack's importer, by pnnx and by onnx2torch, on ONNX's own operator tests.

    python bench/measure_importers.py [--with FOLDER] [--every N] [--render]

pnnx and onnx2torch are no dependencies: `pip install --no-deps --target FOLDER pnnx onnx2torch`; what cannot be
imported is left out. onnx2torch imports torchvision: where that cannot be had, a file `torchvision/ops.py` in the
folder that defines `roi_align = None` will do. pnnx is given what onnxruntime's basic optimizations make of a model,
where these can be had. It writes Python text, which runs here as it is: the only models are those of the onnx package.
`--render` measures nothing and writes the table from what is kept.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import torch
from block_tables import markdown_table
from operator_suite import Case, cases, difference, tensors, variants
from results_page import put_section

from edgepack.torchgraph.onnx.build import build_module

TIMEOUT_S = 60
KEPT = "experiments/importers"
Results = tuple[torch.Tensor, ...]


def measure(every: int = 1) -> dict[str, Any]:
    """`rows`: for each importer how many cases are right, wrong and refused, by opset; `operators`: never right."""
    importers = {name: run for name, run in IMPORTERS.items() if _is_there(name)}
    chosen = list(cases())[::every]
    rows = []
    for name, run in importers.items():
        verdicts = {case.name: _verdict(run, case) for case in chosen}
        by_operator: dict[str, list[str]] = {}
        by_opset: dict[str, Counter[str]] = {}
        for case in chosen:
            by_opset.setdefault(str(case.opset), Counter())[verdicts[case.name]] += 1
            for operator in case.operators:
                by_operator.setdefault(operator, []).append(verdicts[case.name])
        counts = Counter(verdicts.values())
        rows.append(
            {
                "importer": name,
                "version": _version(name),
                "cases": len(chosen),
                **{verdict: counts[verdict] for verdict in ("right", "wrong", "refused")},
                "operators": len(by_operator),
                "operators_right": sum("right" in each for each in by_operator.values()),
                "never_right": sorted(operator for operator, each in by_operator.items() if "right" not in each),
                "not_right": sorted(case for case, verdict in verdicts.items() if verdict != "right")
                if name == "edgepack"
                else None,
                "by_opset": {opset: dict(by_opset[opset]) for opset in sorted(by_opset, key=int)},
            }
        )
        print(f"{name}: {dict(counts)} of {len(chosen)}", file=sys.stderr)
    return {"onnx": onnx.__version__, "every": every, "rows": rows}


def _verdict(run: Callable[[Case], Results], case: Case) -> str:
    """Of the first variant of a case that the importer takes at all."""
    for variant in variants(case):
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                results = run(variant)
        except Exception:  # noqa: BLE001
            continue  # the next one has more constants
        try:
            return "right" if difference(variant, results) is None else "wrong"
        except Exception:  # noqa: BLE001
            return "wrong"
    return "refused"


def _edgepack(case: Case) -> Results:
    return build_module(case.model, tensors(case), case.name)(*tensors(case))


def _onnx2torch(case: Case) -> Results:
    import onnx2torch

    return _several(onnx2torch.convert(case.model)(*tensors(case)))


def _pnnx(case: Case) -> Results:
    if not case.inputs:
        raise ValueError("no input")
    with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as name:
        folder = Path(name)
        onnx.save(case.model, str(folder / "raw.onnx"))
        _simplify(folder / "raw.onnx", folder / "model.onnx")
        sizes = ",".join(f"[{','.join(map(str, each.shape))}]{_PNNX_TYPES[each.dtype.name]}" for each in case.inputs)
        subprocess.run(
            [str(_pnnx_program()), "model.onnx", f"inputshape={sizes}", "fp16=0", "optlevel=1"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=TIMEOUT_S,
        )
        text = (folder / "model_pnnx.py").read_text().replace("'model.pnnx.bin'", repr(str(folder / "model.pnnx.bin")))
        module: dict[str, Any] = {"__name__": "model_pnnx"}
        exec(compile(text, "model_pnnx.py", "exec"), module)
        return _several(module["Model"]().eval()(*tensors(case)))


def _simplify(source: Path, path: Path) -> None:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath, options.log_severity_level = str(path), 4
    try:
        ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    except Exception:  # noqa: BLE001
        path.write_bytes(source.read_bytes())  # of an operator set that onnxruntime does not know yet


_PNNX_TYPES = {"float32": "f32", "float64": "f64", "float16": "f16", "uint8": "u8", "bool": "u8"}
_PNNX_TYPES |= {"int8": "i8", "int16": "i16", "int32": "i32", "int64": "i64"}
IMPORTERS: Mapping[str, Callable[[Case], Results]] = {"edgepack": _edgepack, "pnnx": _pnnx, "onnx2torch": _onnx2torch}


def _pnnx_program() -> Path:
    spec = importlib.util.find_spec("pnnx")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("pnnx")
    return Path(spec.origin).parent / "pnnx"


def _is_there(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _several(results: Any) -> Results:
    return (results,) if isinstance(results, torch.Tensor) else tuple(results)


def render(figures: Mapping[str, Any]) -> str:
    """The section of bench/RESULTS.md."""
    rows, never = figures["rows"], figures["rows"][0]["never_right"]
    summary = [
        [
            f"{row['importer']} {row['version']}",
            *(str(row[verdict]) for verdict in ("right", "wrong", "refused")),
            f"{row['right'] / row['cases']:.0%}",
            f"{row['operators_right']} of {row['operators']}",
        ]
        for row in rows
    ]
    opsets = [
        [opset, str(sum(counts.values())), *(_share(row["by_opset"][opset]) for row in rows)]
        for opset, counts in rows[0]["by_opset"].items()
    ]
    numbers = ("right", "wrong", "refused", "share", "operators", "cases", *(row["importer"] for row in rows))
    count = rows[0]["cases"]
    heading = (
        f"{count} cases of the operator tests of onnx {figures['onnx']}: those on tensors of numbers and booleans,\n"
        "whose results have shapes that do not depend on values. Run in torch, against the suite's own results.\n"
        "All inputs come from outside; where an importer refuses that, integers are constants, then all inputs\n"
        "but one, then all."
    )
    tables = (
        markdown_table(("importer", *numbers[:5]), summary, right=numbers),
        markdown_table(("opset", "cases", *(row["importer"] for row in rows)), opsets, right=numbers),
    )
    right = "Right, by the opset that the newest form of the operator is of:"
    return "\n\n".join((heading, tables[0], right, tables[1], f"Never with edgepack: {', '.join(never) or 'none'}."))


def _share(counts: Mapping[str, int]) -> str:
    return f"{counts.get('right', 0) / sum(counts.values()):.0%}"


if __name__ == "__main__":
    from figures_file import load, store

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--with", dest="folder", type=Path, help="where pnnx and onnx2torch are installed")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every Nth case")
    parser.add_argument("--render", action="store_true", help="measure nothing, write the table from what is kept")
    options = parser.parse_args()
    if options.folder is not None:
        sys.path.append(str(options.folder))
    torch.set_num_threads(1)
    stored = load(KEPT) if options.render else store(KEPT, measure(options.every))
    put_section("importers", "python bench/measure_importers.py --with FOLDER", stored, render(stored["figures"]))
