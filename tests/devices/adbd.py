"""A small device daemon that speaks adb's transport protocol over TCP, so that the real adb client has a device.

It does what adbd does for `adb shell` (protocol v2: exit codes, stdin, stderr apart) and `adb push/pull` (sync), with a
folder of this machine as the only place it lets files be written to. It is no phone: its shell is this machine's.

    with Adbd(folder) as daemon:
        subprocess.run(["adb", "connect", daemon.serial])

Faults are asked for with `daemon.fault = Fault("shell", "cut", after_bytes=100)` and happen once.
"""

from __future__ import annotations

import itertools
import os
import queue
import signal
import socket
import stat
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

FEATURES = ("shell_v2", "cmd", "stat_v2", "ls_v2", "fixed_push_mkdir")
VERSION, MAX_PAYLOAD = 0x01000001, 256 << 10
_HEADER = struct.Struct("<4sIIIII")
_STDIN, _STDOUT, _STDERR, _EXIT, _CLOSE_STDIN = range(5)


@dataclass(frozen=True)
class Fault:
    """What goes wrong on the first stream of a service that has carried so many bytes towards the device or back.

    `cut` closes the connection, `stall` leaves it open and silent, `garbage` sends what is no packet.
    """

    service: Literal["shell", "sync"]
    kind: Literal["cut", "stall", "garbage"]
    after_bytes: int = 0


class CutError(Exception):
    """The connection is no more."""


