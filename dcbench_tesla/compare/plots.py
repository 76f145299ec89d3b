"""The plots of comparisons, drawn from tidy rows."""

from collections.abc import Iterable
from itertools import cycle
from typing import TYPE_CHECKING, Literal

import pandas as pd

from dcbench_tesla.compare.points import labelled
from dcbench_tesla.compare.timing import COMPILED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# each method has one colour in all plots; the palette (Okabe and Ito) suits colour-blind readers
_COLOURS = {
    "mtt": "#D55E00",
    "tesla": "#0072B2",
    "tesla-exact": "#009E73",
    "dm": "#CC79A7",
    "dsa": "#E69F00",
    "dc": "#56B4E9",
}
_OTHERS = ("#000000", "#A0692F", "#999999")
LABELS = {"matching_steps": "matching steps T", "ipc": "images per class", "batch_size": "synthetic images in a step"}
"""What a comparison can be drawn against, in words."""


def colour(method: str, others: list[str]) -> str:
    """Return a method's colour; ``others`` are the methods without a fixed colour, in order."""
    return _COLOURS.get(method) or _OTHERS[others.index(method) % len(_OTHERS)]


def colours(methods: Iterable[str]) -> dict[str, str]:
    """Return the colours of ``methods`` that are drawn in one plot, by name."""
    names = list(methods)
    others = [name for name in names if name not in _COLOURS]
    return {name: colour(name, others) for name in names}


def memory_figure(table: pd.DataFrame, against: str) -> "Figure":
    """Draw peak memory in GiB against one of :data:`LABELS`, with a line per method and its settings.

    A method that does not depend on ``against`` is a flat dashed line. Lines of a method with settings are dotted.
    Points where memory ran out are crosses, at the bytes reached. If points of several meters are drawn, predicted
    points are open.
    """
    first, meters = table.iloc[0], sorted(set(table["meter"]))
    title = f"{first['dataset']}, ConvNet width {first['width']}, meter {', '.join(meters)}"
    several = len(meters) > 1
    title += " (open)" if several and meters[-1] == "predicted" else ""
    figure, axes = _figure(against, "peak memory of one iteration, GiB", title)
    draw_memory(axes, table, against)
    return figure


def draw_memory(axes: "Axes", table: pd.DataFrame, against: str) -> None:
    """Draw the lines of :func:`memory_figure` and their legend."""
    several = table["meter"].nunique() > 1
    drawn_as = colours(dict.fromkeys(table["method"]))
    for label, own in table.groupby(labelled(table)["method"], sort=False):
        rows, drawn = own.sort_values(against), drawn_as[own["method"].iloc[0]]
        style = "-" if label in drawn_as else ":"
        peak = rows["peak_bytes"].astype(float) / 2**30
        if rows[against].isna().all():
            axes.axhline(peak.iloc[0], color=drawn, linestyle="--", label=label)
            continue
        x = rows[against].astype(float)
        axes.plot(x, peak, marker="o", markersize=4, color=drawn, label=label, linestyle=style)
        failed = rows["status"] != "ok"
        axes.plot(x[failed], peak[failed], marker="x", markersize=10, linestyle="", color=drawn)
        if several:
            predicted = rows["meter"] == "predicted"
            axes.plot(x[predicted], peak[predicted], "o", markersize=4, color=drawn, markerfacecolor="white")
    axes.set_ylim(bottom=0)
    axes.legend()


def time_figure(table: pd.DataFrame, against: str = "matching_steps") -> "Figure":
    """Draw seconds of an iteration against ``matching_steps`` or ``batch_size``, with a line per method.

    Lines of compiled methods are dashed, and a method that does not depend on ``against`` is a flat dashed line. Error
    bars are as long as the interquartile range. Points that were not run are left out.
    """
    first, ran = table.iloc[0], table[table["status"] == "ok"]
    where = f"{first['hardware']}, threads: {first['threads']}, {first['meter']}"
    title = f"{first['dataset']}, ConvNet width {first['width']}\n{where}"
    figure, axes = _figure(against, "one iteration, seconds", title)
    drawn = colours(dict.fromkeys(ran["method"]))
    for (name, compiled), own in ran.groupby([labelled(ran)["method"], "compiled"], sort=False):
        rows, of_method, label = own.sort_values(against), drawn[own["method"].iloc[0]], str(name)
        label += COMPILED if compiled else ""
        if rows[against].isna().all():
            axes.axhline(rows["iteration_seconds"].iloc[0], color=of_method, linestyle="--", label=label)
            continue
        spread = rows["iteration_spread_seconds"] / 2
        x, y, style = rows[against].astype(float), rows["iteration_seconds"], "--" if compiled else "-"
        axes.errorbar(
            x, y, yerr=spread, marker="o", markersize=4, capsize=3, color=of_method, label=label, linestyle=style
        )
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend()
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
        axes.set_xscale("log")
        ticks = sorted(rows["matching_steps"].unique())
        axes.set_xticks(ticks, [str(t) for t in ticks])
        axes.minorticks_off()
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
    drawn, alpha = colour(method, [method]), 1.0 if dtype == "float64" else _PALE
    for style, (_, of_rate) in zip(cycle(_STYLES), rows.groupby("student_lr"), strict=False):
        by_steps = of_rate.groupby("matching_steps")[value]
        median, low, high = by_steps.median(), by_steps.min(), by_steps.max()
        if value == "relative_error":
            median, low, high = (values.clip(lower=_LEAST_ERROR) for values in (median, low, high))
        axes.plot(median.index, median, style, color=drawn, alpha=alpha, marker="o", markersize=3)
        axes.fill_between(median.index, low, high, color=drawn, alpha=0.12 * alpha, linewidth=0)


def _gradient_legend(table: pd.DataFrame, reference: str) -> tuple[list["Line2D"], list[str]]:
    from matplotlib.lines import Line2D

    entries = {}
    for method, dtype in table[["method", "dtype"]].drop_duplicates().itertuples(index=False):
        own = " itself" if method == reference else ""
        alpha = 1.0 if dtype == "float64" else _PALE
        entries[f"{method}{own}, {dtype}"] = Line2D([], [], color=colour(method, [method]), alpha=alpha, linewidth=3)
    for style, rate in zip(cycle(_STYLES), sorted(table["student_lr"].unique()), strict=False):
        entries[f"b = {rate:g}"] = Line2D([], [], color="black", linestyle=style)
    return list(entries.values()), list(entries)
