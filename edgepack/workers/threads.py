"""BLAS held to one thread: how it splits a product over threads decides in which order it adds.

`eigh`, `qr` and float32 products differ in the last bits between one thread and two, so a result would depend on the
cores of the machine that happened to compute it. With one thread each, work is spread over processes instead.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController


class _Pin:
    """The limit belongs to the process, not to a thread: the first to need it sets it, the last to leave lifts it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.limit: Any = None

    def hold(self) -> None:
        with self.lock:
            if self.users == 0:
                self.limit = _controller().limit(limits=1, user_api="blas")
            self.users += 1

    def release(self) -> None:
        with self.lock:
            self.users -= 1
            if self.users == 0:
                self.limit.restore_original_limits()


_PIN = _Pin()


@functools.cache
def _controller() -> ThreadpoolController:
    # A library can be held only once it is loaded: numpy and scipy each bring a BLAS of their own.
    import scipy.linalg  # noqa: F401
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


@contextmanager
def one_thread() -> Iterator[None]:
    """BLAS calls of this process use one thread each while the block runs, in whatever thread it runs.

    Apple's Accelerate takes no such limit.
    """
    _PIN.hold()
    try:
        yield
    finally:
        _PIN.release()
