"""The part with accuracy against what the condensation cost: seconds, and peak memory."""

from collections.abc import Iterator, Sequence

import pandas as pd

from dcbench_tesla.compare.accuracy import letters, sections
from dcbench_tesla.compare.accuracy_plots import front
from dcbench_tesla.records.progress import duration, size
from dcbench_tesla.reports.html.lines import INTERVAL, in_percent, lines_against, made_of, place
from dcbench_tesla.reports.html.parts import Column, Figure, Line, Part, Plot, Point, table_of, told
from dcbench_tesla.reports.html.peaks import Peaks

_COLUMNS = (
    Column("line", "method"),
    Column("last", "test accuracy, %", "{:.1f}".format, ["last_std"]),
    Column("condense_seconds", "condensation", duration),
    Column("peak_bytes", "peak", size),
)


def tradeoff_part(table: pd.DataFrame | None, peaks: Peaks) -> Part:
    """Return the part with accuracy against cost, from ``table`` of ``compare.accuracy.accuracies``.

    ``peaks`` says why peaks are empty.
    """
    return Part(
        id="tradeoff",
        title="Accuracy against cost",
        short="Cost",
        about="Test accuracy `last` against the cost of the condensation: seconds of all iterations, and peak memory "
        "of the tensors. Rings mark the Pareto front of the points: none costs as little and is more accurate.",
        make="dcbench run --method tesla --method dm",
        figures=[] if table is None else list(_figures(table, peaks)),
    )


def _figures(table: pd.DataFrame, peaks: Peaks) -> Iterator[Figure]:
    for section in sections(table):
        shown = section.rows.drop_duplicates(["line", "column"], keep="last")
        reasons = peaks.by_line(shown)
        for _, rows in shown.dropna(subset=["last"]).groupby("column", sort=True):
            costly = rows["condense_seconds"] > 0
            if len(rows) > 1 and costly.any():
                yield _seconds(in_percent(rows, "last"))
            if len(rows) > 1 and (costly & rows["peak_bytes"].notna()).any():
                yield _memory(in_percent(rows, "last"), reasons)


def _seconds(rows: pd.DataFrame) -> Figure:
    known = rows.assign(cost=rows["condense_seconds"]).dropna(subset=["cost"])
    machines, one = told(rows, "hardware"), known.loc[known["cost"] > 0, "hardware"].nunique() == 1
    more = f" Seconds on {machines}." + (
        "" if one else " Those of different machines do not compare: there is no front."
    )
    return _figure(rows, known, "time of the condensation, s", more, comparable=one)


def _memory(rows: pd.DataFrame, reasons: dict[str, str]) -> Figure:
    unit, name = (2**30, "GiB") if rows["peak_bytes"].max() >= 2**28 else (2**20, "MiB")
    free = rows["condense_seconds"] == 0
    known = rows.assign(cost=(rows["peak_bytes"] / unit).mask(free, 0)).dropna(subset=["cost"])
    lost = [line for line in rows["line"] if line not in set(known["line"])]
    plain = {line.replace("`", ""): reason for line, reason in reasons.items()}
    told_lost = f" Without a point: {', '.join(f'`{line}` ({plain[line]})' for line in lost)}." if lost else ""
    return _figure(rows, known, f"peak memory of the condensation, {name}", told_lost)


def _figure(rows: pd.DataFrame, known: pd.DataFrame, x: str, more: str, *, comparable: bool = True) -> Figure:
    lines = lines_against(known, "cost", "last", intervals=True)
    free = " Dashed: methods without iterations, which choose or average images." if any(n.flat for n in lines) else ""
    drawn = [*lines, _front(lines)] if comparable else lines
    return Figure(
        title=f"{place(rows)}, {told(rows, 'column')}: {x.partition(' of ')[0]}",
        caption=f"Up and to the left is better. The bar is {INTERVAL}.{free}{more}",
        made=made_of(rows),
        plot=Plot(x=x, y="test accuracy, %", lines=drawn, scaled="x", log=True, round_ticks=True),
        notes=letters(rows),
        numbers=[table_of(rows.sort_values("last"), _COLUMNS)],
    )


def _front(lines: Sequence[Line]) -> Line:
    """Return the Pareto front of all points that have a cost, by ascending cost."""
    points = {(p.x, p.y): p for line in lines if not line.flat for p in line.points}
    kept = [Point(x, y, points[x, y].text) for x, y in front(points)]
    return Line(name="Pareto front", method="", points=kept, front=True)
