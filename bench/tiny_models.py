"""The models of MLPerf Tiny (Banbury et al., 2021) as a checkout of mlcommons/tiny holds them, and inputs for them.

Their data sets are in no package: inputs are the recordings of the checkout where it has some, and else speech of
espeak-ng or photographs, taken as the benchmark's own code takes what it trains on.
"""

from __future__ import annotations

import wave
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.fft import dct
from scipy.signal import get_window
from zoo_inputs import RATE, VOICES, crops, said_at, speech, windows

from edgepack.model.types import Array

TRAINING = "benchmark/training"
RECORDED = "benchmark/reference_submissions/anomaly_detection/datasets/dcase01/normal_id_01_00000000_hist_librosa.bin"
WAKE_FOLDER = f"{TRAINING}/streaming_wakeword"
MEL_BINS, FRAMES = 128, 5
KEYWORDS = ("down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes")
WORDS_A_MINUTE = (120, 150, 180, 210)
SECONDS_OF_SPEECH = 200
CROPS = 60
"""Of each photograph."""


@dataclass(frozen=True)
class TinyModel:
    """A model of the benchmark.

    Attributes:
        source: its trained float model in a checkout.
        int8: its published int8 file.
        inputs: of a checkout, (N, ...) float32, those of one recording or picture next to each other.
        told: what the inputs are.
        metric: that it is built by.
    """

    title: str
    source: str
    int8: str
    inputs: Callable[[Path], Array]
    told: str
    metric: str = "agreement"


def recorded_windows(checkout: Path) -> Array:
    """(196, 640): five frames in a row of the log-mel spectrogram of a machine's sound."""
    frames = np.fromfile(checkout / RECORDED, "<f4").reshape(-1, MEL_BINS)
    return windows(frames.reshape(-1), MEL_BINS * FRAMES, MEL_BINS)


def small_pictures(checkout: Path) -> Array:
    """(N, 32, 32, 3): parts of photographs, from 0 to 255."""
    del checkout
    return np.stack(list(crops(32, 32, CROPS))).astype(np.float32)


def pictures(checkout: Path) -> Array:
    """(N, 96, 96, 3): parts of photographs, from 0 to 1."""
    del checkout
    return np.stack(list(crops(96, 96, CROPS))).astype(np.float32) / 255


def keywords(checkout: Path) -> Array:
    """(N, 49, 10, 1): ten cepstra of 49 frames of keywords and of other speech, in a seeded order."""
    del checkout
    said = [said_at(voice, word, pace)[:RATE] for word in KEYWORDS for voice in VOICES for pace in WORDS_A_MINUTE]
    whole = [np.pad(sound, (0, RATE - len(sound))) for sound in said]
    whole += list(windows(speech(RATE), RATE, RATE)[:SECONDS_OF_SPEECH])
    order = np.random.default_rng(0).permutation(len(whole))
    return np.stack([_cepstra(whole[number])[:, :, None] for number in order])


def _cepstra(sound: Array) -> Array:
    """(49, 10) of a second."""
    spectrum = _spectrum(sound / max(float(sound.max()), 1e-3), get_window("hann", 480), 320)
    log_mel = np.log(spectrum @ _mel_matrix(40, spectrum.shape[1], 20.0, 4000.0) + 1e-6)
    return np.asarray(dct(log_mel, type=2)[:, :10] / np.sqrt(2 * 40), np.float32)


def wake_windows(checkout: Path) -> Array:
    """(N, 30, 1, 40): windows of a second of log-mel energies: the checkout's samples, its recording, other speech."""
    with np.load(checkout / WAKE_FOLDER / "calibration_samples.npz", allow_pickle=False) as archive:
        samples = np.asarray(archive["specs"], np.float32)
    with wave.open(str(checkout / WAKE_FOLDER / "short_wav_easy10s.wav")) as opened:
        frames = np.frombuffer(opened.readframes(opened.getnframes()), np.int16).reshape(-1, opened.getnchannels())
    sounds = [frames.mean(axis=1) / 2**15, speech(RATE)[: SECONDS_OF_SPEECH * RATE]]
    heard = [
        windows(_energies(sound).reshape(-1), 30 * 40, step * 40) for sound, step in zip(sounds, (3, 15), strict=True)
    ]
    return np.concatenate([samples, *(each.reshape(-1, 30, 1, 40) for each in heard)]).astype(np.float32)


