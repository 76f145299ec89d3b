"""Accuracy against IPC and against what the condensation costs, drawn from the rows of ``dcbench compare accuracy``."""

import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from dcbench_tesla.compare.accuracy import labelled, letters
from dcbench_tesla.compare.looks import BLACK, End, look, names_at_ends, plain_log, ticks_at

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_APART = ["dataset", "preset", "data", "evaluator", "labels"]  # what panels differ in
_COSTS = {"condense_seconds": ("seconds to condense", 1.0), "peak_bytes": ("peak memory, GiB", 2.0**30)}
_PANEL = (5.6, 3.8)  # inches
_LONG_LEGEND = 16  # entries that fit beside a panel
_STATISTICS = {"last": "last", "best_on_validation": "best on validation", "best_on_test": "best on test"}


def against_ipc(table: pd.DataFrame, statistic: str = "last") -> "Figure | None":
    """Draw accuracy against IPC, with a line per method; ``None`` if no method was run with several IPCs.

    Panels are data sets, presets and evaluators; those with one line only are drawn where no other has more. Of several
    regimes of labels the sets' own are drawn, where the table has them. Ticks stand at the IPCs that were run, and bars
    are intervals of the mean at 95 %: over seeds, or over the networks of one set. A line has its name at its end;
    those that end before the largest IPC are in a legend.

    Args:
        table: rows of :func:`~dcbench_tesla.compare.accuracy.accuracies`.
        statistic: the accuracy to draw.
    """
    rows = _known(table, statistic).dropna(subset=["ipc"])
    panels = [panel for _, panel in rows.groupby(_APART, dropna=False) if panel["ipc"].nunique() > 1]
    panels = [panel for panel in panels if panel["line"].nunique() > 1] or panels
    return _figure(panels, [lambda axes, panel: _draw_ipc(axes, panel, statistic)]) if panels else None


def against_cost(table: pd.DataFrame, statistic: str = "last") -> "Figure | None":
    """Draw accuracy against seconds and GiB of the condensation; ``None`` if fewer than two methods have a cost.

    Panels are data sets, IPCs, presets and evaluators, with the sets' own labels where the table has them; below the
    axis stand the machines, whose times are comparable only if it is one. Rings mark the Pareto front, which seconds of
    several machines do not have: no other method with a cost is as cheap and more accurate. Methods without a cost,
    which choose images or average them, are dashed lines.

    Args:
        table: rows of :func:`~dcbench_tesla.compare.accuracy.accuracies`.
        statistic: the accuracy to draw.
    """
    groups = [panel for _, panel in _known(table, statistic).groupby([*_APART, "ipc"], dropna=False)]
    panels = [panel for panel in groups if panel.loc[_has_cost(panel), "method"].nunique() > 1]
    if not panels:
        return None

    def drawn(cost: str) -> "Callable[[Axes, pd.DataFrame], None]":
        return lambda axes, panel: _draw_cost(axes, panel, statistic, cost)

    return _figure(panels, [drawn(cost) for cost in _COSTS])


def _known(table: pd.DataFrame, statistic: str) -> pd.DataFrame:
    rows = labelled(table.dropna(subset=[statistic]))
    labels = rows["labels"].fillna("") if "labels" in rows else pd.Series("", rows.index)
    rows = rows.assign(labels=labels)
    rows = rows[labels == ""] if (labels == "").any() else rows
    common = rows.groupby([*_APART, "ipc"], dropna=False)["column"].transform(lambda names: names.mode()[0])
    own = [
        "" if column == usual else f", {column.removeprefix(evaluator).strip()}"
        for column, usual, evaluator in zip(rows["column"], common, rows["evaluator"], strict=True)
    ]
    return rows.assign(line=rows["line"].str.replace("`", "") + own)


