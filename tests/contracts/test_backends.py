"""What every backend keeps: found through the registry, so that a new one is held to all of it at once."""

from __future__ import annotations

import importlib.util
import platform
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import get_args

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from edgepack.backends import registry
from edgepack.backends.backend import Writer, WriterData
from edgepack.backends.onnx.file import to_bytes
from edgepack.backends.registry import FACTS, FORMATS, RUNTIMES, TOOLS, KnownFormat, KnownRuntime, backend, missing_for
from edgepack.backends.runtime import predict
from edgepack.backends.schemes import CONVOLVED, CORRECTED, DENSE_INT8, FP32, SCHEMES, layer_schemes
from edgepack.backends.segments import LayerShape
from edgepack.cli.options import FORMATS_HELP
from edgepack.cost.layer_files import layer_files
from edgepack.data import Samples
from edgepack.devices.doctor import PACKAGES, newest_tested
from edgepack.errors import EdgepackError, ModelError, UsageError
from edgepack.metrics.values import sqnr_db
from edgepack.model.layer import Layer
from edgepack.model.model import Model, NativeName
from edgepack.model.point import Point, conv_point, image_of, linear_point, linear_point_in
from edgepack.model.replacement import Replacement, dense, low_rank, low_rank_correction
from edgepack.model.scheme import FileScheme, Format, Scheme, bits_of, precision_of, scheme_of
from edgepack.model.structure import DENSE, Structure
from edgepack.model.structure import low_rank as low_rank_of
from edgepack.model.structure import low_rank_correction as correction_of
from edgepack.model.types import Array, Contents, Product
from edgepack.pipeline.options import parse_formats
from edgepack.pipeline.verify import PADDING
from edgepack.workspace import Cache, Workspace, shipped
from tests.contracts.conftest import answers, vectors

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

RANK = 6
X86 = platform.machine() in ("x86_64", "AMD64")
BOTH = [pytest.param(fmt, scheme, id=str(scheme.key)) for fmt in FACTS for scheme in SCHEMES[fmt]]
by_scheme = pytest.mark.parametrize(("fmt", "scheme"), BOTH)
by_format = pytest.mark.parametrize("fmt", list(FACTS))


