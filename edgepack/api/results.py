"""What the functions of edgepack return: typed, and tables where a notebook shows them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Literal

from edgepack.backends.registry import FORMATS
from edgepack.model.scheme import Format
from edgepack.pack.folder import EXAMPLE, file_format
from edgepack.pack.manifest import DropEntry, FileEntry, LayerEntry, Manifest, PackedFile, read_manifest
from edgepack.paths import require_pack
from edgepack.pipeline.build import BuildResult
from edgepack.pipeline.inspect import LayerReport, ModelReport
from edgepack.pipeline.operators import OperatorReport, OperatorsReport
from edgepack.report.build import build_report
from edgepack.report.build_each import packs_report
from edgepack.report.compare import CompareRow
from edgepack.report.comparison import Source, comparison_report
from edgepack.report.emulated import EmulatedRow
from edgepack.report.inspect import model_report
from edgepack.report.operators import operators_report
from edgepack.report.render import HTML, markdown, notebook, write_report
from edgepack.report.report import Report
from edgepack.report.unmeasured import UnmeasuredRow


class Shown(ABC):
    """What a notebook shows as tables."""

    @abstractmethod
    def report(self) -> Report:
        """All that there is to say, as the command line has it."""

    def to_markdown(self) -> str:
        """As markdown tables."""
        return markdown.render(self.report())

    def to_html(self, path: str | PathLike[str]) -> None:
        """As a page of its own, with charts, which needs no network.

        Raises:
            OutputError: nothing can be written there.
        """
        write_report(self.report(), HTML, Path(path))

    def _repr_html_(self) -> str:
        return notebook.render(self.report())


@dataclass(frozen=True)
class PackFile:
    """A model file of a pack, or a dense baseline.

    Attributes:
        path: where it is.
        entry: what the manifest says of it.
    """

    path: Path
    entry: FileEntry

    @property
    def size_bytes(self) -> int:
        """Of the file."""
        return self.entry.size_bytes

    @property
    def scheme(self) -> str:
        """How its weights are stored: "int4-weights", or "mixed" where layers differ."""
        return self.entry.scheme

    @property
    def score(self) -> float | None:
        """Of the metric, higher is better: on the test where there is one, else on the samples that were kept back,
        else on those that plans were chosen on; None without data."""
        return self.entry.metric

    @property
    def drop(self) -> DropEntry | None:
        """What it lost, in the metric's unit, and what its true drop stays under: on the samples that were kept back
        where there are some, else on those that it was chosen on; None without data."""
        return self.entry.stated


@dataclass(frozen=True)
class ModelFile(PackFile):
    """A compressed model file of a pack."""

    entry: PackedFile

    @property
    def layers(self) -> tuple[LayerEntry, ...]:
        """What became of each layer, and why."""
        return self.entry.layers


@dataclass(frozen=True)
class Pack(Shown, Mapping[str, ModelFile]):
    """A pack folder: its model files by format, `pack["onnx"].path`.

    Attributes:
        path: the folder; of a build whose `out` names a model file, that file, and there is nothing else of the pack.
        manifest: all that it says of itself.
    """

    path: Path
    manifest: Manifest

    def __getitem__(self, fmt: Format) -> ModelFile:
        alone = file_format(self.path) is not None
        return ModelFile(self.path if alone else self.path / f"model.{fmt}", self.manifest.packed(fmt))

    def __iter__(self) -> Iterator[Format]:
        return iter(self.formats)

    def __len__(self) -> int:
        return len(self.formats)

    @cached_property
    def formats(self) -> tuple[Format, ...]:
        """Of its model files."""
        return tuple(fmt for fmt in FORMATS if f"model.{fmt}" in self.manifest.files)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What its build had to say."""
        return self.manifest.warnings

    @property
    def example_inputs(self) -> Path | None:
        """An .npz with the inputs of one call, by name; None where a model file is all that was written."""
        return None if file_format(self.path) is not None else self.path / EXAMPLE

    def baseline(self, precision: Literal["fp32", "int8"], fmt: Format) -> PackFile | None:
        """The dense model in a precision, to compare with; None where the pack has none."""
        entry = self.manifest.baseline(precision, fmt)
        path = self.path / "baseline" / f"{precision}.{fmt}"
        return PackFile(path, entry) if entry is not None and path.is_file() else None

    def report(self) -> Report:
        """As `edgepack build -v` prints it."""
        return build_report(self.path, self.manifest, reasons=True)


@dataclass(frozen=True)
class Packs(Shown, Mapping[str, Pack]):
    """The packs of one model, by the names of their targets: `packs["rpi4"]["onnx"].path`.

    Attributes:
        results: a build for each target.
    """

    results: tuple[BuildResult, ...]

    def __getitem__(self, target: str) -> Pack:
        for one in self.results:
            if one.manifest.target.name == target:
                return Pack(one.out, one.manifest)
        raise KeyError(target)

    def __iter__(self) -> Iterator[str]:
        return (one.manifest.target.name for one in self.results)

    def __len__(self) -> int:
        return len(self.results)

    def report(self) -> Report:
        """Which file serves which target, as `edgepack build` prints it."""
        return packs_report(self.results)


def open_pack(path: str | PathLike[str]) -> Pack:
    """A pack that was built before.

    Raises:
        PackError: the folder is no pack of this edgepack.
    """
    require_pack(path)
    return Pack(Path(path), read_manifest(Path(path)))


@dataclass(frozen=True)
class Inspection(Shown):
    """What there is to gain in a model.

    Attributes:
        model: its bytes, and every layer's share of them, its break-even rank, and the ranks that it needs.
    """

    model: ModelReport

    @property
    def layers(self) -> tuple[LayerReport, ...]:
        """In the order of the model."""
        return self.model.layers

    def report(self) -> Report:
        """As `edgepack inspect` prints it."""
        return model_report(self.model)


@dataclass(frozen=True)
class OperatorInspection(Shown):
    """What each operator of a model file takes on a target.

    Attributes:
        file: its operators, where their times come from, and what a build leaves as it is.
    """

    file: OperatorsReport

    @property
    def operators(self) -> tuple[OperatorReport, ...]:
        """In order of execution."""
        return self.file.operators

    @property
    def slow(self) -> tuple[OperatorReport, ...]:
        """Those that run in a slow kernel there."""
        return tuple(operator for operator in self.file.operators if operator.slow is not None)

    def report(self) -> Report:
        """As `edgepack inspect FILE --target` prints it."""
        return operators_report(self.file)


@dataclass(frozen=True)
class Comparison(Shown):
    """Measured and counted files side by side.

    Attributes:
        rows: measured, a row for each file of each session.
        emulated: counted in the emulator, likewise.
        unmeasured: of packs without any result, what their folders say.
        sources: what all that is from.
    """

    rows: tuple[CompareRow, ...]
    emulated: tuple[EmulatedRow, ...] = ()
    unmeasured: tuple[UnmeasuredRow, ...] = ()
    sources: tuple[Source, ...] = ()

    def report(self) -> Report:
        """As `edgepack compare` prints it."""
        return comparison_report(self.rows, self.emulated, self.unmeasured, self.sources)
