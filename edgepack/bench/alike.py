"""Which results are of like conditions: those that may be merged, and those that may stand beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields, replace

from edgepack.backends.registry import FACTS
from edgepack.bench.facts import DeviceFacts
from edgepack.bench.results import RUNNER, BenchResult, Conditions
from edgepack.bench.schedule import FULL, QUICK, Schedule
from edgepack.errors import PackError
from edgepack.model.scheme import Format

# How long something else may take does not change what warm latency is.
_WITHOUT_EFFECT = ("sustained_s", "start_below_c", "cool_down_s", "retries")
_HEX = 8


def like_conditions(result: BenchResult, fmt: Format) -> dict[str, str]:
    """All that must be alike before two devices may stand beside each other, as text by name.

    What the devices are is left out: that is what is compared. So is whether latency was also measured with empty
    caches, for that comes after warm latency, and how hot the device was, which the notes say.
    """
    conditions = result.conditions
    tool = conditions.tool(fmt)
    runtime, version = _runtime(conditions, fmt)
    alike = {
        "threads": str(conditions.threads),
        "schedule": _schedule(conditions.schedule, conditions.quick),
        "inputs": conditions.inputs[:_HEX],
        "tool": tool.title,
        runtime: version,
        "governor": _governor(conditions.governors),
        "CPUs": "pinned" if conditions.cpus else "not pinned",
    }
    return alike | {one.file: one.sha256[:_HEX] for one in result.variants if one.format == fmt}


def _runtime(conditions: Conditions, fmt: Format) -> tuple[str, str]:
    """Name and version of what ran the models: as the tool said, else the first that the device had for the format."""
    named = conditions.tool(fmt).runtime
    if named is not None:
        name, _, version = named.rpartition(" ")
        return (name, version) if name else (named, "of unknown version")
    for name in FACTS[fmt].runtimes if conditions.tool(fmt).name == RUNNER.name else ():
        if name in conditions.device.runtimes:
            return name, conditions.device.runtimes[name]
    return "runtime", "not named"


def _schedule(schedule: Schedule, quick: bool) -> str:
    """`quick`, `full`, or one of them with what was changed."""
    name, base = ("quick", QUICK) if quick else ("full", FULL)
    own, usual = asdict(schedule), asdict(base)
    changed = [f"{key} {own[key]:g}" for key in own if own[key] != usual[key] and key not in _WITHOUT_EFFECT]
    return f"{name} with {' and '.join(changed)}" if changed else name


def _governor(governors: Sequence[str]) -> str:
    """The kind: a clock that follows the load is another measurement than one that stays where it is."""
    return "performance or none" if set(governors) <= {"performance"} else "follows the load"


def merge_results(results: Sequence[BenchResult]) -> BenchResult:
    """One result with the raw values of several sessions taken under the same conditions.

    Args:
        results: at least one.

    Raises:
        PackError: the conditions or the model files differ; the message names what does.
    """
    first = results[0]
    for other in results[1:]:
        differing = different_conditions(first, other)
        if differing:
            raise PackError(
                f"two results cannot be merged, they differ in {', '.join(differing)}",
                hint="compare them as separate rows, or measure again under the same conditions",
            )
    return replace(
        first,
        created=max(result.created for result in results),
        import_only={
            fmt: tuple(snapshot for result in results for snapshot in result.import_only[fmt])
            for fmt in first.import_only
        },
        not_measured={figure: why for result in results for figure, why in result.not_measured.items()},
        variants=tuple(
            replace(
                variant,
                warm=tuple(block for result in results for block in result.variants[index].warm),
                cold=tuple(block for result in results for block in result.variants[index].cold),
                memory=tuple(memory for result in results for memory in result.variants[index].memory),
                sustained=tuple(block for result in results for block in result.variants[index].sustained),
            )
            for index, variant in enumerate(first.variants)
        ),
    )


def different_conditions(one: BenchResult, other: BenchResult) -> list[str]:
    """Names of all conditions in which two results differ: `threads`, `device.kernel`, `model.onnx` …"""
    names = [
        part.name
        for part in fields(Conditions)
        if part.name != "device" and getattr(one.conditions, part.name) != getattr(other.conditions, part.name)
    ]
    names += [
        f"device.{part.name}"
        for part in fields(DeviceFacts)
        if getattr(one.conditions.device, part.name) != getattr(other.conditions.device, part.name)
    ]
    if set(one.import_only) != set(other.import_only):
        names.append("import_only")
    files = {(v.name, v.format): v.sha256 for v in one.variants}
    others = {(v.name, v.format): v.sha256 for v in other.variants}
    if list(files) != list(others):
        return [*names, "variants"]
    return names + [f"{name} ({fmt})" for (name, fmt), digest in files.items() if others[name, fmt] != digest]
