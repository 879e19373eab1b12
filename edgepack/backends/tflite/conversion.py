"""litert-torch's conversion of a module, without what it does twice, and with what it does not know.

It traces a program through torch's decompositions up to four times, which is most of its time. The first is a
preparation for layouts: a program without images needs none. The last one makes constant places 32 bits wide, which
integers become anyway, but for a few operators.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import torch
    from torch.fx import Graph

_OF_IMAGES = ("conv", "pool", "upsample", "pixel", "grid_sampler", "batch_norm", "group_norm", "instance_norm")
"""In names of operators that know where the channels of an image are."""


def teach_lowerings() -> None:
    """Tell litert-torch, for this process: bits read as another type."""
    import jax
    import torch
    from litert_torch.backend.lowerings._jax_lowerings.lowerings import lower_by_jax
    from litert_torch.backend.lowerings._jax_lowerings.torchax_ops import t2j_dtype

    lower_by_jax(torch.ops.aten.view.dtype)(lambda x, dtype: jax.lax.bitcast_convert_type(x, t2j_dtype(dtype)))


def convert(module: torch.nn.Module, inputs: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write the .tflite file of a module.

    Args:
        inputs: examples, by the names of the arguments of `forward`, which are those of the file's inputs.

    Raises:
        Exception: of many types, where an operator cannot be converted.
    """
    from litert_torch import fx_infra
    from litert_torch._convert import core, litert_converter
    from litert_torch._convert.signature import Signature
    from litert_torch.model import DEFAULT_SIGNATURE_NAME

    signature = Signature(DEFAULT_SIGNATURE_NAME, module, None, dict(inputs))
    program = core.export_torch_signature(signature, run_decompositions=False)
    if needs_preparation(program.graph):
        table = fx_infra.decomp.pre_convert_decomp()
        program = fx_infra.safe_run_decompositions(program, table, can_skip=False)
    program = core._run_convert_passes(program)
    try:
        with _wide_places():
            litert_converter.exported_programs_to_flatbuffer([program], [signature]).to_file(str(path))
    except Exception:  # noqa: BLE001
        # Places that are computed with need 32 bits; whatever else it was stops this one as well.
        litert_converter.exported_programs_to_flatbuffer([program], [signature]).to_file(str(path))


@contextmanager
def _wide_places() -> Iterator[None]:
    """Constant places keep 64 bits, which saves a trace."""
    from litert_torch.backend import export

    narrow, export._convert_i64_to_i32 = export._convert_i64_to_i32, lambda program: False
    try:
        yield
    finally:
        export._convert_i64_to_i32 = narrow


def needs_preparation(graph: Graph) -> bool:
    """Whether operators know of layouts, or write into what they are given."""
    for node in graph.nodes:
        if node.op == "call_function":
            schema = getattr(node.target, "_schema", None)
            if any(part in str(node.target) for part in _OF_IMAGES) or (schema is not None and schema.is_mutable):
                return True
    return False
