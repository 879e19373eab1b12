"""Block of what compression costs in accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from block_tables import markdown_table

from edgepack.units import size

Row = Mapping[str, Any]
DIGITS = {"accuracy": 2, "agreement": 1, "cosine": 4, "rank correlation": 4}
MIXED = 0
"""Bits of a file whose layers differ."""
SMALLER, MOST_DROP = 45, 0.1
"""How many times smaller than fp32 the perceptron is to become, and the points of accuracy that this may cost."""
ROUNDING = 1e-9
RANK, BETTER = 12, 2.0
"""The rank at which its pairs are to be so many points better than those of plain SVD."""
SAVED, COSINE = 0.25, 0.98
"""The share of dense int8's bytes that the sentence encoder is to save, and the mean cosine that it shall keep."""


def render_accuracy(figures: Row) -> str:
    """Dense files of all models, pairs of each, what rounding alone loses, and what was aimed at."""
    models = figures["models"]
    parts = [_dense(models)]
    for model in models:
        parts += [_heading(model), _pairs(model), *_mixed(model)]
    return "\n\n".join([*parts, *_rounding(models), _goals(models)])


def _dense(models: Sequence[Row]) -> str:
    wanted = (("dense", 32), ("dense", 8), ("dense GPTQ", 8), ("dense", 4), ("dense GPTQ", 4))
    lines = []
    for model in models:
        rows = {(row["way"], row["bits"]): row for row in model["rows"]}
        cells = [f"{_scores(rows[key])} ({_size(rows[key])})" for key in wanted]
        lines.append((f"{model['title']}, {' / '.join(model['scores'])}", *cells))
    headers = ("dense layers", "fp32", "int8", "int8, GPTQ", "int4", "int4, GPTQ")
    return markdown_table(headers, lines, right=headers[1:])


def _heading(model: Row) -> str:
    samples = model["samples"]
    return (
        f"{model['title']}: {model['what']}. {samples['calibration']} samples to calibrate and distill on, for"
        f" {model['epochs']} epochs, {samples['test']} to test on."
    )


def _pairs(model: Row) -> str:
    """A column per level; the bytes of a file depend on it and on the bits, and on nothing else."""
    rows = [row for row in model["rows"] if row["level"] is not None and row["bits"] != MIXED]
    levels = list(dict.fromkeys(row["level"] for row in rows))
    lines = []
    for bits in (8, 4):
        own = [row for row in rows if row["bits"] == bits]
        sizes = {row["level"]: _size(row) for row in own}
        lines.append((f"**int{bits} pairs**, file", *(sizes.get(level, "–") for level in levels)))
        for way in dict.fromkeys(row["way"] for row in own):
            found = {row["level"]: _scores(row) for row in own if row["way"] == way}
            lines.append((way, *(found.get(level, "–") for level in levels)))
    headers = (f"{' / '.join(model['scores'])}", *(_level(level) for level in levels))
    return markdown_table(headers, lines, right=headers[1:])


def _mixed(model: Row) -> list[str]:
    """A row per size of the file, a column per kind of plan; nothing where schemes were not chosen layer by layer."""
    rows = [row for row in model["rows"] if row["bits"] == MIXED]
    if not rows:
        return []
    ways = list(dict.fromkeys(row["way"] for row in rows))
    lines = []
    for level in sorted({row["level"] for row in rows}):
        found = {row["way"]: f"{_scores(row)} ({_size(row)})" for row in rows if row["level"] == level}
        lines.append((f"{level:.0%}", *(found.get(way, "–") for way in ways)))
    headers = ("at most, of dense int8's bytes", *ways)
    return [
        "The scheme of each layer chosen for a size of the file, by predicted losses: dense in int8 or int4, and in"
        " some columns pairs too; dense layers rounded by GPTQ, pairs by alternation. A dash: no plan is that small.",
        markdown_table(headers, lines, right=headers[1:]),
    ]


def _rounding(models: Sequence[Row]) -> list[str]:
    keys = list(dict.fromkeys((row["kind"], row["bits"], row["way"]) for row in models[0]["rounding"]))
    lines = []
    for kind, bits, way in keys:
        cells = []
        for model in models:
            rows = {(row["kind"], row["bits"], row["way"]): row for row in model["rounding"]}
            cells.append(f"{mean(rows[kind, bits, way]['share']):.2g}")
        lines.append((f"{kind}, int{bits}, {'to nearest' if way == 'whitened' else way}", *cells))
    headers = ("share of output energy", *(model["title"] for model in models))
    levels = ", ".join(f"{model['title']} {_level(model['rounding_level'])}" for model in models)
    return [
        "What rounding alone loses of a layer's output, on validation samples, median over the layers;"
        f" pairs: {levels}.",
        markdown_table(headers, lines, right=headers[1:]),
    ]


