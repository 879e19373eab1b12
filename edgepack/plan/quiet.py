"""Keeps native code from writing to standard output, which belongs to the command line's answer."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LOCK = threading.Lock()


@contextmanager
def no_native_output() -> Iterator[None]:
    """Send what C and C++ code prints to descriptor 1 nowhere while the block runs; one block at a time.

    HiGHS 1.12 prints a line for every solution that it repairs, whatever its log level (ERGO-Code/HiGHS#2783).
    """
    with _LOCK:
        _flush()
        try:
            kept = os.dup(1)
        except OSError:  # the process has no standard output
            yield
            return
        sink = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(sink, 1)
            yield
        finally:
            _flush()
            os.dup2(kept, 1)
            os.close(kept)
            os.close(sink)


def _flush() -> None:
    """Write out what Python and the C library have buffered, so that it goes where it was meant to go."""
    if sys.stdout is not None and not sys.stdout.closed:
        sys.stdout.flush()
    if os.name == "posix":
        ctypes.CDLL(None).fflush(None)
