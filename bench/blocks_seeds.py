"""Block: every seed's own experiment, claimed, reproduced, and by edgepack's default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median, stdev
from typing import Any

from block_tables import markdown_table

from edgepack.units import seconds, size

Row = Mapping[str, Any]
HEADERS = (
    "experiment", "claimed by the source", "reproduced by its own method", "edgepack's default at equal parameters",
    "parameters", "file", "on the wire", "resident, ORT", "p50, ORT", "resident, LiteRT", "p50, LiteRT",
)  # fmt: skip
NONE = "–"
SHORT = 40
"""Characters of a claim that is said again."""


def render_seeds(figures: Row) -> str:
    """The one table, and what an emulated board counts for DeepThin."""
    shown: set[str] = set()
    lines = [line for group in figures["groups"] for line in _group(group, shown)]
    table = markdown_table(HEADERS, lines, right=HEADERS[4:])
    return "\n\n".join([table, _how(figures), *_reductions(figures), *_refusals(figures), *_board(figures)])


def _group(group: Row, shown: set[str]) -> list[tuple[str, ...]]:
    fp32, int8 = group["dense"]["fp32"], group["dense"]["int8"]
    head = (
        f"**{group['model']}**, dense",
        NONE,
        f"{accuracy(fp32)} (fp32)",
        f"{accuracy(int8)} (int8)",
        *_figures(fp32, int8, None),
    )
    return [head, *(_line(row, fp32, shown) for row in group["rows"])]


def _line(row: Row, dense: Row, shown: set[str]) -> tuple[str, ...]:
    claim = "as above" if row["claim"] in shown else row["claim"]
    if len(row["claim"]) > SHORT:
        shown.add(row["claim"])
    own, default = row["own"], row["default"]
    found = accuracy(own) if own is not None else f"not reproduced: {row['missing']}"
    if "seen" in row:
        found += f" ({row['seen']:.1f} with data)"
    return (row["title"], claim, found, accuracy(default), *_figures(own, default, dense))


def accuracy(made: Row | None) -> str:
    """In percent; over seeds the mean and the deviation."""
    if made is None:
        return NONE
    values = made["accuracy"] if isinstance(made["accuracy"], list) else [made["accuracy"]]
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{fmean(values):.1f}{spread}"


def _figures(own: Row | None, default: Row | None, dense: Row | None) -> tuple[str, ...]:
    """Each cell: its own method's / the default's."""
    both = (own, default)
    return (
        _pair(NONE if made is None else f"{made['parameters']:,}" for made in both),
        _pair(_file(made, "onnx", "size_bytes") for made in both),
        _pair(_file(made, "onnx", "wire_bytes") for made in both),
        _pair(_file(made, "onnx", "resident_bytes") for made in both),
        _pair(_latency(made, dense, "onnx") for made in both),
        _pair(_file(made, "tflite", "resident_bytes") for made in both),
        _pair(_latency(made, dense, "tflite") for made in both),
    )


def _pair(cells: Any) -> str:
    return " / ".join(cells)


def _file(made: Row | None, fmt: str, key: str) -> str:
    found = None if made is None else made["files"].get(fmt, {}).get(key)
    return NONE if found is None else size(max(found, 0))


def p50(file: Row, key: str = "process_medians_s") -> float:
    """Seconds."""
    return float(median(file[key]))


def _latency(made: Row | None, dense: Row | None, fmt: str) -> str:
    file = None if made is None else made["files"].get(fmt)
    if file is None or "process_medians_s" not in file:
        return NONE
    if dense is None:
        return seconds(p50(file))
    return f"{seconds(p50(file))} ({p50(dense['files'][fmt]) / p50(file):.1f}×)"


def _how(figures: Row) -> str:
    least = " and ".join(_least(figures, fmt) for fmt in ("onnx", "tflite"))
    return (
        "Digits: 4,000 of MNIST to train and calibrate on, accuracy in percent on 1,000 others. Learning rates and "
        "LeNet's method were chosen on held-out training digits. Two things were settled after scores on the 1,000 "
        "were seen: that plain SVD, its default and JPEG's first row leave the last layer alone (with it in pairs as "
        "well, plain SVD / the default had 86.6 / 95.2 on 784-128-128-128-10 and 87.8 / 94.0 on 784-500-500-10), "
        "and that of two methods for LeNet that held-out digits cannot tell apart the one with fewer bytes counts (the "
        "other, HashedNets, had 93.5). "
        f"784-1000-10: trained from scratch over {figures['epochs']} epochs, {figures['seeds']} seeds, mean ± "
        "standard deviation; all others one seed. The last layer stays dense, unless it says both, in int8, with plain "
        "SVD in fp32. "
        "The default is centred whitening in int8 pairs, without training, or distilled over "
        f"{figures['recovery']} epochs where the seed trains. Cells with a stroke: its own method / the default. File "
        "and wire are of the ONNX file, the wire by `--archive`. Resident: what a process holds once the session is "
        f"ready, without one that only imports the runtime; at least {least}, whatever the model. p50: one thread, "
        "batch 1, files of one model in turns in one session, "
        f"{figures['processes']} fresh processes each; × is the speed against dense fp32. Parameters are stored "
        "numbers of any width."
    )


RIVALS = {
    "low-rank": ("low rank", 60),
    "pruning": ("pruning", 57),
    "hand-tuned": ("a smaller dense network", 23),
    "hashednet": ("HashedNets", 6),
}
"""What DeepThin's abstract compares with, and how many percent fewer errors it claims."""


