"""Integer schemes of a float32 .tflite file, by litert-quantizer."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgepack.backends.tflite.file import packed, whole
from edgepack.backends.tflite.kinds.linear import takes_int4
from edgepack.backends.tflite.loops import in_loops, with_all_results
from edgepack.backends.tflite.lstm import in_int8, on_states
from edgepack.backends.tflite.read import linear_ops
from edgepack.backends.tflite.schemes import FP32, INT4_DYNAMIC, INT8_DYNAMIC, INT8_STATIC, SCHEMES, WEIGHTS8
from edgepack.backends.tflite.tables import lookups, table_schemes
from edgepack.errors import ModelError
from edgepack.model.scheme import Scheme
from edgepack.model.types import Array
from edgepack.quantize.grids import has_one_scale

LAYER_SCHEMES = tuple(scheme for scheme in SCHEMES if scheme.scope == "layer")
"""What single operators of a file may differ in."""


def quantize(
    source: Path,
    path: Path,
    scheme: Scheme,
    samples: Mapping[str, Array] | None = None,
    schemes: Mapping[str, Scheme] | None = None,
) -> tuple[str, ...]:
    """Write an integer scheme of an fp32 file: the quantizer's own standard recipe, with float32 inputs and outputs.

    Weights are integers, symmetric, one scale per output channel: max |w| / 127, or / 7 in four bits; and one for a
    whole matrix that lies on its grid. "dynamic-range"
    quantizes activations to int8 at run time; "int8-static" to the smallest and largest values met on `samples` (the
    quantizer's default, a moving average over single samples, clips most of what it saw).
    A static file is run once: a kind of operator that refuses its own int8 inputs there (a division whose divisor
    rounds to zero) is left in float32. Four bits are for linear operators; one that has no fast kernel for them
    (`takes_int4`) gets eight, as all other operators do. Fused LSTMs, which the quantizer does not know, have 8 bits in
    every integer scheme. Within loops activations are quantized at run time. The same input gives the same bytes.

    Args:
        source: the fp32 .tflite file.
        path: where to write.
        scheme: of all operators that are not in `schemes`.
        samples: for "int8-static": by input name, (samples, *input shape of the file). A few hundred are enough: one
            takes about 10 ms for a hundred operators.
        schemes: of single linear operators, by the name of the tensor that they write: some of `LAYER_SCHEMES`; beside
            `INT8_STATIC` only `FP32`. And of lookups, whose tables have 8 bits otherwise in files of integers; one that
            is the weight of a layer as well is stored as that has it.

    Returns:
        The kinds of operators that had to stay in wider numbers: float32 in "int8-static", int8 where four bits
        were asked for.

    Raises:
        ModelError: an operator that is not there, no or ill-shaped samples, the quantizer fails, or its
            file does not run.
        ValueError: `scheme` is none of a TFLite file, or one in `schemes` cannot stand beside it.
    """
    check_mixture(scheme, (schemes or {}).values())
    if scheme == INT8_STATIC:
        return _static(source, path, samples or {}, schemes or {})
    single, kept = _single_schemes(source, scheme, schemes or {})
    if scheme == FP32 and not single:
        path.write_bytes(source.read_bytes())
    else:
        single |= table_schemes(source, single, _scheme_of_the_rest(scheme))
        path.write_bytes(_quantized(source, scheme, {}, (), single))
    in_int8(path, _scheme_of_the_rest(scheme), single)
    return kept


def check_mixture(scheme: Scheme, others: Iterable[Scheme]) -> None:
    """Refuse what one file cannot hold.

    Raises:
        ValueError: `scheme` is none of a TFLite file, or one of `others` cannot stand beside it.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"no TFLite file is in {scheme.key}; there are {', '.join(map(str, SCHEMES))}")
    allowed = (FP32,) if scheme == INT8_STATIC else LAYER_SCHEMES
    wrong = sorted(map(str, set(others) - set(allowed)))
    if wrong:
        names = " or ".join(map(str, allowed))
        raise ValueError(f"a layer of a file in {scheme} can be {names}, not {', '.join(wrong)}")


def _static(source: Path, path: Path, samples: Mapping[str, Array], schemes: Mapping[str, Scheme]) -> tuple[str, ...]:
    if not samples:
        raise ModelError(
            f"the scheme {INT8_STATIC} needs calibration samples", hint="give data, or use int8-dynamic-range"
        )
    single, _ = _single_schemes(source, INT8_STATIC, schemes)
    single |= dict.fromkeys(on_states(source), FP32) | in_loops(whole(source))
    single |= table_schemes(source, single, INT8_STATIC)
    kept: tuple[str, ...] = ()
    while True:
        path.write_bytes(_quantized(source, INT8_STATIC, samples, kept, single))
        refused = _refusing_operator(path, samples)
        if refused is None:
            in_int8(path, INT8_STATIC, single)
            _as_named(path, source)
            return kept
        if refused in kept:
            raise ModelError(f"{source.name}: the scheme {INT8_STATIC} does not run: {refused} refuses its inputs")
        kept = (*kept, refused)


