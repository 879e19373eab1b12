"""Opens whatever MODEL names: one module per kind of input, each gives a `Model`. A new one is a line in `SOURCES`."""

from __future__ import annotations

import mmap
import os
import re
import shutil
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from edgepack.backends.registry import FACTS, FORMATS, missing, missing_for
from edgepack.data import example
from edgepack.errors import SOURCE, ModelError, UsageError
from edgepack.model.model import Model
from edgepack.model.scheme import Format
from edgepack.natives import native
from edgepack.sources.inputs import GivenInput, check_sizes, usual_sides, with_shapes
from edgepack.sources.keras import KerasFile
from edgepack.sources.onnx import OnnxFile
from edgepack.sources.others import other_kind
from edgepack.sources.recipe import PythonRecipe
from edgepack.sources.source import Source
from edgepack.sources.tflite import TfliteFile
from edgepack.sources.torch import ProgramFile
from edgepack.workers.sandbox import limits_of, out_of_memory, translated, tried

_LOCATION = re.compile(rb"\n\x08location\x12([\x80-\xff]?)([\x00-\x7f])", re.DOTALL)
"""In an ONNX file, what stands before the name of a file with weights."""
MOST_TRIED = 12
"""Shapes of inputs that are left open, until a model runs on one."""

SOURCES: tuple[Source, ...] = (OnnxFile(), TfliteFile(), KerasFile(), ProgramFile(), PythonRecipe())
"""In the order in which they are asked. What is heavy they import when they open a model."""


def source_of(spec: str) -> Source:
    """What opens `spec`.

    Raises:
        UsageError: no source takes it.
    """
    for source in SOURCES:
        if source.takes(spec):
            return source
    *forms, last = (form for source in SOURCES for form in source.forms)
    expected = f"expected {', '.join(forms)} or {last}"
    advice = ", or ".join(source.advice for source in SOURCES if source.advice is not None)
    if (other := other_kind(spec)) is not None:
        what, step = other
        raise UsageError(f"{spec!r} is a {what}: {expected}", hint=step)
    raise UsageError(f"cannot tell what {spec!r} is: {expected}", hint=advice)


def model_name(spec: str) -> str:
    """`bench/models/mnist_mlp.py:recipe` → `mnist-mlp`; `standard_v3/model.onnx` → `standard-v3`.

    Raises:
        UsageError: see `source_of`.
    """
    return source_of(spec).stem(spec).replace("_", "-").lower() or "model"


def closed(spec: str) -> dict[Format, str]:
    """Formats that no file of this model can be made in, and why.

    Raises:
        UsageError: see `source_of`.
    """
    native = source_of(spec).native
    return {fmt: FACTS[fmt].closed[native] for fmt in FORMATS if native in FACTS[fmt].closed}


def unwritable(spec: str) -> dict[Format, tuple[str, ...]]:
    """Formats that this model cannot be written in here, and the packages that are not installed.

    Raises:
        UsageError: see `source_of`.
    """
    native = source_of(spec).native
    lacks = {fmt: missing_for(fmt, native) for fmt in FORMATS}
    return {fmt: packages for fmt, packages in lacks.items() if packages}


def check_installed(spec: str) -> Source:
    """What opens `spec`.

    Raises:
        UsageError: `spec` names no model, or what opens it is not installed.
    """
    source = source_of(spec)
    if lacks := missing(source.packages):
        raise UsageError(
            f"{spec}: {source.title} need {', '.join(lacks)}: not installed", hint=f"{source.install} {SOURCE}"
        )
    return source


def open_model(
    spec: str, work: Path, formats: Collection[Format] | None = None, given: Sequence[GivenInput] = ()
) -> Model:
    """Open `spec`; exports of a torch model go into the folder `work`.

    A torch model is exported to ONNX, and is the truth there, where ONNX is among the formats; else its program is. A
    file is data of a stranger: it is read, and run once, in a process of its own first, whose time and memory are
    limited.

    Args:
        formats: of the files that will be written; None for all that can be written here.
        given: shapes of inputs that the model leaves open.

    Raises:
        UsageError: `spec` names no model, what opens it is not installed, or it takes no such inputs.
        ModelError: the model is bad or cannot be exported.
    """
    source = check_installed(spec)
    if formats is None:
        formats = set(FORMATS) - set(unwritable(spec)) - set(closed(spec))
    name = model_name(spec)
    if source.runs_code:
        return _opened(source, spec, name, work, formats, given)
    source.prepare()
    limits = limits_of(held_bytes(Path(spec)))
    apart = work / "tried"
    # What is exported of a torch program is not the stranger's any more.
    as_given: Collection[Format] = formats if source.native != "torch" else ()
    try:
        tried(spec, limits, lambda: _try(_opened(source, spec, name, apart, as_given, given)))
    finally:
        shutil.rmtree(apart, ignore_errors=True)
    try:
        return _opened(source, spec, name, work, formats, given)
    except Exception as err:
        raise translated(spec, err) from err


def held_bytes(path: Path) -> int:
    """Of a file, and of the files of its folder that it names as those with its weights, as ONNX files do."""
    if not path.is_file() or not (size := path.stat().st_size):
        return 0
    folder = path.resolve().parent
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        names = {content[found.end() : found.end() + _length(found)] for found in _LOCATION.finditer(content)}
    named = {(folder / os.fsdecode(name)).resolve() for name in names if 0 not in name}
    return size + sum(one.stat().st_size for one in named if folder in one.parents and one.is_file())


def _length(found: re.Match[bytes]) -> int:
    """Of the text behind, as protobuf writes it: seven bits a byte, the lowest first."""
    low, high = found.groups()
    return low[0] % 128 + 128 * sum(high) if low else sum(high)


def _opened(
    source: Source, spec: str, name: str, work: Path, formats: Collection[Format], given: Sequence[GivenInput]
) -> Model:
    work.mkdir(exist_ok=True)
    opened = source.open(spec, name, work, formats, given)
    opened = replace(opened, inputs=with_shapes(opened.inputs, given)) if given else opened
    check_sizes(opened.inputs, spec)
    return opened


def _try(opened: Model) -> None:
    """Run a model once, where it has open sides with the first usual ones on which it runs.

    Raises:
        MemoryError: there is not enough. Whatever else a runtime has against it, a build tells with the data at hand;
            of a model that none here runs there still is something to inspect.
    """
    try:
        session = native(opened.native).session(opened.content, {}, threads=1)
    except ModelError as err:
        if out_of_memory(err.message):
            raise MemoryError from err
        return
    for inputs in islice(usual_sides(opened.inputs), MOST_TRIED):
        try:
            session.run(example(None, inputs, 0))
            return
        except ModelError as err:
            if out_of_memory(err.message):
                raise MemoryError from err
