"""One bit of an entry flipped, a disk that is full, a cache that is trimmed: the right answer, never a wrong file."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from edgepack.cache import Cache, entries, trim
from edgepack.errors import InputError
from edgepack.sealed import NotWholeError, is_whole, is_whole_json, note_digest, seal, sealed_json, unsealed
from edgepack.validation import read_json
from edgepack.workspace import FileStep, Step, Workspace


def flipped(raw: bytes, bit: int) -> bytes:
    return raw[: bit // 8] + bytes([raw[bit // 8] ^ 1 << bit % 8]) + raw[bit // 8 + 1 :]


def test_every_bit_of_a_sealed_file_counts(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"content")
    seal(path)
    raw = path.read_bytes()
    assert unsealed(path) == b"content"
    for bit in range(8 * len(raw)):
        path.write_bytes(flipped(raw, bit))
        with pytest.raises(NotWholeError):
            unsealed(path)
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        with pytest.raises(NotWholeError):
            unsealed(path)


def test_a_file_with_a_flipped_bit_is_made_again(tmp_path: Path) -> None:
    workspace = Workspace(Cache(tmp_path / "cache"), tmp_path)
    made = []

    def make(value: str, path: Path) -> None:
        made.append(value)
        path.write_bytes(value.encode())

    step, out = FileStep("tflite", 1, make, ".tflite"), tmp_path / "out"
    workspace.file(step, "model", out)
    (entry,) = entries(tmp_path / "cache")
    raw = entry.path.read_bytes()
    for bit in range(0, 8 * len(raw), 7):
        entry.path.write_bytes(flipped(raw, bit))
        assert workspace.file(step, "model", out).read_bytes() == b"model"
        assert entry.path.read_bytes() == raw
    assert len(made) == 1 + len(range(0, 8 * len(raw), 7))


def test_a_table_with_a_flipped_bit_is_refused_or_what_it_was(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(sealed_json(json.dumps({"seconds": 125, "name": "a"})))
    raw = path.read_bytes()
    refused = 0
    for bit in range(8 * len(raw)):
        path.write_bytes(flipped(raw, bit))
        try:
            found = read_json(path, dict, "table", 1000, lambda _: iter(()))
        except InputError:
            refused += 1
        else:
            assert (found["seconds"], found["name"]) == (125, "a")
    assert refused > 4 * len(raw)
    assert is_whole_json(b'{"a":1}')


def test_a_digest_beside_a_file(tmp_path: Path) -> None:
    path, beside = tmp_path / "f", tmp_path / "f.sha256"
    path.write_bytes(b"x")
    assert not is_whole(path, beside)
    note_digest(path, beside)
    assert is_whole(path, beside)
    path.write_bytes(b"y")
    assert not is_whole(path, beside)


def test_what_was_not_used_for_the_longest_time_goes_first(tmp_path: Path) -> None:
    workspace = Workspace(Cache(tmp_path), tmp_path)
    step = Step("numbers", 1, lambda value: value)
    for value in range(4):
        workspace.cached(step, value)
    tables = tmp_path / "measured" / "rpi4" / "device.json"
    tables.parent.mkdir(parents=True)
    tables.write_text("{}")
    for age, entry in enumerate(entries(tmp_path)):
        os.utime(entry.path, (time.time() - 100 * (age + 1),) * 2)
    oldest = entries(tmp_path)[0]
    value = json.loads(unsealed(oldest.path))
    assert workspace.cached(step, value) == value
    assert entries(tmp_path)[-1].path == oldest.path, "read just now"
    found = entries(tmp_path)
    gone = trim(found, most_bytes=sum(entry.size_bytes for entry in found[2:]))
    assert [entry.path for entry in gone] == [entry.path for entry in found[:2]]
    assert trim(entries(tmp_path), unused_s=50.0) == found[2:3]
    assert [entry.path for entry in entries(tmp_path)] == [oldest.path]
    assert tables.exists()
    assert [workspace.cached(step, number) for number in range(4)] == [0, 1, 2, 3]
