"""What a build was asked to do, checked once."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgepack.backends.registry import FACTS, FORMATS
from edgepack.distill.budget import Budget
from edgepack.errors import SOURCE, UsageError
from edgepack.metrics.drop import CONFIDENCE
from edgepack.model.scheme import Format
from edgepack.model.types import Aim
from edgepack.pack.folder import file_format
from edgepack.sources import closed, unwritable
from edgepack.sources.images import ImageOptions
from edgepack.sources.inputs import GivenInput
from edgepack.targets.target import HOST, Target

Rank = Literal["auto", "cv"] | int | float
PrecisionChoice = Literal["auto", "fp32", "int8", "int4"]
DEFAULT_MAX_DROP = 0.5
DEFAULT_TIME_LIMIT_S = 600.0
SHOWN_NAMES = 8


@dataclass(frozen=True)
class BuildOptions:
    """One build.

    Attributes:
        model: as on the command line.
        data: samples for calibration, validation and confirmation, see `read_samples`; None takes the recipe's.
        test: samples that are scored once, at the end.
        optimize: what is least in the chosen plan: latency, bytes, or latency × bytes.
        max_drop: largest allowed drop in the metric's own unit; None means 0.5 in auto mode and no limit at a fixed
            rank or for a picked plan.
        formats: to write; None for that of the file that `out` names, else for all whose packages are installed.
        metric: name of the metric that plans are judged by, or file.py:function, or `recipe` for the recipe's own
            `evaluate`; None to choose by the data.
        confidence: with which the drop is to stay within the limit, one-sided.
        rank: "auto" to choose one for every layer, "cv" for one share by cross-validation on the labels, a rank for all
            layers (int), or a share of each layer's weights (float).
        refit: fit the factors of the plans whose files are made to what the compressed layers before them answer.
        method: factorizer, None for whitened with data and svd without.
        max_size_bytes: largest size of one model file, None for no limit.
        max_memory_bytes: most that a process may hold for one file beyond the runtime's import, None for no limit.
        max_latency_s: longest time of one inference, None for no limit.
        time_limit_s: no plan is tried later than this after the search began.
        pick: numbers of explored plans to build instead of the one that the search would choose; empty for none.
        distill: how long the factors of a plan are trained against the original; None for not at all.
        scheduler: address of a Dask scheduler, None for local processes.
        out: pack folder, or a model file alone by its suffix; None for the folder dist/<model>.<target>.
        fresh: ignore what the cache holds.
        keep: regular expression; layers in whose names it is found stay as they are.
        only: regular expression; layers in whose names it is not found stay as they are.
        inputs: shapes of inputs that the model leaves open.
        images: how images become samples; None where nothing was said.
        baseline: write the dense models into the pack.
        archive: write each model file as a `.tar.xz` as well.
        channels_last: TFLite files take images with their channels last.
    """

    model: str
    target: Target
    data: Path | None = None
    test: Path | None = None
    optimize: Aim = "balanced"
    max_drop: float | None = None
    metric: str | None = None
    confidence: float = CONFIDENCE
    formats: tuple[Format, ...] | None = None
    rank: Rank = "auto"
    precision: PrecisionChoice = "auto"
    refit: bool = False
    method: str | None = None
    max_size_bytes: int | None = None
    max_memory_bytes: int | None = None
    max_latency_s: float | None = None
    time_limit_s: float = DEFAULT_TIME_LIMIT_S
    pick: tuple[int, ...] = ()
    distill: Budget | None = None
    scheduler: str | None = None
    out: Path | None = None
    seed: int = 0
    fresh: bool = False
    baseline: bool = True
    archive: bool = False
    channels_last: bool = False
    keep: str | None = None
    only: str | None = None
    inputs: tuple[GivenInput, ...] = ()
    images: ImageOptions | None = None

    def __post_init__(self) -> None:
        if self.max_drop is not None and not 0 <= self.max_drop < float("inf"):
            raise UsageError(f"--max-drop {self.max_drop}: a drop is 0 or more, in the metric's unit")
        if not 0.5 <= self.confidence < 1:
            raise UsageError(f"--confidence {self.confidence}: a one-sided level lies between 0.5 and 1, such as 0.9")
        if self.file_format is not None:
            self._check_file(self.file_format)
            object.__setattr__(self, "formats", (self.file_format,))
        elif self.formats is not None:
            self._check_formats(self.formats, "leave {fmt} out of --formats")
        for fmt in self.chosen_formats:
            self.target.require_format(fmt)
        if isinstance(self.rank, float) and not 0 < self.rank < 1:
            raise UsageError(f"--rank {self.rank}: a share of a layer's weights lies between 0 and 1")
        if self.seed < 0:
            raise UsageError(f"--seed {self.seed}: a seed is 0 or more")
        for name, limit in (
            ("--max-size", self.max_size_bytes),
            ("--max-memory", self.max_memory_bytes),
            ("--max-latency", self.max_latency_s),
        ):
            if limit is not None and limit <= 0:
                raise UsageError(f"{name} must be more than 0")
        if not 0 < self.time_limit_s < float("inf"):
            raise UsageError(f"--time-limit {self.time_limit_s} s: must be more than 0")
        for name, text in (("--keep", self.keep), ("--only", self.only)):
            _check_expression(name, text)
        if self.pick and self.rank != "auto":
            raise UsageError("--pick takes a plan that --explore found", hint="leave --rank out")

    def _check_file(self, fmt: Format) -> None:
        if self.formats is not None and self.formats != (fmt,):
            raise UsageError(
                f"--out {self.out} is one file, and --formats asks for {','.join(self.formats)}",
                hint="leave --formats out, or give --out a folder",
            )
        if self.archive:
            raise UsageError(
                f"--out {self.out} is one file: there is no pack for --archive", hint="leave --archive out"
            )
        self._check_formats((fmt,), "give --out another suffix")

    def _check_formats(self, asked: tuple[Format, ...], otherwise: str) -> None:
        """`otherwise` is what to do about a format that cannot be written, which it may name."""
        if not asked:
            raise UsageError("no format asked for", hint=f"give --formats {','.join(FORMATS)}")
        for fmt in asked:
            if fmt in self.closed:
                raise UsageError(f"no {FACTS[fmt].title} file: {self.closed[fmt]}", hint=otherwise.format(fmt=fmt))
            if fmt in self.unwritable:
                raise UsageError(
                    f"{FACTS[fmt].title} files need {', '.join(self.unwritable[fmt])}: not installed",
                    hint=f"{FACTS[fmt].install} {SOURCE}, or {otherwise.format(fmt=fmt)}",
                )

    @property
    def unwritable(self) -> Mapping[Format, tuple[str, ...]]:
        """Formats that this model cannot be written in here, and the packages that are not installed."""
        return unwritable(self.model)

    @property
    def closed(self) -> Mapping[Format, str]:
        """Formats that no file of this model can be made in, and why."""
        return closed(self.model)

    @property
    def file_format(self) -> Format | None:
        """Of the model file that is all that is written; None where a pack is."""
        return file_format(self.out)

    @property
    def chosen_formats(self) -> tuple[Format, ...]:
        """The formats to write."""
        if self.formats is not None:
            return self.formats
        return tuple(fmt for fmt in FORMATS if fmt not in self.unwritable and fmt not in self.closed)

    @property
    def drop_limit(self) -> float | None:
        """The drop that the plan must stay within, None for no limit."""
        if self.max_drop is None and self.rank == "auto" and not self.pick:
            return DEFAULT_MAX_DROP
        return self.max_drop

    def kept(self, layers: Collection[str]) -> frozenset[str]:
        """Those of these layers that stay as they are, by `keep` and `only`.

        Raises:
            UsageError: one of the two is found in no name.
        """
        kept = set() if self.keep is None else _named("--keep", self.keep, layers)
        return frozenset(kept if self.only is None else kept | (set(layers) - _named("--only", self.only, layers)))

    @property
    def weight_grids(self) -> tuple[int, ...]:
        """Largest int8 weight codes to choose from for ONNX.

        x86 without VNNI adds two u8×s8 products in 16 bits (VPMADDUBSW): 255·127·2 does not fit, 255·63·2 does. Whether
        that happens depends on the model, so on this machine both are tried; for another one the safe grid is taken.
        """
        if self.target.arch != "x86_64" or any("vnni" in feature for feature in self.target.isa):
            return (127,)
        return (127, 63) if self.target.name == HOST else (63,)

    @property
    def analysis_key(self) -> object:
        """Equal for targets that one analysis of the model does for: the same arithmetic, codes and formats. Files that
        take channels last are changed in their place, so that each target needs its own."""
        own = self.target.name if self.channels_last else None
        return self.exact, self.weight_grids, self.chosen_formats, own

    @property
    def exact(self) -> bool:
        """Whether answers are computed with exact integer sums instead of this machine's own arithmetic."""
        return self.target.name != HOST


