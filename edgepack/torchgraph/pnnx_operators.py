"""Every function, layer and method that a model read from pnnx may use, by the name that pnnx writes.

The lists are closed: what is not in them cannot be reached, whatever a file says. All of it computes tensors from
tensors; nothing here reads files, draws random numbers, makes code or takes a callable.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from edgepack.errors import ModelError
from edgepack.torchgraph import pnnx_recurrent

if TYPE_CHECKING:
    from torch import Tensor

HINT = "build only the ONNX file (--formats onnx), or give the torch model"

_TORCH = frozenset(
    (
        # elementwise
        *("abs", "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "ceil", "cos", "cosh", "erf", "erfc"),
        *("exp", "exp2", "expm1", "floor", "fmod", "frac", "lgamma", "log", "log10", "log1p", "log2", "logaddexp"),
        *("neg", "positive", "pow", "reciprocal", "relu", "remainder", "round", "rsqrt", "sigmoid", "sign", "sin"),
        *("sinh", "softmax", "log_softmax", "sqrt", "square", "tan", "tanh", "trunc", "clamp", "clamp_max"),
        *("clamp_min", "add", "sub", "mul", "div", "floor_divide", "maximum", "minimum", "where", "isinf", "isnan"),
        *("eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_not", "logical_or", "logical_xor"),
        *("bitwise_and", "bitwise_not", "bitwise_or", "bitwise_xor", "bitwise_left_shift", "bitwise_right_shift"),
        *("complex", "real", "imag", "view_as_complex", "view_as_real"),
        # products
        *("addmm", "baddbmm", "bmm", "cross", "einsum", "matmul", "mm", "mv"),
        # reductions
        *("all", "amax", "amin", "any", "argmax", "argmin", "cumprod", "cumsum", "logsumexp", "max", "mean", "min"),
        *("norm", "prod", "std", "sum", "topk", "var"),
        # shapes and places
        *("as_strided", "cat", "chunk", "clone", "diag", "flatten", "flip", "gather", "index_select", "masked_select"),
        *("narrow", "permute", "repeat_interleave", "reshape", "roll", "scatter", "scatter_add", "scatter_reduce"),
        *("slice_scatter", "split", "squeeze", "stack", "t", "tensor_split", "tile", "transpose", "tril", "triu"),
        *("unbind", "unsqueeze", "index_put"),
        # constants and signals
        *("arange", "full", "full_like", "ones", "ones_like", "zeros", "zeros_like", "istft", "stft"),
    )
)
_FFT = frozenset(f"{kind}fft{axes}" for kind in ("", "h", "i", "ih", "ir", "r") for axes in ("", "2", "n"))
_FUNCTIONAL = frozenset(
    (
        *(f"adaptive_{kind}_pool{size}d" for kind in ("avg", "max") for size in (1, 2, 3)),
        *(f"{kind}{size}d" for kind in ("avg_pool", "max_pool", "conv", "conv_transpose") for size in (1, 2, 3)),
        *("lp_pool1d", "lp_pool2d", "max_unpool2d", "affine_grid", "fold", "unfold", "grid_sample", "interpolate"),
        *("upsample", "upsample_bilinear", "upsample_nearest", "pad", "pixel_shuffle", "pixel_unshuffle"),
        *("alpha_dropout", "dropout", "dropout2d", "dropout3d", "feature_alpha_dropout"),
        *("batch_norm", "group_norm", "instance_norm", "layer_norm", "local_response_norm", "normalize", "rms_norm"),
        *("celu", "elu", "gelu", "glu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu"),
        *("log_softmax", "logsigmoid", "mish", "prelu", "relu", "relu6", "rrelu", "selu", "sigmoid", "silu"),
        *("softmax", "softmin", "softplus", "softshrink", "softsign", "tanh", "tanhshrink", "threshold"),
        *("embedding", "linear", "pairwise_distance", "scaled_dot_product_attention"),
    )
)
_LAYERS = frozenset(
    (
        *(f"Adaptive{kind}Pool{size}d" for kind in ("Avg", "Max") for size in (1, 2, 3)),
        *(f"{kind}{size}d" for kind in ("AvgPool", "MaxPool", "Conv", "ConvTranspose") for size in (1, 2, 3)),
        *(f"{kind}{size}d" for kind in ("BatchNorm", "InstanceNorm", "ConstantPad") for size in (1, 2, 3)),
        *(f"{kind}{size}d" for kind in ("ReflectionPad", "ReplicationPad") for size in (1, 2, 3)),
        *("LPPool1d", "LPPool2d", "MaxUnpool2d", "ZeroPad2d", "Fold", "Unfold", "ChannelShuffle", "PixelShuffle"),
        *("PixelUnshuffle", "Upsample", "UpsamplingBilinear2d", "UpsamplingNearest2d"),
        *("AlphaDropout", "Dropout", "Dropout2d", "Dropout3d", "GroupNorm", "LayerNorm", "LocalResponseNorm"),
        *("RMSNorm", "CELU", "ELU", "GELU", "GLU", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "Identity"),
        *("LeakyReLU", "LogSigmoid", "LogSoftmax", "Mish", "PReLU", "RReLU", "ReLU", "ReLU6", "SELU", "SiLU"),
        *("Sigmoid", "Softmax", "Softmax2d", "Softmin", "Softplus", "Softshrink", "Softsign", "Tanh", "Tanhshrink"),
        *("Threshold", "Embedding", "Linear", "GRU", "LSTM", "RNN", "MultiheadAttention"),
    )
)
_METHODS = frozenset(
    (
        *("chunk", "clone", "contiguous", "dim", "expand", "expand_as", "fill_", "flatten", "index_put"),
        *("index_select", "masked_fill", "new_full", "new_ones", "new_zeros", "permute", "repeat", "reshape"),
        *("reshape_as", "select", "size", "split", "squeeze", "t", "to", "transpose", "type_as", "unbind"),
        *("unflatten", "unsqueeze", "view", "view_as"),
    )
)
_DTYPES = frozenset(
    (
        *("float", "float16", "float32", "float64", "half", "double", "bfloat16"),
        *("int", "int8", "int16", "int32", "int64", "short", "long", "uint8", "uint16", "uint32", "uint64", "bool"),
        *("complex32", "complex64", "complex128"),
        *("contiguous_format", "preserve_format", "channels_last", "channels_last_3d"),
    )
)
# Words that an argument may be, by its name. No other text reaches torch.
_WORDS: Mapping[str, frozenset[str]] = {
    "approximate": frozenset(("none", "tanh")),
    "direction": frozenset(pnnx_recurrent.DIRECTIONS),
    "mode": frozenset(
        (
            *("constant", "reflect", "replicate", "circular"),
            *("area", "bicubic", "bilinear", "linear", "nearest", "nearest-exact", "trilinear"),
        )
    ),
    "nonlinearity": frozenset(("relu", "tanh")),
    "norm": frozenset(("backward", "forward", "ortho")),
    "p": frozenset(("fro", "nuc")),
    "pad_mode": frozenset(("circular", "constant", "reflect", "replicate")),
    "padding": frozenset(("same", "valid")),
    "padding_mode": frozenset(("border", "circular", "reflect", "reflection", "replicate", "zeros")),
    "reduce": frozenset(("amax", "amin", "mean", "prod", "sum")),
    "rounding_mode": frozenset(("floor", "trunc")),
}
_REFUSED_KEYWORDS = frozenset(("device", "generator", "layout", "names", "out", "pin_memory"))
_EQUATION = re.compile(r"(?:[A-Za-z, ]|\.{3}){1,200}(?:->(?:[A-Za-z ]|\.{3}){0,200})?")


def function(name: str) -> Callable[..., Any] | None:
    """What a dotted name of pnnx' `forward` means ("torch.abs", "F.relu", "Gather"), None where it is none of ours."""
    import torch

    if name in OWN:
        return OWN[name]
    family, _, leaf = name.rpartition(".")
    if family == "torch" and leaf in _TORCH:
        return _resolved(torch, leaf)
    if family == "torch.fft" and leaf in _FFT:
        return _resolved(torch.fft, leaf)
    if family == "F" and leaf in _FUNCTIONAL:
        return _resolved(torch.nn.functional, leaf)
    return None


