"""`edgepack serve`: the page of all packs in a folder, over HTTP, which follows the folder while it is looked at."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.errors import PackError
from edgepack.listen import LOOPBACK, asked_for, needs
from edgepack.pack.folder import MANIFEST, RESULTS
from edgepack.report.comparison import Compared, compare_packs, comparison_report
from edgepack.report.render import html
from edgepack.report.report import Report

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

MOST = 200
"""Packs on one page."""
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


@dataclass(frozen=True)
class Served:
    """A folder with packs in it, or one that is a pack itself."""

    folder: Path
    targets_file: Path | None = None

    @property
    def packs(self) -> list[Path]:
        """By name."""
        if (self.folder / MANIFEST).is_file():
            return [self.folder]
        return sorted(path.parent for path in self.folder.glob(f"*/{MANIFEST}"))[:MOST]

    @property
    def state(self) -> str:
        """Another one whenever a pack or a result was written."""
        found = hashlib.sha256()
        for pack in self.packs:
            for path in (pack / MANIFEST, *sorted((pack / RESULTS).glob("*.json"))):
                try:
                    stat = path.stat()
                except FileNotFoundError:  # it is being replaced: the next look sees it
                    continue
                found.update(f"{path} {stat.st_mtime_ns} {stat.st_size}\n".encode())
        return found.hexdigest()[:16]

    def report(self) -> Report:
        """As `edgepack compare` has it; a pack that cannot be read is a warning."""
        every, warnings = Compared((), ()), []
        for pack in self.packs:
            try:
                one = compare_packs([pack], self.targets_file)
            except PackError as err:
                warnings.append(f"left out: {err.message}")
                continue
            every = Compared(
                every.rows + one.rows,
                every.emulated + one.emulated,
                every.unmeasured + one.unmeasured,
                every.sources + one.sources,
            )
        count = len(every.sources)
        title = f"{self.folder.resolve().name}: {count} pack{'' if count == 1 else 's'}"
        if not every.sources:
            return Report((title, "the page shows them as soon as there are some"), warnings=tuple(warnings))
        shown = comparison_report(every.rows, every.emulated, every.unmeasured, every.sources)
        return replace(shown, title=(title,), warnings=tuple(warnings))

    def page(self) -> str:
        """The page as of now; made anew only when something changed."""
        return _page(self, self.state)


@lru_cache(maxsize=1)
def _page(served: Served, state: str) -> str:
    return html.render(replace(served.report(), command=f"edgepack serve {served.folder}"), live=state)


def application(served: Served, names: tuple[str, ...] = LOOPBACK) -> Starlette:
    """The page at `/`, and at `/state` what changes with it.

    Args:
        served: what is shown.
        names: that a browser may call this machine by, beside the address that it reached: a page of somebody else's
            whose name was made to lead here is refused.

    Raises:
        UsageError: a package of the extra is missing.
    """
    try:
        from starlette.applications import Starlette
        from starlette.responses import HTMLResponse, PlainTextResponse
        from starlette.routing import Route
    except ImportError as err:
        raise needs(err, "edgepack serve") from err

    def guarded(answer: Callable[[], Response]) -> Callable[[Request], Response]:
        def handler(request: Request) -> Response:
            if not asked_for(request, names):
                return PlainTextResponse("this host is not served here\n", 421, HEADERS)
            return answer()

        return handler

    page = guarded(lambda: HTMLResponse(served.page(), headers=HEADERS))
    state = guarded(lambda: PlainTextResponse(served.state, headers=HEADERS))
    return Starlette(routes=[Route("/", page), Route("/state", state)])


def serve_until_interrupted(served: Served, listener: socket.socket) -> None:
    """Answers until it is interrupted.

    Raises:
        UsageError: a package of the extra is missing.
    """
    try:
        import uvicorn
    except ImportError as err:
        raise needs(err, "edgepack serve") from err
    names = (*LOOPBACK, socket.gethostname().lower())
    config = uvicorn.Config(application(served, names), log_level="warning", lifespan="off", ws="none")
    uvicorn.Server(config).run(sockets=[listener])
