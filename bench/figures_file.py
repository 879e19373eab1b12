"""Figures that were measured, kept under bench/results/ with the machine they were measured on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from machine import conditions

from edgepack.workspace import atomic_path

SCHEMA_VERSION = 1

TOP = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"


def store(name: str, figures: Mapping[str, Any]) -> dict[str, Any]:
    """Keep figures with the machine they were measured on."""
    stored = {"schema_version": SCHEMA_VERSION, "name": name, "machine": conditions(), "figures": figures}
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    write(path, json.dumps(stored, indent=1, ensure_ascii=False) + "\n")
    return stored


def load(name: str) -> dict[str, Any]:
    """Figures that were kept."""
    return dict(json.loads((RESULTS / f"{name}.json").read_text()))


def rows(name: str) -> Any:
    """The rows of figures that were kept, None where none are."""
    return load(name)["figures"]["rows"] if (RESULTS / f"{name}.json").exists() else None


def write(path: Path, text: str) -> None:
    """Write a whole file or leave it as it was."""
    with atomic_path(path) as temporary:
        temporary.write_text(text)