def _as_named(path: Path, source: Path) -> None:
    """Give graphs the outputs that their signatures name, in place.

    The quantizer takes integers for them where others read these, and an operator that it does not know writes them.
    """
    before, model = whole(source), whole(path)
    wrong = False
    for old, new in zip(before.signatureDefs or (), model.signatureDefs or (), strict=True):
        named = {entry.name: entry.tensorIndex for entry in new.outputs}
        moved = {entry.tensorIndex: named[entry.name] for entry in old.outputs}
        graph = model.subgraphs[new.subgraphIndex]
        given = zip(before.subgraphs[old.subgraphIndex].outputs, graph.outputs, strict=True)
        outputs = [moved.get(tensor, now) for tensor, now in given]
        wrong |= outputs != list(graph.outputs)
        graph.outputs = outputs
    if wrong:
        path.write_bytes(packed(model))


def _single_schemes(
    source: Path, scheme: Scheme, schemes: Mapping[str, Scheme]
) -> tuple[dict[str, Scheme], tuple[str, ...]]:
    """The operators that differ from what `scheme` gives all others, and the kinds that cannot have their four bits."""
    if not schemes and scheme != INT4_DYNAMIC:
        return {}, ()
    ops = {op.output: op for op in linear_ops(source)}
    tables = {one.output for one in lookups(source)}
    strangers = sorted(set(schemes) - set(ops) - tables)
    if strangers:
        raise ModelError(f"{source.name}: no linear operator writes {', '.join(map(repr, strangers))}")
    chosen = {name: own for name, own in schemes.items() if name in tables}
    kept = []
    rest = _scheme_of_the_rest(scheme)
    for name, op in ops.items():
        own = schemes.get(name, scheme)
        if own == INT4_DYNAMIC and not takes_int4(op.op, op.weight.shape[1]):
            own = INT8_DYNAMIC
            kept.append(op.op)
        if own != rest:
            chosen[name] = own
    return chosen, tuple(dict.fromkeys(kept))


def _scheme_of_the_rest(scheme: Scheme) -> Scheme:
    return INT8_DYNAMIC if scheme == INT4_DYNAMIC else scheme


def _quantized(
    source: Path, scheme: Scheme, samples: Mapping[str, Array], kept: tuple[str, ...], single: Mapping[str, Scheme]
) -> bytes:
    from litert_quantizer import qtyping, quantizer

    names = qtyping.TFLOperationName
    no_quantize = quantizer.AlgorithmName.NO_QUANTIZE
    rest = _scheme_of_the_rest(scheme)
    with _quiet():
        try:
            work = quantizer.Quantizer(str(source))
            if rest != FP32:
                _configure(work, ".*", rest)
            if rest == INT8_STATIC:
                for operator in (names.INPUT, names.OUTPUT, *map(names, kept)):
                    work.update_quantization_recipe(".*", operator, algorithm_key=no_quantize)
            for other in LAYER_SCHEMES:
                scope = _scope([name for name, own in single.items() if own == other])
                if scope is not None:
                    _configure(work, scope, other)
            for other, scope in _scopes_of_one_scale(source, rest, single):
                _configure(work, scope, other, qtyping.QuantGranularity.TENSORWISE)
            ranges = None
            if scheme == INT8_STATIC:
                ranges = _calibrated(work.get_quantization_recipe(), source, samples)
                if not ranges:  # of no operator that the quantizer knows
                    return source.read_bytes()
            return bytes(work.quantize(ranges).quantized_model)
        except (ValueError, RuntimeError, KeyError, NotImplementedError, TypeError) as err:
            raise ModelError(f"{source.name}: litert-quantizer cannot write the scheme {scheme}: {err}") from err


def _configure(work: Any, scope: str, scheme: Scheme, granularity: Any = None) -> None:
    """Give the operators of a scope a scheme, with one scale a channel unless another granularity is asked for."""
    from litert_quantizer import qtyping, quantizer

    every = qtyping.TFLOperationName.ALL_SUPPORTED
    granularity = granularity or qtyping.QuantGranularity.CHANNELWISE
    if scheme == FP32:
        work.update_quantization_recipe(scope, every, algorithm_key=quantizer.AlgorithmName.NO_QUANTIZE)
    elif scheme == WEIGHTS8:
        work.add_weight_only_config(scope, every, scheme.bits, granularity)
    elif scheme.is_static:
        work.add_static_config(scope, every, 8, scheme.bits, granularity)
    else:
        work.add_dynamic_config(scope, every, scheme.bits, granularity)


