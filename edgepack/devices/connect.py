"""Where a measurement runs: this machine, or devices over SSH and adb, each with the target it stands for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgepack.devices.device import Device
from edgepack.devices.remote import RemoteDevice
from edgepack.devices.ssh import Link
from edgepack.errors import UsageError
from edgepack.targets.target import Target
from edgepack.workspace import Progress, silent

Kind = Literal["local", "ssh", "adb", "browser"]


@dataclass(frozen=True)
class Place:
    """One device and the target it is measured as.

    Attributes:
        address: `user@host[:port]` over SSH, the serial number over adb, empty for this machine.
    """

    kind: Kind
    address: str
    target: Target

    @property
    def title(self) -> str:
        """For messages."""
        titles = {"local": "this machine", "browser": "a browser", "ssh": self.address, "adb": f"adb {self.address}"}
        return titles[self.kind]


@dataclass(frozen=True)
class ConnectOptions:
    """How devices are reached.

    Attributes:
        hosts: over SSH.
        serials: over adb.
        local: this machine, though the target names hosts.
        ssh_config: in place of the user's.
        python: interpreter on the devices, in place of edgepack's own environment there or `python3`.
        install: make edgepack's environment there first.
        fresh: measure again what a session that was cut left there.
        benchmark_model, perf_test: tools for devices without Python, built for their architecture.
        browser: whatever opens the page that is served then.
        lan: others in the network may open it as well.
        announce: told its address.
    """

    hosts: Sequence[str] = ()
    serials: Sequence[str] = ()
    local: bool = False
    ssh_config: Path | None = None
    python: str | None = None
    install: bool = False
    fresh: bool = False
    benchmark_model: Path | None = None
    perf_test: Path | None = None
    browser: bool = False
    lan: bool = False
    announce: Callable[[str], None] = print


def places(targets: Sequence[Target], options: ConnectOptions) -> list[Place]:
    """The devices to measure on: those asked for, else the hosts that the targets name, else this machine.

    Args:
        targets: one for all devices, or one for each: first those of `hosts`, then those of `serials`.
        options: as asked for.

    Raises:
        UsageError: the numbers do not fit, a device is named twice, or options exclude each other.
    """
    if options.browser:
        if options.local or options.hosts or options.serials:
            raise UsageError("--browser excludes --local, --host and --adb")
        return [Place("browser", "", target) for target in _one(targets, "--browser")]
    if options.lan:
        raise UsageError("--lan is for --browser: who else in the network may open its page")
    if options.local:
        if options.hosts or options.serials:
            raise UsageError("--local excludes --host and --adb")
        return [Place("local", "", target) for target in _one(targets, "--local")]
    asked: list[tuple[Kind, str]] = [("ssh", host) for host in options.hosts]
    asked += [("adb", serial) for serial in options.serials]
    if asked:
        found = [
            Place(kind, address, target) for (kind, address), target in zip(asked, _each(targets, asked), strict=True)
        ]
    else:
        found = [Place("ssh", host, target) for target in targets for host in target.hosts]
        if not found:
            found = [Place("local", "", target) for target in _one(targets, "this machine")]
    addresses = [place.address for place in found]
    twice = sorted({address for address in addresses if addresses.count(address) > 1})
    if twice:
        raise UsageError(f"{twice[0]} is named twice: one device runs one measurement at a time")
    return found


def one_place(target: Target, options: ConnectOptions, command: str) -> Place:
    """The device of a command that looks at one; this machine only where that was said.

    Args:
        target: that it stands for.
        options: as asked for.
        command: for the hint.

    Raises:
        UsageError: none was named, or several.
    """
    found = places([target], options)
    if len(found) != 1:
        raise UsageError(
            f"{len(found)} devices for one command; expected one", hint=f"{command} --host {found[0].address}"
        )
    if found[0].kind == "local" and not options.local:
        hint = f"{command} --host user@host, or --local for this machine"
        raise UsageError("which device is meant?", hint=hint)
    return found[0]


def _one(targets: Sequence[Target], where: str) -> Sequence[Target]:
    if len(targets) != 1:
        names = ", ".join(target.name for target in targets)
        raise UsageError(f"{len(targets)} targets ({names}) for {where}; expected one", hint="name a --host for each")
    return targets


def _each(targets: Sequence[Target], asked: Sequence[object]) -> Sequence[Target]:
    if len(targets) == 1:
        return [targets[0]] * len(asked)
    if len(targets) != len(asked):
        raise UsageError(
            f"{len(targets)} targets for {len(asked)} devices; expected one for all, or one for each in the same order"
        )
    return targets


@contextmanager
def connected(place: Place, options: ConnectOptions, progress: Progress = silent) -> Iterator[Device]:
    """The device of a place, for the time of a session.

    Raises:
        UsageError: the address is none.
        DeviceError: it cannot be reached, lacks something, or is measured by another session.
    """
    from edgepack.devices.local import LocalDevice
    from edgepack.devices.native import NativeDevice

    if place.kind == "local":
        yield LocalDevice()
        return
    if place.kind == "browser":
        from edgepack.devices.browser import opened_browser

        with opened_browser(lan=options.lan, announce=options.announce, progress=progress) as browser:
            yield browser
        return
    with connected_remote(place, options, progress) as device:
        if options.benchmark_model or options.perf_test:
            yield NativeDevice(device, benchmark_model=options.benchmark_model, perf_test=options.perf_test)
        else:
            yield device


@contextmanager
def connected_remote(place: Place, options: ConnectOptions, progress: Progress = silent) -> Iterator[RemoteDevice]:
    """The device of a place that is not this machine; what it left there is removed if the block ends well.

    Raises:
        UsageError: the address is none.
        DeviceError: it cannot be reached, lacks something, or is measured by another session.
    """
    progress("connect")
    device = RemoteDevice(_link(place, options), python=options.python, fresh=options.fresh, progress=progress)
    try:
        if options.install:
            from edgepack.devices.install import install_runtimes

            install_runtimes(device, place.target, progress)
        yield device
        device.settle()
    finally:
        device.close()


def _link(place: Place, options: ConnectOptions) -> Link:
    if place.kind == "adb":
        from edgepack.devices.adb import AdbLink

        return AdbLink(place.address)
    from edgepack.devices.ssh import SshLink

    return SshLink(place.address, config=options.ssh_config)
