"""The process that converts to TFLite: `python -m edgepack.backends.tflite.converter_worker`.

litert-torch takes seconds and hundreds of megabytes to import, prints to stdout and may crash: so it lives apart from
the build. Requests come as lines of JSON on stdin, answers go as lines of JSON to what stdout was at the start; arrays
travel as .npz files, never as pickles. What the libraries print goes to stderr, which the parent keeps in a log.
"""

from __future__ import annotations

import gc
import json
import keyword
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from edgepack.backends.tflite.conversion import convert, teach_lowerings
from edgepack.backends.tflite.file import packed, text, whole
from edgepack.backends.tflite.layout import raised, teach_layouts
from edgepack.backends.tflite.lowering import lowerable
from edgepack.backends.tflite.marks import fuse, marked
from edgepack.backends.tflite.transposed import cut_transposed
from edgepack.errors import InputError
from edgepack.model.replacement import Replacement
from edgepack.model.serialize import unpacked_part
from edgepack.workspace import uncollected

if TYPE_CHECKING:
    from torch.fx import GraphModule

Request = Mapping[str, Any]
Reply = dict[str, Any]

_OPERATOR = re.compile(
    r"(?:torch\.ops\.)?((?:aten|prims|torchvision|quantized)[.:]{1,2}\w+(?:\.\w+)?)"
    r"|'((?:tfl|stablehlo|chlo|func)\.\w+)' op"
)
_ARGUMENT, _RESULT = re.compile(r"[a-z]\w*"), re.compile(r"[\w.:/;-]+")


class _Loaded:
    """The dense program at hand; `program` is None until a load request succeeds."""

    module: GraphModule | None = None
    runs: Sequence[Sequence[Any]] = ()
    """Inputs of single runs; the first has the shapes of the file."""
    inputs: Sequence[str] = ()
    outputs: Sequence[str] = ()


