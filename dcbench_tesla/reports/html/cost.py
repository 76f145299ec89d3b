"""The parts on the cost of one iteration: peak memory and time, against matching steps and against IPC."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from dcbench_tesla.compare import memory, timing
from dcbench_tesla.compare.files import add_shipped, read_csv
from dcbench_tesla.compare.points import labelled
from dcbench_tesla.compare.timing import COMPILED, named
from dcbench_tesla.records.progress import size
from dcbench_tesla.records.workspace import MARK, Workspace
from dcbench_tesla.reports.html.parts import (
    Column,
    Figure,
    Line,
    Part,
    Plot,
    Point,
    as_records,
    made_by,
    shipped_mark,
    table_of,
    told,
)

_NEEDED = ("method", "dataset", "matching_steps", "ipc", "batch_size", "width", "depth", "meter", "hardware", "status")

_OPTIONS = {
    "method": "--method",
    "dataset": "--dataset",
    "matching_steps": "--steps",
    "ipc": "--ipc",
    "batch_size": "--batch-size",
    "width": "--width",
    "depth": "--depth",
}


@dataclass(frozen=True, kw_only=True)
class _Cost:
    """A cost of an iteration: the ``column`` that holds it, the command that measures it, and how it is drawn.

    ``apart`` is the column that distinguishes figures of the same shapes.
    """

    column: str
    command: str
    options: Mapping[str, str]
    apart: str
    title: str
    caption: str
    y: str
    point: Callable[[Mapping[str, Any], float], Point]
    columns: Sequence[Column]


def _memory_point(row: Mapping[str, Any], x: float) -> Point:
    text, failed = size(row["peak_bytes"]), row["status"] != "ok"
    return Point(x, row["peak_bytes"] / 2**30, f"{row['status']} at {text}" if failed else text, reached=failed)


def _time_point(row: Mapping[str, Any], x: float) -> Point:
    seconds, spread = row["iteration_seconds"], row.get("iteration_spread_seconds")
    ends = (None, None) if pd.isna(spread) else (seconds - spread / 2, seconds + spread / 2)
    return Point(x, seconds, _seconds(seconds), *ends)


def _seconds(seconds: float) -> str:
    """Return a time with three significant digits: ``41.2 ms``, ``0.123 s``, ``12.3 s``."""
    return f"{1000 * seconds:.3g} ms" if seconds < 0.1 else f"{seconds:.3g} s"


_LEADING = (
    Column("line", "method"),
    Column("matching_steps", "T"),
    Column("ipc", "IPC"),
    Column("batch_size", "batch"),
)
_MEMORY = _Cost(
    column="peak_bytes",
    command="compare memory",
    options=_OPTIONS | {"meter": "--meter"},
    apart="meter",
    title="Peak memory",
    caption="Peak memory of one iteration. A cross means that memory ran out, and that at least so much is needed.",
    y="peak memory of one iteration, GiB",
    point=_memory_point,
    columns=[
        *_LEADING,
        Column("peak_bytes", "peak", size),
        Column("status", "status"),
        Column("reserved_bytes", "reserved", size),
        *(Column(f"{n}_bytes", n, size) for n in ("graph", "inputs", "parameters", "trajectory", "optimiser")),
    ],
)
_TIME = _Cost(
    column="iteration_seconds",
    command="compare time",
    options=_OPTIONS | {"repetitions": "--repetitions"},
    apart="hardware",
    title="Time",
    caption="Time of one iteration: median over repetitions; the bar is the interquartile range.",
    y="time of one iteration, s",
    point=_time_point,
    columns=[
        *_LEADING,
        Column("iteration_seconds", "iteration", _seconds),
        Column("iteration_spread_seconds", "spread", _seconds),
        Column("step_seconds", "matching step", _seconds),
        Column("pass1_seconds", "pass 1", _seconds),
        Column("pass2_seconds", "pass 2", _seconds),
        Column("repetitions", "repetitions"),
        Column("status", "status"),
    ],
)


def memory_part(workspace: Workspace) -> Part:
    """Return the part with the plots of ``figures/memory.csv``.

    Raises:
        CorruptFileError: the file is not a CSV file, or is another table.
    """
    return Part(
        id="memory",
        title="Memory",
        short="Memory",
        about="Peak memory of one iteration, which is one update of the images. The meter `cuda` reads the GPU's "
        "allocator, `allocated` counts live tensors, and `predicted` counts them without computing anything.",
        make="dcbench compare memory",
        figures=_figures(_MEMORY, workspace, "memory.csv", memory.KEY),
    )


def time_part(workspace: Workspace) -> Part:
    """Return the part with the plots of ``figures/time.csv``.

    Raises:
        CorruptFileError: the file is not a CSV file, or is another table.
    """
    return Part(
        id="time",
        title="Time",
        short="Time",
        about="Time of one iteration, which is one update of the images. Times of different machines are in different "
        "plots.",
        make="dcbench compare time",
        figures=_figures(_TIME, workspace, "time.csv", timing.KEY),
    )


def _figures(cost: _Cost, workspace: Workspace, name: str, key: Sequence[str]) -> list[Figure]:
    own = read_csv(workspace.figures / name, [*_NEEDED, cost.column])
    table = add_shipped(own, workspace, name, key)
    if table.empty:
        return []
    table["line"] = named(table)["method"] if "compiled" in table else labelled(table)["method"]
    return [*_against(cost, table, "matching_steps"), *_against(cost, table, "ipc")]


def _against(cost: _Cost, table: pd.DataFrame, x: str) -> Iterator[Figure]:
    """Yield a figure for every configuration measured at several ``x``, with methods without T for comparison."""
    place = [name for name in ("dataset", "width", "depth", "meter", "hardware", "threads") if name in table]
    fixed = ["ipc" if x == "matching_steps" else "matching_steps", "batch_size"]
    for _, here in table.groupby(place, dropna=False, sort=True):
        has_steps = here["matching_steps"].notna()
        for _, rows in here[has_steps].groupby(fixed, dropna=False, sort=True):
            if rows.loc[rows[cost.column].notna(), x].nunique() > 1:
                beside = here[~has_steps & here["ipc"].isin(rows["ipc"])]
                yield _figure(cost, pd.concat([rows, beside]).sort_values(["method", x]), x)


def _figure(cost: _Cost, rows: pd.DataFrame, x: str) -> Figure:
    against, at, axis, option = f"matching steps, IPC {told(rows, 'ipc')}", "", "matching steps T", ""
    if x == "ipc":
        against, axis, option = f"IPC, T = {told(rows, 'matching_steps')}", "images per class (IPC)", " --against ipc"
    elif rows["matching_steps"].isna().any():
        at = " Dashed: methods without matching steps."
    option += " --compile both" if "compiled" in rows and rows["compiled"].any() else ""
    batch = told(rows, "batch_size")
    setting = f" ConvNet of width {told(rows, 'width')}" + (f", batch {batch}" if batch else "")
    meter, hardware = told(rows, "meter"), told(rows, "hardware")
    measured = f" Meter `{meter}`" + ("." if hardware.startswith("none") else f", hardware {hardware}.")
    apart = told(rows, cost.apart).removesuffix(MARK) + shipped_mark(rows)
    return Figure(
        title=f"{cost.title} against {against}: {told(rows, 'dataset')}, {apart}",
        caption=f"{cost.caption}{at}{setting}.{measured}{_lost(cost, rows)}",
        made=made_by(rows[rows[cost.column].notna()], cost.command + option, cost.options),
        plot=Plot(x=axis, y=cost.y, lines=_lines(cost, rows, x), from_zero=True),
        numbers=[table_of(rows, cost.columns)],
    )


def _lines(cost: _Cost, rows: pd.DataFrame, x: str) -> list[Line]:
    lines = []
    for method, own in rows[rows[cost.column].notna()].groupby("line", sort=True):
        flat = bool(own[x].isna().all())
        points = [cost.point(row, 0.0 if flat else float(row[x])) for row in as_records(own)]
        lines.append(Line(name=str(method), method=str(method).removesuffix(COMPILED), points=points, flat=flat))
    return lines


def _lost(cost: _Cost, rows: pd.DataFrame) -> str:
    """Return a sentence that lists points without a value, with the reasons."""
    texts = []
    for row in as_records(rows[rows[cost.column].isna()]):
        steps = row["matching_steps"]
        texts.append(f"`{row['line']}`{'' if pd.isna(steps) else f' at T = {steps}'} ({row['status']})")
    return f" Without a point: {', '.join(texts)}." if texts else ""