def _check_expression(option: str, text: str | None) -> None:
    try:
        re.compile(text or "")
    except (re.error, RecursionError, OverflowError) as err:
        raise UsageError(
            f"{option} {text}: no regular expression: {err}", hint="names are matched as re.search"
        ) from err


def _named(option: str, text: str, layers: Collection[str]) -> set[str]:
    found = {name for name in layers if re.search(text, name)}
    if not found:
        shown = ", ".join(sorted(layers)[:SHOWN_NAMES]) + (", …" if len(layers) > SHOWN_NAMES else "")
        raise UsageError(f"{option} {text}: found in no layer's name", hint=f"there are {shown or 'no layers'}")
    return found


def parse_formats(text: str) -> tuple[Format, ...]:
    """`onnx,tflite` → ("onnx", "tflite").

    Raises:
        UsageError: an unknown format.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in FORMATS]
    if unknown:
        raise UsageError(f"unknown format {unknown[0]!r}; there are {', '.join(FORMATS)}")
    return tuple(fmt for fmt in FORMATS if fmt in names)


def parse_rank(text: str) -> Rank:
    """`auto`, `cv`, a rank such as `32`, or a share such as `0.25`.

    Raises:
        UsageError: anything else.
    """
    if text == "auto":
        return "auto"
    if text == "cv":
        return "cv"
    try:
        rank: Rank = int(text)
    except ValueError:
        try:
            rank = float(text)
        except ValueError:
            raise UsageError(f"--rank {text}: expected auto, cv, a whole number, or a share such as 0.25") from None
    if isinstance(rank, str) or not rank > 0:
        raise UsageError(f"--rank {text}: must be more than 0")
    return rank


_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


_SECONDS = {"H": 3600.0, "MIN": 60.0, "S": 1.0, "MS": 1e-3, "US": 1e-6, "": 1.0}


def parse_duration(text: str) -> float:
    """`5ms` → 0.005, `10min` → 600; also us, µs, s and h; a bare number is seconds.

    Raises:
        UsageError: anything else.
    """
    text = text.replace("\N{MICRO SIGN}", "u").replace("\N{GREEK SMALL LETTER MU}", "u")
    digits = text.rstrip("hminsu ")
    unit = text[len(digits) :].strip().upper()
    try:
        seconds = float(digits) * _SECONDS[unit]
    except (ValueError, KeyError):
        raise UsageError(f"{text!r} is not a time; write it like 5ms, 300us or 10min") from None
    if not seconds < float("inf"):
        raise UsageError(f"{text!r} is not a time; write it like 5ms, 300us or 10min")
    return seconds


def parse_pick(text: str) -> tuple[int, ...]:
    """`3` or `3,9`: numbers of explored plans.

    Raises:
        UsageError: anything else.
    """
    numbers = [number.strip() for number in text.split(",")]
    if not all(number.isdecimal() and len(number) < 10 and int(number) > 0 for number in numbers):
        raise UsageError(f"--pick {text[:40]}: expected numbers of plans as --explore lists them, such as 3 or 3,9")
    return tuple(int(number) for number in numbers)


def parse_size(text: str) -> int:
    """`2MB` → 2000000, `64KiB` → 65536, a bare number is bytes.

    Raises:
        UsageError: anything else.
    """
    digits = text.rstrip("BKMGIbkmgi ")
    unit = text[len(digits) :].strip().upper() or "B"
    try:
        return int(float(digits) * _UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        raise UsageError(f"{text!r} is not a size; write it like 2MB or 512KiB") from None