def _scope(outputs: Sequence[str]) -> str | None:
    """A regular expression for exactly these operators: the quantizer names one by what it writes and a semicolon."""
    if not outputs:
        return None
    return f"^(?:{'|'.join(re.escape(f'{name};') for name in outputs)})$"


def _scopes_of_one_scale(source: Path, rest: Scheme, single: Mapping[str, Scheme]) -> Iterator[tuple[Scheme, str]]:
    """By their scheme, the operators whose whole weight one scale gives exactly, and those that look up its rows."""
    found: dict[Scheme, list[str]] = {}
    rows = lookups(source)
    for op in linear_ops(source):
        own = single.get(op.output, rest)
        if not own.is_float and has_one_scale(op.weight, qmax=own.qmax):
            found.setdefault(own, []).append(op.output)
            for one in (one for one in rows if one.buffer == op.buffer):
                found.setdefault(single.get(one.output, own), []).append(one.output)
    for own, outputs in found.items():
        if (scope := _scope(outputs)) is not None:
            yield own, scope


def _refusing_operator(path: Path, samples: Mapping[str, Array]) -> str | None:
    """The kind of operator that stops the file on the first sample, None if it runs.

    Raises:
        ModelError: it stops for another reason.
    """
    from edgepack.backends.tflite.runtime import load

    session = load(path, threads=1)
    try:
        session.run({name: array[0] for name, array in samples.items()})
    except ModelError as err:
        if found := re.search(r"Node number \d+ \((\w+)\) failed to invoke", err.message):
            return found.group(1)
        raise
    return None


def _calibrated(recipe: Any, source: Path, samples: Mapping[str, Array]) -> Any:
    from litert_quantizer import calibrator, recipe_manager
    from litert_quantizer.utils import qsv_utils

    from edgepack.backends.tflite.runtime import signature

    key, inputs = signature(source)
    if set(inputs) != set(samples):
        raise ModelError(f"calibration samples for {sorted(samples)}, the model's inputs are {sorted(inputs)}")
    counts = {len(array) for array in samples.values()}
    if len(counts) != 1 or 0 in counts:
        raise ModelError(f"the inputs have {sorted(counts)} calibration samples, one number above 0 was expected")
    for name, spec in inputs.items():
        if samples[name].shape[1:] != spec.shape:
            raise ModelError(
                f"calibration samples of {name!r} have shape {samples[name].shape[1:]}, the model's is {spec.shape}"
            )
    rows = (
        {name: samples[name][i].astype(spec.dtype, copy=False) for name, spec in inputs.items()}
        for i in range(counts.pop())
    )
    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(recipe)
    # One thread: the order of sums, and so the last bits of the ranges, must not depend on the machine.
    model = whole(source)
    with_all_results(model)
    work = calibrator.Calibrator(packed(model), num_threads=1, qsv_update_func=qsv_utils.min_max_update)
    _read_constants_once(work)
    work.calibrate({key: list(rows)}, manager)
    return work.get_model_qsvs()


def _read_constants_once(calibrator: Any) -> None:
    """Keep a calibrator from copying every weight anew for each sample: of wide layers that is nearly all of its time.

    Of a version that has no such interpreter it just takes longer.
    """
    interpreter, model = (getattr(calibrator, name, None) for name in ("_tfl_interpreter", "_flatbuffer_model"))
    if interpreter is not None and model is not None:
        calibrator._tfl_interpreter = _ConstantsOnce(interpreter, model)


class _ConstantsOnce:
    """An interpreter whose constants are copied out of it once; all else is asked of it."""

    def __init__(self, interpreter: Any, model: Any) -> None:
        self._interpreter = interpreter
        self._constants = {
            (tensor, subgraph)
            for subgraph, graph in enumerate(model.subgraphs)
            for tensor, one in enumerate(graph.tensors)
            if model.buffers[one.buffer].data is not None and not one.isVariable
        }
        self._copies: dict[tuple[int, int], Array] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._interpreter, name)

    def get_tensor(self, tensor: int, subgraph: int = 0) -> Array:
        place = tensor, subgraph
        if place not in self._constants:
            return np.asarray(self._interpreter.get_tensor(*place))
        if place not in self._copies:
            self._copies[place] = self._interpreter.get_tensor(*place)
        return self._copies[place]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    sink = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        warnings.simplefilter("ignore")
        yield
