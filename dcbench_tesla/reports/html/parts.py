"""What the report's page consists of: parts, of figures; a figure is a plot, a table or pictures, with what made it."""

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pandas as pd

from dcbench_tesla.compare.accuracy import Cell
from dcbench_tesla.records.workspace import MARK


@dataclass(frozen=True)
class Point:
    """A point of a plot, and its value as ``text`` for people.

    ``low`` and ``high`` end its error bar. ``reached``: memory ran out here, the value is the least that is needed.
    """

    x: float
    y: float
    text: str
    low: float | None = None
    high: float | None = None
    reached: bool = False


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a plot: its colour says the ``method``, its dashes the ``variant`` of it, counted from 0.

    ``flat``: one value for all x, drawn across the plot.
    """

    name: str
    method: str
    points: Sequence[Point]
    variant: int = 0
    flat: bool = False


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Axes with their units, and the lines on them.

    ``scaled``: the axis that can be made logarithmic, its values being positive; ``log``: it is so at first.
    ``stepped``: a value holds until the next point.
    """

    x: str
    y: str
    lines: Sequence[Line]
    scaled: Literal["x", "y"] = "y"
    log: bool = False
    from_zero: bool = False
    stepped: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table that can be sorted, with a ``title`` where several stand together."""

    head: Sequence[str]
    body: Sequence[Sequence[Cell]]
    title: str = ""

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers."""
        return [any(row[i].number is not None for row in self.body) for i in range(len(self.head))]


@dataclass(frozen=True, kw_only=True)
class Made:
    """What made a figure: named ``facts`` (hardware, protocol, configuration, commit) and ``commands``."""

    facts: Mapping[str, str]
    commands: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG as base64, with its size in pixels; ``made`` is absent where no row is known that says it."""

    title: str
    text: str
    alt: str
    data: str
    width: int
    height: int
    made: Made | None


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A plot, a table or pictures under one title; ``numbers`` are shown when asked for."""

    title: str
    caption: str
    made: Made | None = None
    plot: Plot | None = None
    table: Table | None = None
    notes: Sequence[str] = ()
    numbers: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the page. ``make``: the command that makes what it shows, told where there is nothing to show."""

    id: str
    title: str
    about: str
    make: str
    figures: Sequence[Figure]


def as_text(value: Any) -> str:
    """Return a value as a table shows it: numbers with four digits, nothing where nothing is known."""
    if pd.isna(value):
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Column(NamedTuple):
    """A column of a CSV as the page shows it; ``spreads`` are those with its standard deviations."""

    name: str
    title: str
    show: Callable[[Any], str] = as_text
    spreads: Sequence[str] = ()

    def cell(self, row: Mapping[str, Any]) -> Cell:
        """Return this column's cell of ``row``."""
        value = row[self.name]
        if pd.isna(value):
            return Cell("")
        shown = [value, *(row[name] for name in self.spreads if not pd.isna(row.get(name)))]
        return Cell(" ± ".join(map(self.show, shown)), None if isinstance(value, str) else float(value))


def table_of(rows: pd.DataFrame, columns: Iterable[Column], title: str = "") -> Table:
    """Return ``rows`` as a table of those of ``columns`` that are there and hold anything."""
    shown = [column for column in columns if column.name in rows and rows[column.name].notna().any()]
    body = [[column.cell(row) for column in shown] for row in as_records(rows)]
    return Table(head=[column.title for column in shown], body=body, title=title)


def as_records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows with their columns' names."""
    return [{str(name): value for name, value in row.items()} for row in rows.to_dict("records")]


def told(rows: pd.DataFrame, name: str) -> str:
    """Return the values that a column takes, in order, for people; nothing where there is none."""
    return joined([as_text(value) for value in values(rows, name)])


def joined(texts: Sequence[str]) -> str:
    """Return texts as a list for people: with semicolons where they have commas of their own."""
    return ("; " if any("," in text for text in texts) else ", ").join(texts)


def values(rows: pd.DataFrame, name: str) -> list[Any]:
    """Return the known values of a column, sorted, each once; none where the column is absent."""
    return sorted(rows[name].dropna().unique()) if name in rows else []


def shipped_mark(rows: pd.DataFrame) -> str:
    """Return what stands behind the title of a comparison that the repository ships; nothing for own ones."""
    return MARK if told(rows, "hardware").endswith(MARK) else ""


_FACTS = {
    "dataset": "data set",
    "preset": "preset",
    "protocol": "protocol",
    "recipe": "recipe",
    "inputs": "inputs",
    "ipc": "IPC",
    "matching_steps": "matching steps",
    "batch_size": "batch size",
    "student_lr": "student learning rate",
    "width": "ConvNet width",
    "depth": "ConvNet depth (0: by image size)",
    "dtype": "number type",
    "expert": "experts",
    "start_epoch": "start epochs",
    "repetitions": "repetitions",
    "meter": "meter",
    "origin": "origin",
    "hardware": "hardware",
    "threads": "threads",
    "dataset_fingerprint": "data fingerprint",
    "torch": "PyTorch",
    "commit": "commit",
}


def facts(rows: pd.DataFrame) -> dict[str, str]:
    """Return what the rows say of their making, by names for people; what they do not say is left out."""
    found = {title: told(rows, name) for name, title in _FACTS.items()}
    return {title: text for title, text in found.items() if text}


def made_by(rows: pd.DataFrame, command: str, options: Mapping[str, str]) -> Made:
    """Return what made the rows of a comparison: ``command``, with the values of columns as its ``options``."""
    given = [f"{option} {shlex.quote(str(v))}" for name, option in options.items() for v in values(rows, name)]
    return Made(facts=facts(rows), commands=[" ".join(["dcbench", command, *given])])