class Adbd:
    """A daemon on a loopback port of its own.

    Args:
        folder: where sync may write.
        features: as the banner names them.
        accepts: whether the host's key is accepted; otherwise the device stays unauthorized.
        path: PATH of the shell; by default this process's.
        space_bytes: what a file may have before the disk is full.
    """

    def __init__(
        self,
        folder: Path,
        *,
        features: tuple[str, ...] = FEATURES,
        accepts: bool = True,
        path: str | None = None,
        space_bytes: int | None = None,
    ) -> None:
        self.folder = folder
        self.features = features
        self.accepts = accepts
        self.environment = {"PATH": path or os.environ["PATH"], "HOME": str(folder)}
        self.space_bytes = space_bytes
        self.fault: Fault | None = None
        self.received_bytes = 0  # by sync
        self.commands: list[str] = []
        self._connections: list[Connection] = []
        self._port = 0
        self._listener: socket.socket | None = None

    def __enter__(self) -> Adbd:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def serial(self) -> str:
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listens, after a `stop` on the same port as before."""
        self._listener = socket.create_server(("127.0.0.1", self._port))
        self._port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def stop(self) -> None:
        """Closes the port and every connection, as a device whose cable is pulled."""
        if self._listener is not None:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        for connection in self._connections:
            connection.cut()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self._connections.append(Connection(self, client))
            threading.Thread(target=self._connections[-1].serve, daemon=True).start()


class Connection:
    """One host: packets in, packets out, and the streams that they belong to."""

    def __init__(self, daemon: Adbd, client: socket.socket) -> None:
        self.daemon = daemon
        self._socket = client
        self._lock = threading.Lock()
        self._streams: dict[int, Stream] = {}
        self._numbers = itertools.count(1)
        self._stalled = threading.Event()
        self.max_payload = 4096

    def serve(self) -> None:
        with suppress(CutError, OSError):
            while True:
                command, arg0, arg1, size, _, _ = _HEADER.unpack(self._exactly(_HEADER.size))
                payload = self._exactly(size)
                if not self._stalled.is_set():
                    self._handle(command, arg0, arg1, payload)
        self.cut()

    def send(self, command: bytes, arg0: int, arg1: int, payload: bytes = b"") -> None:
        if self._stalled.is_set():
            return
        number = int.from_bytes(command, "little")
        header = _HEADER.pack(command, arg0, arg1, len(payload), sum(payload) & 0xFFFFFFFF, number ^ 0xFFFFFFFF)
        with self._lock:
            try:
                self._socket.sendall(header + payload)
            except OSError as err:
                raise CutError from err

    def cut(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for stream in list(self._streams.values()):
            stream.close()

    def go_wrong(self, fault: Fault) -> None:
        if fault.kind == "stall":
            self._stalled.set()
        elif fault.kind == "garbage":
            with self._lock, suppress(OSError):
                self._socket.sendall(b"\x7f no packet of this protocol \x00" * 8)
        else:
            self.cut()
            raise CutError

    def forget(self, stream: Stream) -> None:
        if self._streams.pop(stream.here, None) is not None:
            with suppress(CutError):
                self.send(b"CLSE", stream.here, stream.there)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self._socket.recv(min(size - len(data), 1 << 20))
            if not more:
                raise CutError
            data += more
        return data

    def _handle(self, command: bytes, arg0: int, arg1: int, payload: bytes) -> None:
        if command == b"CNXN":
            self.max_payload = min(arg1, MAX_PAYLOAD)
            if self.daemon.accepts:
                facts = f"ro.product.name=small;ro.product.model=Small;features={','.join(self.daemon.features)}"
                self.send(b"CNXN", VERSION, MAX_PAYLOAD, f"device::{facts}".encode())
            else:
                self.send(b"AUTH", 1, 0, bytes(20))
        elif command == b"AUTH" and arg0 == 2:  # signed with a key that is not known here; then comes the public key
            self.send(b"AUTH", 1, 0, bytes(20))
        elif command == b"OPEN":
            self._open(arg0, payload.rstrip(b"\0").decode())
        elif arg1 in self._streams:
            stream = self._streams[arg1]
            if command == b"OKAY":
                stream.acknowledged.release()
            elif command == b"WRTE":
                stream.incoming.put(payload)
            elif command == b"CLSE":
                stream.close()

    def _open(self, there: int, service: str) -> None:
        kind, _, rest = service.partition(":")
        serve: Callable[[Stream, str], None] | None = {"sync": serve_sync, "shell": serve_shell}.get(kind.split(",")[0])
        if serve is None or (kind.startswith("shell") and "v2" not in kind.split(",")):
            self.send(b"CLSE", 0, there)
            return
        stream = Stream(self, next(self._numbers), there, kind.split(",")[0])
        self._streams[stream.here] = stream
        self.send(b"OKAY", stream.here, there)
        threading.Thread(target=stream.run, args=(serve, rest), daemon=True).start()


class Stream:
    """One service: bytes both ways, one packet in flight towards the host."""

    def __init__(self, connection: Connection, here: int, there: int, service: str) -> None:
        self.connection = connection
        self.here, self.there = here, there
        self.service = service
        self.incoming: queue.Queue[bytes | None] = queue.Queue()
        self.acknowledged = threading.Semaphore(0)
        self.closed = threading.Event()
        self.on_close: Callable[[], None] = lambda: None
        self._rest = b""
        self._carried = 0
        self._writing = threading.Lock()

    def run(self, serve: Callable[[Stream, str], None], argument: str) -> None:
        with suppress(CutError):
            serve(self, argument)
        self.connection.forget(self)
        self.closed.set()

    def close(self) -> None:
        self.closed.set()
        self.incoming.put(None)
        self.acknowledged.release()
        self.on_close()

    def read(self, size: int) -> bytes:
        """Exactly so many bytes."""
        while len(self._rest) < size:
            more = self.incoming.get()
            if more is None or self.closed.is_set():
                raise CutError
            self._carry(len(more))
            self._rest += more
            self.connection.send(b"OKAY", self.here, self.there)
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def write(self, data: bytes) -> None:
        most = self.connection.max_payload
        with self._writing:
            for start in range(0, len(data), most):
                chunk = data[start : start + most]
                self._carry(len(chunk))
                self.connection.send(b"WRTE", self.here, self.there, chunk)
                self.acknowledged.acquire()
                if self.closed.is_set():
                    raise CutError

    def _carry(self, size: int) -> None:
        self._carried += size
        fault = self.connection.daemon.fault
        if fault is not None and fault.service == self.service and self._carried > fault.after_bytes:
            self.connection.daemon.fault = None
            self.connection.go_wrong(fault)


# ---------------------------------------------------------------- shell


def serve_shell(stream: Stream, command: str) -> None:
    daemon = stream.connection.daemon
    daemon.commands.append(command)
    process = subprocess.Popen(
        # A shell cannot trap what it was started to ignore, as by nohup. The device's PATH may have no env.
        ["/usr/bin/env", "--default-signal=HUP", "/bin/sh", "-c", command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=daemon.environment,
        cwd=daemon.folder,
    )
    # As adbd: the shell is told that its terminal is gone; what it does about it is its own affair.
    stream.on_close = lambda: process.send_signal(signal.SIGHUP)
    feeder = threading.Thread(target=_feed, args=(stream, process), daemon=True)
    readers = [
        threading.Thread(target=_forward, args=(stream, process, kind), daemon=True) for kind in (_STDOUT, _STDERR)
    ]
    for thread in (feeder, *readers):
        thread.start()
    for thread in readers:
        thread.join()
    code = process.wait()
    stream.on_close = lambda: None
    if not stream.closed.is_set():
        stream.write(struct.pack("<BIB", _EXIT, 1, code if code >= 0 else 128 - code))


def _feed(stream: Stream, process: subprocess.Popen[bytes]) -> None:
    pipe = process.stdin
    with suppress(CutError, BrokenPipeError), pipe or nullcontext():
        while pipe is not None:
            kind, size = struct.unpack("<BI", stream.read(5))
            data = stream.read(size)
            if kind == _STDIN:
                pipe.write(data)
                pipe.flush()
            elif kind == _CLOSE_STDIN:
                pipe.close()


def _forward(stream: Stream, process: subprocess.Popen[bytes], kind: int) -> None:
    pipe = process.stdout if kind == _STDOUT else process.stderr
    with suppress(CutError), pipe or nullcontext():
        while pipe is not None and (chunk := os.read(pipe.fileno(), 32 << 10)):
            stream.write(struct.pack("<BI", kind, len(chunk)) + chunk)


# ---------------------------------------------------------------- sync


def serve_sync(stream: Stream, _: str) -> None:
    answers: Mapping[bytes, Callable[[Stream, bytes, str], None]] = {
        b"STAT": _stat_v1, b"STA2": _stat_v2, b"LST2": _stat_v2,
        b"LIST": _list, b"LIS2": _list, b"SEND": _receive, b"RECV": _give,
    }  # fmt: skip
    while True:
        request, size = struct.unpack("<4sI", stream.read(8))
        path = stream.read(size).decode()
        if request == b"QUIT":
            return
        answers[request](stream, request, path)


def _stat(path: str, follow: bool = False) -> os.stat_result | None:
    with suppress(OSError):
        return os.stat(path, follow_symlinks=follow)
    return None


def _stat_v1(stream: Stream, _: bytes, path: str) -> None:
    found = _stat(path)
    numbers = (found.st_mode, found.st_size, int(found.st_mtime)) if found else (0, 0, 0)
    stream.write(struct.pack("<4sIII", b"STAT", *numbers))


def _numbers(found: os.stat_result | None) -> tuple[int, ...]:
    """error, dev, ino, mode, nlink, uid, gid, size, atime, mtime, ctime, as the second version has them."""
    if found is None:
        return (2, *[0] * 10)
    times = (int(found.st_atime), int(found.st_mtime), int(found.st_ctime))
    owner = (found.st_nlink, found.st_uid, found.st_gid)
    return (0, found.st_dev, found.st_ino, found.st_mode, *owner, found.st_size, *times)


def _stat_v2(stream: Stream, request: bytes, path: str) -> None:
    stream.write(struct.pack("<4sIQQIIIIQqqq", request, *_numbers(_stat(path, request == b"STA2"))))


def _list(stream: Stream, request: bytes, path: str) -> None:
    second = request == b"LIS2"
    for name in [".", "..", *sorted(os.listdir(path))] if os.path.isdir(path) else []:
        found, raw = _stat(os.path.join(path, name)), name.encode()
        if second:
            stream.write(struct.pack("<4sIQQIIIIQqqqI", b"DNT2", *_numbers(found), len(raw)) + raw)
        elif found:
            numbers = (found.st_mode, found.st_size, int(found.st_mtime), len(raw))
            stream.write(struct.pack("<4sIIII", b"DENT", *numbers) + raw)
    stream.write(b"DONE" + bytes((76 if second else 20) - 4))


def _fail(stream: Stream, reason: str) -> None:
    stream.write(struct.pack("<4sI", b"FAIL", len(reason)) + reason.encode())


def _receive(stream: Stream, _: bytes, argument: str) -> None:
    """SEND: whatever goes wrong, the file is read to its end and removed, as adbd does."""
    daemon = stream.connection.daemon
    path, _comma, mode = argument.rpartition(",")
    reason, size = None, 0
    try:
        if not os.path.realpath(path).startswith(str(daemon.folder.resolve()) + os.sep):
            raise PermissionError
        os.makedirs(os.path.dirname(path), exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, stat.S_IMODE(int(mode)))
    except OSError:
        reason, file = "couldn't create file: Permission denied", os.open(os.devnull, os.O_WRONLY)
    whole = False
    try:
        while True:
            kind, number = struct.unpack("<4sI", stream.read(8))
            if kind == b"DONE":
                whole = reason is None
                break
            data = stream.read(number)
            daemon.received_bytes += len(data)
            size += len(data)
            if daemon.space_bytes is not None and size > daemon.space_bytes and reason is None:
                reason = "write failed: No space left on device"
            if reason is None:
                os.write(file, data)
    finally:
        os.close(file)
        if not whole:
            with suppress(OSError):
                os.unlink(path)
    if reason is None:
        stream.write(struct.pack("<4sI", b"OKAY", 0))
    else:
        _fail(stream, reason)


def _give(stream: Stream, _: bytes, path: str) -> None:
    try:
        with open(path, "rb") as file:
            while chunk := file.read(64 << 10):
                stream.write(struct.pack("<4sI", b"DATA", len(chunk)) + chunk)
    except OSError as err:
        _fail(stream, f"open failed: {err.strerror}")
        return
    stream.write(struct.pack("<4sI", b"DONE", 0))


# ---------------------------------------------------------------- a private adb server


@contextmanager
def private_server(home: Path) -> Iterator[str]:
    """The environment points adb at a server of its own, with keys of its own, for as long as the block lasts."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    ours = {"HOME": str(home), "ANDROID_ADB_SERVER_PORT": port}
    before = {name: os.environ.get(name) for name in (*ours, "ADB_SERVER_SOCKET", "ANDROID_SERIAL", "ADB_VENDOR_KEYS")}
    for name in before:
        os.environ.pop(name, None)
    os.environ.update(ours)
    try:
        yield port
    finally:
        subprocess.run(["adb", "kill-server"], capture_output=True, timeout=30, check=False)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
