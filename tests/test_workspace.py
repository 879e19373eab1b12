"""Steps run once per value; what is in the cache is whole, what is damaged is made again, and keys do not collide."""

from __future__ import annotations

import math
import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.backends.onnx.schemes import INT8_DYNAMIC, NBITS4
from edgepack.errors import OutputError
from edgepack.model.structure import DENSE, low_rank
from edgepack.sealed import seal
from edgepack.workers.local import LocalProcesses
from edgepack.workspace import (
    ARRAYS,
    Cache,
    FileStep,
    Keyed,
    Step,
    Workspace,
    arrays_store,
    atomic_path,
    default_root,
    digest,
    file_digest,
    open_workspace,
    record_store,
)


class Maker:
    """Counts how often something was made."""

    def __init__(self, value: Any) -> None:
        self.value, self.count = value, 0

    def __call__(self, *_: Any) -> Any:
        self.count += 1
        return self.value


def at(root: Path, *, fresh: bool = False, **more: Any) -> Workspace:
    return Workspace(Cache(root, fresh=fresh), root, **more)


def record(root: Path, maker: Any, *, key: str = "k", name: str = "r", fresh: bool = False) -> Any:
    return at(root, fresh=fresh).cached(Step(name, 1, maker), key)


def arrays(root: Path, maker: Any, *, key: str = "k", name: str = "a", fresh: bool = False) -> Any:
    return at(root, fresh=fresh).cached(Step(name, 1, maker, ARRAYS), key)


