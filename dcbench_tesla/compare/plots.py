"""The plots of comparisons, drawn from tidy rows."""

from collections.abc import Iterable
from itertools import cycle
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from dcbench_tesla.compare.looks import End, look, names_at_ends, plain_log, ticks_at
from dcbench_tesla.compare.points import labelled
from dcbench_tesla.compare.timing import COMPILED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

LABELS = {"matching_steps": "matching steps T", "ipc": "images per class", "batch_size": "synthetic images in a step"}
"""What a comparison can be drawn against, in words."""


def colours(methods: Iterable[str]) -> dict[str, str]:
    """Return the colours of ``methods`` by name: each method has one in all plots."""
    return {name: look(name).colour for name in methods}


def memory_figure(table: pd.DataFrame, against: str) -> "Figure":
    """Draw peak memory in GiB against one of :data:`LABELS`, with a line per method and its settings.

    Both axes are logarithmic, and ticks stand at the points measured. A method that does not depend on ``against`` is a
    flat dashed line. Lines of a method with settings are dotted. Points where memory ran out are crosses, at the bytes
    reached. If points of several meters are drawn, predicted points are open.
    """
    first, meters = table.iloc[0], sorted(set(table["meter"]))
    title = f"{first['dataset']}, ConvNet width {first['width']}, meter {', '.join(meters)}"
    several = len(meters) > 1
    title += " (open)" if several and meters[-1] == "predicted" else ""
    figure, axes = _figure(against, "peak memory of one iteration, GiB", title)
    draw_memory(axes, table, against)
    return figure


def draw_memory(axes: "Axes", table: pd.DataFrame, against: str) -> None:
    """Draw the lines of :func:`memory_figure`, each with its name at the end.

    Lines become thinner and markers smaller in the order drawn, so that one below another is seen.
    """
    several, ends = table["meter"].nunique() > 1, []
    lines = list(table.groupby(labelled(table)["method"], sort=False))
    last = table[against].astype(float).max()
    for under, (label, own) in zip(range(len(lines), 0, -1), lines, strict=True):
        rows, drawn = own.sort_values(against), look(own["method"].iloc[0])
        style, width = "-" if label == own["method"].iloc[0] else ":", 1 + 0.3 * under
        peak = rows["peak_bytes"].astype(float) / 2**30
        if rows[against].isna().all():
            axes.axhline(peak.iloc[0], color=drawn.colour, linestyle="--", label=label)
            ends.append(End(1 if pd.isna(last) else last, peak.iloc[0], str(label), drawn.colour))
            continue
        x, size = rows[against].astype(float), 4 + 0.7 * under
        axes.plot(x, peak, style, marker=drawn.marker, markersize=size, color=drawn.colour, label=label, lw=width)
        failed = rows["status"] != "ok"
        axes.plot(x[failed], peak[failed], marker="x", markersize=10, linestyle="", color=drawn.colour)
        if several:
            predicted = rows["meter"] == "predicted"
            open_: dict[str, Any] = {
                "marker": drawn.marker,
                "markersize": size,
                "markerfacecolor": "white",
                "linestyle": "",
            }
            axes.plot(x[predicted], peak[predicted], color=drawn.colour, **open_)
        ends += [End(x.iloc[-1], peak.iloc[-1], str(label), drawn.colour)] if peak.notna().any() else []
    axes.set_yscale("log")
    plain_log(axes.yaxis)
    ticks_at(axes, table[against].dropna().astype(float), log=True)
    names_at_ends(axes, ends)


