"""The target itself, emulated: the same runner in QEMU, with the plugin that models the target's caches."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgepack.devices.device import EVERY_MODE, Job
from edgepack.devices.local import LocalDevice
from edgepack.emulator import programs
from edgepack.emulator.counts import Counts, intervals, read_marks
from edgepack.emulator.guest import guest
from edgepack.emulator.plugin import cache_arguments, plugin_file
from edgepack.errors import StableDeviceError
from edgepack.targets.target import Target


class EmulatedDevice:
    """Runs jobs on an emulated target. Times that it reports are QEMU's and mean nothing; counts are what it is for.

    Args:
        target: aarch64 or x86_64, with known caches.

    Raises:
        StableDeviceError: QEMU, the root folder or a compiler is missing.
        TargetsError: a cache of the target is not known.
    """

    def __init__(self, target: Target) -> None:
        caches = cache_arguments(target)
        self._guest = guest(target)
        self._plugin = plugin_file(self._guest.qemu)
        self.caches = caches
        self._folder = tempfile.TemporaryDirectory(prefix="edgepack-emulator-")
        self.name = f"emulated {target.name}"
        self.modes = EVERY_MODE
        self.resumed = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """Where the emulated CPU is not the target's."""
        return self._guest.notes

    @property
    def cpu(self) -> str:
        """QEMU's CPU model."""
        return self._guest.options[1]

    @property
    def qemu_version(self) -> str:
        """`qemu-aarch64 version 7.2.22 …`."""
        return programs.version(self._guest.qemu)

    @property
    def levels(self) -> int:
        """How many caches are modelled, the instruction cache among them."""
        return len(self.caches)

    def probe(self) -> Mapping[str, Any]:
        """See `Device.probe`; the runtimes are not imported."""
        return self._local(()).probe(imports=False)

    def push(self, path: Path) -> str:
        """See `Device.push`: the file is here already."""
        return str(path.resolve())

    def run(self, job: Job) -> Mapping[str, Any]:
        """See `Device.run`."""
        return self._local(()).run(job)

    def count(self, job: Job) -> tuple[Mapping[str, Any], list[tuple[int, int, Counts]]]:
        """Runs a job of mode `marks` and gives its report and (model, runs, counts) of every interval.

        Raises:
            TransientDeviceError, StableDeviceError, DataError: see `Device.run`.
        """
        out = Path(self._folder.name) / "counters"
        if "," in str(out):
            raise StableDeviceError(
                f"QEMU takes no comma in the path of its counters: {out}", hint="set TMPDIR to a folder without one"
            )
        # A runtime's idle threads wake now and then; an inference on one thread is what that thread does.
        counted = ["threads=marking"] if job.threads == 1 else []
        options = ",".join([str(self._plugin), f"out={out}", "start=mark", *counted, *self.caches])
        report = self._local(("-plugin", options)).run(job)
        return report, intervals(read_marks(out, self.levels), report["intervals"])

    def close(self) -> None:
        """Removes the device's temporary files."""
        self._folder.cleanup()

    def _local(self, options: tuple[str, ...]) -> LocalDevice:
        found = self._guest
        command = (found.qemu, *options, *found.options, found.python)
        return LocalDevice(command, environment=found.environment, name=self.name)