def main() -> None:
    """Answer requests until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business: it ends this process itself.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")
    warnings.simplefilter("ignore")
    state = _Loaded()
    _answer(replies, _import_all, {}, state)
    for line in sys.stdin:
        request = json.loads(line)
        _answer(replies, _REQUESTS[request["do"]], request, state)


def _answer(replies: IO[str], do: Callable[[Request, _Loaded], Reply], request: Request, state: _Loaded) -> None:
    import traceback

    try:
        reply = do(request, state)
    except InputError as err:
        reply = {"error": err.message, "hint": err.hint, "known": True}
    except MemoryError:
        reply = {"error": "out of memory", "hint": "free some memory, or build on a larger machine", "known": True}
    except (Exception, SystemExit) as err:  # noqa: BLE001
        # Not hidden: the traceback goes to the log, and the parent raises a typed error from what is sent.
        traceback.print_exc()
        reply = {"error": _summary(err), "operator": _operator(err)}
    replies.write(json.dumps(reply) + "\n")
    replies.flush()
    _trim_memory()  # behind the answer: nobody waits for it


def _import_all(request: Request, state: _Loaded) -> Reply:
    with uncollected():
        import torch

        torch.set_num_threads(1)
        import litert_torch
        from litert_quantizer import quantizer

    teach_layouts()
    teach_lowerings()
    # What the libraries set up stays anyway; going through it after every answer would take a quarter of a second.
    gc.freeze()
    return {"litert_torch": litert_torch.__version__, "quantizer": quantizer.__name__}


def _load_program(request: Request, state: _Loaded) -> Reply:
    """Load a `.pt2` file as the dense program."""
    from edgepack.torchgraph import load_program

    return _keep(load_program(Path(request["path"])), request, state)


def _load_onnx(request: Request, state: _Loaded) -> Reply:
    """Turn an ONNX file into the dense program."""
    from edgepack.torchgraph.from_onnx import graph_names, onnx_to_program

    inputs, outputs = graph_names(Path(request["path"]))
    request = {**request, "inputs": request["inputs"] or inputs, "outputs": request["outputs"] or outputs}
    shapes = {name: tuple(shape) for name, shape in request["shapes"].items()}
    return _keep(onnx_to_program(Path(request["path"]), shapes, _samples(request["samples"])), request, state)


def _samples(path: str) -> list[dict[str, Any]]:
    """Inputs of single runs, by name, from a file in which each stands behind the number of its sample."""
    samples: dict[str, dict[str, Any]] = {}
    if path:
        with np.load(path, allow_pickle=False) as arrays:
            for key in arrays.files:
                number, _, name = key.partition(":")
                samples.setdefault(number, {})[name] = arrays[key]
    return list(samples.values())


def _keep(program: Any, request: Request, state: _Loaded) -> Reply:
    from torch.utils import _pytree as pytree

    from edgepack.torchgraph.flat import flat_module, input_names, output_names
    from edgepack.torchgraph.run import arguments

    module = flat_module(program)
    state.module = module
    example = pytree.tree_leaves(program.example_inputs)
    shapes = [each.shape for each in example]
    given = [arguments(module, sample) for sample in _samples(request["samples"])]
    state.runs = [run for run in given if [each.shape for each in run] == shapes] or [example]
    state.inputs = request.get("inputs") or input_names(module)
    state.outputs = request.get("outputs") or output_names(module)
    return {"inputs": list(state.inputs), "outputs": list(state.outputs)}


def _emit(request: Request, state: _Loaded) -> Reply:
    """Write the fp32 file of the program, dense or with factors."""
    from edgepack.torchgraph import LayerKey, match_layers, with_factors

    module = state.module
    if module is None:
        raise ValueError("nothing is loaded")
    if request["factors"]:
        with np.load(request["arrays"], allow_pickle=False) as arrays:
            keys = [_key(LayerKey, entry, arrays) for entry in request["layers"]]
            factors = {name: _factors(arrays, index) for index, name in enumerate(request["factors"])}
        missing = match_layers(module, keys).missing
        kept = {name: pair for name, pair in factors.items() if name not in missing}
        module = with_factors(module, keys, kept) if kept else module
    else:
        missing = ()
    _write(module, state, state.outputs, Path(request["path"]))
    return {"missing": [name for name in request["factors"] if name in missing]}


def _key(make: Callable[..., Any], entry: Mapping[str, Any], arrays: Mapping[str, Any]) -> Any:
    bias = arrays[entry["bias"]] if entry["bias"] else None
    return make(entry["name"], entry["digest"], bias, entry["uses"])


def _factors(arrays: Mapping[str, Any], index: int) -> Replacement:
    own = [name for name in arrays if name.startswith(f"{index}/")]
    return unpacked_part({name.removeprefix(f"{index}/"): arrays[name] for name in own})


def _write(module: GraphModule, state: _Loaded, outputs: Sequence[str], path: Path) -> None:
    """Write the file of a graph that takes what the program takes.

    Args:
        outputs: names of what it returns.
    """
    import torch

    with torch.no_grad():
        module = marked(cut_transposed(raised(lowerable(module))))

    class Named(torch.nn.Module):  # type: ignore[misc]
        """Inputs and outputs by name: litert-torch takes the names of the file's signature from the two dicts."""

        def __init__(self) -> None:
            super().__init__()
            self.program = module

        def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            results = self.program(*[inputs[name] for name in safe])
            return dict(zip(gives, results, strict=True))

    # torch.export makes Python arguments of the inputs, ONNX names may be anything ("x:0").
    plain = all(_ARGUMENT.fullmatch(name) and not keyword.iskeyword(name) for name in state.inputs)
    safe = _safe(state.inputs, "input", plain=plain and "self" not in state.inputs)
    # The converter drops a signature with names of other characters.
    gives = _safe(outputs, "output", plain=all(map(_RESULT.fullmatch, outputs)))
    with torch.no_grad():
        convert(Named().eval(), dict(zip(safe, state.runs[0], strict=True)), path)
    fuse(path)
    if (safe, gives) != (list(state.inputs), list(outputs)):
        _rename(path, dict(zip(safe, state.inputs, strict=True)), dict(zip(gives, outputs, strict=True)))


def _safe(names: Sequence[str], stem: str, *, plain: bool) -> list[str]:
    """The names where they are plain, else numbered ones."""
    return list(names) if plain else [f"{stem}_{number}" for number in range(len(names))]


