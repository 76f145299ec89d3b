"""The part on the difference of a method's gradient from the unrolled one, against matching steps."""

import numpy as np
import pandas as pd

from dcbench_tesla.compare import gradient
from dcbench_tesla.compare.files import add_shipped, read_csv
from dcbench_tesla.records.workspace import Workspace
from dcbench_tesla.reports.html.parts import (
    Column,
    Figure,
    Line,
    Part,
    Plot,
    Point,
    made_by,
    shipped_mark,
    table_of,
    told,
    values,
)

_PLACE = ("dataset", "protocol", "ipc", "batch_size", "width", "depth", "reference", "meter", "hardware")
_NEEDED = (
    "method",
    "of",
    "matching_steps",
    "student_lr",
    "cosine",
    "norm_ratio",
    "relative_error",
    "dtype",
    *_PLACE,
)
_OPTIONS = {
    "method": "--method",
    "dataset": "--dataset",
    "preset": "--preset",
    "ipc": "--ipc",
    "matching_steps": "--steps",
    "student_lr": "--student-lr",
}
_DRIFTS = (
    ("images", "angle", "1 - cosine", "Direction of the images' gradient"),
    ("images", "relative_error", "relative error", "Error of the images' gradient"),
    ("student_lr", "relative_error", "relative error", "Error of the student learning rate's gradient"),
)
_COLUMNS = (
    Column("method", "method"),
    Column("student_lr", "student lr"),
    Column("matching_steps", "T"),
    Column("angle", "1 - cosine", "{:.2g}".format),
    Column("relative_error", "relative error", "{:.2g}".format),
    Column("norm_ratio", "norm ratio"),
    Column("count", "repetitions"),
)


def gradient_part(workspace: Workspace) -> Part:
    """Return the part with the plots of ``figures/gradient.csv``: 1 - cosine and relative error, as medians.

    Raises:
        CorruptFileError: the file is not a CSV file, or is another table.
    """
    figures: list[Figure] = []
    own = read_csv(workspace.figures / "gradient.csv", _NEEDED)
    table = add_shipped(own, workspace, "gradient.csv", gradient.KEY)
    if not table.empty:
        preset = table["protocol"].str.split(",").str[0]  # the changed settings follow it
        table = table.assign(angle=1 - table["cosine"], preset=preset)
        for _, place in table.groupby(list(_PLACE), dropna=False, sort=True):
            # float64 comes before float32, whose rounding is large
            for _, rows in reversed(list(place.groupby("dtype", sort=True))):
                figures += [_figure(found, *how) for of, *how in _DRIFTS if len(found := _known(rows, of, how[0]))]
    return Part(
        id="gradient",
        title="Gradient drift",
        short="Gradient",
        about="The difference of a method's gradient from that of `mtt`, which keeps the graph of all T matching "
        "steps. `tesla` treats the student before every step as a constant; `tesla-exact` does not.",
        make="dcbench compare gradient",
        figures=figures,
    )


def _known(rows: pd.DataFrame, of: str, column: str) -> pd.DataFrame:
    return rows[(rows["of"] == of) & rows[column].notna()]


def _figure(rows: pd.DataFrame, column: str, y: str, title: str) -> Figure:
    reference, dtype = told(rows, "reference"), told(rows, "dtype")
    least = float(np.finfo(dtype).eps)
    return Figure(
        title=f"{title}, {dtype}: {told(rows, 'dataset')}, IPC {told(rows, 'ipc')}{shipped_mark(rows)}",
        caption=f"{y.capitalize()} to the gradient of `{reference}`: median over repetitions; the bar is their range. "
        f"Values below the rounding of {dtype}, {least:.1e}, are drawn there. ConvNet of width "
        f"{told(rows, 'width')}, protocol {told(rows, 'protocol')}, hardware {told(rows, 'hardware')}.",
        made=made_by(rows, "compare gradient", _OPTIONS),
        plot=Plot(x="matching steps T", y=f"{y} to {reference}", lines=_lines(rows, column, least), log=True),
        numbers=[table_of(_medians(rows), _COLUMNS)],
    )


def _medians(rows: pd.DataFrame) -> pd.DataFrame:
    groups = rows.groupby(["method", "student_lr", "matching_steps"], sort=True)
    medians = groups[["angle", "relative_error", "norm_ratio"]].median()
    return medians.assign(count=groups.size()).reset_index()


def _lines(rows: pd.DataFrame, column: str, least: float) -> list[Line]:
    rates, lines = values(rows, "student_lr"), []
    for (method, rate), own in rows.groupby(["method", "student_lr"], sort=True):
        found = own.groupby("matching_steps", sort=True)[column].agg(["min", "median", "max", "size"])
        points = [_point(float(steps), *row, least=least) for steps, *row in found.itertuples()]
        name = f"{method}, lr {rate:g}" if len(rates) > 1 else str(method)
        lines.append(Line(name=name, method=str(method), points=points, variant=rates.index(rate)))
    return lines


def _point(steps: float, low: float, middle: float, high: float, count: int, *, least: float) -> Point:
    ends = (max(low, least), max(high, least)) if count > 1 else (None, None)
    return Point(steps, max(middle, least), f"{middle:.2g}", *ends)
