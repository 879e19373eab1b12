"""Networks of their own for the devices of the tests: namespaces that live as long as the process that holds them."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import threading

_CLONE_NEWNET = 0x40000000
_WIRE = "wire0"


def connect(pid: int, host: str, port: int) -> socket.socket:
    """A TCP connection made in the network of process `pid`.

    Raises:
        OSError: nothing listens there, or the process is gone.
    """
    made: list[socket.socket | OSError] = []

    # A socket belongs to the network of the thread that made it, so a thread of its own goes there.
    def dial() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            there = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                if libc.setns(there, _CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            finally:
                os.close(there)
            made.append(socket.create_connection((host, port), timeout=20.0))
        except OSError as err:
            made.append(err)

    thread = threading.Thread(target=dial)
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise made[0]
    return made[0]


def join(first: int, second: int) -> tuple[str, str]:
    """Lays a cable between the networks of two processes; the address of each. It goes when either of them does."""
    addresses = ("192.0.2.1", "192.0.2.2")
    inside(first, "ip", "link", "add", _WIRE, "type", "veth", "peer", "name", _WIRE, "netns", str(second))
    for pid, address in zip((first, second), addresses, strict=True):
        inside(pid, "ip", "addr", "add", f"{address}/30", "dev", _WIRE)
        inside(pid, "ip", "link", "set", _WIRE, "up")
    return addresses


def slow(pid: int, rate: str) -> None:
    """What process `pid` sends over its cable goes no faster than `rate`, in tc's words: `2mbit`."""
    shape = ("rate", rate, "burst", "16k", "latency", "400ms")
    inside(pid, "tc", "qdisc", "replace", "dev", _WIRE, "root", "tbf", *shape)


def plug(pid: int, state: str) -> None:
    """Takes the cable of process `pid` `down`, or brings it `up`."""
    inside(pid, "ip", "link", "set", _WIRE, state)


def inside(pid: int, *command: str) -> None:
    """Runs a command in the network of process `pid`."""
    subprocess.run(["nsenter", "-t", str(pid), "-n", "--", *command], check=True, capture_output=True, timeout=60)
