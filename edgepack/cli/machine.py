"""`edgepack doctor` and `edgepack emulator`: what this machine has, and what it lacks."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from edgepack.cli.options import (
    Hosts,
    Install,
    Python,
    Serials,
    SshConfig,
    TargetName,
    TargetsFile,
    progress_bar,
    reporting,
    show,
)
from edgepack.report.render import TERMINAL, Renderer

if TYPE_CHECKING:
    from edgepack.devices.connect import ConnectOptions

emulator_app = typer.Typer(
    name="emulator", help="What `edgepack bench --emulate` needs on this machine.", no_args_is_help=True
)


class Arch(StrEnum):
    """What `--arch` takes."""

    aarch64 = "aarch64"
    x86_64 = "x86_64"


@reporting()
def doctor(
    hosts: Hosts = None,
    serials: Serials = None,
    ssh_config: SshConfig = None,
    python: Python = None,
    install: Install = False,
    *,
    output: Renderer,
) -> None:
    """Show what is installed here, and the commands that install the rest.

    Runtimes, converters and clients. With --host or --adb, look at a device instead: what it lacks before
    anything can be measured on it.

    Example: edgepack doctor

    Example: edgepack doctor --host pi@raspberrypi.local
    """
    if hosts or serials:
        from edgepack.devices.connect import ConnectOptions

        options = ConnectOptions(tuple(hosts or ()), tuple(serials or ()), False, ssh_config, python, install)
        _doctor_of_devices(options, output)
        return
    from edgepack.devices.doctor import examine
    from edgepack.report.doctor import doctor_report

    show(doctor_report(examine()), output)


def _doctor_of_devices(options: ConnectOptions, output: Renderer) -> None:
    from edgepack.devices.connect import connected_remote, places
    from edgepack.devices.doctor import examine_device
    from edgepack.report.doctor import preflight_report
    from edgepack.targets.file import get_target

    found = {}
    for place in places([get_target("host")], options):
        with progress_bar(output) as progress, connected_remote(place, options, progress) as device:
            found[place.title] = examine_device(device)
        if output is TERMINAL:  # each as soon as it is known: the next device may not answer
            show(preflight_report({place.title: found[place.title]}))
    if output is not TERMINAL:
        show(preflight_report(found), output)


@emulator_app.command("install")
@reporting()
def install_emulator(
    arch: Annotated[Arch, typer.Option("--arch", help="Of the targets to emulate.")] = Arch.aarch64,
    *,
    output: Renderer,
) -> None:
    """Install what counting under emulation needs.

    QEMU, the cache model and, for Arm targets, their Python and runtimes; what is there already stays.

    About a minute and 360 MB in edgepack's cache for aarch64. Missing programs come from Debian's packages, as root.

    Example: edgepack emulator install --arch aarch64
    """
    from edgepack.emulator.install import install
    from edgepack.report.doctor import installed_report

    with progress_bar(output) as progress:
        installed = install(arch.value, progress)
    show(installed_report(installed), output)


@emulator_app.command("costs")
@reporting()
def costs(
    target: TargetName,
    fill: Annotated[bool, typer.Option("--fill", help="Count what is missing, and keep it for this CPU.")] = False,
    targets_file: TargetsFile = None,
    *,
    output: Renderer,
) -> None:
    """Show the counted costs that builds for other CPUs choose by.

    And how well they interpolate. Tables for rpi4, rpi3b+, rpi-zero2w, rpi5 and rk3566 are shipped. With --fill,
    another CPU is counted, or schemes and convolutions that its table lacks: some forty minutes, kept in edgepack's
    cache, and resumed where it was interrupted.

    Example: edgepack emulator costs --target rpi4
    """
    from dataclasses import asdict

    from edgepack.cost.count import fill_table
    from edgepack.cost.emulated import table_for
    from edgepack.errors import UsageError
    from edgepack.report.targets import costs_report
    from edgepack.targets.file import get_target

    chosen = get_target(target, targets_file)
    table = table_for(chosen)
    if fill:
        with progress_bar(output) as progress:
            table = fill_table(chosen, progress=progress)
    if table is None:
        raise UsageError(
            f"no counts are kept for a CPU like {target}",
            hint=f"count it: edgepack emulator costs --target {target} --fill",
        )
    show(costs_report(target, asdict(table)), output)