def files(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*") if p.is_file())


SOME = {"a": np.arange(6, dtype=np.float64).reshape(2, 3), "empty": np.zeros(0), "b": np.array([True, False])}


def test_arrays_are_made_once(tmp_path: Path) -> None:
    maker = Maker(SOME)
    step = Step("spectra", 1, maker, ARRAYS)
    for number in range(3):
        workspace = at(tmp_path)
        found = workspace.cached(step, "0123")
        assert maker.count == 1
        assert workspace.cache.hits == (["spectra"] if number else [])
        for name, array in SOME.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype
    assert arrays(tmp_path, Maker({"z": np.ones(1)}), key="0124", name="spectra")["z"] == 1
    assert arrays(tmp_path, Maker({"z": np.ones(1)}), key="0123", name="moments")["z"] == 1


def test_records_are_made_once(tmp_path: Path) -> None:
    maker = Maker({"drop": 0.1, "samples": [1, 2], "none": None})
    assert [record(tmp_path, maker) for _ in range(2)] == [maker.value, maker.value]
    assert maker.count == 1


def test_files_are_made_once_and_copied_out(tmp_path: Path) -> None:
    made = []

    def make(value: str, path: Path) -> None:
        made.append(path)
        path.write_bytes(value.encode())

    step = FileStep("tflite", 1, make, ".tflite")
    for name in ("one", "two"):
        out = at(tmp_path / "c").file(step, "model", tmp_path / name)
        assert out.read_bytes() == b"model"
    assert len(made) == 1
    assert made[0].suffix == ".tflite"
    (tmp_path / "one").write_bytes(b"changed outside")
    assert at(tmp_path / "c").file(step, "model", tmp_path / "two").read_bytes() == b"model"
    assert at(tmp_path / "c").file(step, "other", tmp_path / "two").read_bytes() == b"other"


def test_an_entry_belongs_to_its_step_its_version_its_tools_and_its_value(tmp_path: Path) -> None:
    steps = [
        Step("a", 1, Maker(0)),
        Step("b", 1, Maker(1)),
        Step("a", 2, Maker(2)),
        Step("a", 1, Maker(3), tools=("numpy",)),
    ]
    for _ in range(2):
        assert [at(tmp_path).cached(step, "value") for step in steps] == [0, 1, 2, 3]
    assert at(tmp_path).cached(Step("a", 1, Maker("other")), "another value") == "other"


def test_the_version_of_a_tool_is_part_of_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maker = Maker(1)
    step = Step("a", 1, maker, tools=("numpy",))
    at(tmp_path).cached(step, "value")
    monkeypatch.setattr("importlib.metadata.version", lambda tool: "0.0.0")
    at(tmp_path).cached(step, "value")
    assert maker.count == 2


def test_a_keyed_value_is_made_only_where_there_is_no_result(tmp_path: Path) -> None:
    made = Maker(4.0)
    step = Step("roots", 1, math.sqrt)
    assert [at(tmp_path).cached(step, Keyed(["four"], made)) for _ in range(3)] == [2.0] * 3
    assert made.count == 1
    assert at(tmp_path).known(step, Keyed(["four"])) == 2.0
    assert at(tmp_path).known(step, Keyed(["five"])) is None
    with pytest.raises(ValueError, match="only the key"):
        at(tmp_path).cached(step, Keyed(["five"]))


def test_results_that_other_work_brings_along_are_kept(tmp_path: Path) -> None:
    step = Step("roots", 1, math.sqrt)
    assert at(tmp_path).keep(step, Keyed("nine"), 3.0) == 3.0
    assert at(tmp_path).cached(step, Keyed("nine")) == 3.0


def test_map_gives_results_in_order_and_runs_what_is_missing(tmp_path: Path) -> None:
    said: list[tuple[str, int, int]] = []
    run: list[float] = []

    def root(value: float) -> float:
        run.append(value)
        return math.sqrt(value)

    step = Step("roots", 1, root)
    at(tmp_path).cached(step, 4.0)
    found = at(tmp_path, progress=lambda *told: said.append(told)).map(step, [9.0, 4.0, 16.0], "take roots")
    assert found == [3.0, 2.0, 4.0]
    assert run == [4.0, 9.0, 16.0]
    assert said == [("take roots", 1, 3), ("take roots", 2, 3), ("take roots", 3, 3)]
    assert at(tmp_path).map(step, [16.0, 9.0]) == [4.0, 3.0]
    assert len(run) == 3


def test_map_stores_each_result_as_it_comes(tmp_path: Path) -> None:
    def fragile(value: int) -> int:
        if value == 2:
            raise RuntimeError("stop")
        return 10 * value

    with pytest.raises(RuntimeError, match="stop"):
        at(tmp_path).map(Step("r", 1, fragile), [0, 1, 2, 3])
    maker = Maker(7)
    assert at(tmp_path).map(Step("r", 1, maker), [0, 1, 2, 3]) == [0, 10, 7, 7]


def test_workers_give_the_same_and_find_steps_by_import(tmp_path: Path) -> None:
    step = Step("roots", 1, math.sqrt, cost=lambda value: 1e12, memory=lambda value: 8.0)
    workers = LocalProcesses(2)
    try:
        assert at(tmp_path, workers=workers).map(step, [float(n * n) for n in range(6)]) == [0, 1, 2, 3, 4, 5]
        assert workers.processes
    finally:
        workers.shutdown()


def test_a_step_without_a_store_is_spread_and_not_kept(tmp_path: Path) -> None:
    maker = Maker(5)
    step = Step("choice", 1, maker, None)
    assert [at(tmp_path).map(step, ["a", "b"]) for _ in range(2)] == [[5, 5], [5, 5]]
    assert maker.count == 4
    assert files(tmp_path) == []
    with pytest.raises(ValueError, match="not kept"):
        at(tmp_path).cached(step, "a")


def test_stores_give_back_the_type_that_they_were_given(tmp_path: Path) -> None:
    complexes = arrays_store(
        lambda z: {"parts": np.array([z.real, z.imag])}, lambda read: complex(read["parts"][0], read["parts"][1])
    )
    pairs = record_store(list, tuple)
    for _ in range(2):
        assert at(tmp_path).cached(Step("z", 1, Maker(1 + 2j), complexes), 0) == 1 + 2j
        assert at(tmp_path).cached(Step("pair", 1, Maker((1, "b")), pairs), 0) == (1, "b")


def test_fresh_reads_what_it_stored_itself_and_nothing_older(tmp_path: Path) -> None:
    record(tmp_path, Maker("old"))
    maker = Maker("new")
    step, fresh = Step("r", 1, maker), at(tmp_path, fresh=True)
    assert [fresh.cached(step, "k") for _ in range(2)] == ["new", "new"]
    assert maker.count == 1
    assert record(tmp_path, Maker("never")) == "new"
    assert record(tmp_path, Maker("newer"), fresh=True) == "newer"
    arrays(tmp_path, Maker({"x": np.zeros(1)}))
    assert arrays(tmp_path, Maker({"x": np.ones(1)}), fresh=True)["x"] == 1
    assert arrays(tmp_path, Maker({"x": np.zeros(1)}))["x"] == 1


@pytest.mark.parametrize("failure", [RuntimeError("device gone"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing(tmp_path: Path, failure: BaseException) -> None:
    def fail(value: str, *paths: Path) -> Any:
        for path in paths:
            path.write_bytes(b"half")
        raise failure

    for attempt in (
        lambda: arrays(tmp_path / "c", fail),
        lambda: record(tmp_path / "c", fail),
        lambda: at(tmp_path / "c").file(FileStep("f", 1, fail, ".bin"), "k", tmp_path / "out"),
    ):
        with pytest.raises(type(failure)):
            attempt()
    assert files(tmp_path) == []
    assert record(tmp_path / "c", Maker(1)) == 1


def test_a_value_that_cannot_be_stored_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        record(tmp_path, Maker(object()))
    assert files(tmp_path) == []


def test_damaged_arrays_are_made_again(tmp_path: Path) -> None:
    """Every byte flipped and every length: the arrays as they were, from the file or made anew."""
    small = {"x": np.arange(3, dtype=np.int16)}
    arrays(tmp_path, Maker(small))
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    flipped = [whole[:i] + bytes([whole[i] ^ 0xFF]) + whole[i + 1 :] for i in range(len(whole))]
    for content in [*flipped, *(whole[:n] for n in range(0, len(whole), 5)), b"", b"junk" * 9]:
        path.write_bytes(content)
        found = arrays(tmp_path, Maker(small))
        assert list(found) == ["x"]
        np.testing.assert_array_equal(found["x"], small["x"])
    path.write_bytes(b"junk")
    maker = Maker(small)
    arrays(tmp_path, maker)
    assert maker.count == 1
    assert path.read_bytes() == whole


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": ', b"\xff\xfe", b"\0" * 20])
def test_damaged_records_are_made_again(tmp_path: Path, content: bytes) -> None:
    record(tmp_path, Maker({"a": 1}))
    (path,) = files(tmp_path)
    path.write_bytes(content)
    workspace = at(tmp_path)
    assert workspace.cached(Step("r", 1, Maker({"a": 2})), "k") == {"a": 2}
    assert workspace.cache.hits == []
    assert record(tmp_path, Maker({"a": 3})) == {"a": 2}


def test_an_entry_that_holds_something_else_is_made_again(tmp_path: Path) -> None:
    step = Step("point", 1, Maker({"x": 1}), record_store(lambda point: point, lambda read: {"x": read["x"]}))
    at(tmp_path).cached(step, "k")
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    path.write_text("[1, 2]")
    seal(path)
    assert at(tmp_path).cached(step, "k") == {"x": 1}
    assert path.read_bytes() == whole


def test_pickles_in_the_cache_are_not_read(tmp_path: Path) -> None:
    path = Cache(tmp_path).path("a", at(tmp_path).key(Step("a", 1, Maker(0), ARRAYS), "k"), ".npz")
    path.parent.mkdir(parents=True)
    np.savez(path, x=np.array([{}], dtype=object))
    seal(path)
    assert arrays(tmp_path, Maker({"x": np.ones(1)}))["x"] == 1


def test_entries_are_readable_by_others_as_the_umask_says(tmp_path: Path) -> None:
    record(tmp_path, Maker(1))
    mask = os.umask(0)
    os.umask(mask)
    (path,) = files(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_atomic_path_replaces_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "f.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("one")
        assert not path.exists()
        assert temporary.parent.parent == path.parent
        assert temporary.name == path.name
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
        record(tmp_path / "file" / "cache", Maker(1))
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


@dataclass(frozen=True)
class Point:
    x: float
    y: tuple[int, ...] = ()


@dataclass(frozen=True)
class Corner:
    x: float
    y: tuple[int, ...] = ()


def test_digests_of_dataclasses_see_their_type_and_fields() -> None:
    different = [Point(1), Point(2), Point(1, (1,)), Corner(1), [Point(1)], {"p": Point(1)}, [1, []], "Point"]
    assert len({digest(part) for part in different}) == len(different)
    assert digest(Point(1, (2,))) == digest(Point(1, (2,)))
    assert digest(np.float64(0.5), np.int8(3)) == digest(0.5, 3)


def test_digests_know_schemes_and_structures() -> None:
    assert digest(INT8_DYNAMIC) == digest(replace(INT8_DYNAMIC, bytes_per_op=999))  # figures of it are no content
    assert digest(INT8_DYNAMIC) != digest(NBITS4)
    assert len({digest(one) for one in (DENSE, low_rank(1), low_rank(2))}) == 3
    assert digest(Keyed("k", Maker(1))) == digest(Keyed("k", Maker(2)))


@pytest.mark.parametrize("part", [Path("model.onnx"), object(), {"deep": [Path("a")]}, Point, len])
def test_what_is_no_content_has_no_digest(part: Any) -> None:
    with pytest.raises(TypeError, match="no digest"):
        digest(part)


def test_warnings_are_kept_once_and_in_order(tmp_path: Path) -> None:
    workspace = at(tmp_path)
    for message in ("b", "a", "b"):
        workspace.warn(message)
    assert workspace.warnings == ("b", "a")
    assert at(tmp_path).warnings == ()


def test_the_folder_of_a_workspace_ends_with_the_block(tmp_path: Path) -> None:
    with open_workspace(Cache(tmp_path), seed=3) as workspace:
        (workspace.folder / "f").write_text("x")
        assert workspace.seed == 3
    assert not workspace.folder.exists()


def test_file_digest(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert file_digest(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_device_is_never_replaced() -> None:
    with pytest.raises(OutputError, match="no file that can be replaced"), atomic_path(Path("/dev/null")):
        pass
    assert not Path("/dev/null").is_file()
