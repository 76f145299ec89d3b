"""The plots of comparisons, from their tidy rows."""

from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# one colour a method in all plots, told apart by people who see colours differently (Okabe and Ito)
_COLOURS = {
    "mtt": "#D55E00",
    "tesla": "#0072B2",
    "tesla-exact": "#009E73",
    "dm": "#CC79A7",
    "dsa": "#E69F00",
    "dc": "#56B4E9",
}
_OTHERS = ("#000000", "#F0E442", "#999999")
_LABELS = {"matching_steps": "matching steps T", "ipc": "images per class"}


def colour(method: str, others: list[str]) -> str:
    """Return a method's colour; ``others`` are the methods without one of their own, in order."""
    return _COLOURS.get(method) or _OTHERS[others.index(method) % len(_OTHERS)]


def memory_figure(table: pd.DataFrame, against: str) -> "Figure":
    """Draw peak memory in GiB against ``matching_steps`` or ``ipc``: a line a method, a dashed one where it is flat.

    Points where memory ran out are crosses: at least so much was needed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    methods = list(dict.fromkeys(table["method"]))
    others = [m for m in methods if m not in _COLOURS]
    for method in methods:
        rows = table[table["method"] == method]
        drawn = colour(method, others)
        if rows[against].isna().all():
            axes.axhline(float(rows["peak_bytes"].iloc[0]) / 2**30, color=drawn, linestyle="--", label=method)
            continue
        rows = rows.sort_values(against)
        x, y = rows[against].astype(float), rows["peak_bytes"].astype(float) / 2**30
        axes.plot(x, y, marker="o", markersize=4, color=drawn, label=method)
        failed = rows["status"] != "ok"
        axes.plot(x[failed], y[failed], marker="x", markersize=10, linestyle="", color=drawn)
    first = table.iloc[0]
    axes.set_xlabel(_LABELS[against])
    axes.set_ylabel("peak memory of one iteration, GiB")
    axes.set_ylim(bottom=0)
    axes.set_title(f"{first['dataset']}, ConvNet width {first['width']}, meter {first['meter']}", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
