"""What the sources claim, as they print it; where a figure is known to be wrong, the true one is beside it."""

from __future__ import annotations

from collections.abc import Mapping

REDUCIBLE_PARAMETERS = (134_794, 76_350)
REDUCIBLE_BYTES = (566_492, 329_311)
REDUCIBLE_SHARE_500 = 1 - 0.483
"""Of the weights of 784-500-500-10 that stay. The source says 34 %: it counted wrongly."""

TFC_BYTES = 8_560
"""LeNet-300-100 of TF-Compression, entropy coded."""

JPEG_QUALITY = 20
SHARES = {0.5: "50 %", 0.34: "66 %"}
"""Of the weights that stay, and how many fewer that is."""

CLAIMS: Mapping[str, str] = {
    "reducible-128": ".9758 → .9667 on MNIST, parameters 134,794 → 76,350 (−43.4 %), file 566,492 → 329,311 B",
    "reducible-500": "−0.4 points on Fashion-MNIST at “−66 %” of parameters: a counting error, truly −48.3 %",
    "jpeg": "97 → 96 % at quality 20, no size given",
    "deepthin": (
        "at equal ratio word error rates 60 % better than rank factorization, 57 % than pruning, 23 % than "
        "hand-tuned networks, 6 % than HashedNets "
        "(abstract; its tables are not public, and speech data are not at hand)"
    ),
    "operator": "CIFAR-10: 86.0 % dense, {at} at {fewer} fewer; not reproduced: CIFAR-10 is not at hand, here MNIST",
    "hashednets-8": "error 1.45 % at 1/8, trained on 60,000 digits (here 4,000)",
    "hashednets-64": "error 2.79 % at 1/64, trained on 60,000 digits (here 4,000)",
    "lenet": "8.56 KB (124×), error 1.9 %, trained on 60,000 digits (here 4,000)",
    "deepthin-speed": "2–14× faster than dense, by ratio and cache (abstract; no sizes given)",
}
OPERATOR_ACCURACY = {0.5: "84.3 %", 0.34: "83.9 %"}


def operator_claim(share: float) -> str:
    """Of the matrix compression operator at a share of the weights."""
    return CLAIMS["operator"].format(at=OPERATOR_ACCURACY[share], fewer=SHARES[share])
