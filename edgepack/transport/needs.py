"""The libraries behind the codecs, or the words that say how to get them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from edgepack.errors import UsageError


def need(library: str) -> Any:
    """The module of this name.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return import_module(library)
    except ImportError as err:
        raise UsageError(
            f"compressed model files need {library}", hint="install it with: pip install 'edgepack[transport]'"
        ) from err


def need_all() -> None:
    """Check before long work that every library is there.

    Raises:
        UsageError: one is not installed.
    """
    for library in ("zstandard", "constriction"):
        need(library)
