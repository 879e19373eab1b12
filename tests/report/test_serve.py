"""A folder over HTTP: what is served to whom, and what is left out."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from typer.testing import CliRunner

from edgepack.cli import app
from edgepack.errors import UsageError
from edgepack.report.serve import Served, application
from tests.report.pages import benched_pack
from tests.report.served import served_at


def asked(address: str, path: str, host: str | None = None) -> tuple[int, str, str]:
    """Status, body and cache policy of an answer."""
    where = urlsplit(address)
    connection = http.client.HTTPConnection(str(where.hostname), where.port, timeout=30)
    connection.request("GET", path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, body, answer.headers.get("Cache-Control", "")


def test_only_names_of_this_machine_are_answered(tmp_path: Path) -> None:
    benched_pack(tmp_path / "pack")
    with served_at(Served(tmp_path)) as address:
        status, body, kept = asked(address, "/")
        assert (status, kept) == (200, "no-store")
        assert "mnist-mlp" in body
        assert "connect-src 'self'" in body
        for host in ("localhost:1234", "127.0.0.1", "[::1]:80", "LOCALHOST"):
            assert asked(address, "/state", host)[0] == 200, host
        for host in ("evil.example", "evil.example:8765", "localhost.evil.example", ""):
            assert asked(address, "/", host)[0] == 421, host
            assert asked(address, "/state", host)[0] == 421, host
        assert asked(address, "/../manifest.json")[0] == asked(address, "/pack/manifest.json")[0] == 404


def test_the_state_changes_with_packs_and_results(tmp_path: Path) -> None:
    served = Served(tmp_path)
    states = [served.state]
    assert "0 packs" in served.page()
    pack = benched_pack(tmp_path / "pack")
    states.append(served.state)
    assert served.page() is served.page(), "nothing changed"
    next((pack / "results").iterdir()).unlink()
    states.append(served.state)
    assert len(set(states)) == 3
    assert Served(pack).packs == [pack]


def test_a_damaged_pack_is_left_out_and_named(tmp_path: Path) -> None:
    benched_pack(tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "manifest.json").write_text("[]")
    report = Served(tmp_path).report()
    assert ": 1 pack" in str(report.title[0])
    (warning,) = report.warnings
    assert warning.startswith("left out: ")
    assert "bad" in warning


def test_what_cannot_be_served_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = CliRunner().invoke(app, ["serve", str(tmp_path / "nowhere")])
    assert (nowhere.exit_code, nowhere.stderr.splitlines()[0]) == (2, f"error: {tmp_path}/nowhere: no such folder")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        busy = CliRunner().invoke(app, ["serve", str(tmp_path), "--port", str(port)])
    assert busy.exit_code == 2
    assert f"cannot listen at 127.0.0.1 port {port}: Address already in use" in busy.stderr
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    with pytest.raises(UsageError, match=r"edgepack serve needs starlette\.applications, which is not") as caught:
        application(Served(tmp_path))
    assert "[serve]" in str(caught.value.hint)


def test_the_command_ends_well_when_it_is_interrupted(tmp_path: Path) -> None:
    benched_pack(tmp_path / "pack")
    command = [sys.executable, "-m", "edgepack", "serve", str(tmp_path), "--port", "0", "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    ) as process:
        assert process.stdout is not None
        try:
            record = json.loads("".join(iter(process.stdout.readline, "}\n")) + "}")
            assert asked(record["address"], "/state")[0] == 200
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
        finally:
            process.kill()
