"""The pages that show figures: README.md and bench/RESULTS.md. A block stands in one of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blocks import block_names, render, replace_block
from figures_file import TOP, write

README = TOP / "README.md"
RESULTS_PAGE = TOP / "bench" / "RESULTS.md"
PAGES = (README, RESULTS_PAGE)


def put_block(stored: Mapping[str, Any]) -> None:
    """Write a block anew, from stored figures, into the page that holds it.

    Raises:
        ValueError: no page opens a block of that name, or one holds more than one.
    """
    name = stored["name"]
    page = next((each for each in PAGES if name in block_names(each.read_text())), RESULTS_PAGE)
    write(page, replace_block(page.read_text(), name, render(stored)))
