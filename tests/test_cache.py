"""The cache: what is in it is whole, what is damaged is made again, and keys do not collide."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.cache import Cache, atomic_path, default_root, digest, file_digest
from edgepack.errors import OutputError


class Maker:
    """Counts how often something was made."""

    def __init__(self, value: Any) -> None:
        self.value, self.count = value, 0

    def __call__(self) -> Any:
        self.count += 1
        return self.value


def files(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*") if p.is_file())


ARRAYS = {"a": np.arange(6, dtype=np.float64).reshape(2, 3), "empty": np.zeros(0), "b": np.array([True, False])}


def test_arrays_are_made_once(tmp_path: Path) -> None:
    maker = Maker(ARRAYS)
    for number in range(3):
        cache = Cache(tmp_path)
        found = cache.arrays("spectra", "0123", maker)
        assert maker.count == 1
        assert cache.hits == (["spectra"] if number else [])
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype
    assert Cache(tmp_path).arrays("spectra", "0124", Maker({"z": np.ones(1)}))["z"] == 1
    assert Cache(tmp_path).arrays("moments", "0123", Maker({"z": np.ones(1)}))["z"] == 1


def test_records_are_made_once(tmp_path: Path) -> None:
    maker = Maker({"drop": 0.1, "samples": [1, 2], "none": None})
    assert [Cache(tmp_path).record("probes", "ab", maker) for _ in range(2)] == [maker.value, maker.value]
    assert maker.count == 1


def test_files_are_made_once_and_copied_out(tmp_path: Path) -> None:
    made = []

    def make(path: Path) -> None:
        made.append(path)
        path.write_bytes(b"model")

    for name in ("one", "two"):
        out = Cache(tmp_path / "c").file("tflite", "ab", ".tflite", make, tmp_path / name)
        assert out.read_bytes() == b"model"
    assert len(made) == 1
    assert made[0].suffix == ".tflite"
    (tmp_path / "one").write_bytes(b"changed outside")
    assert Cache(tmp_path / "c").file("tflite", "ab", ".tflite", make, tmp_path / "two").read_bytes() == b"model"


def test_fresh_reads_nothing_and_stores_for_the_next_run(tmp_path: Path) -> None:
    Cache(tmp_path).record("r", "k", Maker("old"))
    fresh = Cache(tmp_path, fresh=True)
    assert fresh.record("r", "k", Maker("new")) == "new"
    assert fresh.hits == []
    assert Cache(tmp_path).record("r", "k", Maker("never")) == "new"
    Cache(tmp_path).arrays("a", "k", Maker({"x": np.zeros(1)}))
    assert Cache(tmp_path, fresh=True).arrays("a", "k", Maker({"x": np.ones(1)}))["x"] == 1
    assert Cache(tmp_path).arrays("a", "k", Maker({"x": np.zeros(1)}))["x"] == 1


@pytest.mark.parametrize("failure", [RuntimeError("device gone"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing(tmp_path: Path, failure: BaseException) -> None:
    def fail(*_: Path) -> Any:
        for path in _:
            path.write_bytes(b"half")
        raise failure

    cache = Cache(tmp_path / "c")
    for attempt in (
        lambda: cache.arrays("a", "k", fail),
        lambda: cache.record("r", "k", fail),
        lambda: cache.file("f", "k", ".bin", fail, tmp_path / "out"),
    ):
        with pytest.raises(type(failure)):
            attempt()
    assert files(tmp_path) == []
    assert cache.record("r", "k", Maker(1)) == 1


def test_a_value_that_cannot_be_stored_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        Cache(tmp_path).record("r", "k", Maker(object()))
    assert files(tmp_path) == []


def test_damaged_arrays_are_made_again(tmp_path: Path) -> None:
    """Every byte flipped and every length: the arrays as they were, from the file or made anew."""
    small = {"x": np.arange(3, dtype=np.int16)}
    Cache(tmp_path).arrays("a", "k", Maker(small))
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    flipped = [whole[:i] + bytes([whole[i] ^ 0xFF]) + whole[i + 1 :] for i in range(len(whole))]
    for content in [*flipped, *(whole[:n] for n in range(0, len(whole), 5)), b"", b"junk" * 9]:
        path.write_bytes(content)
        found = Cache(tmp_path).arrays("a", "k", Maker(small))
        assert list(found) == ["x"]
        np.testing.assert_array_equal(found["x"], small["x"])
    path.write_bytes(b"junk")
    maker = Maker(small)
    Cache(tmp_path).arrays("a", "k", maker)
    assert maker.count == 1
    assert path.read_bytes() == whole


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": ', b"\xff\xfe", b"\0" * 20])
def test_damaged_records_are_made_again(tmp_path: Path, content: bytes) -> None:
    Cache(tmp_path).record("r", "k", Maker({"a": 1}))
    (path,) = files(tmp_path)
    path.write_bytes(content)
    cache = Cache(tmp_path)
    assert cache.record("r", "k", Maker({"a": 2})) == {"a": 2}
    assert cache.hits == []
    assert cache.record("r", "k", Maker({"a": 3})) == {"a": 2}


def test_pickles_in_the_cache_are_not_read(tmp_path: Path) -> None:
    path = Cache(tmp_path).path("a", "k", ".npz")
    path.parent.mkdir(parents=True)
    np.savez(path, x=np.array([{}], dtype=object))
    assert Cache(tmp_path).arrays("a", "k", Maker({"x": np.ones(1)}))["x"] == 1


def test_entries_are_readable_by_others_as_the_umask_says(tmp_path: Path) -> None:
    Cache(tmp_path).record("r", "k", Maker(1))
    mask = os.umask(0)
    os.umask(mask)
    (path,) = files(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_atomic_path_replaces_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "f.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("one")
        assert not path.exists()
        assert temporary.parent == path.parent
        inode = temporary.stat().st_ino
    assert path.stat().st_ino == inode, "moved, not copied"

    def fail() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("two")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert path.read_text() == "one"
    assert files(tmp_path) == [path]


def test_a_root_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write to") as caught:
        Cache(tmp_path / "file" / "cache").record("r", "k", Maker(1))
    assert "EDGEPACK_CACHE" in (caught.value.hint or "")


def test_default_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path))
    assert default_root() == Cache().root == tmp_path
    monkeypatch.delenv("EDGEPACK_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_root().name == "edgepack"


PARTS = st.lists(
    st.one_of(
        st.text(max_size=4),
        st.integers(),
        st.none(),
        st.binary(max_size=4),
        st.lists(st.integers(0, 9), max_size=3),
        st.floats(allow_nan=False),
    ),
    max_size=4,
)


@given(PARTS, PARTS)
def test_digests_of_different_parts_differ(a: list[Any], b: list[Any]) -> None:
    def tagged(parts: list[Any]) -> str:
        return repr(parts)

    assert (digest(*a) == digest(*b)) == (tagged(a) == tagged(b))


def test_digests_see_dtype_shape_and_content() -> None:
    x = np.arange(6, dtype=np.int32)
    different = [
        x, x.reshape(2, 3), x.astype(np.int64), x.astype(">i4"), x.astype(np.float32), x.tobytes(), x.tolist(), x[::-1],
        x.view(np.uint32), x.reshape(3, 2),
    ]  # fmt: skip
    assert len({digest(part) for part in different}) == len(different)
    assert digest(x) == digest(np.array(x, order="F")) == digest(np.arange(12, dtype=np.int32)[:6])
    assert digest(x.reshape(2, 3)) == digest(np.asfortranarray(x.reshape(2, 3)))
    assert digest("ab", "c") != digest("a", "bc")
    assert digest(b"a", b"b") != digest(b"abytesb") != digest(b"ab")
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})


def test_file_digest(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert file_digest(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
