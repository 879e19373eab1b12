"""A served folder while a test looks at it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from edgepack.listen import address_of, listening
from edgepack.report.serve import Served, application


@contextmanager
def served_at(served: Served) -> Iterator[str]:
    """The address of a real server, in a thread."""
    server = uvicorn.Server(uvicorn.Config(application(served), log_level="warning", lifespan="off", ws="none"))
    with listening("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        try:
            yield address_of(listener)
        finally:
            server.should_exit = True
            thread.join()
