"""A virtual environment for each peer, made when it is first asked for; nothing of this project is installed in it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from edgepack.workspace import default_root

ROOT = default_root() / "bench" / "peers"
REQUIREMENTS = Path(__file__).parent / "requirements"


def python_of(peer: str) -> Path:
    """The interpreter of the environment with exactly what `requirements/<peer>.txt` asks for.

    Raises:
        subprocess.CalledProcessError: the packages cannot be installed.
    """
    requirements = REQUIREMENTS / f"{peer}.txt"
    folder = ROOT / f"{peer}-{hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]}"
    python, installed = folder / "bin" / "python", folder / ".installed"
    if not installed.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--requirement", requirements], check=True)
        installed.touch()
    return python


def run_peer(peer: str, arguments: Sequence[str | Path], *, folder: Path) -> None:
    """Run `<peer>.py` of this folder in its environment.

    Args:
        peer: its name.
        arguments: of its command line.
        folder: that it runs in; what it leaves there is the caller's.

    Raises:
        RuntimeError: it failed; with the last line of what it said.
    """
    script = Path(__file__).parent / f"{peer}.py"
    done = subprocess.run([python_of(peer), script, *arguments], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise RuntimeError(f"{peer}: {''.join(last) or f'exit code {done.returncode}'}")
