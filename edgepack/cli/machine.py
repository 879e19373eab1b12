"""`edgepack doctor` and `edgepack emulator`: what this machine has, and what it lacks."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from edgepack.cli.options import Json, Verbose
from edgepack.console import door, progress_bar, show, show_json

emulator_app = typer.Typer(
    name="emulator", help="What `edgepack bench --emulate` needs on this machine.", no_args_is_help=True
)


class Arch(StrEnum):
    """What `--arch` takes."""

    aarch64 = "aarch64"
    x86_64 = "x86_64"


def doctor(as_json: Json = False, verbose: Verbose = False) -> None:
    """Show which runtimes, converters and clients are here, and the command that installs what is missing.

    Example: edgepack doctor
    """
    with door(as_json=as_json, verbose=verbose):
        from dataclasses import asdict

        from edgepack.doctor import examine
        from edgepack.report.doctor_table import render_doctor

        findings = examine()
        if as_json:
            show_json([asdict(finding) for finding in findings])
        else:
            show(render_doctor(findings))


@emulator_app.command("install")
def install_emulator(
    arch: Annotated[Arch, typer.Option("--arch", help="Of the targets to emulate.")] = Arch.aarch64,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Install QEMU, the cache model and, for Arm targets, their Python and runtimes; what is there already stays.

    About a minute and 360 MB in edgepack's cache for aarch64. Missing programs come from Debian's packages, as root.

    Example: edgepack emulator install --arch aarch64
    """
    with door(as_json=as_json, verbose=verbose):
        from dataclasses import asdict

        from edgepack.emulator.install import install
        from edgepack.report.doctor_table import render_installed

        with progress_bar(as_json=as_json) as progress:
            installed = install(arch.value, progress)
        if as_json:
            show_json(asdict(installed))
        else:
            show(render_installed(installed))
