"""Integer forms of a float32 .tflite file, by ai-edge-quantizer."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgepack.errors import ModelError
from edgepack.types import Array

TFLITE_INT8_FORMS = ("int8-dynamic-range", "int8-static")


def quantize(source: Path, path: Path, form: str, samples: Mapping[str, Array] | None = None) -> tuple[str, ...]:
    """Write the int8 form of an fp32 file: the quantizer's own standard recipe, with float32 inputs and outputs.

    Weights are int8, symmetric, one scale per output channel: max |w| / 127. "int8-dynamic-range" quantizes activations
    at run time; "int8-static" to the smallest and largest values met on `samples` (the quantizer's default, a
    moving average over single samples, clips most of what it saw).
    A static file is run once: a kind of operator that refuses its own int8 inputs there (a division whose divisor
    rounds to zero) is left in float32. The same input gives the same bytes.

    Args:
        source: the fp32 .tflite file.
        path: where to write.
        form: one of `TFLITE_INT8_FORMS`.
        samples: for "int8-static": by input name, (samples, *input shape of the file). A few hundred are enough: one
            takes about 10 ms for a hundred operators.

    Returns:
        The kinds of operators that had to stay in float32.

    Raises:
        ModelError: unknown form, no or ill-shaped samples, the quantizer fails, or its file does not run.
    """
    if form not in TFLITE_INT8_FORMS:
        raise ModelError(f"unknown TFLite form {form!r}, expected one of {', '.join(TFLITE_INT8_FORMS)}")
    if form == "int8-static" and not samples:
        raise ModelError("the form int8-static needs calibration samples", hint="give data, or use int8-dynamic-range")
    if form != "int8-static" or not samples:
        path.write_bytes(_quantized(source, form, {}, ()))
        return ()
    kept: tuple[str, ...] = ()
    while True:
        path.write_bytes(_quantized(source, form, samples, kept))
        refused = _refusing_operator(path, samples)
        if refused is None:
            return kept
        if refused in kept:
            raise ModelError(f"{source.name}: the form int8-static does not run: {refused} refuses its inputs")
        kept = (*kept, refused)


def _quantized(source: Path, form: str, samples: Mapping[str, Array], kept: tuple[str, ...]) -> bytes:
    from ai_edge_quantizer import qtyping, quantizer

    names = qtyping.TFLOperationName
    with _quiet():
        try:
            work = quantizer.Quantizer(str(source))
            if form == "int8-static":
                work.add_static_config(".*", names.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8)
                for operator in (names.INPUT, names.OUTPUT, *map(names, kept)):
                    work.update_quantization_recipe(".*", operator, algorithm_key=quantizer.AlgorithmName.NO_QUANTIZE)
                ranges = _calibrated(work.get_quantization_recipe(), source, samples)
                return bytes(work.quantize(ranges).quantized_model)
            work.add_dynamic_config(".*", names.ALL_SUPPORTED, num_bits=8)
            return bytes(work.quantize(None).quantized_model)
        except (ValueError, RuntimeError, KeyError, NotImplementedError, TypeError) as err:
            raise ModelError(f"{source.name}: ai-edge-quantizer cannot write the form {form}: {err}") from err


def _refusing_operator(path: Path, samples: Mapping[str, Array]) -> str | None:
    """The kind of operator that stops the file on the first sample, None if it runs.

    Raises:
        ModelError: it stops for another reason.
    """
    from edgepack.tfliterun import interpreter, run

    made = interpreter(path)
    try:
        run(made, {name: array[0] for name, array in samples.items()})
    except ModelError as err:
        if found := re.search(r"Node number \d+ \((\w+)\) failed to invoke", err.message):
            return found.group(1)
        raise
    return None


def _calibrated(recipe: Any, source: Path, samples: Mapping[str, Array]) -> Any:
    from ai_edge_quantizer import calibrator, recipe_manager
    from ai_edge_quantizer.utils import qsv_utils

    from edgepack.tfliterun import signature

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
    work = calibrator.Calibrator(source.read_bytes(), num_threads=1, qsv_update_func=qsv_utils.min_max_update)
    work.calibrate({key: list(rows)}, manager)
    return work.get_model_qsvs()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    sink = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        warnings.simplefilter("ignore")
        yield
