"""The paper's tables and Figure 2 as plots, with own results beside published ones."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from itertools import compress, cycle
from typing import TYPE_CHECKING, Any

import pandas as pd

from dcbench_tesla.compare.looks import BLACK, PALETTE, ticks_at
from dcbench_tesla.reports import figure2
from dcbench_tesla.reports.declarations import Declaration
from dcbench_tesla.reports.figure2 import Line
from dcbench_tesla.reports.tables import COMPARED, RUN, Row, grouped, records
from dcbench_tesla.reports.text import changed_settings, protocol_names, ran_on

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_PROTOCOLS = tuple(zip((BLACK, *PALETTE), "osv^PX<", strict=True))  # colours and markers, in order
LABEL_COLOURS = {"hard": "#000000", "learned": "#CC79A7", "last": "#E69F00", "target": "#0072B2"}
_LABEL_MARKERS = {"hard": "o", "learned": "D", "last": "v", "target": "s"}
_DASHES = {"hard": "-", "learned": "--", "last": "-.", "target": "-"}  # equal curves stay visible
_PUBLISHED = "#555555"
_LINE_INCHES, _PANEL_INCHES = 0.21, 0.75


def table_figure(declaration: Declaration, found: pd.DataFrame) -> "Figure":
    """Draw a table (:func:`~dcbench_tesla.reports.tables.table`) with dots for own and diamonds for published numbers.

    A filled dot is ``best_on_test``, like published numbers, and an open dot is ``last``. Bars are standard deviations
    over networks. The number beside a dot is its difference from the published number in points. Each protocol has a
    colour and a marker. Panels without an own number are left out and named below, unless no panel has one.
    """
    from matplotlib.figure import Figure

    known = [row for row in records(found) if row["status"] == RUN or row["published"] is not None]
    down, across, along = _directions(declaration)
    shown, left_out = _with_own(known, [*down, across])
    rows = grouped(shown, down)
    names = {"method": declaration.methods, "labels": declaration.labels}[along]
    lines = [[name for name in names if any(r[along] == name for r in own)] for own in rows.values()]
    panels = [grouped(own, [across]) for own in rows.values()]
    heights = [_PANEL_INCHES + _LINE_INCHES * len(names) for names in lines]
    columns = max(map(len, panels))
    figure = Figure(figsize=(1.2 + 2.4 * max(columns, 3), 0.8 + sum(heights)), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    protocols = dict.fromkeys(row["protocol"] for row in shown if row["status"] == RUN)
    looks = dict(zip(protocols, cycle(_PROTOCOLS), strict=False))
    for axes_row, own, names in zip(grid, panels, lines, strict=True):
        for axes in axes_row[len(own) :]:
            axes.set_axis_off()
        for axes, cells in zip(axes_row, own.values(), strict=False):
            _draw_cells(axes, cells, along, names, looks)
            axes.set_title(_panel_title(cells[0], across), fontsize=9)
            axes.tick_params(labelleft=axes is axes_row[0])
    figure.suptitle(f"{declaration.paper}: {declaration.title}, %", fontsize=11)
    _table_legend(figure, found, looks, [_panel_title(row, across) for row in left_out])
    return figure


def _with_own(rows: Sequence[Row], by: Sequence[str]) -> tuple[list[Row], list[Row]]:
    """Return the rows of panels with an own number, and the first row of each other panel; all rows if none has one."""
    panels = grouped(rows, by).values()
    own = [any(row["status"] == RUN for row in panel) for panel in panels]
    if not any(own):
        return list(rows), []
    kept = [row for panel in compress(panels, own) for row in panel]
    return kept, [panel[0] for panel, has in zip(panels, own, strict=True) if not has]


def _panel_title(row: Row, across: str) -> str:
    by_network = f", {row['evaluator']}" if across == "evaluator" else ""
    return f"{row['dataset']}, IPC {row['ipc']}{by_network}"


def _directions(declaration: Declaration) -> tuple[list[str], str, str]:
    """Return what varies between rows of panels, between columns of panels, and between the lines of a panel."""
    if declaration.columns == "evaluator":
        return ["dataset", "ipc"], "evaluator", "method"
    return ["dataset"], "ipc", declaration.columns


def _draw_cells(
    axes: "Axes", cells: Sequence[Row], along: str, names: Sequence[str], looks: Mapping[str, tuple[str, str]]
) -> None:
    heights = {name: len(names) - 1 - i for i, name in enumerate(names)}
    printed = list({row[along]: row for row in cells if row["published"] is not None}.values())
    _errorbar(axes, printed, "published", "published_std", [heights[r[along]] for r in printed], _diamond())
    protocols = grouped((row for row in cells if row["status"] == RUN), ["protocol"])
    for i, ((protocol,), own) in enumerate(protocols.items()):
        y = [heights[row[along]] + 0.24 * ((len(protocols) - 1) / 2 - i) for row in own]
        colour, marker = looks[protocol]
        _errorbar(axes, own, COMPARED, f"{COMPARED}_std_networks", y, {"fmt": marker, "markersize": 4, "color": colour})
        last = [100 * row["last"] for row in own]
        axes.plot(last, y, marker, markersize=6, color=colour, markerfacecolor="none")
        for row, height in zip(own, y, strict=True):
            if row["difference_points"] is not None:
                at, note = (100 * row[COMPARED], height), f"{row['difference_points']:+.1f}"
                axes.annotate(note, at, (0, 4), textcoords="offset points", fontsize=6, ha="center")
    axes.set_yticks(list(heights.values()), list(heights), fontsize=8)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.margins(x=0.12)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(alpha=0.3)


def _diamond() -> dict[str, Any]:
    return {"fmt": "D", "markersize": 5, "color": _PUBLISHED, "markerfacecolor": "white"}


def _errorbar(
    axes: "Axes", rows: Sequence[Row], mean: str, std: str, y: Sequence[float], style: Mapping[str, Any]
) -> None:
    spreads = [0 if row[std] is None else 100 * row[std] for row in rows]
    axes.errorbar([100 * row[mean] for row in rows], y, xerr=spreads, elinewidth=1, **style)


def _table_legend(
    figure: "Figure", found: pd.DataFrame, looks: Mapping[str, tuple[str, str]], left_out: Sequence[str]
) -> None:
    names = protocol_names(found["protocol"])
    ran = grouped((row for row in records(found) if row["status"] == RUN), ["protocol"])
    handles = [_handle("published", marker="D", color=_PUBLISHED, markerfacecolor="white")]
    for (protocol,), own in ran.items():
        colour, marker = looks[protocol]
        handles.append(_handle(f"{names[protocol]}; {'; '.join(ran_on(own))}", marker=marker, color=colour))
    if ran:
        told = "open: last; filled: best on test; number: best on test - published, points"
        handles.append(_handle(told, marker="o", color="black", markerfacecolor="none"))
    notes = [f"{names[p]}: {changed_settings(p)}" for (p,) in ran if changed_settings(p)]
    notes += [f"published numbers only, not drawn: {'; '.join(left_out)}"] if left_out else []
    told = _wrapped(notes)
    legend = figure.legend(handles=handles, loc="outside lower left", fontsize=8, frameon=False, title=told)
    legend.get_title().set_fontsize(6)
    legend.set_alignment("left")
    figure.set_figheight(figure.get_figheight() + 0.19 * len(handles) + 0.11 * (told.count("\n") + 1))


def _handle(label: str, **style: Any) -> "Line2D":
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="", markersize=5, label=label, **style)


def _wrapped(texts: Sequence[str]) -> str:
    return "\n".join(line for text in texts for line in textwrap.wrap(text, 130, subsequent_indent="    "))


# --------------------------------------------------------------------------------------------------------- Figure 2


def curves_figure(lines: Sequence[Line], names: Mapping[str, str]) -> "Figure":
    """Draw Figure 2a: best accuracy so far against iteration, with a line per strategy and a dot per evaluated set.

    ``names`` are the short names of the protocols, which both figures and the text share.
    """

    def draw(axes: "Axes", panel: Sequence[Line]) -> None:
        for line, label in figure2.labelled(panel, names):
            x, y = [p.iteration for p in line.points], [100 * p.best_so_far for p in line.points]
            (drawn,) = axes.plot(x, y, drawstyle="steps-post", label=label, marker=_LABEL_MARKERS[line.labels])
            drawn.set(color=LABEL_COLOURS[line.labels], linestyle=_DASHES[line.labels])
        axes.set_xlabel("iteration", fontsize=9)
        axes.set_ylabel("best test accuracy so far, %", fontsize=9)
        ticks_at(axes, (point.iteration for line in panel for point in line.points))
        axes.set_xlim(left=0)

    return _panels_figure(lines, draw, figure2.protocols(lines, names))


def epochs_figure(lines: Sequence[Line], beside: Sequence[Line], names: Mapping[str, str]) -> "Figure":
    """Draw Figure 2b: labels alone by the teacher's epoch, and the best accuracy of every strategy in Figure 2a."""
    shared = {line.panel for line in lines}
    beside = [line for line in beside if line.panel in shared]

    def draw(axes: "Axes", panel: Sequence[Line]) -> None:
        protocols = list(dict.fromkeys(line.protocol for line in panel))
        for i, protocol in enumerate(protocols):
            own = [line for line in panel if line.protocol == protocol]
            x, y = [line.last_epoch for line in own], [100 * line.points[-1].accuracy for line in own]
            spreads = [100 * line.points[-1].std_networks for line in own]
            label = "labels alone" + (f", {names[protocol]}" if len(protocols) > 1 else "")
            axes.errorbar(x, y, spreads, fmt="o-", color=PALETTE[(1 + i) % len(PALETTE)], label=label)
        for line, label in figure2.labelled([line for line in beside if line.panel == panel[0].panel], names):
            axes.axhline(
                100 * line.best.accuracy, color=LABEL_COLOURS[line.labels], linestyle="--", label=f"best of {label}"
            )
        ticks_at(axes, (line.last_epoch for line in panel))
        axes.set_xlabel("epoch of the teacher", fontsize=9)
        axes.set_ylabel("test accuracy, %", fontsize=9)

    return _panels_figure(lines, draw, figure2.protocols([*lines, *beside], names))


def _panels_figure(
    lines: Sequence[Line], draw: "Callable[[Axes, Sequence[Line]], None]", told: Sequence[str]
) -> "Figure":
    """Draw every panel with its lines, and below them the texts ``told``, which say how everything was run."""
    from matplotlib.figure import Figure

    found = figure2.panels(lines)
    figure = Figure(figsize=(max(6.4, 4.6 * len(found)), 4.6), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(found), squeeze=False)[0], found, strict=True):
        draw(axes, panel)
        axes.set_title(panel[0].title, fontsize=9)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.supxlabel(_wrapped(told).replace("`", ""), fontsize=6, x=0.01, ha="left")
    return figure
