"""`edgepack check`: a pack held against its base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgepack.check.base import opened_base
from edgepack.check.changes import COUNTED, Change, changes, least, notes, over
from edgepack.check.figures import PackFigures, take_figures
from edgepack.check.latency import Latency, Measuring, measure
from edgepack.check.thresholds import STANDARD, Thresholds
from edgepack.errors import PackError, RegressionError, UsageError
from edgepack.model.scheme import Format
from edgepack.targets.target import Target
from edgepack.workspace import Progress, silent

RECOUNTS = 2
"""How often figures that seem over are counted again."""


@dataclass(frozen=True)
class CheckOptions:
    """What is held against the base.

    Attributes:
        target: to count on.
        formats: which model files; None for all that the target runs.
        counted: whether inferences are counted.
        measuring: where latency is measured as well; None for nowhere.
        thresholds: by how much figures may grow.
    """

    target: Target
    formats: Sequence[Format] | None = None
    counted: bool = True
    measuring: Measuring | None = None
    thresholds: Thresholds = STANDARD


@dataclass(frozen=True)
class Checked:
    """What came out.

    Attributes:
        pack, against: as they were given; `against` is None where figures were only taken.
        figures, base: of both.
        thresholds: that the changes were held against.
        changes: every figure that both have.
        notes: what was not compared, and why.
    """

    pack: Path
    against: str | None
    figures: PackFigures
    base: PackFigures | None
    thresholds: Thresholds
    changes: tuple[Change, ...]
    notes: tuple[str, ...]

    @property
    def over(self) -> list[Change]:
        """The figures that have grown too much."""
        return over(self.changes)

    @property
    def failure(self) -> RegressionError | None:
        """None where no figure has grown too much."""
        found = self.over
        if not found:
            return None
        names = list(dict.fromkeys(f"{one.file}, {one.part}" if one.part else one.file for one in found))
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        return RegressionError(
            f"{self.pack}: {len(found)} of {len(self.changes)} figures grew by more than is allowed against "
            f"{self.against}: {'; '.join(names[:5])}{more}",
            hint="if the change is wanted, make the pack the new base, or raise a threshold under `check:` in "
            "edgepack.yaml",
        )


def check_pack(pack: Path, against: str | None, options: CheckOptions, progress: Progress | None = None) -> Checked:
    """Takes the figures of a pack, and holds them against those of a base.

    A base that is a pack is counted here as well, in processes of its own, and measured in turns with the other. What
    seems to have grown too much is counted again, and its least growth holds.

    Args:
        pack: with `manifest.json`; nothing in it is changed.
        against: see `opened_base`; None only takes the figures.
        options: what is compared.
        progress: told of every finished process.

    Raises:
        PackError: no pack, no such base, or one that was counted with something else.
        UsageError: latency is asked for, and the base is no pack.
        TargetsError, DeviceError, ModelError, DataError: see `take_figures` and `measure`.
    """
    tell = progress or silent
    measuring = options.measuring
    if against is None:
        if measuring is not None:
            raise UsageError("nothing to measure against", hint="name a base with --against")
        return Checked(pack, None, _figures(pack, options, tell), None, options.thresholds, (), ())
    latencies: list[Latency] = []
    with opened_base(against, pack) as opened:
        found = _asked(opened, options, against) if isinstance(opened, PackFigures) else opened

        def both() -> tuple[PackFigures, PackFigures]:
            own = _figures(pack, options, tell)
            return own, found if isinstance(found, PackFigures) else _figures(found, options, tell, lenient=True)

        own, base = both()
        _require_alike(own, base, against)
        if measuring is not None and isinstance(found, Path):
            latencies = measure(pack, found, measuring, options.formats, tell)
        held = list(changes(own, base, options.thresholds, latencies))
        for _ in range(RECOUNTS):
            if not any(one.over and one.what in COUNTED for one in held):
                break
            held = least(held, list(changes(*both(), options.thresholds)))
    return Checked(pack, against, own, base, options.thresholds, tuple(held), tuple(notes(own, base)))


def _figures(pack: Path, options: CheckOptions, progress: Progress, *, lenient: bool = False) -> PackFigures:
    """Of the asked formats; with `lenient`, of those that are there, if any."""
    formats = options.formats
    if lenient and formats is not None:
        formats = [fmt for fmt in formats if (pack / f"model.{fmt}").is_file()] or formats
    return take_figures(pack, options.target, formats, counted=options.counted, progress=progress)


def _asked(base: PackFigures, options: CheckOptions, against: str) -> PackFigures:
    """Figures that were written down, of the asked formats."""
    if options.measuring is not None:
        raise UsageError(
            f"{against} holds figures, and latency is measured with both files in turns",
            hint="give a pack, a folder of packs or a git revision as the base",
        )
    if options.counted and base.emulation is None:
        raise PackError(f"{against}: holds no counts", hint="write it without --no-counts, or check with it")
    if options.counted and base.target != options.target.name:
        raise PackError(
            f"{against}: was counted on {base.target}, expected {options.target.name}",
            hint=f"--target {base.target} counts on the same",
        )
    files = tuple(one for one in base.files if options.formats is None or one.format in options.formats)
    if not files:
        raise PackError(f"{against}: has figures of {', '.join(one.name for one in base.files)} alone")
    return replace(base, files=files)


def _require_alike(own: PackFigures, base: PackFigures, against: str) -> None:
    """Counts of other runtimes, caches or emulators say nothing of the model."""
    if own.emulation is None or base.emulation is None:
        return
    for what in ("caches", "cpu", "qemu", "runtimes"):
        here, there = getattr(own.emulation, what), getattr(base.emulation, what)
        # A file of one format alone needs one runtime alone.
        unlike = any(here[name] != there[name] for name in {*here} & {*there}) if what == "runtimes" else here != there
        if unlike:
            raise PackError(
                f"{against}: was counted with other {what}: {there}, here {here}",
                hint="write it again with this edgepack, or give a pack or a git revision: these are counted here",
            )
