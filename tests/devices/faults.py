"""Benches on a device that fails at random: whether each still ends with a result, and what is left over."""

from __future__ import annotations

import gc
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgepack.benchmark.results import BenchResult
from edgepack.benchmark.results_file import problems
from edgepack.benchmark.schedule import QUICK
from edgepack.benchmark.session import Settings, Variant, bench_variants
from edgepack.devices.remote import RemoteDevice
from edgepack.errors import DeviceError
from edgepack.targets.file import get_target
from tests.devices import sshd

DISK = "size=64m"
SCHEDULE = replace(
    QUICK, processes=2, warmup_runs=1, warmup_s=0.0, runs=5, seconds=0.02, cold_runs=2, extra_processes=0, retries=0
)
PATIENCE_S = 20.0
MOST_S = 240.0
"""So long a bench is begun again before it counts as lost; a lock whose owner was killed holds for two minutes."""


@dataclass
class Counts:
    """What happened.

    Attributes:
        faults: injected, by kind.
        benches: that ended with a whole result.
        tries: how often one was begun for that.
        resumed: jobs that an earlier try had left there, and that were not run again.
        errors: that were told, by their type; all of the device's kind.
        told: their messages.
        kilobytes, files, threads: of this process after the first bench and at the end.
    """

    faults: Counter[str] = field(default_factory=Counter)
    benches: int = 0
    tries: int = 0
    resumed: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    told: list[str] = field(default_factory=list)
    kilobytes: tuple[int, int] = (0, 0)
    files: tuple[int, int] = (0, 0)
    threads: tuple[int, int] = (0, 0)


class Faults:
    """Breaks a device, one thing at a time, and mends it again.

    Args:
        rig: with a disk of its own for its cache folder.
        draw: what breaks.
    """

    def __init__(self, rig: sshd.Rig, draw: random.Random) -> None:
        self._rig, self._draw = rig, draw
        self.kinds: dict[str, Callable[[], None]] = {
            "reset": rig.relay.reset,
            "cut": lambda: rig.relay.cut_after(draw.randrange(1, 20_000)),
            "stall": self._stall,
            "refuse": self._refuse,
            "kill": self._kill,
            "full disk": self._fill,
            "clock jump": self._jump,
        }

    def _stall(self) -> None:
        self._rig.relay.stall()
        time.sleep(self._draw.uniform(0.2, 3.0))
        self._rig.relay.resume()

    def _refuse(self) -> None:
        self._rig.relay.refuse()
        self._rig.relay.reset()
        time.sleep(self._draw.uniform(0.1, 2.0))
        self._rig.relay.open()

    def _kill(self) -> None:
        running = sorted(self._rig.machine.processes())
        if running:
            self._rig.machine.kill([self._draw.choice(running)])

    def _fill(self) -> None:
        filler = self._rig.machine.root.parent / "filler"
        try:
            with filler.open("wb", buffering=0) as file:
                while file.write(bytes(1 << 20)):
                    pass
        except OSError:
            time.sleep(self._draw.uniform(0.1, 1.5))
        finally:
            filler.unlink(missing_ok=True)

    def _jump(self) -> None:
        """What files say of their age is off by minutes or days from now on, as after the clock was set."""
        jump_s = self._draw.choice((-1, 1)) * self._draw.choice((90, 3600, 10 * 86400))
        for path in [*self._rig.machine.root.rglob("*")]:
            with suppress(OSError):  # it has gone meanwhile
                stat = path.lstat()
                os.utime(path, (stat.st_atime + jump_s, stat.st_mtime + jump_s), follow_symlinks=False)

    @contextmanager
    def going_on(self, counts: Counts, pause_s: tuple[float, float]) -> Iterator[None]:
        """Something breaks every now and then until the block ends."""
        ended = threading.Event()
        failed: list[BaseException] = []

        def work() -> None:
            try:
                while not ended.wait(self._draw.uniform(*pause_s)):
                    kind = self._draw.choice(list(self.kinds))
                    self.kinds[kind]()
                    counts.faults[kind] += 1
            except BaseException as err:  # noqa: BLE001
                failed.append(err)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self._rig.relay.cut_after(1 << 60)
        if failed:
            raise failed[0]


def run(rig: sshd.Rig, variants: list[Variant], seconds: float, *, seed: int = 21) -> tuple[Counts, list[BenchResult]]:
    """Benches on the device until the time is up, while it fails; the last one is ended.

    Raises:
        AssertionError: a bench never came to an end, or its result cannot be.
        Exception: anything but an error of a device: a defect of edgepack.
    """
    counts, results = Counts(), []
    until = time.monotonic() + seconds
    before = None
    with Faults(rig, random.Random(seed)).going_on(counts, (0.3, 2.0)):
        while time.monotonic() < until or not results:
            results.append(_bench(rig, variants, counts))
            before = before or _held()
    after = _held()
    counts.kilobytes, counts.files, counts.threads = zip(before or after, after, strict=True)  # type: ignore[assignment]
    return counts, results


def _bench(rig: sshd.Rig, variants: list[Variant], counts: Counts) -> BenchResult:
    until = time.monotonic() + MOST_S
    while time.monotonic() < until:
        counts.tries += 1
        link = rig.link()
        try:
            device = RemoteDevice(link, patience_s=PATIENCE_S)
            try:
                result = bench_variants(
                    variants, target=get_target("host"), device=device, settings=Settings(quick=True, schedule=SCHEDULE)
                )
                device.settle()
            finally:
                counts.resumed += device.resumed
                device.close()
        except DeviceError as err:
            counts.errors[type(err).__name__] += 1
            counts.told.append(err.message)
            time.sleep(0.2)  # what is cut at once is tried in vain at once
        else:
            assert list(problems(result)) == []
            counts.benches += 1
            return result
        finally:
            link.close()
            rig.links.remove(link)
    raise AssertionError(f"no result after {MOST_S:.0f} s: {set(counts.told)}")


def _held() -> tuple[int, int, int]:
    """Resident kilobytes, open files and threads of this process."""
    gc.collect()
    status = Path("/proc/self/status").read_text()
    kilobytes = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
    return kilobytes, len(os.listdir("/proc/self/fd")), threading.active_count()
