"""Builds packs without their warnings, whether they keep their limits or not."""

from __future__ import annotations

import warnings

from edgepack import BuildOptions
from edgepack.errors import BudgetError
from edgepack.pipeline.build import build
from edgepack.workspace import Cache


def keeps_limits(options: BuildOptions, cache: Cache | None = None) -> bool:
    """Build a pack; False where the build says that no plan keeps its limits. The best attempt is written then."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            build(options, cache=cache)
        except BudgetError:
            return False
    return True
