"""The experiments: what is trained, written and scored for each; latency and memory are measured afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgepack.archive.images import JpegImage
from edgepack.backends.onnx.schemes import FP32
from edgepack.methods import jpeg
from edgepack.methods.budget import in_8_bits
from edgepack.methods.registry import METHODS
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement
from edgepack.quantize.grids import quantize_weight
from seeds import claims
from seeds.bench import Bench, Group
from seeds.deepthin_rows import deepthin
from seeds.lab import Lab, Made
from seeds.lenet_rows import lenet
from seeds.pairs import default_pairs, plain_pairs, ranks


def dense_files(lab: Lab) -> dict[str, Made]:
    """The dense model in fp32 and in int8."""
    return {"fp32": lab.make("dense fp32", [], dict, FP32), "int8": lab.make("dense int8", [], dict)}


def row(key: str, title: str, claim: str, own: Made, default: Made | None, **more: Any) -> dict[str, Any]:
    """Of the table."""
    return {"key": key, "title": title, "claim": claim, "own": own, "default": default, **more}


def reducible(bench: Bench, sizes: Sequence[int], key: str, kept: float) -> Group:
    """Plain truncated SVD in fp32 without data, at one share for all layers but the last, as large as the source's."""
    bench.say(key)
    lab = bench.lab(sizes)
    whole = lab.parameters({})
    asked = _fitting(lab, int(kept * whole))
    own = lab.make("svd fp32", [asked], lambda: plain_pairs(lab, asked), FP32)
    default = lab.make("default", [asked], lambda: default_pairs(lab, asked))
    fewer = 1 - own["parameters"] / whole
    title = f"plain SVD, fp32: {_name(sizes)}, −{100 * fewer:.1f} % parameters"
    dense = dense_files(lab)
    return {
        "name": key,
        "model": _name(sizes),
        "dense": dense,
        "rows": [row(key, title, claims.CLAIMS[key], own, default)],
    }


def _fitting(lab: Lab, parameters: int) -> dict[str, int]:
    """Ranks of the largest share, one for all layers but the last, with which the model has no more numbers."""
    low, high, found = 0.0, 1.0, dict[str, int]()
    for _ in range(20):
        middle = (low + high) / 2
        asked = ranks(lab.layers[:-1], middle)
        sizes = {layer.name: layer.weight.shape for layer in lab.layers}
        saved = sum(sizes[n][0] * sizes[n][1] - rank * sum(sizes[n]) for n, rank in asked.items())
        if lab.parameters({}) - saved <= parameters:
            low, found = middle, asked
        else:
            high = middle
    return found


def jpeg_weights(bench: Bench) -> Group:
    """JPEG at quality 20, which layers the source does not say; the zonal transform and the default at its bytes."""
    bench.say("jpeg")
    lab = bench.lab((784, 512, 10))
    hidden = replace(lab.layers[0], moments=None)
    share = len(jpeg.at_quality(hidden, claims.JPEG_QUALITY)[1]) / hidden.weight.size
    asked = ranks(lab.layers[:1], share)
    default = lab.make("default", [asked], lambda: default_pairs(lab, asked))
    zonal = lab.make("dct", [share, "weight"], lambda: _parts(hidden, "dct", share))
    zonal_seen = lab.make("dct", [share, "data"], lambda: _parts(lab.layers[0], "dct", share), tflite=False)
    title = f"JPEG, quality {claims.JPEG_QUALITY}: 784-512-10"
    bytes_left = f"{100 * share:.1f} % of its int8 bytes"
    bare = tuple(replace(layer, moments=None) for layer in lab.layers)
    seen = _images(lab, "hidden, data", lab.layers[:1])["accuracy"]
    rows = [
        row(
            "jpeg",
            f"{title}, the hidden layer as an image of {bytes_left}",
            claims.CLAIMS["jpeg"],
            _images(lab, "hidden", bare[:1]),
            default,
            seen=seen,
        ),
        row("jpeg-both", f"{title}, both layers", claims.CLAIMS["jpeg"], _images(lab, "both", bare), default),
        row("dct", f"zonal DCT at {bytes_left}", "none", zonal, default, seen=zonal_seen["accuracy"]),
    ]
    return {"name": "jpeg", "model": "784-512-10", "dense": dense_files(lab), "rows": rows}


def _images(lab: Lab, what: str, layers: Sequence[View]) -> Made:
    """Some layers by way of JPEG images, which are what travels."""
    made = {layer.name: jpeg.at_quality(layer, claims.JPEG_QUALITY) for layer in layers}

    def images() -> list[JpegImage]:
        return [JpegImage(quantize_weight(part.weight)[0], image) for part, image in made.values()]

    parts = {name: part for name, (part, _) in made.items()}
    return lab.make(f"jpeg, {what}", [claims.JPEG_QUALITY], lambda: parts, images=images)


OPERATOR = ("simhash", "kmeans", "dictionary", "pruning", "input-projection", "random-projection")


def operator(bench: Bench) -> Group:
    """Methods without training at half and a third of the hidden layer's bytes: by the weight alone, then with data."""
    lab = bench.lab((784, 512, 10))
    hidden = lab.layers[0]
    bare = replace(hidden, moments=None)
    rows = []
    for share in list(claims.SHARES)[: 1 if bench.settings.quick else None]:
        asked = ranks(lab.layers[:1], share)
        default = lab.make("default", [asked], lambda asked=asked: default_pairs(lab, asked))
        for name in OPERATOR:
            bench.say(f"{name} at {share:g}")
            own = lab.make(name, [share, "weight"], lambda n=name, s=share: _parts(bare, n, s))
            seen = lab.make(name, [share, "data"], lambda n=name, s=share: _parts(hidden, n, s), tflite=False)
            title = f"{name}: 784-512-10, hidden layer at {100 * share:.0f} % of its int8 bytes"
            rows.append(
                row(f"{name}-{share:g}", title, claims.operator_claim(share), own, default, seen=seen["accuracy"])
            )
    return {"name": "operator", "model": "784-512-10", "dense": dense_files(lab), "rows": rows}


def _parts(layer: View, name: str, share: float) -> dict[str, Replacement]:
    part = METHODS[name](layer, share)
    if isinstance(part, str):
        raise ValueError(f"{name} at {share:g}: {part}")
    return {layer.name: in_8_bits(part) if part.structure.is_constexpr else part}


def _name(sizes: Sequence[int]) -> str:
    return "-".join(map(str, sizes))


EXPERIMENTS: Mapping[str, Callable[[Bench], Group]] = {
    "reducible-128": lambda bench: reducible(
        bench,
        (784, 128, 128, 128, 10),
        "reducible-128",
        claims.REDUCIBLE_PARAMETERS[1] / claims.REDUCIBLE_PARAMETERS[0],
    ),
    "reducible-500": lambda bench: reducible(bench, (784, 500, 500, 10), "reducible-500", claims.REDUCIBLE_SHARE_500),
    "jpeg": jpeg_weights,
    "operator": operator,
    "deepthin": deepthin,
    "lenet": lenet,
}