def layer(name: str) -> Callable[..., Any] | None:
    """The class of a layer ("nn.Linear"), None where it is none of ours."""
    import torch

    family, _, leaf = name.rpartition(".")
    return _resolved(torch.nn, leaf) if family == "nn" and leaf in _LAYERS else None


def method(name: str) -> Callable[..., Any] | None:
    """A method of tensors as a function of the tensor, None where it is none of ours."""
    import torch

    return _resolved(torch.Tensor, name) if name in _METHODS else None


def constant(name: str) -> object | None:
    """A dtype or memory format ("torch.float"), None where it is neither."""
    import torch

    family, _, leaf = name.rpartition(".")
    return getattr(torch, leaf) if family == "torch" and leaf in _DTYPES else None


def _resolved(owner: object, name: str) -> Callable[..., Any]:
    found: Callable[..., Any] = getattr(owner, name)
    return found


def takes_keyword(name: str) -> bool:
    """Whether a call may have an argument of that name."""
    return re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) is not None and name not in _REFUSED_KEYWORDS


def takes_word(keyword: str, word: str) -> bool:
    """Whether the argument of that name may be that text."""
    return word in _WORDS.get(keyword, ())


def is_equation(text: str) -> bool:
    """Whether the text is an equation of einsum ("bij,bjk->bik") and nothing else."""
    return _EQUATION.fullmatch(text) is not None


