"""The elements of the page: parts with figures. A figure is a plot, a table or pictures, and says how it was made."""

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pandas as pd

from dcbench_tesla.compare.accuracy import Cell
from dcbench_tesla.records.workspace import MARK

_FIT_A_TELEPHONE = 3


@dataclass(frozen=True)
class Point:
    """A point of a plot, with its value as ``text``.

    ``low`` and ``high`` are the ends of its error bar. ``reached`` means that memory ran out, and that at least this
    value is needed.
    """

    x: float
    y: float
    text: str
    low: float | None = None
    high: float | None = None
    reached: bool = False


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a plot, with a colour per ``method`` and dashes per ``variant`` of the method, counted from 0.

    A ``flat`` line has one value for all x, and is drawn across the plot. A ``front`` is the Pareto front: it is of no
    method, and has rings for points.
    """

    name: str
    method: str
    points: Sequence[Point]
    variant: int = 0
    flat: bool = False
    front: bool = False


@dataclass(frozen=True, kw_only=True)
class Plot:
    """The axes of a plot with their units, and its lines.

    Args:
        x: title of the x axis.
        y: title of the y axis.
        lines: the lines.
        scaled: the axis that users can make logarithmic; its values are positive.
        log: whether that axis is logarithmic at first.
        from_zero: whether the y axis starts at 0.
        stepped: whether a value holds until the next point.
        round_ticks: whether the ticks of the x axis are round numbers, and not the x of the points.
    """

    x: str
    y: str
    lines: Sequence[Line]
    scaled: Literal["x", "y"] = "y"
    log: bool = False
    from_zero: bool = False
    stepped: bool = False
    round_ticks: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table that can be sorted; it has a ``title`` if there are several in one place."""

    head: Sequence[str]
    body: Sequence[Sequence[Cell]]
    title: str = ""

    @property
    def numeric(self) -> list[bool]:
        """Whether each column holds numbers."""
        return [any(row[i].number is not None for row in self.body) for i in range(len(self.head))]

    @property
    def wide(self) -> bool:
        """Whether a telephone shows a row as a list, one value a line, as the columns do not fit beside each other."""
        return len(self.head) > _FIT_A_TELEPHONE


@dataclass(frozen=True, kw_only=True)
class Made:
    """How a figure was made: ``facts`` by name (hardware, protocol, configuration, commit) and ``commands``."""

    facts: Mapping[str, str]
    commands: Sequence[str]


class Frame(NamedTuple):
    """The images after ``iteration`` iterations: a WebP image in base64, or ``None`` for the picture itself."""

    iteration: int
    data: str | None


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG image in base64, with its size in pixels; ``made`` is ``None`` if there is no row of it.

    ``frames`` are the images on the way and, as the last, the picture; without any there is no slider.
    """

    title: str
    text: str
    alt: str
    data: str
    width: int
    height: int
    made: Made | None
    frames: Sequence[Frame] = ()


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A plot, a table or pictures under one title.

    ``numbers`` are tables under ``numbers_title`` that the reader can open.
    """

    title: str
    caption: str
    made: Made | None = None
    plot: Plot | None = None
    table: Table | None = None
    notes: Sequence[str] = ()
    numbers: Sequence[Table] = ()
    numbers_title: str = "The numbers"
    pictures: Sequence[Picture] = ()


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the page, with a ``short`` title for the navigation, and the command to show if it has no figures."""

    id: str
    title: str
    short: str
    about: str
    make: str
    figures: Sequence[Figure]


def as_text(value: Any) -> str:
    """Return a value as a table shows it: numbers with four significant digits, missing values as empty text."""
    if pd.isna(value):
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Column(NamedTuple):
    """A column of a table as the page shows it; ``spreads`` are the columns with its standard deviations."""

    name: str
    title: str
    show: Callable[[Any], str] = as_text
    spreads: Sequence[str] = ()

    def cell(self, row: Mapping[str, Any]) -> Cell:
        """Return this column's cell in ``row``."""
        value = row[self.name]
        if pd.isna(value):
            return Cell("")
        shown = [value, *(row[name] for name in self.spreads if not pd.isna(row.get(name)))]
        return Cell(" ± ".join(map(self.show, shown)), None if isinstance(value, str) else float(value))


def table_of(rows: pd.DataFrame, columns: Iterable[Column], title: str = "") -> Table:
    """Return ``rows`` as a table with those of ``columns`` that exist and are not empty."""
    shown = [column for column in columns if column.name in rows and rows[column.name].dropna().ne("").any()]
    body = [[column.cell(row) for column in shown] for row in as_records(rows)]
    return Table(head=[column.title for column in shown], body=body, title=title)


def as_records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows as dictionaries by column."""
    return [{str(name): value for name, value in row.items()} for row in rows.to_dict("records")]


def told(rows: pd.DataFrame, name: str) -> str:
    """Return the different values of a column as text, in order; empty if there are none."""
    return joined([as_text(value) for value in values(rows, name)])


def joined(texts: Sequence[str]) -> str:
    """Return texts joined by commas, or by semicolons if a text has a comma."""
    return ("; " if any("," in text for text in texts) else ", ").join(texts)


def values(rows: pd.DataFrame, name: str) -> list[Any]:
    """Return the different known values of a column, sorted; none if the column does not exist."""
    return sorted(rows[name].dropna().unique()) if name in rows else []


def shipped_mark(rows: pd.DataFrame) -> str:
    """Return the mark to add to the title of a committed comparison, or an empty text for the user's own."""
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
    """Return how the rows were made, by readable names; facts that they do not have are left out."""
    found = {title: told(rows, name) for name, title in _FACTS.items()}
    return {title: text for title, text in found.items() if text}


def made_by(rows: pd.DataFrame, command: str, options: Mapping[str, str]) -> Made:
    """Return how the rows of a comparison were made: by ``command``, with options from the values of columns.

    Rows with other settings of their methods were made by a command of their own.
    """
    settings = rows["settings"].fillna("") if "settings" in rows else pd.Series("", index=rows.index)
    commands = []
    for text, own in rows.groupby(settings):
        given = [f"{option} {shlex.quote(str(v))}" for name, option in options.items() for v in values(own, name)]
        given += [f"--set {shlex.quote(word)}" for word in str(text).split()]
        commands.append(" ".join(["dcbench", command, *given]))
    return Made(facts=facts(rows), commands=commands)
