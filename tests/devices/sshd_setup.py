"""What a throw-away device behind sshd is made of: its configuration, its mounts, its accounts, and what that takes."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

_NEEDS = ("ssh", "ssh-keygen", "/usr/sbin/sshd", "ip", "tc", "unshare", "nsenter", "setpriv", "mount")
SETUP = """set -e
mount -t tmpfs tmpfs /run
mkdir -m 755 /run/sshd
while read -r source place; do mount --bind "$source" "$place"; done < "$1/mounts"
if [ -s "$1/disk" ]; then mount -t tmpfs -o "$(cat "$1/disk")" tmpfs "$1/cache"; fi
ip link set lo up
exec /usr/sbin/sshd -D -e -f "$1/sshd_config"
"""
CONFIG = """Port 22
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile none
StrictModes no
UsePAM no
UseDNS no
PermitRootLogin yes
PasswordAuthentication no
KbdInteractiveAuthentication no
MaxStartups 100
MaxSessions 100
LogLevel VERBOSE
KexAlgorithms curve25519-sha256
SetEnv XDG_CACHE_HOME={folder}/cache PATH={path} DEVICE={folder}
{more}
"""


def accounts(folder: Path, home: Path) -> dict[str, Path]:
    """Accounts whose root has a home of the test's and may log in by key."""
    replaced = {"passwd": f"root:x:0:0::{home}:/bin/bash", "shadow": "root:*:19000:0:99999:7:::"}
    for name, line in replaced.items():
        lines = [kept for kept in Path("/etc", name).read_text().splitlines() if not kept.startswith("root:")]
        (folder / name).write_text("\n".join([line, *lines]) + "\n")
        (folder / name).chmod(0o644)
    return {f"/etc/{name}": folder / name for name in replaced}


def require() -> None:
    """Skips the test where there can be no such device."""
    missing = [tool for tool in _NEEDS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"a device behind sshd needs {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("a device behind sshd needs root")
    try_out = ["unshare", "-m", "-n", "-p", "-f", "--mount-proc", "true"]
    done = subprocess.run(try_out, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        pytest.skip(f"no namespaces here: {done.stderr.strip()}")
