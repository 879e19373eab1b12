"""A small TCP relay on a loopback port that does to a connection what networks do: delays, stalls, cuts, resets."""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_CHUNK = 1 << 15


class Relay:
    """Forwards what connects to `port` to where `dial` connects to.

    Attributes:
        up, down: bytes forwarded so far, to the device and from it.
        connections: accepted so far.
        delay_s: before every forwarded piece.
    """

    def __init__(self, dial: Callable[[], socket.socket]) -> None:
        self._dial = dial
        self._lock = threading.Lock()
        self._live: dict[int, _Flags] = {}
        self._threads: list[threading.Thread] = []
        self._stalled = False
        self._left: int | None = None
        self._listener: socket.socket | None = None
        self.up = self.down = self.connections = 0
        self.delay_s = 0.0
        self.port = 0
        self.open()

    def open(self) -> None:
        """Takes connections (again)."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(64)
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._start(self._accept, listener)

    def refuse(self) -> None:
        """Nothing listens from now on; connections that are there stay."""
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts, which closes it
            self._listener = None

    def stall(self) -> None:
        """Forwards nothing from now on, and takes connections all the same."""
        self._stalled = True
        self._wake()

    def resume(self) -> None:
        """Forwards again, also what was held back."""
        self._stalled = False
        self._wake()

    def reset(self) -> None:
        """Ends all connections, both ends of each, with a reset."""
        self._wake(reset=True)

    def cut_after(self, count: int) -> None:
        """Resets all connections when `count` more bytes have gone to the device; new ones work as before."""
        with self._lock:
            self._left = count

    @property
    def cut(self) -> bool:
        """Whether what `cut_after` asked for has happened."""
        return self._left is None

    @property
    def live(self) -> int:
        """How many connections there are now."""
        return len(self._live)

    def close(self) -> None:
        """Ends everything."""
        self.refuse()
        self.reset()
        for thread in self._threads:
            thread.join(10.0)

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _wake(self, *, reset: bool = False) -> None:
        with self._lock:
            for flags in self._live.values():
                flags.reset |= reset
                os.eventfd_write(flags.event, 1)

    def _accept(self, listener: socket.socket) -> None:
        with listener:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                flags = _Flags()
                with self._lock:  # whoever sees the count can reset the connection
                    self._live[flags.event] = flags
                    self.connections += 1
                self._start(self._serve, client, flags)

    def _serve(self, client: socket.socket, flags: _Flags) -> None:
        try:
            with client:
                try:
                    server = self._dial()
                except OSError:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                    return
                with server:
                    try:
                        self._forward(client, server, flags)
                    except OSError:
                        flags.reset = True  # what became of one end becomes of the other
                    if flags.reset:
                        for end in (client, server):
                            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        finally:
            with self._lock:
                del self._live[flags.event]
                os.close(flags.event)

    def _forward(self, client: socket.socket, server: socket.socket, flags: _Flags) -> None:
        other = {client: server, server: client}
        waiting = {client: b"", server: b""}  # what is to be sent to each
        ended: set[socket.socket] = set()
        for end in other:
            end.setblocking(False)
        while len(ended) < 2 or any(waiting.values()):
            moving = [] if self._stalled else list(other)
            readers = [end for end in moving if end not in ended and not waiting[other[end]]]
            writers = [end for end in moving if waiting[end]]
            readable, writable, _ = select.select([flags.event, *readers], writers, [])
            if flags.event in readable:
                os.eventfd_read(flags.event)
                if flags.reset:
                    return
                continue
            for end in readable:
                data = end.recv(_CHUNK)
                if data:
                    time.sleep(self.delay_s)
                    waiting[other[end]] = self._count(data, upwards=end is client)
                else:
                    ended.add(end)
                    other[end].shutdown(socket.SHUT_WR)
            for end in writable:
                waiting[end] = waiting[end][end.send(waiting[end]) :]

    def _count(self, data: bytes, *, upwards: bool) -> bytes:
        with self._lock:
            if not upwards:
                self.down += len(data)
                return data
            if self._left is not None and len(data) >= self._left:
                data = data[: self._left]
                self._left = None
                for flags in self._live.values():
                    flags.reset = True
                    os.eventfd_write(flags.event, 1)
            elif self._left is not None:
                self._left -= len(data)
            self.up += len(data)
            return data


class _Flags:
    """What a connection's thread is told; `event` wakes it."""

    def __init__(self) -> None:
        self.event = os.eventfd(0, os.EFD_NONBLOCK)
        self.reset = False
