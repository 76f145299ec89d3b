"""The parts on test accuracy: the tables of `dcbench compare accuracy`, learning curves, and accuracy against IPC."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from dcbench_tesla.compare.accuracy import Section, labelled, letters, sections
from dcbench_tesla.records.rows import STATISTICS
from dcbench_tesla.reports.html.parts import (
    Column,
    Figure,
    Line,
    Made,
    Part,
    Plot,
    Point,
    Table,
    as_records,
    facts,
    table_of,
    told,
    values,
)

_SPREAD = "the bar is one standard deviation over networks, or over seeds where there are several."


def tables_part(table: pd.DataFrame | None) -> Part:
    """Return the part with tables by data set, IPC and preset, from ``table`` of ``compare.accuracy.accuracies``."""
    figures = [] if table is None else map(_table, *(sections(table, name) for name in STATISTICS))
    return Part(
        id="accuracy",
        title="Accuracy",
        about="Test accuracy of networks trained from scratch on the distilled images. `last` is that of the final "
        "distilled set, `best_on_validation` that of the set with the best accuracy on held-out training images, and "
        "`best_on_test` that of the set with the best accuracy on the test images themselves. The papers of MTT and "
        "TESLA print the latter, but it is not an honest estimate.",
        make="dcbench run --method tesla",
        figures=list(figures),
    )


def _table(last: Section, *others: Section) -> Figure:
    best = [_as_table(section, name) for section, name in zip(others, STATISTICS[1:], strict=True)]
    return Figure(
        title=last.title,
        caption=last.about,
        made=_made(last.rows),
        table=_as_table(last),
        notes=last.notes,
        numbers=best if (last.rows["evaluated_sets"] > 1).any() else (),
    )


def _as_table(section: Section, title: str = "") -> Table:
    body = [[cell._replace(text=cell.text.replace("`", "")) for cell in row] for row in section.body]
    return Table(head=section.head, body=body, title=title)


def _made(rows: pd.DataFrame) -> Made:
    return Made(facts=facts(rows), commands=values(rows, "command"))


# ------------------------------------------------------------------------------------------------------------- curves

_FIGURE = ["dataset", "ipc", "preset", "data", "column"]
_CURVE = (
    Column("line", "method"),
    Column("iteration", "iteration"),
    Column("test", "test accuracy, %", "{:.1f}".format, ["test_std"]),
    Column("test_networks", "networks"),
    Column("seeds", "seeds"),
)


def curves_part(points: pd.DataFrame | None) -> Part:
    """Return the part with learning curves, from ``points`` of ``compare.accuracy.curves``."""
    return Part(
        id="curves",
        title="Learning curves",
        about="Test accuracy of snapshots of the distilled set during the condensation. An iteration is one update of "
        "the images.",
        make="dcbench run --method tesla --set evaluation.every=100",
        figures=[] if points is None else list(_curves(points)),
    )


def _curves(points: pd.DataFrame) -> Iterator[Figure]:
    named = _in_percent(labelled(points).sort_values("evaluated_sets", kind="stable"), "test")
    # of several evaluations of one line, the one of most snapshots is drawn; a line never mixes two evaluations
    fullest = named.groupby([*_FIGURE, "line"], dropna=False)["evaluation"].transform("last")
    named = named[named["evaluation"] == fullest].sort_values(["line", "iteration"])
    for _, rows in named.groupby(_FIGURE, dropna=False, sort=True):
        if rows.groupby("line")["iteration"].nunique().max() > 1:
            yield Figure(
                title=f"{_where(rows)}, {told(rows, 'column')}",
                caption=f"Test accuracy on the way; {_SPREAD} {_networks(rows)} Dashed: methods that choose images, "
                "and update none.",
                made=_made(rows),
                plot=Plot(x="iteration", y="test accuracy, %", lines=_lines(rows, "iteration", "test"), scaled="x"),
                notes=letters(rows),
                numbers=[table_of(rows, _CURVE)],
            )


def _networks(rows: pd.DataFrame) -> str:
    fewest, most = int(rows["test_networks"].min()), int(rows["test_networks"].max())
    return f"{most} networks a set." if fewest == most else f"{fewest} networks a set on the way, {most} at the end."


# --------------------------------------------------------------------------------------------------------------- IPC

_IPC = (
    Column("line", "method"),
    Column("ipc", "IPC"),
    Column("last", "test accuracy, %", "{:.1f}".format, ["last_std"]),
    Column("last_networks", "networks"),
    Column("seeds", "seeds"),
    Column("recipe", "recipe"),
)


def ipc_part(table: pd.DataFrame | None) -> Part:
    """Return the part with accuracy against images per class, from ``table`` of ``compare.accuracy.accuracies``."""
    return Part(
        id="ipc",
        title="Accuracy against IPC",
        about="Test accuracy `last` against images per class, for everything that was run at several IPCs.",
        make="dcbench run --method tesla --ipc 1 --ipc 10",
        figures=[] if table is None else list(_against_ipc(table)),
    )


def _against_ipc(table: pd.DataFrame) -> Iterator[Figure]:
    # of several evaluations in one cell of a table, the one that the table shows
    shown = [section.rows.drop_duplicates(["line", "column"], keep="last") for section in sections(table)]
    named = _in_percent(pd.concat(shown).dropna(subset=["ipc", "last"]), "last")
    for _, rows in named.groupby(["dataset", "preset", "data", "column"], dropna=False, sort=True):
        if rows["ipc"].nunique() > 1:
            yield Figure(
                title=f"{_where(rows.assign(ipc=None))}, {told(rows, 'column')}",
                caption=f"Test accuracy `last`; {_SPREAD} The network's recipe can differ by IPC: see the numbers.",
                made=_made(rows),
                plot=Plot(
                    x="images per class (IPC)",
                    y="test accuracy, %",
                    lines=_lines(rows, "ipc", "last"),
                    scaled="x",
                    log=True,
                ),
                notes=letters(rows),
                numbers=[table_of(rows.sort_values(["ipc", "last"]), _IPC)],
            )


# ------------------------------------------------------------------------------------------------------------- shared


def _in_percent(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return ``rows`` with ``name`` in percent, its standard deviation as ``<name>_std``, and lines as plain text."""
    seeds, networks = (rows[f"{name}_std_{over}"].astype("Float64") for over in ("seeds", "networks"))
    line = rows["line"].str.replace("`", "")
    return rows.assign(line=line, **{name: 100 * rows[name], f"{name}_std": 100 * seeds.fillna(networks)})


def _where(rows: pd.DataFrame) -> str:
    ipc = told(rows, "ipc")
    words = [told(rows, "dataset"), f"IPC {ipc}" if ipc else "", f"preset {told(rows, 'preset')}", told(rows, "data")]
    return ", ".join(filter(None, words))


def _lines(rows: pd.DataFrame, x: str, name: str) -> Sequence[Line]:
    lines, variants = [], dict.fromkeys(rows["method"], 0)
    for line, own in rows.groupby("line", sort=True):
        method = str(own["method"].iloc[0])
        points = [_point(row, float(row[x]), name) for row in as_records(own.sort_values(x))]
        chosen = set(own[x]) == {0}
        lines.append(Line(name=str(line), method=method, points=points, variant=variants[method], flat=chosen))
        variants[method] += 1
    return lines


def _point(row: Mapping[str, Any], x: float, name: str) -> Point:
    mean, std = float(row[name]), row[f"{name}_std"]
    if pd.isna(std):
        return Point(x, mean, f"{mean:.1f} %")
    return Point(x, mean, f"{mean:.1f} ± {std:.1f} %", mean - float(std), mean + float(std))
