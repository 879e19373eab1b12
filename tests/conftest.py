"""What holds for the whole suite: a cache of its own, no deadlines on shared machines, and no silent skips in CI."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from edgepack.backends.tflite.converter import ConverterProcess, TfliteEmitter

REQUIRE_ALL = "EDGEPACK_REQUIRE_ALL"

# Where a change is judged the same examples are drawn each time; `make test` looks for new ones.
settings.register_profile("edgepack", deadline=None, derandomize=REQUIRE_ALL in os.environ)
settings.load_profile("edgepack")


WAITING, WORKING = ("devices", "workers"), ("e2e",)
"""Folders whose files take longest: of those that mostly wait, and of those that work."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Workers take file after file in this order: the longest first, so that none is left for the end, and one that
    waits beside one that works."""
    turns: dict[Path, int] = {}
    for folders in (WAITING, WORKING):
        files = dict.fromkeys(item.path for item in items if item.path.parent.name in folders)
        turns |= {path: turn for turn, path in enumerate(files)}
    items.sort(key=lambda item: turns.get(item.path, len(turns)))


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test reads or writes the cache of the user; subprocesses inherit the variable."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEPACK_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def emulator(cache_folder: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed aarch64 emulator in the tests' cache; downloaded once per checkout, kept beside pytest's own cache,
    and tried out once per run.

    Tests that use it carry the mark `system`.
    """
    from edgepack.emulator.install import install
    from edgepack.errors import DeviceError
    from tests.shared import shared_folder

    kept = Path(request.config.cache.mkdir("emulator"))  # type: ignore[union-attr]
    link = cache_folder / "emulator"
    (kept / "emulator").mkdir(exist_ok=True)
    if not link.exists():
        link.symlink_to(kept / "emulator", target_is_directory=True)
    try:
        shared_folder(tmp_path_factory, "emulator", lambda _: install("aarch64"))
    except DeviceError as err:
        pytest.skip(f"no emulator: {err.message}; {err.hint}")
    return link


@pytest.fixture(scope="session")
def onnx_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small classifier of 64 inputs. Read-only."""
    from tests.bench_models import write_mlp

    return write_mlp(tmp_path_factory.mktemp("models") / "mlp.onnx", [64, 48, 10])


@pytest.fixture(scope="session")
def tflite_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the like of it in fp32 and in int8. Read-only."""
    from tests.bench_models import write_tflite
    from tests.shared import shared_folder

    return shared_folder(tmp_path_factory, "tflite", write_tflite)


@pytest.fixture(scope="session")
def converter() -> Iterator[ConverterProcess]:
    """One converter process for all tests: its imports take seconds."""
    from edgepack.backends.tflite.converter import ConverterProcess

    process = ConverterProcess()
    yield process
    process.close()


@pytest.fixture(scope="session", autouse=True)
def shared_engine(converter: ConverterProcess) -> Iterator[None]:
    """Builds in this process ask it too; those of the command line each have their own."""
    from edgepack.backends.tflite.backend import TfliteBackend
    from edgepack.backends.tflite.converter import TfliteEmitter

    @contextmanager
    def engine(self: TfliteBackend) -> Iterator[TfliteEmitter]:
        with TfliteEmitter(converter) as made:
            made.warm_up()
            yield made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TfliteBackend, "engine", engine)
        yield


@pytest.fixture(scope="session")
def emitter(converter: ConverterProcess) -> Iterator[TfliteEmitter]:
    """What writes TFLite files."""
    from edgepack.backends.tflite.converter import TfliteEmitter

    with TfliteEmitter(converter) as made:
        made.warm_up()
        yield made


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skipped test marked `system` fails where everything is required; an expected failure is no skip."""
    report = yield
    expected = hasattr(report, "wasxfail")
    if report.skipped and not expected and item.get_closest_marker("system") and _require_all():
        report.outcome, report.longrepr = "failed", _complaint(report.longrepr)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A module that skips itself hides its tests and their marks, so it fails as well."""
    report = yield
    if report.skipped and _require_all():
        report.outcome, report.longrepr = "failed", _complaint(report.longrepr)
    return report


def _require_all() -> bool:
    return os.environ.get(REQUIRE_ALL) == "1"


def _complaint(skip: object) -> str:
    reason = skip[2] if isinstance(skip, tuple) else skip
    return f"skipped although {REQUIRE_ALL}=1 ({reason})"
