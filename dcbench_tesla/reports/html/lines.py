"""Lines and points of plots from the tidy rows of `compare.accuracy`, in percent."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from dcbench_tesla.reports.html.parts import Line, Made, Point, as_records, facts, told, values

INTERVAL = "the interval of the mean at 95 %: over seeds, or where there is one over the networks of that set"
"""What the bars of ``lines_against(..., intervals=True)`` are."""


def in_percent(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return ``rows`` with ``name`` in percent, its standard deviation as ``<name>_std``, and lines as plain text.

    The interval of its mean, ``<name>_low`` and ``<name>_high``, is in percent too.
    """
    seeds, networks = (rows[f"{name}_std_{over}"].astype("Float64") for over in ("seeds", "networks"))
    line = rows["line"].str.replace("`", "")
    numbers = {column: 100 * rows[column].astype("Float64") for column in (f"{name}_low", f"{name}_high")}
    return rows.assign(line=line, **numbers, **{name: 100 * rows[name], f"{name}_std": 100 * seeds.fillna(networks)})


def place(rows: pd.DataFrame) -> str:
    """Return the data set, IPC, preset and changes of the data that ``rows`` share, as a title."""
    ipc = told(rows, "ipc")
    words = [told(rows, "dataset"), f"IPC {ipc}" if ipc else "", f"preset {told(rows, 'preset')}", told(rows, "data")]
    return ", ".join(filter(None, words))


def lines_against(rows: pd.DataFrame, x: str, name: str, *, intervals: bool = False) -> list[Line]:
    """Return a line for every ``line`` of ``rows``: ``name`` against column ``x``. If ``x`` is always 0, it is flat.

    Bars are standard deviations, or with ``intervals`` the intervals of the means.
    """
    point = _with_interval if intervals else _point
    lines, variants = [], dict.fromkeys(rows["method"], 0)
    for line, own in rows.groupby("line", sort=True):
        method = str(own["method"].iloc[0])
        points = [point(row, float(row[x]), name) for row in as_records(own.sort_values(x))]
        chosen = set(own[x]) == {0}
        lines.append(Line(name=str(line), method=method, points=points, variant=variants[method], flat=chosen))
        variants[method] += 1
    return lines


def _point(row: Mapping[str, Any], x: float, name: str) -> Point:
    mean, std = float(row[name]), row[f"{name}_std"]
    if pd.isna(std):
        return Point(x, mean, f"{mean:.1f} %")
    return Point(x, mean, f"{mean:.1f} ± {std:.1f} %", mean - float(std), mean + float(std))


def _with_interval(row: Mapping[str, Any], x: float, name: str) -> Point:
    mean, low, high = float(row[name]), row[f"{name}_low"], row[f"{name}_high"]
    if pd.isna(low):
        return Point(x, mean, f"{mean:.1f} %")
    return Point(x, mean, f"{mean:.1f} [{low:.1f}, {high:.1f}] %", float(low), float(high))


def made_of(rows: pd.DataFrame) -> Made:
    """Return how the rows were made: their facts, and the commands that they hold."""
    return Made(facts=facts(rows), commands=values(rows, "command"))