def time_figure(table: pd.DataFrame, against: str = "matching_steps") -> "Figure":
    """Draw seconds of an iteration against ``matching_steps`` or ``batch_size``, with a line per method and its name.

    Ticks stand at the points measured. Lines of compiled methods are dashed with open markers, and a method that does
    not depend on ``against`` is a flat dashed line. Error bars are as long as the interquartile range. Points that were
    not run are left out.
    """
    first, ran, ends = table.iloc[0], table[table["status"] == "ok"], []
    where = f"{first['hardware']}, threads: {first['threads']}, {first['meter']}"
    title = f"{first['dataset']}, ConvNet width {first['width']}\n{where}"
    figure, axes = _figure(against, "one iteration, seconds", title)
    last = ran[against].astype(float).max()
    for (name, compiled), own in ran.groupby([labelled(ran)["method"], "compiled"], sort=False):
        rows, drawn, label = own.sort_values(against), look(own["method"].iloc[0]), str(name)
        label += COMPILED if compiled else ""
        y = rows["iteration_seconds"]
        flat = bool(rows[against].isna().all())
        if flat:
            axes.axhline(y.iloc[0], color=drawn.colour, linestyle="--", label=label)
        else:
            x, spread, style = (
                rows[against].astype(float),
                rows["iteration_spread_seconds"] / 2,
                "--" if compiled else "-",
            )
            how: dict[str, Any] = {"linestyle": style, "markerfacecolor": "white" if compiled else drawn.colour}
            axes.errorbar(x, y, yerr=spread, marker=drawn.marker, capsize=3, color=drawn.colour, label=label, **how)
        at = (1 if pd.isna(last) else last) if flat else x.iloc[-1]
        ends.append(End(at, y.iloc[-1], label, drawn.colour))
    axes.set_ylim(bottom=0)
    ticks_at(axes, ran[against].dropna().astype(float))
    names_at_ends(axes, ends)
    return figure


def _figure(against: str, measured: str, title: str) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(LABELS[against])
    axes.set_ylabel(measured)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    return figure, axes


_GRADIENT_PANELS = (
    ("images", "cosine", "cosine with the exact gradient, images"),
    ("images", "relative_error", "relative error, images"),
    ("student_lr", "relative_error", "relative error, learned rate b"),
)
_LEAST_ERROR = 1e-17  # a logarithmic axis cannot show an error of zero


def gradient_figure(table: pd.DataFrame, reference: str) -> "Figure":
    """Draw cosine and relative error of gradients against T, with a colour per method and a line style per rate b.

    Lines are medians over iterations, and bands are their range. Lines of float64 are opaque. For float32, errors only
    are drawn, in pale lines, including that of the ``reference``.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.5, 4.2), layout="constrained")
    for axes, (of, value, title) in zip(figure.subplots(1, 3), _GRADIENT_PANELS, strict=True):
        rows = table[table["of"] == of]
        for (method, dtype), part in rows.groupby(["method", "dtype"], sort=False):
            if value == "cosine" and dtype != "float64":
                continue
            _gradient_lines(axes, part, value, str(method), str(dtype))
        ticks_at(axes, rows["matching_steps"], log=True)
        axes.set_xlabel(LABELS["matching_steps"])
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
        if value == "relative_error":
            axes.set_yscale("log")
            axes.set_ylim(bottom=_LEAST_ERROR)
    figure.legend(*_gradient_legend(table, reference), loc="outside lower center", ncols=4, fontsize=9)
    first = table.iloc[0]
    title = f"{first['dataset']}, IPC {first['ipc']}, ConvNet width {first['width']}, real experts"
    figure.suptitle(f"{title}; against {reference} in float64", fontsize=10)
    return figure


_STYLES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")
_PALE = 0.35


def _gradient_lines(axes: "Axes", rows: pd.DataFrame, value: str, method: str, dtype: str) -> None:
    (drawn, marker), alpha = look(method), 1.0 if dtype == "float64" else _PALE
    for style, (_, of_rate) in zip(cycle(_STYLES), rows.groupby("student_lr"), strict=False):
        by_steps = of_rate.groupby("matching_steps")[value]
        median, low, high = by_steps.median(), by_steps.min(), by_steps.max()
        if value == "relative_error":
            median, low, high = (values.clip(lower=_LEAST_ERROR) for values in (median, low, high))
        axes.plot(median.index, median, style, color=drawn, alpha=alpha, marker=marker, markersize=4)
        axes.fill_between(median.index, low, high, color=drawn, alpha=0.12 * alpha, linewidth=0)


def _gradient_legend(table: pd.DataFrame, reference: str) -> tuple[list["Line2D"], list[str]]:
    from matplotlib.lines import Line2D

    entries = {}
    for method, dtype in table[["method", "dtype"]].drop_duplicates().itertuples(index=False):
        own = " itself" if method == reference else ""
        (drawn, marker), alpha = look(method), 1.0 if dtype == "float64" else _PALE
        entries[f"{method}{own}, {dtype}"] = Line2D([], [], color=drawn, marker=marker, alpha=alpha, linewidth=3)
    for style, rate in zip(cycle(_STYLES), sorted(table["student_lr"].unique()), strict=False):
        entries[f"b = {rate:g}"] = Line2D([], [], color="black", linestyle=style)
    return list(entries.values()), list(entries)
