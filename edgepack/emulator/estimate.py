"""A bound on the time of counted code. It is arithmetic on counts and constants, never a measurement."""

from __future__ import annotations

from dataclasses import dataclass

from edgepack.emulator.counts import Counts
from edgepack.targets.target import Bandwidth, Target


@dataclass(frozen=True)
class TimeBound:
    """Between which times one inference lies if the constants hold.

    Attributes:
        low_s: the core issues as much as it can, and memory is read meanwhile.
        high_s: the core issues at its low rate, and waits for all of memory.
        assumptions: every constant that went in, for people.
    """

    low_s: float
    high_s: float
    assumptions: tuple[str, ...]


def time_bound(counts: Counts, target: Target, threads: int = 1) -> TimeBound | str:
    """t ≥ max(instructions / (IPC · f), bytes from memory / read bandwidth), and ≤ their sum at the low constants.

    Args:
        counts: of one inference.
        target: frequency, instructions per cycle and read bandwidth are of its main cluster.
        threads: over which the instructions are spread evenly.

    Returns:
        The bound, or which constant of the target is not known.
    """
    cluster = target.main_cluster
    read = cluster.read if threads == 1 else (cluster.read_all_cores or cluster.read)
    known = {"frequency": cluster.frequency_mhz, "instructions per cycle": cluster.ipc, "read bandwidth": read}
    absent = [name for name, value in known.items() if value is None]
    if cluster.frequency_mhz is None or cluster.ipc is None or read is None:
        return f"the {', '.join(absent)} of {target.name} {'is' if len(absent) == 1 else 'are'} not known"
    rate = threads * cluster.frequency_mhz * 1e6
    lines = [cache.line_bytes for cache in (*cluster.data_caches, target.system_cache) if cache is not None]
    memory_bytes = max(counts.misses[counts.last_level], 0.0) * lines[-1]  # a difference of counts may fall below zero
    low = max(counts.instructions / (cluster.ipc.high * rate), memory_bytes / (read.high_gb_s * 1e9))
    high = counts.instructions / (cluster.ipc.low * rate) + memory_bytes / (read.low_gb_s * 1e9)
    return TimeBound(low, high, _assumptions(target, read, threads))


def _assumptions(target: Target, read: Bandwidth, threads: int) -> tuple[str, ...]:
    cluster = target.main_cluster
    if cluster.ipc is None:
        return ()
    spread = f" on each of {threads} threads, evenly loaded" if threads > 1 else ""
    return (
        f"{cluster.core} at {cluster.frequency_mhz} MHz, {cluster.ipc.low:g} to {cluster.ipc.high:g} instructions per "
        f"cycle ({cluster.ipc.source}){spread}",
        f"{read.low_gb_s:g} to {read.high_gb_s:g} GB/s read from memory ({read.source})",
        "from full overlap of both to none; no prefetcher, no write-back, no other program",
    )
