"""Names of files that are none, and values of options that make no sense."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from hardening.case import Case
from hardening.things import Things

NUMBERS = (
    "nan",
    "inf",
    "-inf",
    "-1",
    "0",
    "1e400",
    "-0.0",
    "９",
    "0x10",
    "1_000",
    "",
    " ",
    "auto,auto",
    "9" * 400,
    "1e-400",
    "½",
    "\x1b[31m1",
    "1e308",
    "99999999999999999999",
    "1MBMB",
    "1e999MB",
    "-5ms",
    "5 parsecs",
)
PATHS_OF = {
    "build-model": ("build", "{}", "--target", "rpi4", "--out", "{out}"),
    "build-data": ("build", "ONNX", "--target", "rpi4", "--data", "{}", "--out", "{out}"),
    "build-test": ("build", "ONNX", "--target", "rpi4", "--test", "{}", "--out", "{out}"),
    "build-out": (
        "build",
        "ONNX",
        "--target",
        "rpi4",
        "--rank",
        "2",
        "--formats",
        "onnx",
        "--no-baseline",
        "--max-drop",
        "100",
        "--out",
        "{}",
    ),
    "build-html": ("build", "missing.onnx", "--target", "rpi4", "--html", "{}"),
    "build-targets": ("build", "ONNX", "--target", "rpi4", "--targets-file", "{}", "--out", "{out}"),
    "build-metric": ("build", "ONNX", "--target", "rpi4", "--data", "DATA", "--metric", "{}", "--out", "{out}"),
    "inspect-model": ("inspect", "{}"),
    "inspect-data": ("inspect", "ONNX", "--data", "{}"),
    "inspect-html": ("inspect", "ONNX", "--html", "{}"),
    "inspect-overlay": ("inspect", "PACK", "--overlay", "{}"),
    "run-pack": ("run", "{}"),
    "run-data": ("run", "PACK", "--data", "{}"),
    "bench-pack": ("bench", "{}", "--local", "--quick"),
    "bench-ssh-config": ("bench", "PACK", "--host", "nobody@127.0.0.1:1", "--ssh-config", "{}"),
    "compare-pack": ("compare", "{}"),
    "compare-html": ("compare", "PACK", "--html", "{}"),
    "serve-folder": ("serve", "{}", "--port", "0"),
    "extract-file": ("extract", "{}", "--out", "{out}"),
    "extract-out": ("extract", "ARCHIVE", "--out", "{}"),
    "init-model": ("init", "--model", "{}", "--target", "rpi4", "--data", "", "--max-drop", "1"),
    "init-data": ("init", "--model", "ONNX", "--target", "rpi4", "--data", "{}", "--max-drop", "1"),
    "check-file": ("targets", "check", "{}"),
    "list-file": ("targets", "list", "--targets-file", "{}"),
    "calibrate-model": ("targets", "calibrate", "rpi4", "{}", "--host", "nobody@127.0.0.1:1"),
}
VALUES_OF = {
    name: (
        "build",
        "ONNX",
        "--target",
        "rpi4",
        "--data",
        "DATA",
        "--formats",
        "onnx",
        "--no-baseline",
        "--out",
        "{out}",
        f"--{name}",
        "{}",
    )
    for name in (
        "rank",
        "max-drop",
        "max-size",
        "max-latency",
        "max-memory",
        "time-limit",
        "distill",
        "confidence",
        "seed",
        "pick",
        "formats",
        "precision",
        "method",
        "image-size",
        "mean",
        "std",
        "layout",
        "input",
        "scheduler",
        "metric",
    )
}
LEGAL = frozenset(
    {("serve-folder", name) for name in ("folder", "dot", "dotdot", "root", "nothing")}
    | {("rank", "９"), ("extract-out", "folder")}
)
"""What is no mistake after all, and runs until it is told to end, or builds in full."""


def wrong_arguments(things: Things) -> Iterator[Case]:
    """All of them."""
    for (of, command), (name, path) in product(PATHS_OF.items(), _paths(things.wrong).items()):
        if (of, name) not in LEGAL:
            yield Case("paths", f"{of} {name}", _filled(command, path, things))
    for (of, command), value in product(VALUES_OF.items(), NUMBERS):
        if not _sensible(of, value):
            yield Case("values", f"{of} {value[:20]!r}", _filled(command, value, things))
    for name, arguments in _others().items():
        yield Case("values", name, _filled(arguments, "", things))


def _filled(command: tuple[str, ...], value: str, things: Things) -> tuple[str, ...]:
    known = {
        "{}": value,
        "ONNX": str(things.onnx),
        "DATA": str(things.data),
        "PACK": str(things.pack),
        "ARCHIVE": str(things.archive),
    }
    return tuple(known.get(part, part) for part in command)


def _sensible(option: str, value: str) -> bool:
    """Whether it is an option's ordinary value, or a full build."""
    small = {"0", "-0.0", "1e-400", "９", "99999999999999999999", "1e308", "9" * 400, "1_000", "-1", "inf"}
    return option in ("max-drop", "rank", "seed", "time-limit", "confidence", "pick") and value in small


