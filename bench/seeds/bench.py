"""What an experiment is given, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.mnist_mlp import digits

from edgepack.backends.tflite.converter import TfliteEmitter
from edgepack.workspace import Cache
from seeds import train
from seeds.lab import Lab, open_lab
from seeds.settings import Settings

Group = dict[str, Any]
"""`name`, `model`, `dense` (Made by precision), `rows`: each with its claim and what it became."""


@dataclass(frozen=True)
class Bench:
    """What an experiment needs."""

    settings: Settings
    cache: Cache
    work: Path
    converter: TfliteEmitter | None
    say: Callable[[str], None]

    def lab(self, sizes: Sequence[int], seed: int = 0, *, tflite: bool = True) -> Lab:
        """A dense network trained on the digits."""
        data = digits()[:2]
        model = train.trained(self.cache, train.Wanted("dense", sizes, 1.0, self.settings.epochs, seed), data)
        folder = self.work / f"{'-'.join(map(str, sizes))}.{seed}.{len(list(self.work.iterdir()))}"
        return open_lab(model, self.cache, folder, self.converter if tflite else None)
