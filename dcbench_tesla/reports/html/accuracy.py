"""The parts on test accuracy: the tables of `dcbench compare accuracy`, learning curves, and accuracy against IPC."""

from collections.abc import Iterator, Mapping

import pandas as pd

from dcbench_tesla.compare.accuracy import Cell, Section, labelled, letters, sections
from dcbench_tesla.records.rows import STATISTICS
from dcbench_tesla.records.workspace import SHIPPED
from dcbench_tesla.reports.html.lines import INTERVAL, in_percent, lines_against, made_of, place
from dcbench_tesla.reports.html.parts import Column, Figure, Part, Plot, Table, table_of, told
from dcbench_tesla.reports.html.peaks import Peaks

_ACCURACY = "test accuracy, %"
_SPREAD = "the bar is one standard deviation over networks, or over seeds where there are several."


def tables_part(table: pd.DataFrame | None, peaks: Peaks) -> Part:
    """Return the part with tables by data set, IPC and preset, from ``table`` of ``compare.accuracy.accuracies``.

    The user's own results come before shipped ones. ``peaks`` says why peaks are empty.
    """
    found = [] if table is None else list(zip(*(sections(table, name) for name in STATISTICS), strict=True))
    found.sort(key=lambda several: _is_shipped(several[0].rows))
    figures = [_table(peaks, *several) for several in found]
    return Part(
        id="accuracy",
        title="Accuracy",
        short="Accuracy",
        about="Test accuracy of networks trained from scratch on the distilled images. `last` is that of the final "
        "distilled set, `best_on_validation` that of the set with the best accuracy on held-out training images, and "
        "`best_on_test` that of the set with the best accuracy on the test images themselves. The papers of MTT and "
        "TESLA print the latter, but it is not an honest estimate.",
        make="dcbench run --method tesla",
        figures=figures,
    )


def _is_shipped(rows: pd.DataFrame) -> bool:
    return "origin" in rows and bool((rows["origin"] == SHIPPED).all())


def _table(peaks: Peaks, last: Section, *others: Section) -> Figure:
    reasons = peaks.by_line(last.rows)
    best = [_as_table(section, reasons, name) for section, name in zip(others, STATISTICS[1:], strict=True)]
    return Figure(
        title=last.title,
        caption=last.about,
        made=made_of(last.rows),
        table=_as_table(last, reasons),
        notes=[*last.notes, *peaks.notes(reasons)],
        numbers=best if (last.rows["evaluated_sets"] > 1).any() else (),
        numbers_title="The best sets during the condensation",
    )


def _as_table(section: Section, reasons: Mapping[str, str], title: str = "") -> Table:
    # the peak is the last column
    body = [[*map(_plain, row[:-1]), _plain(row[-1], reasons.get(row[0].text, ""))] for row in section.body]
    return Table(head=section.head, body=body, title=title)


def _plain(cell: Cell, otherwise: str = "") -> Cell:
    return cell._replace(text=cell.text.replace("`", "").rstrip() or otherwise)


# ------------------------------------------------------------------------------------------------------------- curves

_FIGURE = ["dataset", "ipc", "preset", "data", "column"]
_CURVE = (
    Column("line", "method"),
    Column("iteration", "iteration"),
    Column("test", _ACCURACY, "{:.1f}".format, ["test_std"]),
    Column("test_networks", "networks"),
    Column("seeds", "seeds"),
)


def curves_part(points: pd.DataFrame | None) -> Part:
    """Return the part with learning curves, from ``points`` of ``compare.accuracy.curves``."""
    return Part(
        id="curves",
        title="Learning curves",
        short="Curves",
        about="Test accuracy of snapshots of the distilled set during the condensation. An iteration is one update of "
        "the images.",
        make="dcbench run --method tesla --set evaluation.every=100",
        figures=[] if points is None else list(_curves(points)),
    )


def _curves(points: pd.DataFrame) -> Iterator[Figure]:
    named = in_percent(labelled(points).sort_values("evaluated_sets", kind="stable"), "test")
    # of several evaluations of one line, the one of most snapshots is drawn; a line never mixes two evaluations
    fullest = named.groupby([*_FIGURE, "line"], dropna=False)["evaluation"].transform("last")
    named = named[named["evaluation"] == fullest].sort_values(["line", "iteration"])
    for _, rows in named.groupby(_FIGURE, dropna=False, sort=True):
        if rows.groupby("line")["iteration"].nunique().max() > 1:
            yield Figure(
                title=f"{place(rows)}, {told(rows, 'column')}",
                caption=f"Test accuracy on the way; {_SPREAD} {_networks(rows)} Dashed: methods that choose images, "
                "and update none.",
                made=made_of(rows),
                plot=Plot(x="iteration", y=_ACCURACY, lines=lines_against(rows, "iteration", "test"), scaled="x"),
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
    Column("last", _ACCURACY, "{:.1f}".format, ["last_std"]),
    Column("last_networks", "networks"),
    Column("seeds", "seeds"),
    Column("recipe", "recipe"),
)


def ipc_part(table: pd.DataFrame | None) -> Part:
    """Return the part with accuracy against images per class, from ``table`` of ``compare.accuracy.accuracies``."""
    return Part(
        id="ipc",
        title="Accuracy against IPC",
        short="IPC",
        about="Test accuracy `last` against images per class, for everything that was run at several IPCs.",
        make="dcbench run --method tesla --ipc 1 --ipc 10",
        figures=[] if table is None else list(_against_ipc(table)),
    )


def _against_ipc(table: pd.DataFrame) -> Iterator[Figure]:
    # of several evaluations in one cell of a table, the one that the table shows
    shown = [section.rows.drop_duplicates(["line", "column"], keep="last") for section in sections(table)]
    named = in_percent(pd.concat(shown).dropna(subset=["ipc", "last"]), "last")
    for _, rows in named.groupby(["dataset", "preset", "data", "column"], dropna=False, sort=True):
        if rows["ipc"].nunique() > 1:
            yield Figure(
                title=f"{place(rows.assign(ipc=None))}, {told(rows, 'column')}",
                caption=f"Test accuracy `last`; the bar is {INTERVAL}. The network's recipe can differ by IPC: see the "
                "numbers.",
                made=made_of(rows),
                plot=Plot(
                    x="images per class (IPC)",
                    y=_ACCURACY,
                    lines=lines_against(rows, "ipc", "last", intervals=True),
                    scaled="x",
                    log=True,
                ),
                notes=letters(rows),
                numbers=[table_of(rows.sort_values(["ipc", "last"]), _IPC)],
            )