def _rename(path: Path, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> None:
    """Give the inputs and outputs of a file's signatures other names, in place."""
    model = whole(path)
    for signature in model.signatureDefs:
        for entries, names in ((signature.inputs, inputs), (signature.outputs, outputs)):
            for entry in entries:
                entry.name = names[text(entry.name)]
    path.write_bytes(packed(model))


def _prove(request: Request, state: _Loaded) -> Reply:
    """Run the dense file in LiteRT, which may crash, and say how the first of its answers that does so differs from the
    program's; None where none does."""
    from edgepack.torchgraph.parity import difference, least_db

    if state.module is None:
        raise ValueError("nothing is loaded")
    least = least_db(state.module)
    for want, have in _answers(state.module, state, Path(request["path"])):
        for name, wanted, found in zip(state.outputs, want, have, strict=True):
            if (how := difference(wanted, found, least, "LiteRT", "the model")) is not None:
                return {"difference": f"output {name!r} {how}"}
    return {"difference": None}


def _find(request: Request, state: _Loaded) -> Reply:
    """What computes the first value that differs, where a file gives all of them; None where none does there."""
    from edgepack.torchgraph.parity import first_difference, least_db, with_all_values

    if state.module is None:
        raise ValueError("nothing is loaded")
    module, names = with_all_values(state.module)
    path = Path(request["path"])
    _write(module, state, [f"value_{number}" for number in range(len(names))], path)
    least = least_db(state.module)
    found = (first_difference(names, want, have, least) for want, have in _answers(module, state, path))
    return {"first": next((name for name in found if name is not None), None)}


def _answers(module: GraphModule, state: _Loaded, path: Path) -> Iterator[tuple[list[Any], list[Any]]]:
    """Of each run: what the graph answers, and what its file does."""
    import torch

    from edgepack.backends.tflite.runtime import interpreter, session
    from edgepack.torchgraph.factor import copied
    from edgepack.torchgraph.flat import start_afresh

    opened, afresh = session(interpreter(path)), copied(module)
    start_afresh(afresh)
    for run in state.runs:
        with torch.no_grad():
            wanted = [each.numpy() for each in afresh(*run)]
        yield wanted, opened.run({name: each.numpy() for name, each in zip(state.inputs, run, strict=True)})


def _quantize(request: Request, state: _Loaded) -> Reply:
    from edgepack.backends.schemes import scheme_named
    from edgepack.backends.tflite.quantizer import quantize

    samples = None
    if request["samples"]:
        with np.load(request["samples"], allow_pickle=False) as stacked:
            samples = {name.removeprefix("input:"): stacked[name] for name in stacked.files}
    source, path = Path(request["source"]), Path(request["path"])
    scheme = scheme_named("tflite", request["scheme"])
    schemes = {operator: scheme_named("tflite", name) for operator, name in request["schemes"].items()}
    kept = quantize(source, path, scheme, samples, schemes)
    _try(path)
    return {"kept": list(kept)}


def _try(path: Path) -> None:
    """Run a file once, on anything: what crashes the runtime is to do so in this process."""
    from edgepack.backends.tflite.runtime import interpreter, session
    from edgepack.data import example

    opened = session(interpreter(path))
    opened.run(example(None, opened.inputs, 0))


_REQUESTS: Mapping[str, Callable[[Request, _Loaded], Reply]] = {
    "load_program": _load_program,
    "load_onnx": _load_onnx,
    "emit": _emit,
    "prove": _prove,
    "find": _find,
    "quantize": _quantize,
}


def _summary(err: BaseException) -> str:
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return f"{type(err).__name__}: {lines[0][:300]}" if lines else type(err).__name__


def _operator(err: BaseException | None) -> str | None:
    while err is not None:
        if found := _OPERATOR.search(str(err)):
            return found.group(1) or found.group(2)
        err = err.__cause__ or err.__context__
    return None


def _trim_memory() -> None:
    """Give freed pages back, so that one conversion's peak does not add to the next."""
    import ctypes

    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


if __name__ == "__main__":
    main()
