from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgepack.emit.tflite import TfliteEmitter


@pytest.fixture(scope="session")
def emitter() -> Iterator[TfliteEmitter]:
    """One converter process for all tests: its imports take seconds."""
    with TfliteEmitter() as made:
        made.warm_up()
        yield made
