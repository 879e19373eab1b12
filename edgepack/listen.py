"""Where this machine listens for browsers, and whether a browser meant to come here."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from edgepack.errors import UsageError, install_hint

if TYPE_CHECKING:
    from starlette.requests import Request

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def listening(address: str, port: int) -> socket.socket:
    """A socket that listens there; any free one where `port` is 0.

    Raises:
        UsageError: it cannot.
    """
    try:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return socket.create_server((address, port), family=family)
    except OSError as err:
        hint = "give another --port, or --port 0 for any that is free; --bind takes an address of this machine"
        raise UsageError(f"cannot listen at {address} port {port}: {err.strerror or err}", hint=hint) from err


def address_of(listener: socket.socket) -> str:
    """Where a browser finds it."""
    address, port = listener.getsockname()[:2]
    return f"http://{f'[{address}]' if ':' in address else address}:{port}/"


def asked_for(request: Request, names: Sequence[str] = LOOPBACK) -> bool:
    """Whether a request names this machine as one of these, or by the address that it reached: a page of somebody
    else's whose name was made to lead here does not.
    """
    reached = request.scope.get("server") or ("", 0)
    return urlsplit(f"//{request.headers.get('host', '')}").hostname in (*names, reached[0])


def needs(err: ImportError, command: str) -> UsageError:
    """What to say where a package of the extra is missing."""
    return UsageError(f"{command} needs {err.name}, which is not installed", hint=install_hint("serve"))
