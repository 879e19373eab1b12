"""ONNX Runtime's own quantizer: for the dense int8 baseline, and for what is not a linear layer in a pack."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.backends.onnx.schemes import INT8_DYNAMIC, INT8_STATIC
from edgepack.errors import ModelError
from edgepack.model.scheme import Scheme
from edgepack.model.types import Array
from edgepack.quantize.grids import WEIGHT_MAX

if TYPE_CHECKING:
    import onnx

REST_OP_TYPES: Mapping[Scheme, tuple[str, ...]] = {
    INT8_DYNAMIC: ("Conv", "LSTM", "Attention", "Gather", "EmbedLayerNormalization"),
    INT8_STATIC: ("Conv", "ConvTranspose", "Gather"),
}
"""Operators with weights that are not linear layers, by scheme: a pack treats them exactly as the baseline does."""


def quantize(
    model: onnx.ModelProto,
    out: Path,
    scheme: Scheme,
    feeds: Sequence[Mapping[str, Array]],
    *,
    op_types: Sequence[str] = (),
    exclude: Sequence[str] = (),
    qmax: int = WEIGHT_MAX,
) -> None:
    """Write the model with int8 weights as `quantize_dynamic` or `quantize_static` make them.

    Args:
        model: fp32; consumed.
        scheme: `INT8_DYNAMIC` or `INT8_STATIC`.
        feeds: calibration inputs by name, for the static scheme.
        op_types: only these operators; empty means the quantizer's own default.
        exclude: names of nodes to leave alone.
        qmax: largest weight code; below 127 the quantizer's reduced range is used.

    Raises:
        ModelError: the quantizer cannot treat this model.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static

    # Types inferred by an exporter contradict the quantizer's own inference on some graphs.
    del model.graph.value_info[:]
    common = {
        "per_channel": True,
        "reduce_range": qmax < WEIGHT_MAX,
        "weight_type": QuantType.QInt8,
        "op_types_to_quantize": list(op_types) or None,
        "nodes_to_exclude": list(exclude),
    }
    try:
        with _quiet():
            if scheme == INT8_DYNAMIC:
                quantize_dynamic(model, out, extra_options={"EnableSubgraph": True}, **common)
            else:
                reader = _Reader(feeds)
                quantize_static(
                    model, out, reader, quant_format=QuantFormat.QDQ, activation_type=QuantType.QInt8, **common
                )
    except Exception as err:
        raise ModelError(f"onnxruntime's {scheme} quantizer cannot treat this model: {err}") from err


class _Reader:
    """Calibration inputs in the shape that the quantizer asks for them."""

    def __init__(self, feeds: Sequence[Mapping[str, Array]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Mapping[str, Array] | None:
        return next(self._feeds, None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantizer's advice on pre-processing off the root logger and its warnings off the screen."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
