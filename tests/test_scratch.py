"""Temporary folders live as long as their process, and no longer: locks tell which are dead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from edgepack.scratch import alone_in, exchange, held_folder, own_temporary_folder, sweep, system_folder

HOLDS = """
import sys, time
from pathlib import Path
from edgepack.scratch import held_folder
with held_folder(Path(sys.argv[1]), "pack") as folder:
    (folder / "half").write_text("half")
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(tmp_path: Path) -> subprocess.Popen[str]:
    """A process that holds a folder, whose path it has printed."""
    return subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True)


def test_what_a_living_process_holds_stays_and_what_a_killed_one_left_goes(
    tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    assert other.stdout is not None
    folder = Path(other.stdout.readline().strip())
    with held_folder(tmp_path, "mine") as mine:
        assert sweep(tmp_path) == []
        assert (folder / "half").exists()
        other.kill()
        other.communicate()
        assert folder.exists()
        assert sweep(tmp_path) == [folder]
        assert mine.exists()
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_ours_is_never_swept(tmp_path: Path) -> None:
    keep = tmp_path / "keep"
    keep.mkdir()
    (tmp_path / ".link.edgepack").symlink_to(keep)
    (tmp_path / ".file.edgepack").write_text("x")
    (tmp_path / "no-dot.edgepack").mkdir()
    (tmp_path / ".other").mkdir()
    before = sorted(tmp_path.iterdir())
    assert sweep(tmp_path) == []
    assert sorted(tmp_path.iterdir()) == before
    assert sweep(tmp_path / "none") == []


def test_the_folder_may_be_moved_away(tmp_path: Path) -> None:
    with held_folder(tmp_path, "n" * 300) as folder:
        os.replace(folder, tmp_path / "there")
        assert sweep(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_all_temporary_files_of_a_process_and_its_children_are_in_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with own_temporary_folder():
        assert system_folder() == tmp_path
        (folder,) = tmp_path.iterdir()
        assert Path(tempfile.mkdtemp()).parent == folder
        code = "import tempfile; print(tempfile.mkdtemp())"
        made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert Path(made.strip()).parent == folder
    assert list(tmp_path.iterdir()) == []
    assert os.environ["TMPDIR"] == str(tmp_path)
    assert system_folder() == tmp_path


def test_folders_change_places_in_one_step(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
    if exchange(tmp_path / "one", tmp_path / "other"):
        assert (tmp_path / "one" / "other").read_text() == "other"
        assert (tmp_path / "other" / "one").read_text() == "one"
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "one", tmp_path / "none")


def test_one_process_at_a_time(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from edgepack.scratch import alone_in
print("waits", flush=True)
with alone_in(Path(sys.argv[1])):
    print("in", flush=True)
"""
    with alone_in(tmp_path):
        waiting = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == "waits\n"
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(0.5)
    assert waiting.communicate(timeout=60)[0] == "in\n"


BUSY = "import re; print('busy', flush=True); re.match(r'(a+)+$', 'a' * 60 + 'b')"
"""One call that takes for ever and lets no other thread of Python run."""
PARENT = f"""
import subprocess, sys, time
from edgepack.lifeline import TiedProcess
child = TiedProcess([sys.executable, "-c", {BUSY!r}], stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such signal")
def test_a_tied_process_ends_with_the_one_that_started_it_whatever_it_does() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    descriptor = os.pidfd_open(child)
    try:
        import select

        assert select.select([descriptor], [], [], 0.2)[0] == []
        parent.send_signal(signal.SIGKILL)
        parent.communicate()
        assert select.select([descriptor], [], [], 60)[0] == [descriptor]
    finally:
        os.close(descriptor)
