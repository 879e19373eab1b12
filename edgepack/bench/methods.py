"""How each figure of a result was got, in a sentence, and why one that was asked for is missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from edgepack.backends.registry import FACTS
from edgepack.bench.devices.device import Device, Mode
from edgepack.bench.results import RUNNER, Conditions, Tool
from edgepack.model.scheme import FORMATS, Format

WARM, COLD, SUSTAINED, MEMORY, COUNTERS = "latency", "cold latency", "sustained latency", "memory", "cache misses"
LOAD = "load"
_NEEDS: Mapping[str, Mode] = {COLD: "cold", MEMORY: "memory", COUNTERS: "counters"}
_CANNOT = {
    COLD: "cannot empty the caches",
    MEMORY: "does not say what it holds",
    COUNTERS: "counts no events",
    SUSTAINED: "gives one mean of all its runs",
}


@dataclass(frozen=True)
class Asked:
    """Which figures a session takes besides warm latency."""

    cold: bool
    sustained: bool
    memory: bool
    counters: bool


def lacking(device: Device, *, cold: bool) -> tuple[str, ...]:
    """Figures that were asked for and that a device has no mode for."""
    wanted = (COLD, MEMORY, COUNTERS) if cold else (MEMORY, COUNTERS)
    return tuple(figure for figure in wanted if _NEEDS[figure] not in device.modes)


def reasons(missing: Iterable[str], tools: Mapping[Format, Tool]) -> dict[str, str]:
    """Why figures are missing, by figure."""
    names = " and ".join(sorted({tool.name for tool in tools.values()}))
    return {figure: f"{names} {_CANNOT[figure]}" for figure in missing}


def methods(conditions: Conditions, asked: Asked) -> dict[str, str]:
    """A sentence for every figure: what was called, which clock, how many processes, what was subtracted."""
    plan, tools = conditions.schedule, [(fmt, conditions.tool(fmt)) for fmt in FORMATS if fmt in conditions.tools]
    cpus = ", ".join(map(str, conditions.cpus))
    where = f"on CPU{'s' * (len(conditions.cpus) > 1)} {cpus}" if cpus else "on CPUs that the kernel chose"
    threads = f"{conditions.threads} thread{'s' * (conditions.threads > 1)}"
    clock = "; ".join(_clock(fmt, tool) for fmt, tool in tools)
    found = {
        WARM: f"{clock}; {_processes(plan.processes, 'fresh ')}, the variants in turns, after a warm-up of "
        f"{plan.warmup_runs} runs and {plan.warmup_s:g} s; at least {plan.runs} runs and {plan.seconds:g} s each; "
        f"{threads} {where}; median of the process medians"
    }
    if asked.cold:
        found[COLD] = (
            f"the same with a buffer read before every run that is four times the largest cache; "
            f"{_processes(plan.cold_processes)} of {plan.cold_runs} runs"
        )
    if asked.sustained:
        found[SUSTAINED] = f"one process, {plan.sustained_s:g} s back to back; medians of its first and last fifth"
    if any(tool.name == RUNNER.name for _, tool in tools):
        found[LOAD] = "time from the start of the process to the first answer: interpreter, imports, session, inference"
    if asked.memory:
        found[MEMORY] = _memory([tool for _, tool in tools], plan.memory_processes)
    if asked.counters:
        found[COUNTERS] = (
            f"perf_event_open, user mode, one event at a time; median of 5 counts of {plan.counter_runs} inferences, "
            "believed if the event also counts the lines of a streamed buffer"
        )
    return found


def _clock(fmt: Format, tool: Tool) -> str:
    by = f"{tool.title} ({tool.runtime})" if tool.runtime else tool.title
    if tool.name == RUNNER.name:
        return f"{fmt}: {by}, each {FACTS[fmt].timed_call} between two readings of perf_counter_ns"
    return f"{fmt}: {by}, as it times itself"


def _processes(count: int, kind: str = "") -> str:
    return f"{count} {kind}process{'es' * (count != 1)}"


def _memory(tools: Sequence[Tool], processes: int) -> str:
    if not any(tool.name == RUNNER.name for tool in tools):
        return f"as {' and '.join(tool.title for tool in tools)} says; median of {_processes(processes)}"
    return (
        "resident set from smaps_rollup or status and its peak from VmHWM, less those of processes that only import "
        f"the runtime; median of {_processes(processes)} each, apart from those that are timed"
    )