def names() -> dict[str, frozenset[str]]:
    """The closed lists: names below torch, torch.fft, F (functions), nn (layers), of tensors' methods and dtypes."""
    return {
        "torch": _TORCH,
        "torch.fft": _FFT,
        "F": _FUNCTIONAL,
        "nn": _LAYERS,
        "Tensor": _METHODS,
        "dtype": _DTYPES,
    }


def _extreme(first: Tensor | float, second: Tensor | float, bound: str) -> Tensor:
    import torch

    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return torch.maximum(first, second) if bound == "min" else torch.minimum(first, second)
    tensor, number = (first, second) if isinstance(first, torch.Tensor) else (second, first)
    return torch.clamp(tensor, **{bound: number})


def maximum(first: Tensor | float, second: Tensor | float) -> Tensor:
    """max(x, y), either of them a number."""
    return _extreme(first, second, "min")


def minimum(first: Tensor | float, second: Tensor | float) -> Tensor:
    """min(x, y), either of them a number."""
    return _extreme(first, second, "max")


def _gather(data: Tensor, indices: Tensor, axis: int = 0) -> Tensor:
    """ONNX Gather: slices of `data` along `axis`."""
    from torch.nn import functional

    if axis == 0 and data.dim() == 2:
        return functional.embedding(indices, data)
    axis = axis % data.dim()
    picked = data.index_select(axis, indices.reshape(-1))
    return picked.reshape(*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])


def _gather_nd(data: Tensor, indices: Tensor, batch_dims: int = 0) -> Tensor:
    """ONNX GatherND without batch dimensions."""
    if batch_dims:
        raise ModelError(f"GatherND with batch_dims={batch_dims} has no torch counterpart", hint=HINT)
    return data[tuple(indices.unbind(-1))]


def _scalar(value: float) -> Tensor:
    """A tensor of one number, as `torch.tensor` makes it."""
    import torch

    if not isinstance(value, (int, float)):
        raise ModelError(f"torch.tensor of a {type(value).__name__}, a number was expected", hint=HINT)
    return torch.tensor(value)


# What pnnx hands through under its ONNX name, and the one constant that it makes of a number.
OWN: Mapping[str, Callable[..., Any]] = {
    "GRU": pnnx_recurrent.gru,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "LSTM": pnnx_recurrent.lstm,
    "Max": maximum,
    "Min": minimum,
    "torch.tensor": _scalar,
}


def _on_numbers(compute: Callable[..., Any]) -> Callable[..., Any]:
    """An arithmetic operator that takes tensors and numbers alone: no list is repeated, no number grows past 64 bits.

    Raises:
        ModelError: from the function returned.
    """

    def checked(*operands: Any) -> Any:
        import torch

        for operand in operands:
            if not isinstance(operand, (torch.Tensor, torch.SymInt, torch.SymFloat, int, float, complex)):
                raise ModelError(f"{compute.__name__} of a {type(operand).__name__} is no arithmetic", hint=HINT)
        plain = all(isinstance(operand, int) for operand in operands)
        shifts = compute in (operator.lshift, operator.rshift)
        if plain and shifts and not 0 <= operands[1] < 64:
            raise ModelError(f"a number is shifted by {operands[1]} bits", hint=HINT)
        result = compute(*operands)
        if plain and isinstance(result, int) and result.bit_length() > 64:
            raise ModelError(f"{compute.__name__} gives a number of {result.bit_length()} bits", hint=HINT)
        return result

    return checked


_OPERATORS: Mapping[str, Callable[..., Any]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mult": operator.mul,
    "MatMult": operator.matmul,
    "Div": operator.truediv,
    "FloorDiv": operator.floordiv,
    "Mod": operator.mod,
    "BitAnd": operator.and_,
    "BitOr": operator.or_,
    "BitXor": operator.xor,
    "LShift": operator.lshift,
    "RShift": operator.rshift,
    "Eq": operator.eq,
    "NotEq": operator.ne,
    "Lt": operator.lt,
    "LtE": operator.le,
    "Gt": operator.gt,
    "GtE": operator.ge,
    "USub": operator.neg,
    "UAdd": operator.pos,
    "Invert": operator.invert,
}
ARITHMETIC: Mapping[str, Callable[..., Any]] = {name: _on_numbers(compute) for name, compute in _OPERATORS.items()}
"""Operators by the name that Python's syntax tree gives them; without powers and truth values."""
