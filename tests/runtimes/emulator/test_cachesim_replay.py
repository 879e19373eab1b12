"""The plugin's model against the plain one, on made-up traces and every geometry."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.runtimes.emulator.cache_model import Geometry, Hierarchy
from tests.runtimes.emulator.guest_runs import cache_arguments, read_lines

pytestmark = pytest.mark.system
RECORDS = 1500


def replayed(replay: Path, out: Path, geometries: Sequence[Geometry], trace: Sequence[str]) -> tuple[int, ...]:
    command = [str(replay), f"out={out}", *cache_arguments(geometries)]
    subprocess.run(command, input="\n".join(trace), text=True, check=True, timeout=60)
    (line,) = read_lines(out)
    return line.totals


def modelled(geometries: Sequence[Geometry], trace: Sequence[str]) -> tuple[int, ...]:
    hierarchy = Hierarchy(geometries)
    hierarchy.feed(trace)
    return hierarchy.totals.line()


@st.composite
def hierarchies(draw: st.DrawFn) -> list[Geometry]:
    """l1i, l1d and up to three unified levels; small, so that lines are thrown out; sets of any number."""
    found: list[Geometry] = []
    line = 16
    for level in range(2 + draw(st.integers(0, 3))):
        lines = [size for size in (16, 32, 64, 128) if level < 2 or size >= line]
        own = draw(st.sampled_from(lines))
        line = max(line, own)
        ways, sets = draw(st.integers(1, 16)), draw(st.integers(1, 12) | st.sampled_from([16, 24, 32]))
        found.append(Geometry(ways * sets * own, ways, own, level >= 2 and draw(st.booleans())))
    return found


def strided(rng: random.Random, stride: int, wrap: int) -> Iterator[int]:
    at = rng.randrange(1 << 40)
    for step in range(RECORDS):
        yield at + step * stride % wrap


def scattered(rng: random.Random, span: int) -> Iterator[int]:
    base = rng.randrange(1 << 47)
    for _ in range(RECORDS):
        yield base + rng.randrange(span)


def matvec(rng: random.Random, columns: int) -> Iterator[int]:
    """Weights that stream past a vector that is read over and over."""
    weights, x = rng.randrange(1 << 40) * 4, rng.randrange(1 << 40) * 4
    for step in range(RECORDS // 2):
        yield weights + 4 * step
        yield x + 4 * (step % columns)


def records(rng: random.Random, addresses: Iterator[int], threads: int) -> Iterator[str]:
    for address in addresses:
        thread = rng.randrange(threads) * 3  # QEMU's numbers may have gaps
        if rng.random() < 0.3:
            size = rng.choice([1, 3, 16, 40, 300])
            yield f"{thread} i {address:x} {size} {rng.randint(1, size)}"
        else:
            yield f"{thread} {rng.choice('rw')} {address:x} {rng.choice([1, 2, 4, 8, 16])}"


PATTERNS = st.one_of(
    st.tuples(st.just(strided), st.sampled_from([(1, 700), (4, 4096), (64, 8192), (192, 30000), (4096, 1 << 20)])),
    st.tuples(st.just(scattered), st.sampled_from([(256,), (4096,), (1 << 15,), (1 << 30,)])),
    st.tuples(st.just(matvec), st.sampled_from([(8,), (100,), (700,)])),
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(hierarchies(), PATTERNS, st.integers(1, 4), st.integers(0, 1 << 30))
def test_any_trace_counts_as_in_the_plain_model(
    replay: Path, tmp_path: Path, geometries: list[Geometry], pattern: tuple, threads: int, seed: int
) -> None:
    rng = random.Random(seed)
    addresses, arguments = pattern
    trace = list(records(rng, addresses(rng, *arguments), threads))
    assert replayed(replay, tmp_path / "out", geometries, trace) == modelled(geometries, trace)


@pytest.mark.parametrize(
    "geometries",
    [
        pytest.param([(49152, 3), (32768, 2), (1 << 20, 16)], id="rpi4"),
        pytest.param([(65536, 4), (65536, 4), (524288, 8), (1 << 21, 16)], id="rpi5"),
        pytest.param([(65536, 8), (32768, 8), (1 << 21, 16), (6 << 20, 12)], id="n100"),
        pytest.param([(49152, 3), (24576, 6), (3 << 20, 12), (5 * 64 * 7, 7)], id="odd"),
    ],
)
def test_real_geometries_count_as_in_the_plain_model(
    replay: Path, tmp_path: Path, geometries: list[tuple[int, int]]
) -> None:
    caches = [Geometry(size, ways, 64, shared=level > 2) for level, (size, ways) in enumerate(geometries)]
    rng = random.Random(3)
    spans = [rng.choice([1 << 14, 1 << 17, 1 << 21, 1 << 23]) for _ in range(60)]
    trace = [line for span in spans for line in records(rng, scattered(rng, span), 3)]
    assert replayed(replay, tmp_path / "out", caches, trace) == modelled(caches, trace)


def test_a_known_trace_by_hand(replay: Path, tmp_path: Path) -> None:
    """One set of two ways: a, b, c and again b are missed, since c threw b out, and the second line of the write."""
    caches = [Geometry(64, 1, 64), Geometry(128, 2, 64), Geometry(64 * 64, 64, 64)]
    trace = ["0 r 0 8", "0 r 1000 8", "0 r 8 8", "0 r 2000 8", "0 r 1000 8", "0 w 103e 4", "0 i 40 8 2"]
    found = replayed(replay, tmp_path / "out", caches, trace)
    assert found == (2, 6, 44, 1, 5, 5, 0, 0)