def _figure(panels: Sequence[pd.DataFrame], draw: "Sequence[Callable[[Axes, pd.DataFrame], None]]") -> "Figure":
    """Return a figure with a row for every panel and a column for every function; alone, functions stand in rows."""
    from matplotlib.figure import Figure

    columns = max(len(draw), min(2, len(panels)))
    cells = [(panel, drawn) for panel in panels for drawn in draw]
    rows = -(-len(cells) // columns)
    figure = Figure(figsize=(_PANEL[0] * columns, _PANEL[1] * rows), layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).flat
    for (panel, drawn), axes in zip(cells, places, strict=False):  # in this order: no place is taken and left empty
        axes.set_title(_title(panel), fontsize=9)
        axes.grid(alpha=0.3)
        drawn(axes, panel)
    for axes in places:
        axes.set_axis_off()
    told = [line for note in letters(pd.concat(panels)) for line in textwrap.wrap(note.replace("`", ""), 130)]
    figure.supxlabel("\n".join(told), fontsize=6, x=0.01, ha="left")
    return figure


def _title(panel: pd.DataFrame) -> str:
    first = panel.iloc[0]
    ipc = f", IPC {first['ipc']}" if panel["ipc"].nunique() == 1 else ""
    data = ", other data" if first["data"] else ""
    labels = f", {first['labels']} labels" if first["labels"] else ""
    return f"{first['dataset']}{ipc}, preset {first['preset']}{data}, {first['evaluator']}{labels}"


def _lines(panel: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    yield from ((str(line), rows) for line, rows in panel.groupby("line", sort=False))


def _draw_ipc(axes: "Axes", panel: pd.DataFrame, statistic: str) -> None:
    ends, alone = [], []
    for line, own in _lines(panel):
        rows, drawn = own.sort_values("ipc"), look(own["method"].iloc[0])
        x, y = rows["ipc"].astype(float), 100 * rows[statistic]
        spread = _bars(rows, statistic)
        style: dict[str, Any] = {"marker": drawn.marker, "color": drawn.colour, "capsize": 2, "label": line}
        handle = axes.errorbar(x, y, spread, linewidth=1.2, **style)
        if x.iloc[-1] == panel["ipc"].max():
            ends.append(End(x.iloc[-1], y.iloc[-1], line, drawn.colour))
        else:
            alone.append(handle)
    ticks_at(axes, panel["ipc"].astype(float), log=True)
    _label(axes, "images per class (IPC)", statistic)
    names_at_ends(axes, ends)
    if alone:
        axes.legend(handles=alone, loc="lower right", fontsize=8, title="not at the largest IPC", title_fontsize=8)


def _draw_cost(axes: "Axes", panel: pd.DataFrame, statistic: str, cost: str) -> None:
    name, unit = _COSTS[cost]
    rows = panel[_has_cost(panel) & panel[cost].notna()].sort_values(statistic, ascending=False)
    handles: list[Any] = []
    for line, own in _lines(rows):
        drawn, x, y = look(own["method"].iloc[0]), own[cost] / unit, 100 * own[statistic]
        spread = _bars(own, statistic)
        style: dict[str, Any] = {"fmt": drawn.marker, "color": drawn.colour, "label": line}
        handles.append(axes.errorbar(x, y, spread, markersize=7, capsize=2, **style))
    for line, own in _lines(panel[~_has_cost(panel)].sort_values(statistic, ascending=False)):
        drawn, y = look(own["method"].iloc[0]), 100 * own[statistic].iloc[0]
        style = {"marker": drawn.marker, "color": drawn.colour, "label": f"{line} (no cost)", "clip_on": False}
        across = axes.get_yaxis_transform()
        handles += axes.plot([0, 1], [y, y], "--", linewidth=1, markevery=[0], transform=across, **style)
    comparable = cost != "condense_seconds" or rows["hardware"].nunique() == 1  # seconds of one machine only
    best = front(zip(rows[cost] / unit, 100 * rows[statistic], strict=True)) if comparable else []
    ring: dict[str, Any] = {
        "marker": "o",
        "markersize": 14,
        "markerfacecolor": "none",
        "drawstyle": "steps-post",
        "linewidth": 1,
    }
    if best:
        handles += axes.plot(*zip(*best, strict=True), color=BLACK, alpha=0.5, label="Pareto front", **ring)
    axes.set_xscale("log")
    axes.margins(x=0.12)
    plain_log(axes.xaxis)
    machines = textwrap.fill("; ".join(dict.fromkeys(panel["hardware"])), 60)
    _label(axes, f"{name}\n{machines}", statistic)
    small = 8 if len(handles) <= _LONG_LEGEND else 6.5
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1, 1), fontsize=small, frameon=False)


def _bars(rows: pd.DataFrame, statistic: str) -> list[list[float]]:
    """Return how far the intervals of the means reach below and above them, in points; 0 where there is none."""
    mean = rows[statistic]
    reach = (mean - rows[f"{statistic}_low"], rows[f"{statistic}_high"] - mean)
    return [(100 * one).fillna(0).clip(lower=0).tolist() for one in reach]


def _has_cost(panel: pd.DataFrame) -> "pd.Series[bool]":
    return panel["condense_seconds"] > 0


def front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points (cost, value) on the Pareto front, by cost: no other is as cheap and better, or the reverse."""
    kept: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or value > kept[-1][1]:
            kept.append((cost, value))
    return kept


def _label(axes: "Axes", x: str, statistic: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(f"test accuracy ({_STATISTICS[statistic]}), %\nbars: 95 % interval of the mean", fontsize=9)