def _reductions(figures: Row) -> list[str]:
    """How many fewer errors DeepThin makes than its rivals, as its abstract counts them."""
    rows = {row["key"]: row for group in figures["groups"] if group["name"] == "deepthin" for row in group["rows"]}
    ratios = [ratio for ratio in figures["ratios"] if f"deepthin-{ratio}" in rows]
    lines = []
    for key, (title, claimed) in RIVALS.items():
        known = [ratio for ratio in ratios if f"{key}-{ratio}" in rows]
        cells = [_fewer(rows[f"deepthin-{ratio}"]["own"], rows[f"{key}-{ratio}"]["own"]) for ratio in known]
        if len(cells) == len(ratios):
            lines.append((title, f"{claimed} % (word errors, speech)", *cells))
    if not ratios or not lines:
        return []
    lines.append(
        (
            "default pairs",
            NONE,
            *(_fewer(rows[f"deepthin-{r}"]["own"], rows[f"deepthin-{r}"]["default"]) for r in ratios),
        )
    )
    headers = ("DeepThin makes fewer errors than", "claimed", *(f"here, at 1/{ratio}" for ratio in ratios))
    return [markdown_table(headers, lines, right=headers[1:])]


def _fewer(one: Row, other: Row) -> str:
    """A difference of means is within the spread where the two deviations together are no smaller."""
    errors = [100 - fmean(made["accuracy"]) for made in (one, other)]
    if errors[1] <= 0:
        return NONE
    spread = sum(stdev(made["accuracy"]) for made in (one, other) if len(made["accuracy"]) > 1)
    note = " (within the spread)" if abs(errors[0] - errors[1]) <= spread else ""
    return f"{100 * (1 - errors[0] / errors[1]):.0f} %".replace("-", "−") + note


def _refusals(figures: Row) -> list[str]:
    """What has no TFLite file, and why."""
    found = {
        row["title"]: made["refused"]
        for group in figures["groups"]
        for row in group["rows"]
        for made in (row["own"], row["default"])
        if made is not None and made["refused"]
    }
    return [f"No LiteRT file: {title}: {why}." for title, why in found.items()]


def _least(figures: Row, fmt: str) -> str:
    """Bytes held for the smallest of all files."""
    dense = [made for group in figures["groups"] for made in group["dense"].values()]
    rows = [
        row[side] for group in figures["groups"] for row in group["rows"] for side in ("own", "default") if row[side]
    ]
    found = [made["files"][fmt].get("resident_bytes") for made in (*dense, *rows) if fmt in made["files"]]
    return size(min((value for value in found if value is not None), default=0))


def _board(figures: Row) -> Sequence[str]:
    found = [group for group in figures["groups"] if "emulated" in group]
    if not found:
        return []
    group = found[0]
    if isinstance(group["emulated"], str):
        return [f"DeepThin on an emulated Raspberry Pi Zero 2 W: not measured: {group['emulated']}"]
    rows = {row["key"]: row for row in group["rows"]}
    made = [("dense fp32", group["dense"]["fp32"]), ("dense int8", group["dense"]["int8"])]
    for row in rows.values():
        for name, side in (("its own", "own"), ("default pair", "default")):
            if (
                row["key"].startswith("deepthin")
                and _counted(row[side])
                and (side == "own" or "conv" not in row["key"])
            ):
                ratio = row["key"].rpartition("-")[2]
                shown = row["key"].rpartition("-")[0] if side == "own" else name
                made.append((f"{shown} at 1/{ratio}", row[side]))
    lines = []
    for label, one in made:
        for fmt, title in (("onnx", "ONNX Runtime"), ("tflite", "LiteRT")):
            file = one["files"].get(fmt, {})
            if "emulated" in file:
                cold = file.get("cold_process_medians_s")
                counts = file["emulated"]
                lines.append(
                    (
                        label,
                        title,
                        seconds(p50(file)),
                        NONE if cold is None else seconds(float(median(cold))),
                        f"{counts['instructions'] / 1e3:,.0f} k",
                        f"{counts['last_level_misses']:,}",
                    )
                )
    headers = ("DeepThin's layer", "runtime", "p50 here", "cold p50 here", "instructions", "L2 misses")
    what = (
        "DeepThin's claim of speed, 784-1000-10: decoded at load and in the decode-free form, here warm and with cold "
        "caches, and counted on an emulated Raspberry Pi Zero 2 W, one inference:"
    )
    return [what, markdown_table(headers, lines, right=headers[2:])]


def _counted(made: Row) -> bool:
    return any("emulated" in file for file in made["files"].values())
