"""`PYTHONPATH=bench python -m seeds.choose_rates`: how the peak learning rates of `train.RATES` were chosen.

At 1/16, over 15 epochs, on the first 3,200 training digits, by the accuracy on the other 800.
"""

from __future__ import annotations

import sys
import time

import torch
from models.mnist_mlp import digits

from edgepack.workspace import Cache
from seeds import train
from seeds.deepthin_rows import SIZES
from seeds.lenet_rows import SPLIT

EPOCHS = 15
RATES = (2e-3, 5e-3, 1e-2, 2e-2)


def main() -> None:
    """Print accuracy in percent by form and rate."""
    images, labels = digits()[:2]
    for how in sys.argv[1:] or ("low-rank", "hashednet", "deepthin", "pruning"):
        for rate in RATES:
            start = time.monotonic()
            wanted = train.Wanted(how, SIZES, 1 / 16, EPOCHS, seed=0, rate=rate)
            model = train.trained(Cache(), wanted, (images[:SPLIT], labels[:SPLIT]))
            with torch.no_grad():
                answers = model(torch.from_numpy(images[SPLIT:])).argmax(1).numpy()
            score = float((answers == labels[SPLIT:]).mean() * 100)
            print(f"{how} {rate:g}: {score:.2f} ({time.monotonic() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