def _goals(models: Sequence[Row]) -> str:
    said = [text for model in models for text in (*GOALS.get(model["name"], _no_goals)(model), *_halved(model))]
    return "What was aimed at:\n\n" + "\n".join(f"- {text}" for text in said)


def _no_goals(model: Row) -> list[str]:
    del model
    return []


def _mnist_goals(model: Row) -> list[str]:
    fp32 = _dense_row(model, 32)
    small = [row for row in model["rows"] if mean(row["size_bytes"]) * SMALLER <= mean(fp32["size_bytes"])]
    best = min(small, key=lambda row: mean(row["validation_off"]))
    drops = [dense - own for dense, own in zip(fp32["scores"]["accuracy"], best["scores"]["accuracy"], strict=True)]
    factor = mean(fp32["size_bytes"]) / mean(best["size_bytes"])
    seeds = ", ".join(f"{one:.1f}" for one in drops)
    text = (
        f"{model['title']}, at most {MOST_DROP} points below fp32 at {SMALLER} times smaller or more:"
        f" {_verdict(mean(drops) <= MOST_DROP + ROUNDING)}. Of the files of that size the one whose"
        f" answers on the validation samples are nearest to fp32 is {factor:.1f}× smaller ({_name(best)}) and"
        f" {mean(drops):.2f} points below on the test samples; by seed {seeds},"
        f" and one sample is {100 / model['samples']['test']:g} points."
    )
    if not any(row["level"] == RANK for row in model["rows"]):  # a quick run
        return [text]
    plain, pair = (_find(model, way, 8, RANK) for way in ("plain SVD", "+ alternation"))
    more = mean(pair["scores"]["accuracy"]) - mean(plain["scores"]["accuracy"])
    return [
        text,
        f"{model['title']}, {BETTER} points or more over plain SVD and int8 at rank {RANK} and equal bytes:"
        f" {_verdict(more >= BETTER)}, by {more:.1f} points without any training.",
    ]


def _minilm_goals(model: Row) -> list[str]:
    int8 = mean(_dense_row(model, 8)["size_bytes"])
    small = [row for row in model["rows"] if mean(row["size_bytes"]) <= (1 - SAVED) * int8]
    best = min(small, key=lambda row: mean(row["validation_off"]), default=None)
    text = f"{model['title']}, {SAVED:.0%} smaller than dense int8 at a mean cosine of {COSINE} or more:"
    if best is None:
        return [f"{text} missed, no file here is so small."]
    cosine = mean(best["scores"]["cosine"])
    return [
        f"{text} {_verdict(cosine >= COSINE)}. Of the files of that size the one whose"
        f" answers on the validation samples are nearest to fp32 is {1 - mean(best['size_bytes']) / int8:.0%} smaller"
        f" ({_name(best)}) and has {cosine:.3f} on the test samples."
    ]


def _halved(model: Row) -> list[str]:
    shares = {row["way"]: mean(row["share"]) for row in model["rounding"] if (row["kind"], row["bits"]) == ("pair", 8)}
    left = shares["+ alternation"] / shares["whitened"]
    return [
        f"{model['title']}, half of the rounding error of int8 pairs or less at no bytes: {_verdict(left <= 0.5)},"
        f" alternation leaves {left:.0%} of it."
    ]


GOALS: Mapping[str, Any] = {"mnist": _mnist_goals, "minilm": _minilm_goals}


def _verdict(reached: bool) -> str:
    return "met" if reached else "missed"


def _name(row: Row) -> str:
    if row["bits"] == MIXED:
        kinds = ", ".join(f"{count} {kind}" for kind, count in row["layers"].items())
        return f"{row['way'].partition(', ')[2]}, layers: {kinds}"
    level = "" if row["level"] is None else f", {_level(row['level'])}"
    return f"int{row['bits']}, {row['way'].removeprefix('+ ')}{level}"


def _dense_row(model: Row, bits: int) -> Row:
    return _find(model, "dense", bits, None)


def _find(model: Row, way: str, bits: int, level: int | float | None) -> Row:
    return next(r for r in model["rows"] if (r["way"], r["bits"], r["level"]) == (way, bits, level))


def _level(level: int | float) -> str:
    return f"rank {level}" if isinstance(level, int) else f"{level:.0%} of the weights"


def _size(row: Row) -> str:
    return size(round(mean(row["size_bytes"])))


def _scores(row: Row) -> str:
    return " / ".join(_score(name, values) for name, values in row["scores"].items())


def _score(name: str, values: Sequence[float]) -> str:
    digits = DIGITS[name]
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"
