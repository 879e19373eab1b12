"""Fuzz every parser for long: `python -m tests.fuzz --cases 1000000`, or `--hours 2` with other seeds each time.

Each parser runs in processes of its own with 2 GB more than it begins with; what ends one is a find as well. Inputs of
finds are kept under `tests/fuzz/corpus/`, where the tests try them again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

from tests.fuzz.parsers import PARSERS, Parser
from tests.fuzz.run import CORPUS, Fuzzed, fuzz

BATCH = 5000
BYTES = 2 * 2**30
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where files are written: a disk makes cases ten times as slow."""


def main() -> int:
    """Parse, run, print a line for each parser, and the sum; 1 where anything unexpected was raised."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100_000, help="of all parsers together")
    parser.add_argument("--hours", type=float, help="as many as there is time for")
    parser.add_argument("--only", action="append", choices=[one.name for one in PARSERS])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="keep the counts in this file")
    given = parser.parse_args()
    chosen = [one for one in PARSERS if not given.only or one.name in given.only]
    whole, total, rows = sum(one.share for one in chosen), 0, []
    for one in chosen:
        share = one.share / whole
        deadline = time.monotonic() + given.hours * 3600 * share if given.hours else float("inf")
        wanted = sys.maxsize if given.hours else max(int(given.cases * share), 1)
        row = _parser(one, wanted, deadline, given.seed if not given.hours else int(time.time()))
        total += row["cases"]
        rows.append(row)
        print({key: value for key, value in row.items() if value or key == "unexpected"}, flush=True)
    found = sum(row["unexpected"] for row in rows)
    print(f"{total} cases, {found} unexpected")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))
    return int(found > 0)


def _parser(parser: Parser, wanted: int, deadline: float, seed: int) -> dict[str, object]:
    counts: Counter[str] = Counter()
    finds: Counter[str] = Counter()
    while counts["cases"] < wanted and time.monotonic() < deadline:
        folder = Path(tempfile.mkdtemp(prefix="edgepack-fuzz-", dir=MEMORY))
        more = min(BATCH, wanted - counts["cases"])
        said = _in_child(parser, folder, seed + counts["cases"], more, deadline)
        if said is None:
            held = (folder / parser.file).read_bytes()
            _keep(parser, held)
            finds["the process ended"] += 1
            counts["cases"] += more
        else:
            finds.update(said.pop("finds"))
            counts.update(said)
        shutil.rmtree(folder, ignore_errors=True)
    for what, count in finds.most_common(12):
        print(f"  {parser.name}: {count} × {what}", flush=True)
    return {"parser": parser.name, **counts, "unexpected": sum(finds.values())}


def _in_child(parser: Parser, folder: Path, first: int, count: int, deadline: float) -> dict[str, object] | None:
    """Counts of a batch, None where its process ended."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with open("/proc/self/statm", encoding="ascii") as statm:
                addresses = int(statm.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (addresses + BYTES, addresses + BYTES))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            warnings.simplefilter("ignore")
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            fuzzed = fuzz(parser, folder, first, lambda done: done < count and time.monotonic() < deadline)
            _keep_all(parser, fuzzed)
            said = {"cases": fuzzed.cases, "read": fuzzed.read, "refused": fuzzed.refused, "finds": fuzzed.unexpected}
            os.write(writing, json.dumps(said).encode())
            os._exit(0)
        except BaseException as err:  # noqa: BLE001 - the parent hears that nothing came
            os.write(1, f"  {parser.name}: {type(err).__name__}: {err}\n".encode())
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(said) if said else None


def _keep_all(parser: Parser, fuzzed: Fuzzed) -> None:
    for content in fuzzed.inputs.values():
        _keep(parser, content)


def _keep(parser: Parser, content: bytes) -> None:
    folder = CORPUS / parser.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / hashlib.sha256(content).hexdigest()[:12]).write_bytes(content)


if __name__ == "__main__":
    sys.exit(main())
