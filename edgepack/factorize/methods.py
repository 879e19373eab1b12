"""Methods that are plain functions: a layer and a share of its weights in, what is written for it out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from edgepack.factorize import (
    dct,
    deepthin,
    dictionary,
    hashednet,
    input_projection,
    jpeg,
    kmeans,
    projection,
    pruning,
    simhash,
)
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement
from edgepack.types import Array


class Method(Protocol):
    """The one protocol of all methods: built in, or of another distribution.

    A `Factorizer` has the error curve over all ranks as well, from one decomposition.
    """

    def __call__(self, layer: View, share: float, *, seed: int = 0, gradient: Array | None = None) -> Replacement | str:
        """What is written for the layer, or why it stays dense.

        Args:
            layer: with its moments where data are known: then what the layer loses is E‖(W − M)(x − μ)‖², and its bias
                makes up for (W − M) μ.
            share: of the layer's weights, 0 … 1: with its numbers in 8 bits the result takes at most that many bytes
                per weight, biases apart.
            seed: of all that is drawn; the same arguments give the same bits.
            gradient: (out, out) float64, the second moment of the loss gradient at the output, where it is known.
        """


METHODS: Mapping[str, Method] = {
    "kmeans": kmeans.kmeans,
    "pruning": pruning.pruning,
    "rank-pruning": pruning.rank_pruning,
    "dictionary": dictionary.dictionary,
    "hashednet": hashednet.hashednet,
    "deepthin": deepthin.deepthin,
    "deepthin-conv": deepthin.deepthin_conv,
    "dct": dct.dct,
    "jpeg": jpeg.jpeg,
    "simhash": simhash.simhash,
    "random-projection": projection.random_projection,
    "output-projection": projection.output_projection,
    "input-projection": input_projection.input_projection,
}
"""By name."""

PATENTS: Mapping[str, str] = dict.fromkeys(("deepthin", "deepthin-conv"), "US 11429849")
"""Patents that cover a method."""

AUTO: tuple[str, ...] = ("kmeans", "pruning", "dictionary", "input-projection", "hashednet")
"""What `--method auto` offers beside the pairs of the default factorizer. No pair by another method is among them: at
equal rank, and so at equal bytes and time, centred whitening loses least (Eckart and Young). DeepThin's re-layout is
patented (US 11429849) and only ever used where it is asked for by name. JPEG makes no file smaller."""