def _paths(folder: Path) -> dict[str, str]:
    """Paths of what is no such file, by what they are."""
    made = folder / "paths"
    made.mkdir()
    os.symlink("loop", made / "loop")
    os.symlink("nowhere", made / "dangling")
    for suffix in ("", ".onnx", ".npz"):
        os.mkfifo(made / f"pipe{suffix}")
    (made / "empty").write_bytes(b"")
    (made / "folder").mkdir()
    (made / "noise.onnx").write_bytes(bytes(range(256)) * 40)
    return {
        "nothing": "",
        "dot": ".",
        "dotdot": "..",
        "root": "/",
        "loop": str(made / "loop"),
        "below-loop": str(made / "loop" / "x.onnx"),
        "dangling": str(made / "dangling"),
        "proc": "/proc/nope/x.onnx",
        "proc-mem": "/proc/self/mem",
        "null": "/dev/null",
        "full": "/dev/full",
        "zero": "/dev/zero",
        "pipe": str(made / "pipe"),
        "pipe-onnx": str(made / "pipe.onnx"),
        "pipe-npz": str(made / "pipe.npz"),
        "empty": str(made / "empty"),
        "folder": str(made / "folder"),
        "noise": str(made / "noise.onnx"),
        "below-file": str(made / "empty" / "x.onnx"),
        "long-250": "n" * 250,
        "long-255": "n" * 250 + ".onnx",
        "long-256": "n" * 260 + ".npz",
        "long-5000": "d/" * 2500 + "m.onnx",
        "lines": "a\nb.onnx",
        "escape": "\x1b[31mred.onnx",
        "home": "~nobody-here/x.onnx",
        "module": "..a.b:f",
        "colon": ":f",
        "no-function": "x.py:",
        "dots": "....:f",
        "dash": "--",
        "surrogate": "\udcff.onnx",
        "direction": "\u202egnp.onnx",
        "nul-like": "%00.onnx",
        "url": "https://127.0.0.1:1/model.onnx",
    }


def _others() -> dict[str, tuple[str, ...]]:
    bench = ("bench", "PACK", "--local", "--quick", "--no-cold", "--formats", "onnx")
    build = ("build", "ONNX", "--target", "rpi4", "--data", "DATA", "--out", "{out}")
    return {
        "threads 1024": (*bench, "--threads", "1024"),
        "threads 10**9": (*bench, "--threads", str(10**9)),
        "threads 10**400": (*bench, "--threads", "9" * 400),
        "cluster escape": (*bench, "--cluster", "\x1b[2J"),
        "host option": ("bench", "PACK", "--host", "-oProxyCommand=touch canary"),
        "host port": ("bench", "PACK", "--host", "a@b:99999999999"),
        "host empty": ("bench", "PACK", "--host", ""),
        "adb option": ("bench", "PACK", "--adb=-x"),
        "keep backtracks": (*build, "--keep", "(a+)+$"),
        "keep open": (*build, "--keep", "((((("),
        "keep deep": (*build, "--keep", "(" * 5000 + ")" * 5000),
        "keep counts": (*build, "--keep", "a{4294967296}"),
        "only nothing": (*build, "--only", "no-such-layer", "--rank", "2", "--formats", "onnx"),
        "only far back": (*build, "--only", "(?<=a+)b"),
        "target empty": ("build", "ONNX", "--target", ""),
        "target escape": ("build", "ONNX", "--target", "\x1b[31m"),
        "target long": ("build", "ONNX", "--target", "t" * 10000),
        "show digits": ("targets", "show", "9" * 5000),
        "calibrate threads": ("targets", "calibrate", "host", "--threads", "1024", "--formats", "nothing"),
        "input huge": ("inspect", "ONNX", "--input", "x=2147483647x16"),
        "input long": ("inspect", "ONNX", "--input", "x=" + "1x" * 5000 + "1"),
        "samples": ("run", "PACK", "--samples", "9" * 400),
        "port": ("serve", "PACK", "--port", "65536"),
        "bind": ("serve", "PACK", "--bind", "no.such.host.invalid", "--port", "0"),
        "bind long": ("serve", "PACK", "--bind", "b" * 300, "--port", "0"),
        "costs": ("emulator", "costs", "--target", "nothing"),
        "costs host": ("emulator", "costs", "--target", "\udcff"),
        "no command": (),
        "unknown command": ("bulid",),
        "unknown option": ("build", "--taregt", "x"),
        "two machines": (*bench, "--json", "--csv"),
        "doctor host": ("doctor", "--host", "nobody@127.0.0.1:1"),
        "probe nothing": ("targets", "probe", "--host", "nobody@127.0.0.1:1"),
        "init again": ("init", "--model", "x", "--target", "y", "--data", "z"),
    }
