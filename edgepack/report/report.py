"""What a command has to say, as values: tables of raw figures, charts and sentences. Only renderers make text of it.

A builder lists the fields of a table, each with its column and where its value comes from, and every renderer does the
rest: a new figure is one `Field` in one list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, Generic, Literal, TypeVar

from edgepack.units import NONE

Row = TypeVar("Row")

Audience = Literal["people", "data"]
"""Who wants it: people read terminals and markdown, programs CSV."""

Unit = Literal[
    # words
    "raw", "text", "list", "repeated", "yes", "mark", "clusters", "digest", "ratio", "fewer",
    # one number
    "bytes", "binary", "seconds", "count", "signed count", "misses", "integer", "percent", "share", "whole share",
    "fine share", "growth", "times", "score", "change", "decibels", "loss", "fine loss",
    "gigabytes per second", "nanoseconds", "gigahertz", "megahertz", "whole seconds",
    # several numbers in one cell
    "figures", "span", "drift", "shape", "of", "lost", "spread", "deviation", "cache", "bandwidth", "range",
]  # fmt: skip
"""How a value is written for people; `render.cells` holds the words for each."""

_LEFT: frozenset[Unit] = frozenset(
    ("raw", "text", "list", "repeated", "yes", "mark", "clusters", "digest", "ratio", "fewer"),
)


@dataclass(frozen=True)
class Figure:
    """A raw value in a sentence."""

    value: object
    unit: Unit


Line = str | tuple[str | Figure, ...]
"""A sentence: its words and figures in turn."""


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        key: its name in data, with the SI unit at its end where it has one: `latency_p50_s`, `size_bytes`.
        header: its name for people.
        unit: of its values: numbers in SI units, None where nothing is known, or a sentence (`Line`) in "text" and
            "figures".
        missing: what stands for None.
        optional: left out where no row has a value.
        parts: names in data of the parts of its values, where these are tuples or dataclasses.
        only: the one audience that it is for; None for both.
    """

    key: str
    header: str = ""
    unit: Unit = "text"
    missing: str = NONE
    optional: bool = False
    parts: tuple[str, ...] = ()
    only: Audience | None = None

    @property
    def right(self) -> bool:
        """Whether it is aligned at the right, as figures are."""
        return self.unit not in _LEFT


def hidden(key: str, unit: Unit = "raw") -> Column:
    """A column for data alone."""
    return Column(key, unit=unit, only="data")


@dataclass(frozen=True)
class Table:
    """Rows of raw values, one for each column.

    Attributes:
        title: the line above it.
        notes: the lines below it.
        lead: of the columns for people, how many name a group of rows; the rows of a group follow each other.
        only: the one audience that it is for; None for both.
        name: what its rows are, in data where a report has rows of several kinds.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[object, ...], ...]
    title: Line = ""
    notes: tuple[Line, ...] = ()
    lead: int = 0
    only: Audience | None = None
    name: str = ""

    def shown_to(self, audience: Audience) -> Table:
        """The same with the columns of an audience, less those that may be left out and are empty."""
        wanted = [
            index
            for index, column in enumerate(self.columns)
            if column.only in (None, audience)
            and not (column.optional and audience == "people" and all(row[index] is None for row in self.rows))
        ]
        return self.with_columns(wanted)

    def with_columns(self, indices: Sequence[int]) -> Table:
        """The same with some of its columns."""
        columns = tuple(self.columns[index] for index in indices)
        rows = tuple(tuple(row[index] for index in indices) for row in self.rows)
        return replace(self, columns=columns, rows=rows)


@dataclass(frozen=True)
class Axis:
    """One axis of a chart; `key`, `unit` and `header` as of a column. With `log`, equal ratios are equal distances."""

    key: str
    unit: Unit
    header: str = ""
    log: bool = False


@dataclass(frozen=True)
class Mark:
    """One point of a chart.

    Attributes:
        name: what it is of; empty for a point of a curve.
        x_range, y_range: where it may be as well, on either axis.
    """

    x: float
    y: float
    name: str = ""
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None


Style = Literal["line", "steps", "point", "small", "fixed"]
"""Marks joined or apart; small ones stand back, fixed ones are what all others are held against."""


@dataclass(frozen=True)
class Series:
    """Marks of one kind."""

    name: str
    marks: tuple[Mark, ...]
    style: Style = "line"


@dataclass(frozen=True)
class Rule:
    """A line at one value of the first axis."""

    x: float
    name: str


@dataclass(frozen=True)
class Chart:
    """Figures over figures.

    Attributes:
        of: what it belongs to, for data.
        drawn: whether it is only for renderers that draw: tables say the same to all others.
        note: how to read it.
    """

    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    rules: tuple[Rule, ...] = ()
    of: str = ""
    drawn: bool = True
    note: str = ""


@dataclass(frozen=True)
class Bars:
    """A figure of each of several things, such as layers, side by side. It is only for renderers that draw.

    Attributes:
        series: a name, and a figure for each of the things; None where it is not known.
    """

    title: str
    axis: Axis
    names: tuple[str, ...]
    series: tuple[tuple[str, tuple[float | None, ...]], ...]
    note: str = ""


@dataclass(frozen=True)
class Paragraph:
    """A sentence between tables; a note says how to read them."""

    line: Line
    note: bool = False


Told = Table | Chart | Paragraph
Block = Told | Bars


@dataclass(frozen=True)
class Case:
    """Something that was tested, for programs that collect tests.

    Attributes:
        group, name: of it.
        failure: why it failed; empty where it passed.
    """

    group: str
    name: str
    failure: Line = ""


@dataclass(frozen=True)
class Report:
    """All that a command has to say.

    Attributes:
        cases: what was tested, where anything was.
        record: the JSON document; a value of the domain, not of the tables.
        command: the line that it answers; empty where no command was given.
    """

    title: tuple[Line, ...] = ()
    blocks: tuple[Block, ...] = ()
    warnings: tuple[str, ...] = ()
    record: Any = None
    command: str = ""
    cases: tuple[Case, ...] = ()

    @property
    def drawn(self) -> tuple[Block, ...]:
        """Its blocks without those for data alone."""
        return tuple(block for block in self.blocks if not (isinstance(block, Table) and block.only == "data"))

    @property
    def for_people(self) -> tuple[Told, ...]:
        """The same without what is only drawn."""
        told = (block for block in self.drawn if not isinstance(block, Bars))
        return tuple(block for block in told if not (isinstance(block, Chart) and block.drawn))


@dataclass(frozen=True)
class Field(Generic[Row]):
    """A column and where its value comes from: the attribute of that name where nothing else is said."""

    column: Column
    get: Callable[[Row], object] | None = None

    def value(self, row: Row) -> object:
        """Of one row, raw."""
        return (attrgetter(self.column.key) if self.get is None else self.get)(row)


def make_table(fields: Sequence[Field[Row]], rows: Iterable[Row], **more: Any) -> Table:
    """A table of these fields; `more` as of `Table`."""
    columns = tuple(each.column for each in fields)
    return Table(columns, tuple(tuple(each.value(row) for each in fields) for row in rows), **more)


def facts(title: str, rows: Iterable[tuple[str, Line | None]]) -> Table:
    """A table of two columns: what, and what is known of it."""
    return Table((Column("fact", title), Column("value")), tuple(rows))
