"""Methods that a program registers: known here and in the processes that work for it, or refused at once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import edgepack as ep
from edgepack.errors import UsageError
from edgepack.methods import registered
from edgepack.methods.registry import compress, factorizer, method_version
from edgepack.workers import map_tasks, tasks
from edgepack.workers.local import LocalProcesses
from tests.factorize.layers import layer, weight
from tests.methods.test_plugins import PLUGIN

SIGNS = '''
import numpy as np
from edgepack.model.constexpr import Writer


def signs(layer, share, *, seed=0, gradient=None):
    """Every weight as its sign."""
    w = Writer()
    codes = w.constant("signs", np.sign(layer.weight).astype(np.int8))
    return w.decoded(w.step("cast", codes, to="float32"), layer.bias)


class Rows:
    def __call__(self, layer, share, *, seed=0, gradient=None):
        return "it stays"


rows, nothing, alias = Rows(), 3, signs
'''


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of a user's own modules, where `import` finds them."""
    (tmp_path / "my_signs.py").write_text(SIGNS)
    (tmp_path / "my_rows.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registered, "_places", {})
    monkeypatch.setattr(tasks, "_preparations", {})
    yield tmp_path
    for name in ("my_signs", "my_rows"):
        sys.modules.pop(name, None)


def test_by_its_place_as_an_object_and_as_a_module(modules: Path) -> None:
    import my_rows
    import my_signs

    given = layer(weight(6, 8, 0))
    for name, method in (("by-place", "my_signs:signs"), ("by-object", my_signs.signs)):
        ep.register_method(name, method)
        part = compress(name, given, 0.5)
        np.testing.assert_allclose(np.abs(part.weight), np.abs(part.weight).max(), rtol=0.02)
    ep.register_method("an-instance", my_signs.rows)
    assert compress("an-instance", given, 0.5) == "it stays"
    ep.register_method("a-module", my_rows)
    assert factorizer("a-module") is my_rows


def test_worker_processes_know_it(modules: Path) -> None:
    ep.register_method("signs", "my_signs:signs")
    given = [layer(weight(6, 8, seed)) for seed in range(4)]
    workers = LocalProcesses(2)
    try:
        done = dict(map_tasks(workers, compress, [("signs", one, 0.5) for one in given], [1e13] * 4))
        assert workers.processes, "nothing was sent"
    finally:
        workers.stop()
    for index, one in enumerate(given):
        np.testing.assert_array_equal(done[index].weight, compress("signs", one, 0.5).weight)


def test_another_source_is_another_version(modules: Path) -> None:
    ep.register_method("signs", "my_signs:signs")
    before = method_version("signs")
    assert method_version("signs") == before
    (modules / "my_signs.py").write_text(f"{SIGNS}\n# changed\n")
    assert method_version("signs") != before


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("my_signs:sings", r"my_signs:sings cannot be imported: module 'my_signs' has no attribute 'sings'"),
        ("my_sings:signs", r"my_sings:signs cannot be imported: No module named 'my_sings'"),
        ("my_signs:nothing", r"my_signs:nothing is int, expected a function, or an object with spectrum and factors"),
        ("__main__:signs", "is defined in the script or notebook itself, where worker processes cannot find it"),
        (lambda layer, share: "no", "is defined in another function"),
        (object(), "where this object is found is not known"),
    ],
)
def test_what_others_could_not_import_is_refused(modules: Path, method: object, says: str) -> None:
    with pytest.raises(UsageError, match=says) as err:
        ep.register_method("signs", method)  # type: ignore[arg-type]
    assert err.value.hint
    assert registered.names() == ()


def test_a_module_off_the_path_is_refused(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import my_signs

    monkeypatch.setattr(sys, "path", [one for one in sys.path if one != str(modules)])
    with pytest.raises(UsageError, match=r"cannot find my_signs, which is not on sys.path"):
        ep.register_method("signs", my_signs.signs)


@pytest.mark.parametrize("name", ["svd", "kmeans", "auto"])
def test_a_built_in_method_stays(modules: Path, name: str) -> None:
    with pytest.raises(UsageError, match=f"there is a method '{name}' already"):
        ep.register_method(name, "my_signs:signs")


def test_it_is_named_among_the_known(modules: Path) -> None:
    ep.register_method("signs", "my_signs:signs")
    with pytest.raises(UsageError, match=r"unknown method 'sing'; there are .*, signs"):
        factorizer("sing")