class Bench:
    """A writer of each format for one model, with its converter running, made when it is asked for."""

    def __init__(self, model: Model, folder: Path, stack: ExitStack) -> None:
        self.model, self.folder, self._stack = model, folder, stack
        self.data = Samples({"pixels": vectors(64, 1)})
        self.samples = Samples({"pixels": vectors(16, 2)})
        self._writers: dict[Format, Writer] = {}
        self._engines: dict[Format, object] = {}

    def opened(self, fmt: Format, *, calibrated: bool = True, cache: str = "cache") -> Writer:
        """Another writer of the same model."""
        if fmt not in self._engines:
            self._engines[fmt] = self._stack.enter_context(backend(fmt).engine())
        plans = self.folder / f"plans-{cache}"
        plans.mkdir(exist_ok=True)
        data = WriterData(self.data if calibrated else None, {"pixels": np.zeros((1, 64), np.float32)}, 127)
        workspace = Workspace(Cache(self.folder / cache), plans)
        return backend(fmt).open(self.model, data, self._engines[fmt], workspace)

    def writer(self, fmt: Format) -> Writer:
        return self._writers.setdefault(fmt, self.opened(fmt))

    def answers(self, path: Path, fmt: Format) -> Array:
        return predict(backend(fmt).load(path), self.samples)

    def wanted(self, parts: Mapping[str, Replacement] | None = None) -> Array:
        return answers(self.model.layers, self.samples.inputs["pixels"], parts)

    def noise(self, path: Path, fmt: Format, parts: Mapping[str, Replacement] | None = None) -> float:
        return sqnr_db(self.answers(path, fmt), self.wanted(parts))


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    """What runs on a device."""
    spec = importlib.util.spec_from_file_location("edgepack_runner", shipped("runtimes/runner.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bench(opened: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(opened, tmp_path_factory.mktemp("bench"), stack)


def part(layer: Layer, structure: Structure) -> Replacement:
    """What stands in a layer's place, with another bias than its own."""
    bias = None if layer.bias is None else layer.bias + np.float32(0.05)
    if structure.rank is None:
        return dense(layer.weight, bias)
    base = np.rint(20 * layer.weight) / np.float32(20) if structure.is_correction else np.zeros_like(layer.weight)
    u, s, v = np.linalg.svd(layer.weight - base, full_matrices=False)
    A, B = u[:, : structure.rank] * s[: structure.rank], v[: structure.rank]
    return low_rank_correction(A, B, bias, base) if structure.is_correction else low_rank(A, B, bias)


def parts_of(layers: tuple[Layer, ...], structure: Structure) -> dict[str, Replacement]:
    return {} if structure == DENSE else {layer.name: part(layer, structure) for layer in layers}


def file_scheme(writer: Writer, scheme: Scheme) -> FileScheme:
    return FileScheme.of(scheme) if scheme in writer.file_schemes else writer.rest(scheme)[0]


def sides(tensor: Array) -> tuple[int, int]:
    return min(tensor.shape), max(tensor.shape)


def chain(optimized: Contents, sides_of: list[tuple[int, int]]) -> bool:
    """Whether products of these matrices stand one behind the other, whatever a layout was rounded up to."""

    def fits(product: Product, wanted: tuple[int, int]) -> bool:
        return all(want <= side < want + PADDING for side, want in zip(product.sides, wanted, strict=True))

    return any(
        fits(first, one) and fits(second, other) and number in second.behind
        for one, other in pairwise(sides_of)
        for number, first in enumerate(optimized.products)
        for second in optimized.products
    )


def test_every_format_has_a_backend() -> None:
    assert tuple(FACTS) == FORMATS
    assert len({facts.title for facts in FACTS.values()}) == len(FACTS)
    for fmt, facts in FACTS.items():
        assert backend(fmt).facts is facts
        assert backend(fmt) is backend(fmt)
    keys = [scheme.key for fmt in FACTS for scheme in layer_schemes(fmt).values()]
    assert len(set(keys)) == len(keys)


@by_format
def test_facts_are_complete(fmt: Format) -> None:
    facts = FACTS[fmt]
    assert facts.title
    assert facts.install.startswith("pip install")
    assert facts.tool
    assert facts.timed_call
    assert facts.runtimes
    assert len(set(facts.runtimes)) == len(facts.runtimes)
    assert set(facts.converters) <= set(get_args(NativeName)) - {fmt}
    costs = (facts.call_instructions, *facts.float_values, *facts.integer_values)
    code = (facts.constexpr.bytes_per_instruction, facts.constexpr.decoded, facts.constexpr.direct)
    assert min(*costs, *code, facts.constexpr.convolved) > 0


@by_format
def test_what_a_device_runs_is_in_the_table_of_the_runner(fmt: Format, runner: ModuleType) -> None:
    serving = {name: one for name, one in runner.RUNTIMES.items() if one.format == fmt}
    assert tuple(serving) == FACTS[fmt].runtimes
    for one in serving.values():
        for role in ("inputs", "prepare", "outputs", "raw_outputs", "feed"):
            assert callable(getattr(one.session, role)), role


def test_the_runner_serves_no_other_formats(runner: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    assert {one.format for one in runner.RUNTIMES.values()} == set(FORMATS)
    for fmt in FORMATS:
        assert runner.parse(["latency", "--format", fmt, "--model", "m"]).format == fmt
    with pytest.raises(SystemExit):
        runner.parse(["latency", "--format", "other", "--model", "m"])
    said = capfd.readouterr().err
    assert all(fmt in said for fmt in FORMATS)


def test_names_from_outside_are_held_against_the_registry() -> None:
    for kind, known in ((KnownFormat, FORMATS), (KnownRuntime, RUNTIMES)):
        adapter = TypeAdapter(kind)
        assert [adapter.validate_python(name) for name in known] == list(known)
        with pytest.raises(ValidationError) as caught:
            adapter.validate_python("other")
        assert all(repr(name) in caught.value.errors()[0]["msg"] for name in known)
    with pytest.raises(UsageError, match=", ".join(FORMATS)):
        parse_formats("other")
    assert parse_formats(",".join(reversed(FORMATS))) == FORMATS
    assert set(re.findall(r"\w+", FORMATS_HELP)) - {"or", "both", "several"} == set(FORMATS)


@by_format
def test_doctor_knows_what_a_format_takes(fmt: Format) -> None:
    facts, listed = FACTS[fmt], {name: (purpose, install) for name, purpose, install in PACKAGES}
    for name, purpose in facts.purposes.items():
        assert listed[name][0] == purpose
        assert listed[name][1].startswith("pip install ")
    assert set(facts.packages) | {facts.runtimes[0]} <= set(listed)
    assert set(facts.purposes) <= set(TOOLS)
    assert newest_tested(facts.runtimes[0], facts.tested) is None
    assert newest_tested(facts.runtimes[0], f"{facts.tested}.1") == facts.tested


@by_format
def test_packages_that_are_not_there_are_named(fmt: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = FACTS[fmt]
    natives: tuple[NativeName, ...] = get_args(NativeName)
    for native in natives:
        assert missing_for(fmt, native) == ()
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    for native in natives:
        assert missing_for(fmt, native) == (*facts.packages, *facts.converters.get(native, ()))


@by_format
def test_schemes_name_what_a_backend_has(fmt: Format) -> None:
    assert FP32[fmt] in SCHEMES[fmt]
    assert FP32[fmt].is_float
    assert set(DENSE_INT8[fmt]) <= set(SCHEMES[fmt])
    assert not DENSE_INT8[fmt][0].is_static
    for scheme in SCHEMES[fmt]:
        assert scheme.backend == fmt
        assert scheme.is_float == (scheme.qmax == 0)
        assert scheme.correction is None or scheme.correction in SCHEMES[fmt]
        assert scheme.estimated_like is None or scheme.estimated_like in SCHEMES[fmt]
        assert scheme.estimated_like != scheme
        assert bits_of(precision_of(scheme.bits)) == scheme.bits


@by_format
def test_the_blank_model_runs(fmt: Format, tmp_path: Path) -> None:
    for name in ("a", "b"):
        backend(fmt).blank(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    session = backend(fmt).load(tmp_path / "a")
    (spec,) = session.inputs
    assert (spec.shape, spec.dtype) == ((1,), np.float32)
    for value in (-2.5, 1.5):
        (y,) = session.run({spec.name: np.array([value], np.float32)})
        assert y.tolist() == [abs(value)]


@by_format
def test_the_dense_file_is_the_model(fmt: Format, bench: Bench, tmp_path: Path) -> None:
    writer = bench.writer(fmt)
    assert (writer.fmt, writer.calibrated, writer.qmax) == (fmt, True, 127)
    writer.write_dense(tmp_path / "m")
    assert bench.noise(tmp_path / "m", fmt) > FP32[fmt].min_sqnr_db
    held = writer.read(tmp_path / "m")
    assert sorted(held.weights) == sorted((*sides(layer.weight), 32) for layer in bench.model.layers)
    assert writer.dense_contents.weights == held.weights
    (spec,) = backend(fmt).load(tmp_path / "m").inputs
    assert (spec.shape, spec.dtype) == ((1, 64), np.float32)


@pytest.mark.parametrize("structure", [DENSE, low_rank_of(RANK)], ids=str)
@by_scheme
def test_every_scheme_is_written_as_planned(
    fmt: Format, scheme: Scheme, structure: Structure, bench: Bench, tmp_path: Path
) -> None:
    writer, layers = bench.writer(fmt), bench.model.layers
    assert scheme in (*writer.layer_schemes(), *writer.file_schemes)
    parts, whole = parts_of(layers, structure), file_scheme(writer, scheme)
    written = writer.write(parts, whole, tmp_path / "m")
    assert bench.noise(tmp_path / "m", fmt, parts) >= min(own.min_sqnr_db for own in whole.schemes)

    assert set(written.schemes) <= {layer.name for layer in layers}
    assert set(written.schemes.values()) <= set(SCHEMES[fmt])
    assert set(written.products) <= {layer.name for layer in layers}
    tensors = {x.name: parts[x.name].tensors.values() if parts else [x.weight] for x in layers}
    held = writer.read(tmp_path / "m")
    assert Counter((a, b) for a, b, _ in held.weights) == Counter(sides(t) for own in tensors.values() for t in own)
    found = {product.name: product for product in held.products}
    for name, own in tensors.items():
        products = [found[each] for each in written.products.get(name, ())]
        if structure.ranks:
            assert Counter(product.sides for product in products) == Counter(sides(tensor) for tensor in own)
        assert all(product.bits >= scheme.bits for product in products)
        if (got := written.schemes.get(name, scheme)) != scheme:
            assert got.bits > scheme.bits
            assert max(product.bits for product in held.products if product.sides in map(sides, own)) == got.bits
    narrow = [bits for _, _, bits in held.weights if bits == scheme.bits]
    assert len(narrow) >= len(held.weights) - 1, "of one layer the odd number of inputs may not be had in 4 bits"


@by_scheme
def test_thin_products_are_still_there_in_the_runtimes_graph(
    fmt: Format, scheme: Scheme, bench: Bench, tmp_path: Path
) -> None:
    writer, layers = bench.writer(fmt), bench.model.layers
    parts = parts_of(layers[:2], low_rank_of(RANK))
    writer.write(parts, file_scheme(writer, scheme), tmp_path / "m")
    optimized = writer.read_optimized(tmp_path / "m")
    assert len(optimized.products) == 5
    for thin in parts.values():
        assert chain(optimized, [sides(thin.B), sides(thin.A)])
    assert not chain(optimized, [sides(layers[0].weight), sides(layers[1].weight)])


@by_scheme
def test_what_is_supported_is_what_is_written(fmt: Format, scheme: Scheme, bench: Bench, tmp_path: Path) -> None:
    writer, layers = bench.writer(fmt), bench.model.layers
    for structure in (DENSE, low_rank_of(RANK), low_rank_of(5)):
        for layer in layers:
            parts = parts_of((layer,), structure)
            written = writer.write(parts, file_scheme(writer, scheme), tmp_path / "m")
            tensors = parts[layer.name].tensors.values() if parts else [layer.weight]
            own = {sides(tensor) for tensor in tensors}
            narrow = all(bits == scheme.bits for a, b, bits in writer.read(tmp_path / "m").weights if (a, b) in own)
            why = writer.supports(layer, structure, scheme)
            assert (why is None) == narrow, f"{layer.name}, {structure}: {why}"
            assert (why is None) == (written.schemes.get(layer.name, scheme) == scheme)
            assert why is None or is_sentence(why)


def is_sentence(text: str) -> bool:
    return len(text.split()) > 3 and "\n" not in text and not text.endswith(".")


@by_format
def test_factors_beside_a_matrix(fmt: Format, bench: Bench, tmp_path: Path) -> None:
    writer, layers = bench.writer(fmt), bench.model.layers
    structure = correction_of(RANK)
    parts = parts_of(layers, structure)
    assert set(writer.corrected_schemes()) <= set(CORRECTED[fmt])
    for scheme in SCHEMES[fmt]:
        reasons = {writer.supports(layer, structure, scheme) for layer in layers}
        assert (None in reasons) == (scheme in writer.corrected_schemes())
        assert all(why is None or is_sentence(why) for why in reasons)
    taken = writer.takes(parts)
    if not writer.corrected_schemes():
        assert taken == {}
        with pytest.raises(ModelError, match=layers[0].name):
            writer.write(parts, FileScheme.of(FP32[fmt]), tmp_path / "m")
        assert not (tmp_path / "m").exists()
    for scheme in writer.corrected_schemes():
        assert taken == parts
        writer.write(parts, file_scheme(writer, scheme), tmp_path / "m")
        assert scheme.correction is not None
        assert bench.noise(tmp_path / "m", fmt, parts) >= scheme.min_sqnr_db
        wanted = [(*sides(p.base), scheme.bits) for p in parts.values()]
        wanted += [(*sides(t), scheme.correction.bits) for p in parts.values() for t in (p.A, p.B)]
        assert sorted(writer.read(tmp_path / "m").weights) == sorted(wanted)


@by_scheme
def test_without_calibration_there_is_nothing_static(fmt: Format, scheme: Scheme, bench: Bench, tmp_path: Path) -> None:
    writer, layer = bench.opened(fmt, calibrated=False), bench.model.layers[0]
    assert not writer.calibrated
    assert (scheme in (*writer.layer_schemes(), *writer.file_schemes)) == (not scheme.is_static)
    why = writer.supports(layer, DENSE, scheme)
    if not scheme.is_static:
        assert why is None
        return
    assert why is not None
    assert "calibration" in why
    with pytest.raises(EdgepackError, match="calibration") as caught:
        writer.write({}, FileScheme.of(scheme), tmp_path / "m")
    assert caught.value.exit_code in (2, 3)
    assert caught.value.hint
    assert not (tmp_path / "m").exists()


@by_format
def test_layers_of_one_file_have_their_own_schemes(fmt: Format, bench: Bench, tmp_path: Path) -> None:
    writer, (first, second, third) = bench.writer(fmt), bench.model.layers
    parts = parts_of((second,), low_rank_of(RANK))
    narrow = min(writer.layer_schemes(), key=lambda scheme: scheme.bits)
    mixed = {first.name: FP32[fmt], second.name: narrow}
    scheme = DENSE_INT8[fmt][0]
    written = writer.write(parts, FileScheme.of(scheme), tmp_path / "m", mixed)
    held = Counter(writer.read(tmp_path / "m").weights)
    thin = [(*sides(tensor), narrow.bits) for tensor in parts[second.name].tensors.values()]
    assert held == Counter([(*sides(first.weight), 32), *thin, (*sides(third.weight), scheme.bits)])
    got = {first.name: FP32[fmt], second.name: narrow, third.name: scheme}
    assert got | written.schemes == got
    assert bench.noise(tmp_path / "m", fmt, parts) >= narrow.min_sqnr_db
    with pytest.raises(ModelError, match="fc9"):
        writer.write({}, FileScheme.of(scheme), tmp_path / "none", {"fc9": narrow})
    assert not (tmp_path / "none").exists()


@by_format
def test_the_same_plan_gives_the_same_bytes_and_leaves_the_model_alone(
    fmt: Format, bench: Bench, tmp_path: Path
) -> None:
    model = bench.model
    before, weights = to_bytes(model.content), [layer.weight.copy() for layer in model.layers]
    parts = parts_of(model.layers, low_rank_of(RANK))
    tensors = [tensor.copy() for each in parts.values() for tensor in each.tensors.values()]
    for name, cache in (("a", "cache"), ("b", "other")):
        writer = bench.opened(fmt, cache=cache)
        for scheme in (FP32[fmt], *DENSE_INT8[fmt]):
            writer.write(parts, FileScheme.of(scheme), tmp_path / f"{name}.{scheme}")
    contents = [(tmp_path / f"a.{scheme}").read_bytes() for scheme in (FP32[fmt], *DENSE_INT8[fmt])]
    assert contents == [(tmp_path / f"b.{scheme}").read_bytes() for scheme in (FP32[fmt], *DENSE_INT8[fmt])]
    assert len(set(contents)) == len(contents)
    assert to_bytes(model.content) == before
    for layer, weight in zip(model.layers, weights, strict=True):
        np.testing.assert_array_equal(layer.weight, weight)
    after = [tensor for each in parts.values() for tensor in each.tensors.values()]
    for one, other in zip(tensors, after, strict=True):
        np.testing.assert_array_equal(one, other)


@by_format
def test_what_is_taken_can_be_written(fmt: Format, bench: Bench, tmp_path: Path) -> None:
    writer, (first, second, third) = bench.writer(fmt), bench.model.layers
    parts = {
        first.name: part(first, low_rank_of(RANK)),
        second.name: part(second, correction_of(RANK)),
        third.name: dense(1.5 * third.weight, third.bias),
    }
    before = dict(parts)
    taken = writer.takes(parts)
    assert parts == before
    assert first.name in taken
    assert taken.items() <= parts.items()
    assert writer.takes({}) == {}
    written = writer.write(taken, writer.trial_scheme, tmp_path / "m")
    assert set(written.products) <= set(parts)
    thin = parts[first.name]
    held = Counter((a, b) for a, b, _ in writer.read(tmp_path / "m").weights)
    assert held[sides(thin.A)] >= 1
    assert held[sides(thin.B)] >= 1
    assert held[sides(first.weight)] == 0


@pytest.mark.parametrize(("fmt", "scheme"), [pytest.param(fmt, s, id=s.key) for fmt in FACTS for s in DENSE_INT8[fmt]])
def test_the_int8_baseline_is_smaller_and_nearly_as_good(
    fmt: Format, scheme: Scheme, bench: Bench, tmp_path: Path
) -> None:
    writer = bench.writer(fmt)
    writer.write_dense(tmp_path / "dense")
    assert writer.write_baseline(scheme, tmp_path / "int8")
    assert (tmp_path / "int8").stat().st_size < 0.6 * (tmp_path / "dense").stat().st_size
    assert bench.noise(tmp_path / "int8", fmt) >= scheme.min_sqnr_db
    assert {bits for _, _, bits in writer.read(tmp_path / "int8").weights} == {8}


@by_format
def test_the_probe_needs_no_data_and_a_smaller_grid_fits_as_well(fmt: Format, bench: Bench, tmp_path: Path) -> None:
    writer = bench.writer(fmt)
    plan_trial = writer.trial_scheme
    assert plan_trial == bench.opened(fmt, calibrated=False).trial_scheme
    assert (plan_trial.layers.bits, plan_trial.layers.is_static) == (8, False)
    assert plan_trial in writer.rest(plan_trial.layers)
    assert plan_trial.layers in writer.layer_schemes()
    for scheme in writer.layer_schemes():
        assert {file.layers for file in writer.rest(scheme)} == {scheme}
    half = writer.with_qmax(63)
    assert writer.qmax == 127
    assert half.qmax == (63 if any(scheme.saturates for scheme in SCHEMES[fmt]) else 127)
    half.write({}, plan_trial, tmp_path / "m")
    assert bench.noise(tmp_path / "m", fmt) >= plan_trial.layers.min_sqnr_db


POINTS = {
    fmt: [
        *(linear_point(s, 24, 40, rank, batch) for s in SCHEMES[fmt] for rank in (None, 8, 6) for batch in (1, 3)),
        *(linear_point(s, 40, 24, 8, 1) for s in SCHEMES[fmt]),
        *(linear_point_in(s, correction_of(rank), (24, 40), 1) for s in CORRECTED[fmt] for rank in (8, 6)),
    ]
    for fmt in FACTS
}


@by_format
def test_files_of_one_layer(fmt: Format, bench: Bench) -> None:
    points = POINTS[fmt]
    told: list[int] = []
    files = layer_files(points, lambda stage, done, total: told.append(done))
    assert list(files) == points
    assert len(set(files.values())) == len(points)
    assert len({path.read_bytes() for path in files.values()}) == len(points)
    assert len(told) == len(points)
    for point, path in files.items():
        session = backend(fmt).load(path)
        (spec,) = session.inputs
        assert spec.shape == (point.batch, point.in_features)
        x = np.random.default_rng(0).standard_normal(spec.shape).astype(np.float32)
        (y,) = session.run({spec.name: x})
        assert y.shape == (point.batch, point.out_features)
        assert np.isfinite(y).all()
        assert_held(bench.writer(fmt), point, path)
    layer_files(points, lambda stage, done, total: pytest.fail("written again"))


def assert_held(writer: Writer, point: Point, path: Path) -> None:
    wanted = [
        (min(op.rows, op.columns), max(op.rows, op.columns), scheme_of(op, point.scheme).bits) for op in point.ops
    ]
    assert sorted(writer.read(path).weights) == sorted(wanted), path.name


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (1, 3), (5,)], ids=str)
@by_format
def test_files_of_one_convolution(fmt: Format, kernel: tuple[int, ...], bench: Bench) -> None:
    points = [conv_point(scheme, 24, 16, kernel, 42) for scheme in CONVOLVED[fmt]]
    answers = []
    for point, path in layer_files(points, lambda *_: None).items():
        session = backend(fmt).load(path)
        (spec,) = session.inputs
        assert sorted(spec.shape)[-1 - len(kernel) :] == sorted((16, *image_of(point)))
        x = np.random.default_rng(0).standard_normal(spec.shape).astype(np.float32)
        (y,) = session.run({spec.name: x})
        assert sorted(y.shape)[-1 - len(kernel) :] == sorted((24, *image_of(point)))
        answers.append(y)
        held = [bits for *_, bits in bench.writer(fmt).read(path).weights]
        assert held == [point.scheme.bits], path.name
    for quantized in answers[1:]:
        assert np.abs(quantized - answers[0]).max() < 0.1 * np.abs(answers[0]).max()
    assert len({path.read_bytes() for path in layer_files(points).values()}) == len(points)


@by_scheme
def test_operators_are_read_as_they_were_written(fmt: Format, scheme: Scheme) -> None:
    point = linear_point(scheme, 24, 40, None, 2)
    (path,) = layer_files([point], lambda *_: None).values()
    feed = {spec.name: np.ones((2, 40), np.float32) for spec in backend(fmt).load(path).inputs}
    for timed in (True, False):
        found = backend(fmt).operators(path, feed, timed=timed, unsigned=X86)
        (product,) = (one for one in found if one.products)
        assert [(op.rows, op.columns, op.vectors) for op in product.products] == [(24, 40, 2)]
        assert product.scheme == (FP32[fmt] if scheme.computes_in_float else scheme)
        assert product.doubt in (None, "blocks")
        assert (product.seconds is not None) is timed


@by_format
def test_one_op_tasks_come_in_order_and_are_written_alike(fmt: Format, tmp_path: Path) -> None:
    made, points = backend(fmt), POINTS[fmt][:4]
    tasks = list(made.one_ops(points))
    assert [task.point for task in tasks] == points
    assert list(made.one_ops([])) == []
    for name in ("a", "b"):
        made.one_op.run(tasks[0], tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert made.one_op.suffix == f".{fmt}"


@pytest.mark.parametrize("structure", [DENSE, low_rank_of(RANK)], ids=str)
@by_scheme
def test_segments_in_a_row_are_the_whole(
    fmt: Format, scheme: Scheme, structure: Structure, bench: Bench, tmp_path: Path
) -> None:
    writer, layers = bench.writer(fmt), bench.model.layers
    writer.write(parts_of(layers, structure), file_scheme(writer, scheme), tmp_path / "m")
    shapes = [LayerShape(x.name, x.out_features, x.in_features, structure.rank) for x in layers]
    (tmp_path / "parts").mkdir()
    segments = backend(fmt).split(tmp_path / "m", shapes, tmp_path / "parts", unsigned=X86)
    assert [segment.name for segment in segments if segment.layer] == [layer.name for layer in layers]
    assert len({segment.path for segment in segments}) == len(segments)
    assert all(segment.path.parent == tmp_path / "parts" for segment in segments)
    whole = backend(fmt).load(tmp_path / "m", exact=False)
    x = bench.samples.inputs["pixels"][:1]
    (wanted,) = whole.run({whole.inputs[0].name: x})
    value = x
    for segment in segments:
        session = backend(fmt).load(segment.path, exact=False)
        (spec,) = session.inputs
        assert spec.dtype == value.dtype
        (value,) = session.run({spec.name: value})
    np.testing.assert_array_equal(value, wanted)


@by_format
def test_what_is_no_model_is_refused(fmt: Format, bench: Bench, tmp_path: Path) -> None:
    made = backend(fmt)
    bench.writer(fmt).write_dense(tmp_path / "whole")
    content = (tmp_path / "whole").read_bytes()
    bad = {"text": b"this is a text, and no model\n" * 50, "empty": b"", "none": None}
    bad |= {f"cut {share}": content[: int(share * len(content))] for share in (0.01, 0.3, 0.9)}
    for name, broken in bad.items():
        if broken is not None:
            (tmp_path / name).write_bytes(broken)
        for exact in (True, False):
            with pytest.raises(ModelError) as caught:
                made.load(tmp_path / name, exact=exact)
            assert caught.value.message, name
    assert made.load(tmp_path / "whole", threads=2, exact=False).inputs