def _energies(sound: Array) -> Array:
    """(frames, 40) from 0 to 1."""
    louder = np.append(sound[:1], sound[1:] - (1 - 2**-5) * sound[:-1]) / sound.max()
    power = np.square(_spectrum(louder, np.hamming(1024), 512)) / 1024
    decibels = 10 * np.log10(np.maximum(power, 1e-30) @ _mel_matrix(40, power.shape[1], 0.0, RATE / 2) + 1e-30)
    return np.asarray(np.clip((decibels + 52) / 64, 0, 1), np.float32)


def _spectrum(sound: Array, window: Array, step: int) -> Array:
    """(frames, bins): magnitudes, of as many points as the next power of two."""
    return np.abs(np.fft.rfft(windows(sound, len(window), step) * window, 1 << (len(window) - 1).bit_length()))


def _mel_matrix(bands: int, bins: int, lowest_hz: float, highest_hz: float) -> Array:
    """(bins, bands): triangles that are even in mel (HTK's), none at 0 Hz."""
    mel = 1127 * np.log1p(np.linspace(0, RATE / 2, bins) / 700)[:, None]
    edges = np.linspace(*(1127 * np.log1p(hz / 700) for hz in (lowest_hz, highest_hz)), bands + 2)
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.maximum(0, np.minimum((mel - low) / (middle - low), (high - mel) / (high - middle)))
    triangles[0] = 0
    return np.asarray(triangles)


MODELS: Mapping[str, TinyModel] = {
    "ad": TinyModel(
        "anomaly detection, AD01",
        f"{TRAINING}/anomaly_detection/trained_models/ad01_fp32.tflite",
        f"{TRAINING}/anomaly_detection/trained_models/ad01_int8.tflite",
        recorded_windows,
        "windows of one recording",
        "sqnr",
    ),
    "ic": TinyModel(
        "image classification, ResNet-8",
        f"{TRAINING}/image_classification/trained_models/pretrainedResnet.tflite",
        f"{TRAINING}/image_classification/trained_models/pretrainedResnet_quant.tflite",
        small_pictures,
        "parts of photographs",
    ),
    "kws": TinyModel(
        "keyword spotting, DS-CNN",
        f"{TRAINING}/keyword_spotting/trained_models/kws_ref_model_float32.tflite",
        f"{TRAINING}/keyword_spotting/trained_models/kws_ref_model.tflite",
        keywords,
        "speech of espeak-ng",
    ),
    "vww": TinyModel(
        "visual wake words, MobileNet",
        f"{TRAINING}/visual_wake_words/trained_models/vww_96_float.tflite",
        f"{TRAINING}/visual_wake_words/trained_models/vww_96_int8.tflite",
        pictures,
        "parts of photographs",
    ),
    "sww": TinyModel(
        "streaming wake word",
        f"{WAKE_FOLDER}/trained_models/str_ww_ref_model.h5",
        f"{WAKE_FOLDER}/trained_models/str_ww_ref_model.tflite",
        wake_windows,
        "calibration samples, a recording, speech of espeak-ng",
    ),
}


def answers(path: Path, inputs: Array) -> Array:
    """(N, outputs) float32 of a TFLite file; a file in integers gets its inputs on its grid."""
    from edgepack.backends.tflite.runtime import interpreter, numbers

    made = interpreter(path)
    (given,), (gives,) = made.get_input_details(), made.get_output_details()
    found = []
    for sample in inputs[:, None]:
        made.set_tensor(given["index"], _on_grid(sample, given))
        made.invoke()
        found.append(numbers(made.get_tensor(gives["index"]), gives)[0])
    return np.stack(found)


def _on_grid(values: Array, detail: Mapping[str, object]) -> Array:
    scale, zero = detail["quantization"]  # type: ignore[misc]
    if not scale:
        return values
    return np.clip(np.rint(values / scale) + zero, -128, 127).astype(np.int8)
