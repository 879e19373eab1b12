"""magika, Google's file type detector, packed on real files of this machine and held against the original on others."""

from __future__ import annotations

import io
import json
from pathlib import Path

import magika_files
import numpy as np
import pytest
from magika_files import BLOCK, PADDING, SIDE, features

from edgepack.backends.runtime import load
from tests.e2e.e2e_cli import invoke

CALIBRATION, TESTED = 300, 100
"""Files that the search may look at, and those on which the pack is scored at the end."""
LIMIT = 3
"""Percent: no less can be promised from a hundred files, of which all are answered alike."""


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """(N, 2048): files that differ from each other, shuffled."""
    return magika_files.rows()


@pytest.fixture(scope="module")
def magika_model() -> Path:
    return magika_files.model_path()


def test_features_are_magikas_own(tmp_path: Path) -> None:
    from magika import Magika
    from magika.types.seekable import Seekable

    for content in (b"  \n x = 1 \n\n", bytes(range(256)) * 40, b"a" * 1500, b"\t" * 30):
        (tmp_path / "file").write_bytes(content)
        own = Magika._extract_features_from_seekable(
            Seekable(io.BytesIO(content)), SIDE, 0, SIDE, PADDING, BLOCK, False
        )
        np.testing.assert_array_equal(features(tmp_path / "file"), own.beg + own.end)


def test_pack_agrees_with_the_original_on_files_it_never_saw(
    tmp_path: Path, magika_model: Path, rows: np.ndarray
) -> None:
    assert len(rows) >= CALIBRATION + TESTED
    np.savez(tmp_path / "calibration.npz", bytes=rows[:CALIBRATION])
    np.savez(tmp_path / "test.npz", bytes=rows[CALIBRATION : CALIBRATION + TESTED])
    out = tmp_path / "pack"
    options = ("--data", tmp_path / "calibration.npz", "--test", tmp_path / "test.npz", "--max-drop", LIMIT)
    options += ("--time-limit", "0.2min")
    done = invoke("build", magika_model, "--target", "rpi4", "--formats", "onnx", "--out", out, *options)
    assert done.code == 0, done.err
    manifest = json.loads((out / "manifest.json").read_text())
    entry, dense = (manifest["files"][name] for name in ("model.onnx", "baseline/int8.onnx"))
    assert manifest["metric"]["name"] == "agreement"
    assert entry["validation"]["drop"] <= LIMIT
    assert entry["test"] >= 100 - LIMIT
    dropped = [dense[part]["drop"] for part in ("validation", "confirmation") if dense[part] is not None]
    assert entry["size_bytes"] <= dense["size_bytes"] or max(dropped) > LIMIT, "dense int8 over the limit is no rival"
    assert all(proof["passed"] for proof in entry["proofs"].values())

    packed, original = (load(path, "onnx") for path in (out / "model.onnx", magika_model))
    sample = rows[CALIBRATION : CALIBRATION + 40]
    answers = [np.vstack([model.run({"bytes": row[None]})[0] for row in sample]) for model in (packed, original)]
    assert (answers[0].argmax(1) == answers[1].argmax(1)).mean() >= 0.95
    assert len(set(answers[1].argmax(1))) > 10, "the files are of many kinds"
