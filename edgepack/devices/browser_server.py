"""The server of the browser's page: hands it jobs and model files, and takes what it reports.

Everything lies below a token of one session, in the address that the user opens; who does not know it gets nothing.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.errors import StableDeviceError
from edgepack.listen import LOOPBACK, address_of, asked_for, listening, needs
from edgepack.workspace import shipped

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm", ".html": "text/html"}
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Both together make a page cross-origin isolated, where its address is one that browsers trust: only then may it
    # have threads, and a finer clock.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    # The glue of the runtimes makes functions of text; nothing is asked of anybody else.
    "Content-Security-Policy": "default-src 'self' blob: data: 'unsafe-inline' 'unsafe-eval'",
}
HELLO_BYTES, REPORT_BYTES = 4096, 64 << 20
POLL_S, LOOK_S = 20.0, 0.05
"""How long a page waits for a job before it asks again, and how often the server looks."""
FAREWELL_S = 3.0
"""A page that waits hears within it that it is done."""


@dataclass
class Desk:
    """What passes between the session's thread and the server's. Every field is under the lock.

    Attributes:
        hello: what the page that has the jobs said of itself, as it came.
        page: its number; an older page has none.
        job: that waits for the page, or is with it; None between jobs.
        report: of that job, as it came.
        taken: whether the page has the job.
        end: what the page is told when there are no more jobs.
        models: by number, the contents of the files that a page may have.
    """

    changed: threading.Condition = field(default_factory=threading.Condition)
    hello: bytes | None = None
    page: int = 0
    job: dict[str, Any] | None = None
    report: bytes | None = None
    taken: bool = False
    end: str | None = None
    told: bool = False
    models: list[bytes] = field(default_factory=list)


def require_page() -> Mapping[str, str]:
    """The versions of the runtimes that the page has.

    Raises:
        StableDeviceError: they were not fetched.
    """
    try:
        found: Mapping[str, str] = json.loads((page_folder() / "vendor" / "versions.json").read_text(encoding="utf-8"))
    except FileNotFoundError as err:
        raise StableDeviceError(
            "the runtimes that a browser runs are not here", hint="in a checkout: make vendor; a wheel has them"
        ) from err
    return found


class BrowserServer:
    """Serves the page from a thread of its own until it is closed.

    Args:
        lan: whether others in the network may reach it, which need the token; else this machine alone.

    Raises:
        UsageError: it cannot listen, or a package of the extra is missing.
    """

    def __init__(self, *, lan: bool) -> None:
        try:
            import uvicorn
        except ImportError as err:
            raise needs(err, "edgepack bench --browser") from err
        self.desk = Desk()
        self.token = secrets.token_urlsafe(16)
        self._listener = listening("0.0.0.0" if lan else "127.0.0.1", 0)
        application = make_application(self.desk, self.token)
        config = uvicorn.Config(application, log_level="warning", lifespan="off", ws="none", timeout_keep_alive=30)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._listener]}, name="browser-server", daemon=True
        )
        self._thread.start()
        address = address_of(self._listener)
        self.address = (address.replace("0.0.0.0", lan_address()) if lan else address) + self.token + "/"

    def close(self, end: str) -> None:
        """Tells the page that this is the end, and stops."""
        desk = self.desk
        with desk.changed:
            desk.end = end
            desk.changed.wait_for(lambda: desk.told or desk.hello is None, FAREWELL_S)
        time.sleep(2 * LOOK_S)  # the answer is on its way
        self._server.should_exit = True
        self._thread.join(FAREWELL_S)
        self._server.force_exit = True
        self._thread.join(FAREWELL_S)
        self._listener.close()


def lan_address() -> str:
    """This machine's address in its network: the one that it would send from. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def make_application(desk: Desk, token: str) -> Starlette:
    """The routes below the token.

    Raises:
        UsageError: a package of the extra is missing.
    """
    try:
        from starlette.applications import Starlette
        from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
        from starlette.routing import Route
    except ImportError as err:
        raise needs(err, "edgepack bench --browser") from err

    nothing = Response(status_code=404, headers=HEADERS)

    def guarded(answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def handler(request: Request) -> Response:
            given = request.path_params["token"]
            known = secrets.compare_digest(given.encode(), token.encode())
            return await answer(request) if known and asked_for(request, LOOPBACK) else nothing

        return handler

    def file(path: Path) -> Response:
        return FileResponse(path, headers=HEADERS, media_type=TYPES.get(path.suffix, "application/octet-stream"))

    async def page(_: Request) -> Response:
        return file(page_folder() / "index.html")

    async def frame(_: Request) -> Response:
        return file(page_folder() / "frame.html")

    async def page_file(request: Request) -> Response:
        path = page_files().get(request.path_params["name"])
        return nothing if path is None else file(path)

    async def model(request: Request) -> Response:
        number = request.path_params["number"]
        with desk.changed:
            content = desk.models[number] if number < len(desk.models) else None
        return nothing if content is None else Response(content, 200, HEADERS, "application/octet-stream")

    async def hello(request: Request) -> Response:
        body = await bounded_body(request, HELLO_BYTES)
        if body is None:
            return PlainTextResponse("too large\n", 413, HEADERS)
        with desk.changed:
            desk.hello, desk.page = body, desk.page + 1
            desk.changed.notify_all()
            return JSONResponse({"page": desk.page}, headers=HEADERS)

    async def job(request: Request) -> Response:
        asked = request.query_params.get("page", "")
        until = time.monotonic() + POLL_S
        while time.monotonic() < until:
            with desk.changed:
                if asked != str(desk.page):
                    return PlainTextResponse("another page has taken over", 409, HEADERS)
                if desk.end is not None:
                    desk.told = True
                    desk.changed.notify_all()
                    return JSONResponse({"end": desk.end}, headers=HEADERS)
                if desk.job is not None and desk.report is None:
                    desk.taken = True
                    return JSONResponse(desk.job, headers=HEADERS)
            await asyncio.sleep(LOOK_S)
        return Response(status_code=204, headers=HEADERS)

    async def report(request: Request) -> Response:
        body = await bounded_body(request, REPORT_BYTES)
        if body is None:
            return PlainTextResponse("too large\n", 413, HEADERS)
        with desk.changed:
            if desk.job is None or desk.job["number"] != request.path_params["number"] or desk.report is not None:
                return PlainTextResponse("nobody waits for it\n", 409, HEADERS)
            desk.report = body
            desk.changed.notify_all()
        return Response(status_code=204, headers=HEADERS)

    below = "/{token}/"
    return Starlette(
        routes=[
            Route(below, guarded(page)),
            Route(below + "frame", guarded(frame)),
            Route(below + "file/{name:path}", guarded(page_file)),
            Route(below + "model/{number:int}", guarded(model)),
            Route(below + "hello", guarded(hello), methods=["POST"]),
            Route(below + "job", guarded(job)),
            Route(below + "report/{number:int}", guarded(report), methods=["POST"]),
        ]
    )


@cache
def page_files() -> Mapping[str, Path]:
    """What the page may load, by name: a list, so that no name leads out of the folder."""
    folder = page_folder()
    scripts = {path.name: path for path in folder.glob("*.js")}
    return scripts | {f"vendor/{path.name}": path for path in folder.glob("vendor/*") if path.suffix in TYPES}


def page_folder() -> Path:
    """Where the page lies; the runtimes that it loads are in `vendor/` there."""
    return shipped("runtimes/browser/index.html").parent


async def bounded_body(request: Request, most: int) -> bytes | None:
    """What was posted; None where it is more than this many bytes, of which no more is read then."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            return None
        parts.append(part)
    return b"".join(parts)
