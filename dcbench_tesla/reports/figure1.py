"""Figure 1: its points, their memory, and Figure 1a, memory against matching steps and against the batch.

The memory of a point is that of the best meter on record: CUDA's allocator, or else the prediction, which computes
nothing. Figure 1b, which adds runtimes, is :mod:`dcbench_tesla.reports.figure1b`.
"""

import tomllib
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import pandas as pd

from dcbench_tesla.compare.memory import RATIO_TOLD, pivot
from dcbench_tesla.compare.plots import LABELS, draw_memory
from dcbench_tesla.compare.points import COLUMNS, Point, labelled, points
from dcbench_tesla.compare.table import aligned
from dcbench_tesla.config import overrides_from

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Panel:
    """A panel of the figure: its title and its points."""

    title: str
    points: list[Point]


@cache
def declared() -> dict[str, Any]:
    """Return what ``figure1.toml`` declares."""
    text = resources.files("dcbench_tesla.reports").joinpath("figure1.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def panel_a() -> Panel:
    """Return Figure 1a: the shapes of CIFAR-100, batch size 100, by T; and the exact gradient in micro-batches."""
    a = declared()["a"]
    return Panel(a["title"], _with_micro_batches(a["dataset"], a["steps"]))


def panel_batch() -> Panel:
    """Return the second panel of Figure 1a: memory against the batch, with and without micro-batches."""
    d, m = declared(), declared()["micro_batches"]
    sizes = {"steps": [m["steps"]], "ipcs": [m["ipc"]], "batch_sizes": m["batch_sizes"]}
    whole = points(d["methods"], [d["a"]["dataset"]], width=d["width"], **sizes)
    title = f"Memory against the batch, T = {m['steps']}"
    return Panel(title, [*whole, *_in_micro_batches(d["a"]["dataset"], **sizes)])


def _in_micro_batches(dataset: str, **varied: Any) -> list[Point]:
    d, m = declared(), declared()["micro_batches"]
    varied = {"batch_sizes": [d["batch_size"]], **varied}
    overrides = overrides_from(m["settings"])
    return points([m["method"]], [dataset], width=d["width"], overrides=overrides, **varied)


def _with_micro_batches(dataset: str, steps: list[int]) -> list[Point]:
    d = declared()
    whole = points(d["methods"], [dataset], steps=steps, batch_sizes=[d["batch_size"]], width=d["width"])
    return [*whole, *_in_micro_batches(dataset, steps=steps)]


def all_points() -> list[Point]:
    """Return the points of all panels, each once."""
    return list(dict.fromkeys(p for panel in (panel_a(), panel_batch(), panel_b()) for p in panel.points))


def panel_b() -> Panel:
    """Return Figure 1b: the shapes of CIFAR-100 and ImageNet-1K, batch size 100, T = 50; and in micro-batches."""
    b = declared()["b"]
    return Panel(b["title"], [p for dataset in b["paper"] for p in _with_micro_batches(dataset, [b["steps"]])])


def ladder(point: Point) -> list[Point]:
    """Return ``point`` with the smaller T that its time can be extrapolated from."""
    return [replace(point, matching_steps=steps) for steps in declared()["b"]["extrapolate_from"]]


def of_points(table: pd.DataFrame, wanted: list[Point]) -> pd.DataFrame:
    """Return the rows of a comparison that belong to the points ``wanted``, of any meter and machine."""
    if table.empty:
        return table
    names = COLUMNS
    keys = {tuple(getattr(p, name) for name in names) for p in wanted}
    table = table if "settings" in table else table.assign(settings="")
    found = [tuple(None if pd.isna(v) else v for v in row) in keys for row in table[names].itertuples(index=False)]
    return table[found]


MEASURES = "dcbench compare memory"
"""The command that measures the memory of Figure 1a."""

_METERS = ("cuda", "predicted")  # the best one first
PREDICTED = "predicted"
"""The meter that measures nothing."""


def best(memory: pd.DataFrame) -> pd.DataFrame:
    """Return one row of the comparison ``memory`` for every point of the figure: that of the best meter on record.

    A measurement by a GPU's allocator is preferred to a prediction, unless the GPU ran out of memory. Of several GPUs
    the one that measured most points is preferred.
    """
    known = of_points(memory, all_points())
    known = known[known["meter"].isin(_METERS)].reset_index(drop=True)
    ran = known["status"] == "ok"
    rank = pd.DataFrame(
        {
            "failed": ~ran,
            "meter": known["meter"].map(_METERS.index),
            "others": -ran.groupby(known["hardware"]).transform("sum"),
            "hardware": known["hardware"],
        }
    )
    chosen = known.loc[rank.sort_values(list(rank.columns), kind="stable").index]
    return chosen.drop_duplicates(COLUMNS).sort_index()


def markdown_a(memory: pd.DataFrame) -> str:
    """Return Figure 1a as Markdown: peak memory, with a line per number of matching steps and a column per method."""
    return _markdown(memory, panel_a(), "matching_steps")


def markdown_batch(memory: pd.DataFrame) -> str:
    """Return the second panel of Figure 1a as Markdown, with a line per size of the batch."""
    return _markdown(memory, panel_batch(), "batch_size")


def _markdown(memory: pd.DataFrame, panel: Panel, against: str) -> str:
    rows = of_points(memory, panel.points)
    if rows.empty:
        return f"### {panel.title}: nothing on record; `{MEASURES}` measures it\n"
    head, *body = pivot(rows, against)
    first = rows.iloc[0]
    batch = f"batch {first['batch_size']}, " if against != "batch_size" else ""
    where = f"{first['dataset']}, {batch}ConvNet width {first['width']}"
    title = f"### {panel.title}, {where}, {meters(rows)}; {RATIO_TOLD}"
    predicted = rows[rows["meter"] == PREDICTED]
    told = ["", f"- predicted: {_points_told(predicted, against)}"] if 0 < len(predicted) < len(rows) else []
    return "\n".join([title, "", *aligned(head, body), *told]) + "\n"


def meters(memory: pd.DataFrame) -> str:
    """Return the meters of the peaks with their hardware: ``meter cuda (A100), predicted (none: predicted)``."""
    hardware = "hardware" if "hardware" in memory else "memory_hardware"
    found = sorted(set(memory[["meter", hardware]].itertuples(index=False, name=None)))
    return "meter " + ", ".join(f"{meter} ({where})" for meter, where in found)


def _points_told(rows: pd.DataFrame, against: str) -> str:
    by_method = rows.groupby(labelled(rows)["method"], sort=False)[against]
    return "; ".join(f"`{method}` at {', '.join(map(str, values))}" for method, values in by_method)


def draw_a(memory: pd.DataFrame) -> "Figure":
    """Draw Figure 1a: peak memory against T on the left, and against the batch on the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.0, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_panel(left, of_points(memory, panel_a().points), "matching_steps", "batch_size")
    _draw_panel(right, of_points(memory, panel_batch().points), "batch_size", "matching_steps")
    return figure


def _draw_panel(axes: "Axes", rows: pd.DataFrame, against: str, fixed: str) -> None:
    """Draw ``rows`` against one column; the title has the value of the other one, which is ``fixed``."""
    axes.set_xlabel(LABELS[against])
    axes.set_ylabel("peak memory of one iteration, GiB")
    axes.grid(alpha=0.3)
    if rows.empty:
        axes.text(0.5, 0.5, f"not measured: {MEASURES}", transform=axes.transAxes, ha="center", fontsize=9)
        return
    first, meter = rows.iloc[0], ", ".join(sorted(set(rows["meter"])))
    where = f"{first['dataset']}, width {first['width']}, {LABELS[fixed]}: {first[fixed]}"
    axes.set_title(f"{where}, meter {meter}", fontsize=9)
    draw_memory(axes, rows, against)
