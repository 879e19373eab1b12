"""Marked blocks of README.md and bench/RESULTS.md, each written from one file of stored figures and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from block_speed import p50, speedup
from block_tables import TITLES, markdown_table
from blocks_accuracy import render_accuracy
from blocks_emulated import render_emulated, render_emulator, render_estimate
from blocks_planner import render_allocation, render_planner
from blocks_seeds import render_seeds
from blocks_weighting import render_residual, render_weighting

from edgepack.backends.schemes import scheme_named
from edgepack.model.scheme import INT8_BITS
from edgepack.units import ratio, seconds, size

Row = Mapping[str, Any]
RUNTIMES = {"onnx": "onnxruntime", "tflite": "ai-edge-litert"}
COMMAND = ".venv/bin/python bench/figures.py --only {name}"
_BLOCK = r"<!-- figures:{name} -->\n(.*?)<!-- /figures:{name} -->"


def render(stored: Mapping[str, Any]) -> str:
    """The text of a block, from what `bench/results/NAME.json` holds."""
    name, figures = stored["name"], stored["figures"]
    again = f"Measured with `{COMMAND.format(name=name)}` on {machine_line(stored['machine'])}."
    quick = ["**A quick run: short, and not to be relied on.**"] if figures.get("quick") else []
    return "\n\n".join([RENDERERS[name](figures), *quick, again]) + "\n"


def block_names(text: str) -> list[str]:
    """Names of the blocks that a text opens, in order."""
    return re.findall(r"<!-- figures:([\w-]+) -->", text)


def read_block(text: str, name: str) -> str:
    """What stands in a block.

    Raises:
        ValueError: the text does not hold exactly one block of that name.
    """
    found = re.findall(_BLOCK.format(name=name), text, re.DOTALL)
    if len(found) != 1:
        raise ValueError(f"{len(found)} blocks figures:{name}, expected one, with a line of its own for each marker")
    return str(found[0])


def replace_block(text: str, name: str, body: str) -> str:
    """The text with another body in a block.

    Raises:
        ValueError: as `read_block`.
    """
    read_block(text, name)
    whole = f"<!-- figures:{name} -->\n{body}<!-- /figures:{name} -->"
    return re.sub(_BLOCK.format(name=name), lambda _: whole, text, flags=re.DOTALL)


def _layer(figures: Row) -> str:
    lines = []
    for fmt in TITLES:
        rows = [row for row in figures["rows"] if row["format"] == fmt]
        fp32 = next(row for row in rows if row["layer"] == "dense" and row["form"] == "fp32")
        # The rival is the int8 build that is fastest here, not the one that flatters the pair.
        int8 = min((row for row in rows if row["layer"] == "dense" and _is_int8(row)), key=p50)
        lines += [
            (
                TITLES[fmt],
                "dense" if row["layer"] == "dense" else f"pair, rank {figures['rank']}",
                row["form"],
                size(row["size_bytes"]),
                *_latency(row, fp32, int8),
            )
            for row in rows
        ]
    headers = ("runtime", "layer", "scheme", "file", "p50", "p90", "vs dense fp32", "vs fastest dense int8")
    return markdown_table(headers, lines, right=("file", "p50", "p90")) + f"\n\n{_protocol(figures)}"


def _mnist(figures: Row) -> str:
    lines, summary = [], []
    for fmt in TITLES:
        rows = {row["variant"]: row for row in figures["rows"] if row["format"] == fmt}
        pack, fp32, int8 = (rows[name] for name in ("edgepack", "dense-fp32", "dense-int8"))
        lines += [
            (
                TITLES[fmt],
                row["variant"],
                row["form"],
                size(row["size_bytes"]),
                *_latency(row, fp32, int8)[:2],
                seconds(median(row["cold_process_medians_s"])),
                f"{row['test_accuracy']:.2f}",
                f"{row['test_drop']:+.2f}",
                *_latency(row, fp32, int8)[2:],
            )
            for row in (pack, int8, fp32)
        ]
        smaller = [
            f"{row['size_bytes'] / pack['size_bytes']:.1f}× smaller than {row['variant']}" for row in (fp32, int8)
        ]
        summary.append(
            f"`model.{fmt}` has {1 - pack['parameters_share']:.1%} fewer weights, is {' and '.join(smaller)}, and drops"
            f" {pack['test_drop']:.2f} points on the untouched test set"
            f" ({pack['validation_drop']:.2f} on the validation samples, {figures['max_drop']:.2f} allowed)."
        )
    headers = ("runtime", "file", "scheme", "size", "p50", "p90", "cold p50", "accuracy", "drop", "vs fp32", "vs int8")
    table = markdown_table(headers, lines, right=headers[3:9])
    return "\n\n".join([table, " ".join(summary), _protocol(figures)])


def _shown(figures: Row) -> str:
    shown = ["\n".join(["```", f"$ {one['command']}", *one["lines"], "```"]) for one in figures["shown"]]
    return "\n\n".join(shown)


def _tool(figures: Row) -> str:
    lines = [("`edgepack --help`", "time", f"{figures['help_s']:.2f} s", f"{figures['help_goal_s']:g} s")]
    for row in figures["rows"]:
        goal = "–" if row["goal_s"] is None else f"{row['goal_s']:g} s"
        lines.append((f"`{row['command']}`", "time", f"{row['seconds']:.1f} s", goal))
        if "recipe_s" in row:
            lines.append(("", "time of the recipe alone", f"{row['recipe_s']:.1f} s", "–"))
        limit = row.get("memory_limit_bytes")
        within = "–" if limit is None else size(limit)
        lines.append(("", "peak memory", size(row["peak_bytes"]), within))
        lines.append(("", "peak of its largest process", size(row["largest_peak_bytes"]), "–"))
    note = (
        "Every command but `--help` ran once, with an empty cache. A recipe alone is a process that imports what it"
        " needs, trains and reads its data, without edgepack. Peak memory is that of the process and all its"
        " children together, shared pages counted once."
    )
    return f"{markdown_table(('command', 'what', 'measured', 'goal'), lines, right=('measured', 'goal'))}\n\n{note}"


RENDERERS: Mapping[str, Callable[[Row], str]] = {
    "quickstart": _shown,
    "demo": _shown,
    "mnist": _mnist,
    "layer": _layer,
    "tool": _tool,
    "emulated": render_emulated,
    "estimate": render_estimate,
    "emulator": render_emulator,
    "planner": render_planner,
    "allocation": render_allocation,
    "accuracy": render_accuracy,
    "weighting": render_weighting,
    "residual": render_residual,
    "seeds": render_seeds,
}


def _is_int8(row: Row) -> bool:
    return scheme_named(row["format"], row["form"]).bits == INT8_BITS


def _latency(row: Row, fp32: Row, int8: Row) -> tuple[str, str, str, str]:
    """p50, p90, and the row against both baselines."""
    against = ["–" if row is base else ratio(speedup(row, base)) for base in (fp32, int8)]
    return seconds(p50(row)), seconds(row["p90_s"]), against[0], against[1]


def _protocol(figures: Row) -> str:
    processes = figures["schedule"]["processes"]
    return (
        f"Batch 1, one thread, {processes} fresh processes per file, all files in turns. p50 is the median of the"
        " processes' medians; a ratio stands only where a Mann–Whitney test over the processes sees a difference."
    )


def machine_line(machine: Row) -> str:
    kind = "virtual cores" if machine["virtual"] else "cores"
    caches = [f"{name} {_binary(value)}" for name, value in machine["caches_bytes"].items()]
    versions = [f"{name} {version}" for name, version in {**machine["runtimes"], **machine["converters"]}.items()]
    parts = [
        machine["cpu"],
        f"{machine['cores']} {kind}",
        _simd(machine["arch"], machine["isa"]),
        *caches,
        f"{_binary(machine['ram_bytes'])} RAM",
        *versions,
        f"Python {machine['python']}",
        machine["day"],
    ]
    return ", ".join(part for part in parts if part)


def _simd(arch: str, isa: Sequence[str]) -> str:
    """The instructions that decide which kernels run, and the one whose absence explains the most."""
    if arch == "x86_64":
        widest = next((name for name in ("avx512f", "avx2", "avx", "sse4.2") if name in isa), "")
        vnni = [name for name in isa if "vnni" in name or "amx" in name]
        return (
            " and ".join([widest.upper(), *(name.upper() for name in vnni)])
            if vnni
            else f"{widest.upper()} without VNNI"
        )
    dot = [name for name in ("dotprod", "i8mm", "sve") if name in isa]
    return " and ".join(["NEON", *dot]) if dot else "NEON without dotprod"


def _binary(value: int) -> str:
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if value >= 1 << shift:
            return f"{value / (1 << shift):.3g} {unit}"
    return f"{value} B"
