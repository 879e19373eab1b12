"""What every source keeps: found through the registry. A new one only says in `GIVEN` how a test comes by its model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from edgepack.backends.backend import WriterData
from edgepack.backends.registry import FORMATS, backend
from edgepack.backends.runtime import predict
from edgepack.backends.schemes import DENSE_INT8
from edgepack.cli import app
from edgepack.data import Samples
from edgepack.errors import SOURCE, EdgepackError, InputError, ModelError, UsageError
from edgepack.model.kinds import KINDS, views_of
from edgepack.model.model import Model
from edgepack.model.replacement import low_rank
from edgepack.model.scheme import FileScheme, Format
from edgepack.natives import native
from edgepack.sources import SOURCES, model_name, open_model, source_of
from edgepack.sources.keras import import_keras
from edgepack.workspace import Cache, Workspace
from tests.backends.tflite.given_files import mlp
from tests.contracts.conftest import SIDES, answers, content_of, vectors

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@dataclass(frozen=True)
class Given:
    """How the model of a source is given.

    Attributes:
        place: puts the model of `conftest` into a folder, from the recipe's file and what was made of it, and gives
            what the command line takes.
        is_file: whether the model itself is a file that may be damaged.
        names: MODEL → the name that the model has.
    """

    place: Callable[[Path, Path, Model], str]
    is_file: bool
    names: Mapping[str, str]


def place_recipe(folder: Path, recipe_file: Path, opened: Model) -> str:
    return f"{shutil.copy(recipe_file, folder / 'tiny_mlp.py')}:recipe"


def place_program(folder: Path, recipe_file: Path, opened: Model) -> str:
    assert opened.program is not None
    return str(shutil.copy(opened.program, folder / "tiny_mlp.pt2"))


def place_onnx(folder: Path, recipe_file: Path, opened: Model) -> str:
    return str(shutil.copy(opened.files["onnx"], folder / "tiny_mlp.onnx"))


def place_tflite(folder: Path, recipe_file: Path, opened: Model) -> str:
    weights = [(layer.weight, layer.bias) for layer in opened.layers if layer.bias is not None]
    return str(mlp(weights).save(folder / "tiny_mlp.tflite"))


def place_keras(folder: Path, recipe_file: Path, opened: Model) -> str:
    keras = import_keras()
    dense = [
        keras.layers.Dense(layer.out_features, activation=activation, name=name)
        for layer, activation, name in zip(opened.layers, ("relu", "relu", None), ("one", "two", "three"), strict=True)
    ]
    model = keras.Sequential([keras.Input((64,), name="pixels"), *dense])
    for layer, own in zip(opened.layers, dense, strict=True):
        own.set_weights([layer.weight.T, layer.bias])
    model.save(folder / "tiny_mlp.keras")
    return str(folder / "tiny_mlp.keras")


GIVEN: Mapping[str, Given] = {
    "recipe": Given(
        place_recipe,
        is_file=False,
        names={
            "a/tiny_mlp.py:recipe": "tiny-mlp",
            "package.Some_Module:make": "some-module",
            "v3/model.py:CNN_2": "cnn-2",
        },
    ),
    "pt2": Given(place_program, is_file=True, names={"a/Tiny_MLP.pt2": "tiny-mlp", "some_v3/model.pt2": "some-v3"}),
    "keras": Given(
        place_keras, is_file=True, names={"a/B.keras": "b", "some_v3/model.h5": "some-v3", "old.HDF5": "old"}
    ),
    "tflite": Given(place_tflite, is_file=True, names={"a/b.tflite": "b", "some_v3/model.tflite": "some-v3"}),
    "onnx": Given(
        place_onnx, is_file=True, names={"a/b.c.onnx": "b.c", "standard_v3/model.onnx": "standard-v3", "X.onnx": "x"}
    ),
}
NAMED = {source.name: source for source in SOURCES}
by_kind = pytest.mark.parametrize("kind", list(NAMED))
OPENINGS: list[tuple[str, tuple[Format, ...]]] = [
    (kind, formats) for kind in NAMED for formats in (FORMATS, ("tflite",))
]
by_opening = pytest.mark.parametrize(("kind", "formats"), OPENINGS, ids=[f"{k}-{'-'.join(f)}" for k, f in OPENINGS])
files = pytest.mark.parametrize("kind", [kind for kind, given in GIVEN.items() if given.is_file])


@dataclass(frozen=True)
class Opened:
    """A model, and where it came from.

    Attributes:
        spec: MODEL.
        home: the folder that the user's file is in.
        work: the working folder.
        before, after: names and contents of the user's folder.
        model: what was made of it.
    """

    spec: str
    home: Path
    work: Path
    before: Mapping[str, bytes]
    after: Mapping[str, bytes]
    model: Model


Openings = dict[tuple[str, tuple[Format, ...]], Opened]


def held(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def sources(recipe_file: Path, opened: Model, tmp_path_factory: pytest.TempPathFactory) -> Openings:
    found: Openings = {}
    for kind, formats in OPENINGS:
        home, work = tmp_path_factory.mktemp(f"{kind}-home"), tmp_path_factory.mktemp(f"{kind}-work")
        spec = GIVEN[kind].place(home, recipe_file, opened)
        before = held(home)
        model = open_model(spec, work, formats)
        found[kind, formats] = Opened(spec, home, work, before, held(home), model)
    return found


def refused(spec: str, folder: Path) -> EdgepackError:
    """The error of a bad MODEL, which the command line turns into its exit code."""
    with pytest.raises((UsageError, ModelError)) as caught:
        open_model(spec, folder)
    err = caught.value
    assert err.exit_code == (2 if isinstance(err, UsageError) else 3)
    assert not list(folder.iterdir()), "nothing is left of it"
    return err


def test_every_source_is_held_to_this() -> None:
    assert list(NAMED) == [source.name for source in SOURCES], "two sources of one name"
    assert set(GIVEN) == set(NAMED), "say in GIVEN how a test comes by the model of a new source"


@by_kind
def test_a_source_says_what_it_takes_and_needs(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = NAMED[kind]
    assert source.title
    assert source.forms
    for form in source.forms:
        assert source_of(form) is source
        assert [other.name for other in SOURCES if other.takes(form)] == [kind], "no two sources take the same"
    assert (source.install != "") == bool(source.packages)
    monkeypatch.setattr("edgepack.backends.registry.find_spec", lambda name: None)
    if source.packages:
        err = refused(source.forms[0], tmp_path)
        assert isinstance(err, UsageError)
        assert f"{source.title} need {', '.join(source.packages)}: not installed" in err.message
        assert err.hint == f"{source.install} {SOURCE}"


@pytest.mark.parametrize("command", ["build", "inspect"])
def test_the_help_names_what_can_be_given(command: str) -> None:
    said = " ".join(CliRunner().invoke(app, [command, "--help"]).stdout.split())
    for source in SOURCES:
        for form in source.forms:
            assert form in said


@by_kind
def test_a_kind_is_told_by_its_name(kind: str, sources: Openings) -> None:
    spec = sources[kind, FORMATS].spec
    assert source_of(spec) is NAMED[kind]
    for given, name in GIVEN[kind].names.items():
        assert source_of(given) is NAMED[kind]
        assert model_name(given) == name
    assert sources[kind, FORMATS].model.name == model_name(spec) == "tiny-mlp"
    assert sources[kind, FORMATS].model.kind == kind


@by_opening
def test_layers_are_found_in_graph_order(kind: str, formats: tuple[Format, ...], sources: Openings) -> None:
    layers = sources[kind, formats].model.layers
    assert [(layer.out_features, layer.in_features) for layer in layers] == list(SIDES)
    assert len({layer.name for layer in layers}) == len(layers)
    assert len({view.name for view in views_of(layers)}) == len(layers)
    for layer in layers:
        assert layer.kind in KINDS
        assert layer.uses == 1
        assert layer.bias is not None
        assert layer.bias.shape == (layer.out_features,)
        for array in (*layer.weights.values(), layer.bias):
            assert array.dtype == np.float32
            assert np.isfinite(array).all()


@by_opening
def test_layers_are_those_of_every_other_kind(
    kind: str, formats: tuple[Format, ...], sources: Openings, opened: Model
) -> None:
    for layer, other in zip(sources[kind, formats].model.layers, opened.layers, strict=True):
        np.testing.assert_array_equal(layer.weight, other.weight)
        assert layer.bias is not None
        assert other.bias is not None
        np.testing.assert_array_equal(layer.bias, other.bias)


@by_opening
def test_the_native_is_the_model(kind: str, formats: tuple[Format, ...], sources: Openings) -> None:
    model = sources[kind, formats].model
    own = NAMED[kind].native
    assert model.native == ("onnx" if "onnx" in formats and own == "torch" else own)
    session = native(model.native).session(model.content, {}, threads=1)
    assert session.inputs == model.inputs
    (spec,) = model.inputs
    assert (spec.name, spec.shape, spec.dtype) == ("pixels", (1, 64), np.float32)
    x = vectors(8, 3)
    found = predict(session, Samples({"pixels": x}))
    np.testing.assert_allclose(found, answers(model.layers, x), rtol=1e-4, atol=1e-5)


@by_opening
def test_files_are_there_in_the_formats_that_it_is_the_truth_in(
    kind: str, formats: tuple[Format, ...], sources: Openings
) -> None:
    model = sources[kind, formats].model
    assert set(model.files) == {model.native} & set(FORMATS)
    for fmt, path in model.files.items():
        session = backend(fmt).load(path)
        assert session.inputs == model.inputs
        x = vectors(8, 3)
        found = predict(session, Samples({"pixels": x}))
        np.testing.assert_allclose(found, answers(model.layers, x), rtol=1e-4, atol=1e-5)


@by_opening
def test_the_native_knows_every_layer(kind: str, formats: tuple[Format, ...], sources: Openings) -> None:
    model = sources[kind, formats].model
    names = [layer.name for layer in model.layers]
    assert set(native(model.native).observe(model.content, names, threads=1).keys) == set(names)
    assert native(model.native).depths(model.content, names) == {name: n for n, name in enumerate(names)}


@by_opening
def test_a_second_time_gives_the_same_model(
    kind: str, formats: tuple[Format, ...], sources: Openings, tmp_path: Path
) -> None:
    source = sources[kind, formats]
    again = open_model(source.spec, tmp_path, formats)
    assert again.sha256 == source.model.sha256
    assert len(again.sha256) == 64
    assert int(again.sha256, 16) > 0
    assert [layer.name for layer in again.layers] == [layer.name for layer in source.model.layers]
    for fmt, path in source.model.files.items():
        assert again.files[fmt].read_bytes() == path.read_bytes()
    assert content_of(again) == content_of(source.model)


@pytest.fixture(scope="module")
def other(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Model]:
    """Another recipe, of other weights: names and shapes are the same."""
    home = tmp_path_factory.mktemp("other")
    changed = home / recipe_file.name
    changed.write_text(recipe_file.read_text().replace("manual_seed(0)", "manual_seed(1)"))
    return changed, open_model(f"{changed}:recipe", tmp_path_factory.mktemp("other-work"))


@by_opening
def test_another_model_has_another_digest(
    kind: str, formats: tuple[Format, ...], sources: Openings, other: tuple[Path, Model], tmp_path: Path
) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    found = open_model(GIVEN[kind].place(home, other[0], other[1]), work, formats)
    assert found.sha256 != sources[kind, formats].model.sha256
    assert [layer.name for layer in found.layers] == [layer.name for layer in sources[kind, formats].model.layers]


@by_opening
def test_writing_changes_neither_the_model_nor_its_file(
    kind: str, formats: tuple[Format, ...], sources: Openings, tmp_path: Path
) -> None:
    model = sources[kind, formats].model
    before, stored = content_of(model), {fmt: path.read_bytes() for fmt, path in model.files.items()}
    weights = [layer.weight.copy() for layer in model.layers]
    data = WriterData(Samples({"pixels": vectors(8, 4)}), {"pixels": vectors(1, 5)}, 127)
    first = model.layers[0]
    parts = {first.name: low_rank(first.weight[:, :4].copy(), first.weight[:4].copy(), first.bias)}
    fmt: Format = "onnx" if "onnx" in model.files else "tflite"
    made = backend(fmt)
    with nullcontext() if model.native == fmt else made.engine() as engine:
        writer = made.open(model, data, engine, Workspace(Cache(tmp_path / "cache"), tmp_path))
        for scheme in DENSE_INT8[fmt]:
            writer.write(parts, FileScheme.of(scheme), tmp_path / "m")
            writer.write_baseline(scheme, tmp_path / "m")
    assert content_of(model) == before
    assert {fmt: path.read_bytes() for fmt, path in model.files.items()} == stored
    for layer, weight in zip(model.layers, weights, strict=True):
        np.testing.assert_array_equal(layer.weight, weight)


@by_opening
def test_only_the_working_folder_is_written(kind: str, formats: tuple[Format, ...], sources: Openings) -> None:
    source = sources[kind, formats]
    assert source.after == source.before
    made = {*source.model.files.values(), *filter(None, [source.model.program])}
    for path in made:
        assert path.parent == source.work or str(path) == source.spec
    assert set(held(source.work)) <= {path.name for path in made if path.parent == source.work}


@by_opening
def test_a_program_and_a_recipe_where_there_are_some(kind: str, formats: tuple[Format, ...], sources: Openings) -> None:
    model = sources[kind, formats].model
    assert (model.recipe is not None) == (kind == "recipe")
    assert (model.program is not None) == (NAMED[kind].native == "torch")
    if model.recipe is not None:
        assert not model.recipe.model.training
        assert len(model.recipe.example_inputs) == len(model.inputs)


@by_kind
def test_a_missing_file_is_named(kind: str, sources: Openings, tmp_path: Path) -> None:
    spec = sources[kind, FORMATS].spec.replace("tiny_mlp", "no_such_mlp")
    assert source_of(spec) is NAMED[kind]
    err = refused(spec, tmp_path)
    assert isinstance(err, ModelError)
    assert "no_such_mlp" in err.message
    assert err.hint


@by_kind
def test_a_text_of_that_name_is_no_model(kind: str, sources: Openings, tmp_path: Path) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    file = home / Path(sources[kind, FORMATS].spec.split(":")[0]).name
    file.write_text("this is a text, and no model\n" * 50)
    spec = sources[kind, FORMATS].spec.replace(str(sources[kind, FORMATS].home), str(home))
    err = refused(spec, work)
    assert isinstance(err, ModelError)
    assert file.name in err.message
    assert err.hint


@files
@pytest.mark.parametrize("share", [0.0, 0.2, 0.7, 0.97])
def test_a_truncated_file_is_no_model(kind: str, share: float, sources: Openings, tmp_path: Path) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    content = Path(sources[kind, FORMATS].spec).read_bytes()
    cut = home / Path(sources[kind, FORMATS].spec).name
    cut.write_bytes(content[: int(share * len(content))])
    err = refused(str(cut), work)
    assert isinstance(err, ModelError)
    assert cut.name in err.message
    assert err.hint


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("nothing", "functions there: broken, recipe, with_argument, wrong"),
        ("with_argument", "needs the arguments size"),
        ("wrong", "returned Model, a Recipe was expected"),
        ("broken", "RuntimeError at .*tiny_mlp.py:[0-9]+: the weights are not here"),
        ("Model", "returned Model, a Recipe was expected"),
    ],
)
def test_a_wrong_function_is_explained(function: str, said: str, sources: Openings, tmp_path: Path) -> None:
    err = refused(sources["recipe", FORMATS].spec.replace(":recipe", f":{function}"), tmp_path)
    assert isinstance(err, ModelError)
    assert err.hint
    with pytest.raises(ModelError, match=said):
        raise err


@pytest.mark.parametrize("spec", ["model.caffe", "model", "file.py", "file.py:", ":f", "file.py:not a name", ""])
def test_what_is_no_kind_of_model_is_a_usage_error(spec: str, tmp_path: Path) -> None:
    err = refused(spec, tmp_path)
    assert isinstance(err, UsageError)
    assert repr(spec) in err.message
    for source in SOURCES:
        assert all(form in err.message for form in source.forms)
        if spec != "file.py":  # a file of a known kind is told its one step alone
            assert source.advice is None or source.advice in (err.hint or "")


@by_kind
def test_the_command_line_exits_as_documented(kind: str, sources: Openings) -> None:
    missing = sources[kind, FORMATS].spec.replace("tiny_mlp", "no_such_mlp")
    found = CliRunner().invoke(app, ["inspect", missing])
    assert found.exit_code == InputError.exit_code == 3
    assert "no_such_mlp" in found.stderr
    found = CliRunner().invoke(app, ["inspect", str(Path(missing).with_name("weights.caffe"))])
    assert found.exit_code == UsageError.exit_code == 2, found.output
    found = CliRunner().invoke(app, ["inspect", sources[kind, FORMATS].spec])
    assert found.exit_code == 0, found.stderr
    assert all(layer.name in found.stdout for layer in sources[kind, FORMATS].model.layers)
