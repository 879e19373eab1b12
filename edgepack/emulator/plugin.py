"""The QEMU plugin: compiled once per source by the system's C compiler, and told the target's caches."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from edgepack.emulator import programs
from edgepack.errors import StableDeviceError, TargetsError
from edgepack.targets.target import Cache, Target
from edgepack.workspace import atomic_path, default_root, digest, shipped

_FLAGS = ("-std=c11", "-O3", "-Wall", "-Wextra", "-shared", "-fPIC", "-fvisibility=hidden")
COMPILE_TIMEOUT_S = 120.0


def plugin_file(qemu: str) -> Path:
    """The compiled plugin; compiled now where it is not there yet.

    Args:
        qemu: path of the QEMU that will load it.

    Raises:
        StableDeviceError: no C compiler, or it failed.
    """
    source = shipped("runtimes/emulator/cachesim.c")
    flags = [*_FLAGS, f"-DPLUGIN_API={_api_version(qemu)}"]
    headers = sorted(source.parent.glob("*.h"))
    key = digest(source.read_bytes(), [header.name for header in headers], *(h.read_bytes() for h in headers), flags)
    path = default_root() / "emulator" / "plugin" / f"{key[:32]}.so"
    if path.is_file():
        return path
    compiler = programs.require("cc")
    with atomic_path(path) as temporary:
        done = subprocess.run(
            [compiler, *flags, "-o", str(temporary), str(source)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMPILE_TIMEOUT_S,
        )
        if done.returncode:
            raise StableDeviceError(
                f"{compiler} cannot compile {source.name}: {done.stderr.decode(errors='replace')[:600].strip()}",
                hint=f"install a C compiler: {programs.command('cc')}",
            )
    return path


def _api_version(qemu: str) -> int:
    """Version of the plugin interface: 1 until QEMU 8, 2 from 9 on; the calls in use are the same in both."""
    found = re.search(r"version (\d+)\.", programs.version(qemu))
    return 1 if found is None or int(found[1]) < 9 else 2


def cache_arguments(target: Target) -> tuple[str, ...]:
    """The plugin's arguments for the caches of the target's main cluster.

    A cache shared by a cluster or by all cores is one for all threads.

    Raises:
        TargetsError: a size or an associativity is not known, or they do not fit.
    """
    cluster = target.main_cluster
    levels = {"l1i": cluster.L1i, "l1d": cluster.L1d}
    behind = [cache for cache in (cluster.L2, cluster.L3, target.system_cache) if cache is not None]
    levels |= {f"l{index}": cache for index, cache in enumerate(behind, start=2)}
    if not behind:
        levels["l2"] = None
    return tuple(f"{name}={_geometry(target, name, cache)}" for name, cache in levels.items())


def _geometry(target: Target, name: str, cache: Cache | None) -> str:
    hint = f"add it to your own targets.yaml; see: edgepack targets show {target.name}"
    label = {"l1i": "L1i", "l1d": "L1d"}.get(name, name.upper())
    if cache is None or cache.ways is None:
        what = "size and ways" if cache is None else "ways"
        raise TargetsError(
            f"target {target.name} cannot be emulated: the {what} of its {label} are not known", hint=hint
        )
    if cache.size_bytes % (cache.ways * cache.line_bytes):
        raise TargetsError(
            f"target {target.name}: {label} of {cache.size_bytes} bytes is no whole number of sets of "
            f"{cache.ways} lines of {cache.line_bytes} bytes",
            hint=hint,
        )
    shared = ":shared" if name not in ("l1i", "l1d") and cache.shared != "core" else ""
    return f"{cache.size_bytes}:{cache.ways}:{cache.line_bytes}{shared}"
