"""The dense int8 rival, and the promise never to be larger, slower or less accurate than it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack.backends.onnx.schemes import FP32, INT8_DYNAMIC, INT8_STATIC, NBITS4
from edgepack.cost.model import CLEARLY, MEASURED, STATED
from edgepack.errors import ModelError
from edgepack.metrics.drop import Drop
from edgepack.model.scheme import FileScheme, Scheme
from edgepack.pipeline.baselines import Baseline, fall_back_to_int8, is_automatic, make_baseline, warn_of_clash
from edgepack.pipeline.evaluate import FileTrial
from edgepack.pipeline.evaluator import Evaluator
from edgepack.pipeline.prepare import Prepared
from edgepack.pipeline.speed import SPEED, Speed
from edgepack.workspace import Cache
from tests.linear_plans import linear_plan
from tests.pipeline.small_builds import CLASSES, FEATURES, options, working_in

INT8 = (INT8_DYNAMIC, INT8_STATIC)


def drop(value: float) -> Drop:
    return Drop("accuracy", 95.0, 95.0 - value, value, value, 0.0, 256)


@pytest.fixture
def evaluator(ready: Prepared, tmp_path: Path) -> Evaluator:
    return working_in(tmp_path, ready.evaluator)


def test_a_real_baseline(ready: Prepared, evaluator: Evaluator) -> None:
    made = make_baseline(evaluator, ready.files["onnx"], ready.estimates)
    assert made.scheme in INT8
    assert made.quantizer == "onnxruntime"
    assert made.chosen_by == "emulated cost table"
    estimates = {scheme: ready.estimates.dense_latency_s(scheme) or 0.0 for scheme in INT8}
    assert estimates[made.scheme] <= min(estimates.values()) / CLEARLY
    assert made.fp32_drop is not None
    assert made.fp32_drop.value == 0
    assert made.int8_drop == evaluator.file_evaluator.drop_of(made.int8, "onnx")
    assert made.is_rival
    assert made.int8.stat().st_size < made.fp32.stat().st_size / 3.5
    assert not replace(made, limit=-1.0).is_rival
    assert made.fallback_bytes == made.int8.stat().st_size
    own = replace(made, fp32=made.int8, int8=made.fp32, in_integers=True)  # a file that is smaller than dense int8
    assert own.fallback_bytes == made.int8.stat().st_size


class Dense:
    """Writes only the name of its scheme."""

    fmt = "onnx"
    calibrated = True
    given_scheme = FP32

    def write_dense(self, out: Path) -> None:
        out.write_text("fp32".ljust(99))

    def write_baseline(self, scheme: Scheme, out: Path) -> str:
        out.write_text(scheme.name)
        return "a quantizer"


class Answers:
    """Drops by scheme; schemes that are missing do not run."""

    def __init__(self, drops: Mapping[Scheme, float]) -> None:
        self.drops = {"fp32": 0.0, **{scheme.name: value for scheme, value in drops.items()}}
        self.validation = SimpleNamespace(drop_of=self.drop_of, has_data=True)

    def drop_of(self, path: Path, fmt: str) -> Drop:
        if path.read_text().strip() not in self.drops:
            raise ModelError("no kernel")
        return drop(self.drops[path.read_text().strip()])


class Costs:
    def __init__(self, costs: Mapping[Scheme, float]) -> None:
        self.costs = costs

    def dense_latency_s(self, scheme: Scheme) -> float | None:
        return self.costs.get(scheme)

    def source_name(self, fmt: str) -> str:
        return "test table"


def chosen(
    evaluator: Evaluator,
    drops: Mapping[Scheme, float],
    costs: Mapping[Scheme, float],
    target: str = "rpi4",
    limit: float = 0.5,
) -> Baseline:
    asked = options(Path("m.onnx"), target, data=None, max_drop=limit)
    file_evaluator: Any = Answers(drops)
    files: Any = Dense()
    estimates: Any = Costs(costs)
    own = replace(evaluator, options=asked, file_evaluator=file_evaluator, confirmation=None)
    return make_baseline(own, files, estimates)


@pytest.mark.parametrize(
    ("costs", "scheme", "by"),
    [
        ({INT8_DYNAMIC: 1.0, INT8_STATIC: 2.0}, INT8_DYNAMIC, "test table"),
        ({INT8_DYNAMIC: 2.0, INT8_STATIC: 1.0}, INT8_STATIC, "test table"),
        ({INT8_DYNAMIC: 1.0, INT8_STATIC: 0.97}, INT8_DYNAMIC, "test table"),
        ({INT8_DYNAMIC: 1.0}, INT8_DYNAMIC, STATED),
    ],
    ids=["dynamic", "static", "alike", "unknown"],
)
def test_the_costs_choose_the_scheme(evaluator: Evaluator, costs: dict[Scheme, float], scheme: Scheme, by: str) -> None:
    found = chosen(evaluator, dict.fromkeys(INT8, 0.1), costs)
    assert (found.scheme, found.chosen_by) == (scheme, by)


def test_a_scheme_that_misses_the_budget_gives_way(evaluator: Evaluator) -> None:
    costs = {INT8_DYNAMIC: 1.0, INT8_STATIC: 2.0}
    found = chosen(evaluator, {INT8_DYNAMIC: 3.0, INT8_STATIC: 0.1}, costs)
    assert (found.scheme, found.is_rival) == (INT8_STATIC, True)
    neither = chosen(evaluator, {INT8_DYNAMIC: 3.0, INT8_STATIC: 2.0}, costs)
    assert (neither.scheme, neither.is_rival) == (INT8_STATIC, False), "the closer one is shown"


def test_a_scheme_in_which_nothing_is_stored_in_fewer_bits_gives_way(
    evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def written(files: Dense, scheme: Scheme, out: Path) -> str:
        out.write_text(scheme.name.ljust(99) if scheme == INT8_DYNAMIC else scheme.name)
        return "a quantizer"

    monkeypatch.setattr(Dense, "write_baseline", written)
    costs = {INT8_DYNAMIC: 1.0, INT8_STATIC: 2.0}
    assert chosen(evaluator, {INT8_DYNAMIC: 0.0, INT8_STATIC: 0.1}, costs).scheme == INT8_STATIC
    found = chosen(evaluator, {INT8_DYNAMIC: 0.0, INT8_STATIC: 3.0}, costs)
    assert (found.scheme, found.is_rival) == (INT8_STATIC, False)


def test_a_scheme_that_does_not_run_is_told(evaluator: Evaluator) -> None:
    found = chosen(evaluator, {INT8_STATIC: 0.1}, {})
    assert found.scheme == INT8_STATIC
    assert evaluator.workspace.warnings == ("the dense int8-dynamic baseline does not run: no kernel",)
    with pytest.raises(ModelError, match="no dense int8 onnx baseline runs"):
        chosen(evaluator, {}, {})


@pytest.mark.parametrize(("ratio", "scheme"), [(0.5, INT8_STATIC), (0.97, INT8_DYNAMIC)])
def test_on_this_machine_the_files_are_measured(
    evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch, ratio: float, scheme: Scheme
) -> None:
    times = {str(INT8_DYNAMIC): 1.0, str(INT8_STATIC): ratio}
    monkeypatch.setattr(Evaluator, "latencies", lambda self, paths, fmt: {name: times[name] for name in paths})
    found = chosen(evaluator, dict.fromkeys(INT8, 0.1), {}, target="host")
    assert (found.scheme, found.chosen_by) == (scheme, MEASURED)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"precision": "int8"}, True),
        ({"precision": "fp32"}, False),
        ({"precision": "int4"}, False),
        ({"rank": 8}, False),
        ({"pick": (1,)}, False),
    ],
)
def test_the_promise_is_for_what_edgepack_chooses(classifier: Path, changes: dict[str, Any], expected: bool) -> None:
    assert is_automatic(options(classifier, **changes)) is expected


def trial(folder: Path, size: int, lost: float = 0.0) -> FileTrial:
    path = folder / "plan.onnx"
    path.write_bytes(bytes(size))
    layer = linear_plan("w1", 4, 4, 1, 1, 0.0, "planned", scheme=FP32)
    return FileTrial("onnx", FileScheme.of(FP32), path, (layer,), (), drop(lost))


@pytest.fixture
def rival(ready: Prepared, evaluator: Evaluator) -> Baseline:
    return make_baseline(evaluator, ready.files["onnx"], ready.estimates)


def kept(ready: Prepared, evaluator: Evaluator, rival: Baseline, made: FileTrial, **changes: Any) -> FileTrial:
    own = replace(evaluator, options=replace(evaluator.options, **changes))
    return fall_back_to_int8(own, ready.files["onnx"], made, rival, ready.estimates)


def test_a_smaller_file_stays(ready: Prepared, evaluator: Evaluator, rival: Baseline) -> None:
    made = trial(evaluator.workspace.folder, rival.int8.stat().st_size)
    assert kept(ready, evaluator, rival, made) is made


def test_a_larger_file_gives_way_to_dense_int8(ready: Prepared, evaluator: Evaluator, rival: Baseline) -> None:
    size = rival.int8.stat().st_size
    found = kept(ready, evaluator, rival, trial(evaluator.workspace.folder, size + 1))
    assert found.path == rival.int8
    assert found.scheme == FileScheme.of(rival.scheme)
    assert found.sound
    assert [layer.layer for layer in found.layers] == ["w1", "w2", "w3"]
    assert {layer.rank for layer in found.layers} == {None}
    assert {layer.reason for layer in found.layers} == {f"the planned file has {size + 1} bytes, dense int8 {size}"}


def test_a_plan_over_the_budget_gives_way_to_dense_int8_within_it(
    ready: Prepared, evaluator: Evaluator, rival: Baseline
) -> None:
    assert rival.int8_stated is not None
    found = kept(ready, evaluator, rival, trial(evaluator.workspace.folder, 100, lost=3.0), max_drop=0.5)
    assert found.path == rival.int8
    assert found.layers[0].reason == f"the best plan may drop 3.00, dense int8 {rival.int8_stated.bound:.2f}"


@pytest.mark.parametrize(
    ("changes", "lost"),
    [({"max_size_bytes": 50_000}, 3.0), ({"max_memory_bytes": 1}, 3.0), ({"max_latency_s": 1.0}, 3.0)],
)
def test_dense_int8_that_is_over_a_limit_is_no_way_out(
    ready: Prepared, evaluator: Evaluator, rival: Baseline, changes: dict[str, Any], lost: float
) -> None:
    made = trial(evaluator.workspace.folder, 100, lost=lost)
    assert kept(ready, evaluator, rival, made, max_drop=0.5, **changes) is made


def test_a_rival_over_the_budget_and_what_was_asked_for_change_nothing(
    ready: Prepared, evaluator: Evaluator, rival: Baseline
) -> None:
    made = trial(evaluator.workspace.folder, 10_000_000)
    assert kept(ready, evaluator, replace(rival, int8_drop=drop(9.0)), made) is made
    assert kept(ready, evaluator, rival, made, precision="fp32") is made
    assert kept(ready, evaluator, rival, made, rank=8) is made


def timed_as(monkeypatch: pytest.MonkeyPatch, ratio: float, width: float = 0.01) -> None:
    """Files of plans take so many times as long as dense int8, with an interval of that half width."""
    found = Speed(ratio, 1.0, ratio, ratio - width, ratio + width, MEASURED)
    monkeypatch.setattr("edgepack.pipeline.speed.SPEED", replace(SPEED, run=lambda _: found))


@pytest.mark.parametrize(
    ("ratio", "width", "changes", "stays"),
    [
        (0.8, 0.01, {}, True),
        (1.0, 0.1, {}, True),
        (1.05, 0.1, {}, False),
        (1.5, 0.01, {}, False),
        (1.5, 0.01, {"optimize": "size"}, True),
        (1.5, 0.01, {"rank": 8}, True),
    ],
    ids=["faster", "perhaps", "perhaps not", "slower", "the size was asked for", "the rank was asked for"],
)
def test_on_this_machine_a_slower_file_gives_way(
    ready: Prepared,
    evaluator: Evaluator,
    rival: Baseline,
    monkeypatch: pytest.MonkeyPatch,
    ratio: float,
    width: float,
    changes: dict[str, Any],
    stays: bool,
) -> None:
    timed_as(monkeypatch, ratio, width)
    here = options(Path("m.onnx"), "host", data=None, **changes)
    aim = "size" if changes.get("optimize") == "size" else evaluator.aim
    made, own = trial(evaluator.workspace.folder, 100), working_in(evaluator.workspace.folder, evaluator, aim=aim)
    own = replace(own, options=here, workspace=replace(own.workspace, cache=Cache(own.workspace.folder / "cache")))
    found = fall_back_to_int8(own, ready.files["onnx"], made, rival, ready.estimates)
    assert (found is made) is stays
    reason = f"the plan takes {ratio:.2f} times as long as dense int8 (measured on this machine)"
    if not stays:
        assert found.layers[0].reason == reason
    told = [f"onnx: {reason}; it is kept, since its options ask for it"] if changes else []
    assert list(own.workspace.warnings) == told
    tight = replace(here, max_size_bytes=50_000)
    found = fall_back_to_int8(replace(own, options=tight), ready.files["onnx"], made, rival, ready.estimates)
    assert found is made, "dense int8 would not fit"


def chain_of(folder: Path, *weights: np.ndarray, times: int = 1) -> FileTrial:
    """A file that multiplies by the weights in turn, the first of them so often."""
    path = folder / f"chain{times}.onnx"
    names = ["w0"] * times + [f"w{at}" for at in range(1, len(weights))]
    passed = ["x", *(f"h{at}" for at in range(1, len(names))), "scores"]
    nodes = [helper.make_node("MatMul", [passed[at], name], [passed[at + 1]]) for at, name in enumerate(names)]
    sides = {"x": weights[0].shape[0], "scores": weights[-1].shape[1]}
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, side]) for name, side in sides.items()]
    constants = [numpy_helper.from_array(weight, f"w{at}") for at, weight in enumerate(weights)]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    layer = linear_plan("w1", 4, 4, 1, 1, 0.0, "planned", scheme=FP32)
    return FileTrial("onnx", FileScheme.of(FP32), path, (layer,), (), drop(0.0))


def test_real_files_are_timed_and_the_slower_one_gives_way(
    ready: Prepared, evaluator: Evaluator, rival: Baseline, classifier: Path
) -> None:
    here = replace(evaluator, options=options(classifier, "host", data=None))
    folder, weights = evaluator.workspace.folder, np.random.default_rng(0).standard_normal((FEATURES, FEATURES))
    dense = replace(rival, int8=rival.fp32)  # three layers; a smaller file uses one weight again and again
    much = chain_of(folder, 0.01 * weights.astype(np.float32), times=40)
    assert much.path.stat().st_size < dense.int8.stat().st_size
    found = fall_back_to_int8(here, ready.files["onnx"], much, dense, ready.estimates)
    assert found.path == dense.int8
    assert "times as long as dense int8 (measured on this machine)" in found.layers[0].reason
    little = chain_of(folder, np.ones((FEATURES, 4), np.float32), np.ones((4, CLASSES), np.float32))
    assert fall_back_to_int8(here, ready.files["onnx"], little, dense, ready.estimates) is little


@pytest.mark.parametrize(("scheme", "stays"), [(INT8_DYNAMIC, True), (NBITS4, False)])
def test_elsewhere_a_file_that_is_estimated_slower_gives_way(
    ready: Prepared, evaluator: Evaluator, rival: Baseline, scheme: Scheme, stays: bool
) -> None:
    """In 4 bits ONNX Runtime has no fast kernel on a Raspberry Pi 4."""
    made = trial(evaluator.workspace.folder, 100)
    layers = tuple(linear_plan(one.name, 4, 4, None, scheme=scheme) for one in evaluator.layers)
    made = replace(made, layers=layers)
    dynamic = replace(rival, scheme=INT8_DYNAMIC)
    found = fall_back_to_int8(evaluator, ready.files["onnx"], made, dynamic, ready.estimates)
    assert (found is made) is stays
    if not stays:
        assert "times as long as dense int8 (by the emulated cost table)" in found.layers[0].reason


def test_of_two_files_over_the_budget_the_one_that_loses_more_gives_way(
    ready: Prepared, evaluator: Evaluator, rival: Baseline
) -> None:
    over = replace(rival, int8_drop=drop(2.0), int8_stated=drop(2.0), limit=0.5)
    worse, better = (trial(evaluator.workspace.folder, 100, lost=lost) for lost in (3.0, 1.0))
    assert kept(ready, evaluator, over, worse, max_drop=0.5).path == rival.int8
    assert kept(ready, evaluator, over, better, max_drop=0.5) is better


@pytest.mark.parametrize(
    ("ratio", "changes", "said"),
    [(1.5, {}, True), (1.0, {}, False), (1.5, {"rank": 8}, False), (1.5, {"given": 1_000_000}, False)],
    ids=["slower", "as fast", "asked for", "a larger source"],
)
def test_a_source_that_is_smaller_but_slower_than_dense_int8_is_told(
    ready: Prepared,
    evaluator: Evaluator,
    rival: Baseline,
    monkeypatch: pytest.MonkeyPatch,
    ratio: float,
    changes: dict[str, Any],
    said: bool,
) -> None:
    timed_as(monkeypatch, ratio)
    source = evaluator.workspace.folder / "source.onnx"
    source.write_bytes(bytes(changes.pop("given", 2000)))
    given = replace(rival, fp32=source, in_integers=True)
    here = replace(evaluator, options=options(Path("m.onnx"), "host", data=None, **changes))
    here = replace(here, workspace=replace(here.workspace, cache=Cache(here.workspace.folder / "cache")))
    warn_of_clash(here, ready.files["onnx"], trial(evaluator.workspace.folder, 1000), given, ready.estimates)
    lines = [line for line in evaluator.workspace.warnings if "size wins" in line]
    assert len(lines) == said
    if said:
        assert "(2.00 kB)" in lines[0]
        assert "the pack has 1.00 kB and takes 1.50 s (measured on this machine)" in lines[0]
