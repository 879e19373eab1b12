"""Measures some models or all, prints their tables, and may keep them in bench/RESULTS.md."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import figures_file
from blocks_accuracy import render_accuracy
from pages import put_block

from accuracy.measure import measure
from accuracy.subjects import SUBJECTS

NAME = "accuracy"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(prog="python bench/accuracy", description=__doc__)
    parser.add_argument("--model", action="append", choices=list(SUBJECTS), help="only this one; may be repeated")
    parser.add_argument("--quick", action="store_true", help="one seed, one rank, one epoch")
    parser.add_argument("--keep", action="store_true", help="store the figures and rewrite their block")
    options = parser.parse_args(arguments)
    found = measure(quick=options.quick, names=options.model or tuple(SUBJECTS))
    print(render_accuracy(found))
    if options.keep:
        kept = figures_file.load(NAME)["figures"] if (figures_file.RESULTS / f"{NAME}.json").exists() else found
        stored = figures_file.store(NAME, joined(kept, found))
        put_block(stored)


def joined(kept: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """What is kept, with the models that were measured anew in place of the old ones."""
    new = {model["name"]: model for model in found["models"]}
    old = {model["name"]: model for model in kept["models"]}
    models = [new.get(name) or old[name] for name in SUBJECTS if name in new or name in old]
    return {"quick": kept["quick"] or found["quick"], "models": models}
