"""`inspect FILE --target`: latencies and shares, which kernels are slow on which CPU, and how it reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx.helper import make_node

from edgepack.backends.onnx.schemes import INT8_DYNAMIC, INT8_STATIC
from edgepack.backends.operators import Doubt, Operator
from edgepack.cost.slow import BY_FORM, DECODED, STAYS, WHY, Slow, slow
from edgepack.errors import TargetsError, UsageError
from edgepack.model.scheme import Format, Scheme
from edgepack.pipeline.inspect import InspectOptions
from edgepack.pipeline.operators import OperatorsReport, inspect_operators
from edgepack.report.operators import SHOWN, operators_report
from edgepack.report.render import csv
from edgepack.targets.file import get_target
from tests.backends.onnx.graph_models import info, normal, proto
from tests.pipeline.small_builds import CLASSES, FEATURES, HIDDEN
from tests.report.shown import terminal_text


@pytest.fixture(scope="module")
def on_rpi4(classifier: Path) -> OperatorsReport:
    return inspect_operators(InspectOptions(str(classifier)), get_target("rpi4"))


def test_products_are_priced_by_the_table_of_the_target(on_rpi4: OperatorsReport) -> None:
    products = [one for one in on_rpi4.operators if one.shape is not None]
    assert [one.shape for one in products] == [(HIDDEN, FEATURES), (HIDDEN, HIDDEN), (CLASSES, HIDDEN)]
    assert on_rpi4.timed_by == on_rpi4.compared_by == "emulated cost table"
    assert sum(one.share or 0 for one in on_rpi4.operators) == pytest.approx(1)
    assert on_rpi4.latency_s == pytest.approx(sum(one.latency_s or 0 for one in products))
    assert all(one.faster_by is None or one.faster_by > 1 for one in products)


def test_what_was_not_counted_is_not_known(on_rpi4: OperatorsReport) -> None:
    others = [one for one in on_rpi4.operators if one.shape is None]
    assert all(one.latency_s is None and one.faster_in is None for one in others)
    shown = terminal_text(operators_report(on_rpi4))
    assert " 3 of which the time is known" in shown or not others


def test_on_this_machine_every_operator_is_timed(classifier: Path) -> None:
    here = inspect_operators(InspectOptions(str(classifier)), get_target("host"))
    assert here.timed_by == "timed on this machine"
    assert all(one.latency_s is not None for one in here.operators)


DOTS: dict[tuple[Doubt, Format], tuple[bool, bool]] = {
    ("blocks", "onnx"): (True, False),
    ("integer convolution", "onnx"): (True, False),
    ("unsigned weights", "onnx"): (True, False),
    ("unsigned weights", "tflite"): (True, True),
    ("signed inputs", "onnx"): (False, False),
    ("float behind integers", "onnx"): (True, True),
    ("decoded", "onnx"): (True, True),
    ("unrolled", "tflite"): (True, True),
}


@pytest.mark.parametrize("case", DOTS)
def test_what_is_slow_depends_on_dot_products(case: tuple[Doubt, Format]) -> None:
    doubt, fmt = case
    one = Operator("y", "MatMul", doubt=doubt)
    found = [slow(one, fmt, get_target(name)) for name in ("rpi4", "rpi5")]
    assert [each is not None and each.why == WHY[doubt] for each in found] == list(DOTS[case])


def test_signed_inputs_are_slow_on_x86_alone() -> None:
    one = Operator("y", "MatMulInteger", doubt="signed inputs")
    target = replace(get_target("rpi4"), arch="x86_64", isa=("avx2",))
    assert slow(one, "onnx", target) == Slow(WHY["signed inputs"], STAYS)
    assert slow(one, "onnx", replace(target, isa=("avx2", "avx-vnni"))) is None
    assert slow(Operator("y", "MatMul"), "onnx", target) is None


@pytest.mark.parametrize(
    ("scheme", "fmt", "build"),
    [(INT8_DYNAMIC, "onnx", DECODED), (INT8_STATIC, "onnx", STAYS), (INT8_DYNAMIC, "tflite", STAYS)],
)
def test_what_a_build_does_depends_on_the_activations(scheme: Scheme, fmt: Format, build: str) -> None:
    one = Operator("y", "MatMulInteger", scheme=scheme, doubt="unsigned weights")
    assert slow(one, fmt, get_target("rpi4")) == Slow(WHY["unsigned weights"], build)


@pytest.mark.parametrize("kind", ["QLinearMatMul", "QGemm"])
def test_an_operator_in_integers_may_be_made_of_quantizers(kind: str) -> None:
    one = Operator("y", kind, scheme=INT8_STATIC, doubt="unsigned weights")
    assert slow(one, "onnx", get_target("rpi4")) == Slow(WHY["unsigned weights"], BY_FORM)


def test_a_slow_operator_is_marked_and_explained_once(on_rpi4: OperatorsReport) -> None:
    ill = Slow(WHY["blocks"], DECODED)
    operators = [replace(one, slow=ill.why, build=ill.build) for one in on_rpi4.operators for _ in range(SHOWN)]
    report = operators_report(replace(on_rpi4, operators=tuple(operators), stays="2 QLinearConv"))
    shown = " ".join(terminal_text(report, width=400).split())
    assert "what build keeps: 2 QLinearConv" in shown
    assert shown.count(ill.why) == shown.count(ill.build) == 1
    assert f"{SHOWN} that take most; --json and --csv have all {len(operators)}" in shown
    assert len(csv.render(report).strip().splitlines()) == 1 + len(operators)


def test_names_that_a_converter_strung_together_are_cut(on_rpi4: OperatorsReport) -> None:
    one = replace(on_rpi4.operators[0], name="head/of/" + "x" * 60 + "/end;b;c", slow="s", build="b")
    shown = terminal_text(operators_report(replace(on_rpi4, operators=(one,))), width=400)
    assert " …" + "x" * 35 + "/end " in shown


def test_depthwise_convolutions_have_no_price_of_a_matrix(tmp_path: Path) -> None:
    nodes = [make_node("Conv", ["x", "w"], ["a"], group=8), make_node("Conv", ["a", "v"], ["y"])]
    weights = {"w": normal(8, 1, 3, 3), "v": normal(16, 8, 1, 1)}
    onnx.save(proto(nodes, [info("x", [1, 8, 6, 6])], [info("y", [1, 16, 4, 4])], weights), tmp_path / "model.onnx")
    found = inspect_operators(InspectOptions(str(tmp_path / "model.onnx")), get_target("rpi4"))
    assert [one.latency_s is None for one in found.operators] == [True, False]


def test_only_files_that_a_runtime_of_the_target_runs(classifier: Path) -> None:
    with pytest.raises(UsageError, match=r"expected \.onnx or \.tflite"):
        inspect_operators(InspectOptions("model.py:recipe"), get_target("rpi4"))
    bare = replace(get_target("rpi4"), runtimes={})
    with pytest.raises(TargetsError, match="cannot run onnx"):
        inspect_operators(InspectOptions(str(classifier)), bare)
