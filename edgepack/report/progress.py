"""Where long work is, for people who look on: a line with a bar, in a terminal or in a notebook."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import Any

from edgepack.workspace import Progress, silent

REFRESH_S = 0.1


def in_notebook() -> bool:
    """Whether cells of a notebook run in this process."""
    shell = sys.modules.get("IPython")
    return shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"


@contextmanager
def shown_progress(titles: Sequence[str] = ("",)) -> Iterator[Mapping[str, Progress]]:
    """A line for each of several things at once, by its title: on stderr where that is a terminal, as a widget in a
    notebook, nowhere else."""
    if in_notebook():
        with ExitStack() as stack:
            yield {title: _cell_bar(title, stack) for title in titles}
    elif sys.stderr.isatty():
        with terminal_bars(titles) as bars:
            yield bars
    else:
        yield dict.fromkeys(titles, silent)


@contextmanager
def terminal_bars(titles: Sequence[str]) -> Iterator[Mapping[str, Progress]]:
    """The same on stderr, whatever that is."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:

        def line(title: str) -> Progress:
            task = bar.add_task(title or "start", total=None)

            def update(stage: str, done: int = 0, total: int = 0) -> None:
                bar.update(task, description=_said(title, stage), completed=done, total=total or None)

            return update

        yield {title: line(title) for title in titles}


def _cell_bar(title: str, stack: ExitStack) -> Progress:
    """A widget where ipywidgets is installed, else a line; written anew for a new stage, else ten times a second."""
    try:
        if find_spec("ipywidgets") is None:
            from tqdm.std import tqdm
        else:
            from tqdm.notebook import tqdm
    except ImportError:
        return silent
    bar: Any = stack.enter_context(tqdm(total=None, leave=False))
    shown_stage, shown_s = "", 0.0

    def update(stage: str, done: int = 0, total: int = 0) -> None:
        nonlocal shown_stage, shown_s
        bar.total, bar.n = total or None, done
        if stage != shown_stage or time.monotonic() - shown_s > REFRESH_S:
            shown_stage, shown_s = stage, time.monotonic()
            bar.set_description_str(_said(title, stage), refresh=True)

    return update


def _said(title: str, stage: str) -> str:
    return f"{title}: {stage}" if title else stage
