"""A small model, prepared once for the tests of planning."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgepack.pipeline.prepare import Prepared, prepared
from edgepack.workspace import Cache, silent
from tests.pipeline.small_builds import options, write_classifier


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, with its labelled data beside it. Read-only."""
    return write_classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="session")
def warm_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a cache that the tests share: what they ask for is computed once."""
    return tmp_path_factory.mktemp("warm")


@pytest.fixture(scope="session")
def ready(classifier: Path, warm_cache: Path) -> Iterator[Prepared]:
    """The model ready to be planned for a Raspberry Pi 4, whose emulated table knows its layers."""
    with prepared(options(classifier), Cache(warm_cache), silent) as made:
        yield made
