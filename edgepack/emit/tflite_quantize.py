"""Integer forms of a float32 .tflite file, by litert-quantizer."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgepack.errors import ModelError
from edgepack.tflitegraph.linear import linear_ops
from edgepack.types import Array

INTEGER_FORMS = ("int8-dynamic-range", "int4-dynamic-range", "int8-static")
LAYER_FORMS = ("fp32", "int8-dynamic-range", "int4-dynamic-range")
"""What single operators of a file may differ in."""

_BITS = {"int8-dynamic-range": 8, "int4-dynamic-range": 4}


def takes_int4(op: str, columns: int) -> bool:
    """Whether the runtime has a fast kernel for 4-bit weights of this operator.

    XNNPACK takes FULLY_CONNECTED with an even number of columns. All else runs in LiteRT's own kernels, which unpack
    the weights at every inference and are slower than with 8 bits.
    """
    return op == "FULLY_CONNECTED" and columns % 2 == 0


def quantize(
    source: Path,
    path: Path,
    form: str,
    samples: Mapping[str, Array] | None = None,
    forms: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Write an integer form of an fp32 file: the quantizer's own standard recipe, with float32 inputs and outputs.

    Weights are integers, symmetric, one scale per output channel: max |w| / 127, or / 7 in four bits. "dynamic-range"
    quantizes activations to int8 at run time; "int8-static" to the smallest and largest values met on `samples` (the
    quantizer's default, a moving average over single samples, clips most of what it saw).
    A static file is run once: a kind of operator that refuses its own int8 inputs there (a division whose divisor
    rounds to zero) is left in float32. Four bits are for linear operators; one that has no fast kernel for them
    (`takes_int4`) gets eight, as all other operators do. The same input gives the same bytes.

    Args:
        source: the fp32 .tflite file.
        path: where to write.
        form: of all operators that are not in `forms`: "fp32" or one of `INTEGER_FORMS`.
        samples: for "int8-static": by input name, (samples, *input shape of the file). A few hundred are enough: one
            takes about 10 ms for a hundred operators.
        forms: of single linear operators, by the name of the tensor that they write: some of `LAYER_FORMS`; beside
            "int8-static" only "fp32".

    Returns:
        The kinds of operators that had to stay in wider numbers: float32 in "int8-static", int8 where four bits
        were asked for.

    Raises:
        ModelError: unknown form, an operator that is not there, no or ill-shaped samples, the quantizer fails, or its
            file does not run.
        ValueError: a form in `forms` that cannot stand beside `form`.
    """
    if form not in ("fp32", *INTEGER_FORMS):
        raise ModelError(f"unknown TFLite form {form!r}, expected fp32 or one of {', '.join(INTEGER_FORMS)}")
    check_mixture(form, (forms or {}).values())
    if form == "int8-static":
        return _static(source, path, samples or {}, forms or {})
    single, kept = _single_forms(source, form, forms or {})
    if form == "fp32" and not single:
        path.write_bytes(source.read_bytes())
    else:
        path.write_bytes(_quantized(source, form, {}, (), single))
    return kept


def check_mixture(form: str, others: Iterable[str]) -> None:
    """Refuse what one file cannot hold.

    Raises:
        ValueError: one of `others` cannot stand beside `form`.
    """
    allowed = ("fp32",) if form == "int8-static" else LAYER_FORMS
    wrong = sorted(set(others) - set(allowed))
    if wrong:
        raise ValueError(f"a layer of a file in {form} can be {' or '.join(allowed)}, not {', '.join(wrong)}")


def _static(source: Path, path: Path, samples: Mapping[str, Array], forms: Mapping[str, str]) -> tuple[str, ...]:
    if not samples:
        raise ModelError("the form int8-static needs calibration samples", hint="give data, or use int8-dynamic-range")
    single, _ = _single_forms(source, "int8-static", forms)
    kept: tuple[str, ...] = ()
    while True:
        path.write_bytes(_quantized(source, "int8-static", samples, kept, single))
        refused = _refusing_operator(path, samples)
        if refused is None:
            return kept
        if refused in kept:
            raise ModelError(f"{source.name}: the form int8-static does not run: {refused} refuses its inputs")
        kept = (*kept, refused)


def _single_forms(source: Path, form: str, forms: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The operators that differ from what `form` gives all others, and the kinds that cannot have their four bits."""
    if not forms and form != "int4-dynamic-range":
        return {}, ()
    ops = {op.output: op for op in linear_ops(source)}
    strangers = sorted(set(forms) - set(ops))
    if strangers:
        raise ModelError(f"{source.name}: no linear operator writes {', '.join(map(repr, strangers))}")
    chosen: dict[str, str] = {}
    kept = []
    rest = _form_of_the_rest(form)
    for name, op in ops.items():
        own = forms.get(name, form)
        if own == "int4-dynamic-range" and not takes_int4(op.op, op.weight.shape[1]):
            own = "int8-dynamic-range"
            kept.append(op.op)
        if own != rest:
            chosen[name] = own
    return chosen, tuple(dict.fromkeys(kept))


def _form_of_the_rest(form: str) -> str:
    return "int8-dynamic-range" if form == "int4-dynamic-range" else form


def _quantized(
    source: Path, form: str, samples: Mapping[str, Array], kept: tuple[str, ...], single: Mapping[str, str]
) -> bytes:
    from litert_quantizer import qtyping, quantizer

    names = qtyping.TFLOperationName
    no_quantize = quantizer.AlgorithmName.NO_QUANTIZE
    rest = _form_of_the_rest(form)
    with _quiet():
        try:
            work = quantizer.Quantizer(str(source))
            if form == "int8-static":
                work.add_static_config(".*", names.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8)
                for operator in (names.INPUT, names.OUTPUT, *map(names, kept)):
                    work.update_quantization_recipe(".*", operator, algorithm_key=no_quantize)
            elif rest != "fp32":
                work.add_dynamic_config(".*", names.ALL_SUPPORTED, num_bits=_BITS[rest])
            for other in LAYER_FORMS:
                scope = _scope([name for name, own in single.items() if own == other])
                if scope is not None and other == "fp32":
                    work.update_quantization_recipe(scope, names.ALL_SUPPORTED, algorithm_key=no_quantize)
                elif scope is not None:
                    work.add_dynamic_config(scope, names.ALL_SUPPORTED, num_bits=_BITS[other])
            ranges = None
            if form == "int8-static":
                ranges = _calibrated(work.get_quantization_recipe(), source, samples)
            return bytes(work.quantize(ranges).quantized_model)
        except (ValueError, RuntimeError, KeyError, NotImplementedError, TypeError) as err:
            raise ModelError(f"{source.name}: litert-quantizer cannot write the form {form}: {err}") from err


def _scope(outputs: Sequence[str]) -> str | None:
    """A regular expression for exactly these operators: the quantizer names one by what it writes and a semicolon."""
    if not outputs:
        return None
    return f"^(?:{'|'.join(re.escape(f'{name};') for name in outputs)})$"


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
    from litert_quantizer import calibrator, recipe_manager
    from litert_quantizer.utils import qsv_utils

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
