"""Hashes and a bill of materials of the packages in constraints.txt, out of pip's own report: `make constraints`.

`constraints.hashed.txt` is what `pip install --require-hashes --no-deps -r` takes, for the machine that it was made on:
Linux, x86-64, CPython 3.11, and torch's builds for CPUs alone. `sbom.cdx.json` lists the same in CycloneDX 1.5.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TOP = Path(__file__).parent.parent
HEAD = "# Of constraints.txt, with hashes, for Linux, x86-64 and CPython 3.11. Refresh: make constraints"


def main() -> None:
    """Ask pip, or read the report that is given; write both files."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(sys.argv[1]) if len(sys.argv) > 1 else _report(Path(folder) / "report.json")
        packages = sorted(json.loads(path.read_text())["install"], key=lambda one: str(one["metadata"]["name"]).lower())
    (TOP / "constraints.hashed.txt").write_text(hashed(packages))
    (TOP / "sbom.cdx.json").write_text(json.dumps(bill(packages), indent=1, sort_keys=True) + "\n")


def _report(path: Path) -> Path:
    """What pip would install, with the hash of each file; nothing is installed."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps"]
    subprocess.run([*pip, "--report", str(path), "-r", str(TOP / "constraints.txt")], check=True)
    return path


def hashed(packages: Sequence[Mapping[str, Any]]) -> str:
    """A requirements file."""
    lines = [f"{_name(one)}=={_version(one)} --hash=sha256:{_sha256(one)}" for one in packages]
    return "\n".join([HEAD, *lines]) + "\n"


def bill(packages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A document of CycloneDX."""
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": "edgepack"}},
        "components": [_component(one) for one in packages],
    }


def _component(one: Mapping[str, Any]) -> dict[str, Any]:
    said = one["metadata"]
    license_ = said.get("license_expression") or (said.get("license") or "").strip().splitlines()[:1]
    name = license_ if isinstance(license_, str) else "".join(license_)
    return {
        "type": "library",
        "name": _name(one),
        "version": _version(one),
        "purl": f"pkg:pypi/{_name(one).lower()}@{_version(one)}",
        "hashes": [{"alg": "SHA-256", "content": _sha256(one)}],
        **({"licenses": [{"license": {"name": name[:100]}}]} if name else {}),
    }


def _name(one: Mapping[str, Any]) -> str:
    return str(one["metadata"]["name"])


def _version(one: Mapping[str, Any]) -> str:
    return str(one["metadata"]["version"])


def _sha256(one: Mapping[str, Any]) -> str:
    return str(one["download_info"]["archive_info"]["hashes"]["sha256"])


if __name__ == "__main__":
    main()
