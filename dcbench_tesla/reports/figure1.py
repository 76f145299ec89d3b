"""Figure 1: memory against matching steps, and memory and runtime at 50 steps beside the ratios that the paper states.

The memory of a point is that of the best meter on record: CUDA's allocator, or else the prediction, which computes
nothing. Runtimes are those on record, by hardware. Values that were not measured are empty.
"""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import pandas as pd

from dcbench_tesla.compare.files import keys
from dcbench_tesla.compare.looks import look
from dcbench_tesla.compare.memory import RATIO_TOLD, pivot
from dcbench_tesla.compare.plots import LABELS, draw_memory
from dcbench_tesla.compare.points import COLUMNS, Point, labelled, points
from dcbench_tesla.compare.table import aligned
from dcbench_tesla.config import overrides_from
from dcbench_tesla.records.progress import size
from dcbench_tesla.records.workspace import MARK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Panel:
    """A panel of the figure: its title and its points."""

    title: str
    points: list[Point]


@cache
def _declared() -> dict[str, Any]:
    text = resources.files("dcbench_tesla.reports").joinpath("figure1.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def panel_a() -> Panel:
    """Return Figure 1a: the shapes of CIFAR-100, batch size 100, by T; and the exact gradient in micro-batches."""
    a = _declared()["a"]
    return Panel(a["title"], [*_points([a["dataset"]], a["steps"]), *_in_micro_batches(steps=a["steps"])])


def panel_batch() -> Panel:
    """Return the second panel of Figure 1a: memory against the batch, with and without micro-batches."""
    d, m = _declared(), _declared()["micro_batches"]
    sizes = {"steps": [m["steps"]], "ipcs": [m["ipc"]], "batch_sizes": m["batch_sizes"]}
    whole = points(d["methods"], [d["a"]["dataset"]], width=d["width"], **sizes)
    title = f"Memory against the batch, T = {m['steps']}"
    return Panel(title, [*whole, *_in_micro_batches(**sizes)])


def _in_micro_batches(**varied: Any) -> list[Point]:
    d, m = _declared(), _declared()["micro_batches"]
    varied = {"batch_sizes": [d["batch_size"]], **varied}
    overrides = overrides_from(m["settings"])
    return points([m["method"]], [d["a"]["dataset"]], width=d["width"], overrides=overrides, **varied)


def all_points() -> list[Point]:
    """Return the points of all panels, each once."""
    return list(dict.fromkeys(p for panel in (panel_a(), panel_batch(), panel_b()) for p in panel.points))


def panel_b() -> Panel:
    """Return Figure 1b: the shapes of CIFAR-100 and ImageNet-1K, batch size 100, T = 50."""
    d = _declared()
    return Panel(d["b"]["title"], _points(list(d["b"]["paper"]), [d["b"]["steps"]]))


def _points(datasets: list[str], steps: list[int]) -> list[Point]:
    d = _declared()
    return points(d["methods"], datasets, steps=steps, batch_sizes=[d["batch_size"]], width=d["width"])


def of_points(table: pd.DataFrame, wanted: list[Point]) -> pd.DataFrame:
    """Return the rows of a comparison that belong to the points ``wanted``, of any meter and machine."""
    if table.empty:
        return table
    names = COLUMNS
    keys = {tuple(getattr(p, name) for name in names) for p in wanted}
    table = table if "settings" in table else table.assign(settings="")
    found = [tuple(None if pd.isna(v) else v for v in row) in keys for row in table[names].itertuples(index=False)]
    return table[found]


def _eager(time: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that were not compiled: the paper's program was not, and the methods are to be compared."""
    return time if time.empty else time[~time["compiled"].astype(bool)]


_METERS = ("cuda", "predicted")  # the best one first
_PREDICTED = "predicted"


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


def lost(old: pd.DataFrame, new: pd.DataFrame) -> list[str]:
    """Return the measurements of an old Figure 1b that a new one lacks, as texts."""
    kept = set(_measured(new))
    return [", ".join(filter(None, name)) for name in _measured(old) if name not in kept]


def _measured(table: pd.DataFrame) -> list[tuple[str, ...]]:
    """Return the measurements in a table of Figure 1b that only their machine can repeat: peaks of GPUs, and times."""
    about = {
        "peak": (table[table["meter"] != _PREDICTED].dropna(subset=["peak_bytes"]), ["memory_hardware"]),
        "time": (table.dropna(subset=["iteration_seconds"]), ["time_hardware", "time_threads"]),
    }
    return [
        (name, *key)
        for name, (rows, machine) in about.items()
        for key in dict.fromkeys(keys(rows, ["dataset", "method", *machine]))
        if not any(text.endswith(MARK) for text in key)  # committed results are not lost
    ]


def untimed(time: pd.DataFrame, hardware: str, threads: int) -> list[Point]:
    """Return the points of Figure 1b without a time on this hardware, including those that did not fit in memory."""
    wanted = panel_b().points
    done = _eager(of_points(time, wanted))
    if not done.empty:
        done = done[(done["hardware"] == hardware) & (done["threads"] == threads) & (done["status"] == "ok")]
    return [p for p in wanted if of_points(done, [p]).empty]


def figure_b(memory: pd.DataFrame, time: pd.DataFrame) -> pd.DataFrame:
    """Return the tidy rows of Figure 1b: one for each data set, method and machine that timed it.

    ``memory_ratio`` is the peak of mtt divided by that of the method, if the same meter measured both on one machine.
    ``time_ratio`` is the seconds of the method divided by those of mtt on the same hardware with the same threads. A
    ratio is empty if one of its values was not measured. Columns with ``paper_`` hold what the paper states.
    """
    wanted = panel_b().points
    memory, time = of_points(memory, wanted), _eager(of_points(time, wanted))
    machines = _machines(time)
    rows = [
        _row_b(point, memory, time, machine)
        for machine in machines
        for point in wanted
        if len(memory[(memory["dataset"] == point.dataset) & (memory["method"] == point.method)])
    ]
    return pd.DataFrame(rows)


_MACHINE = ("hardware", "threads")


def _machines(time: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the machines that times were measured on; one entry of ``None`` if there are no times."""
    if time.empty:
        return [dict.fromkeys(_MACHINE)]
    return time[list(_MACHINE)].drop_duplicates().to_dict("records")  # type: ignore[return-value]


def _machines_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the machines with times in a table of Figure 1b."""
    timed = table.dropna(subset=["time_hardware"]).drop_duplicates(["time_hardware", "time_threads"])
    return [{"hardware": r["time_hardware"], "threads": int(r["time_threads"])} for r in timed.to_dict("records")]


def _row_b(point: Point, memory: pd.DataFrame, time: pd.DataFrame, machine: dict[str, Any]) -> dict[str, Any]:
    row, of_mtt = (_memory_of(memory, point.dataset, method) for method in (point.method, "mtt"))
    peak, alike = _peak(row), _source(of_mtt) == _source(row)
    seconds, mtt_seconds = (_seconds(time, point.dataset, method, machine) for method in (point.method, "mtt"))
    paper = _declared()["b"]["paper"][point.dataset] if point.method == "tesla" else {}
    return {
        "dataset": point.dataset,
        "method": point.method,
        "matching_steps": point.matching_steps,
        "batch_size": point.batch_size,
        "peak_bytes": peak,
        "memory_ratio": _ratio(_peak(of_mtt), peak) if alike else None,
        "paper_memory_ratio": paper.get("memory_ratio"),
        "iteration_seconds": seconds,
        "time_ratio": _ratio(seconds, mtt_seconds),
        "paper_time_ratio": paper.get("time_ratio"),
        "meter": row["meter"],
        "memory_hardware": row["hardware"],
        "time_hardware": machine["hardware"],
        "time_threads": machine["threads"],
        "paper_note": paper.get("note", ""),
    }


def _memory_of(memory: pd.DataFrame, dataset: str, method: str) -> dict[Any, Any]:
    """Return the row of a method, or an empty one."""
    rows = memory[(memory["dataset"] == dataset) & (memory["method"] == method)].to_dict("records")
    return rows[0] if rows else {}


def _peak(row: Mapping[Any, Any]) -> float | None:
    return float(row["peak_bytes"]) if row.get("status") == "ok" else None


def _source(row: Mapping[Any, Any]) -> tuple[Any, Any]:
    """Return the meter and the machine of a peak; only peaks that share both are compared."""
    return row.get("meter"), row.get("hardware")


def _seconds(time: pd.DataFrame, dataset: str, method: str, machine: dict[str, Any]) -> float | None:
    if time.empty:
        return None
    rows = time[(time["dataset"] == dataset) & (time["method"] == method) & (time["status"] == "ok")]
    for name, value in machine.items():
        rows = rows[rows[name] == value]
    return float(rows["iteration_seconds"].iloc[0]) if len(rows) else None


def _ratio(over: float | None, under: float | None) -> float | None:
    return over / under if over and under else None


def markdown_a(memory: pd.DataFrame) -> str:
    """Return Figure 1a as Markdown: peak memory, with a line per number of matching steps and a column per method."""
    return _markdown(memory, panel_a(), "matching_steps")


def markdown_batch(memory: pd.DataFrame) -> str:
    """Return the second panel of Figure 1a as Markdown, with a line per size of the batch."""
    return _markdown(memory, panel_batch(), "batch_size")


def _markdown(memory: pd.DataFrame, panel: Panel, against: str) -> str:
    rows = of_points(memory, panel.points)
    if rows.empty:
        return f"### {panel.title}: nothing on record\n"
    head, *body = pivot(rows, against)
    first = rows.iloc[0]
    batch = f"batch {first['batch_size']}, " if against != "batch_size" else ""
    where = f"{first['dataset']}, {batch}ConvNet width {first['width']}"
    title = f"### {panel.title}, {where}, {meters(rows)}; {RATIO_TOLD}"
    predicted = rows[rows["meter"] == _PREDICTED]
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


def markdown_b(table: pd.DataFrame) -> str:
    """Return Figure 1b as Markdown, with a line per data set, method and machine, and ratios beside the paper's.

    Meter and machine are in every line if lines differ in them, and otherwise below the table.
    """
    machines = [_machine_told(m) for m in _machines_of(table)]
    columns: dict[str, Callable[[Mapping[Any, Any]], str]] = {
        "data set": lambda r: str(r["dataset"]),
        "method": lambda r: f"`{r['method']}`",
        "peak": lambda r: size(r["peak_bytes"]) if r["peak_bytes"] else "",
        "mtt / it": lambda r: _shown(r["memory_ratio"], "{:.1f}"),
        "paper": lambda r: _shown(r["paper_memory_ratio"], "about {:.0f}"),
        "seconds": lambda r: _shown(r["iteration_seconds"], "{:.3g}"),
        "it / mtt": lambda r: _shown(r["time_ratio"], "{:.2f}"),
        "paper ": lambda r: _shown(r["paper_time_ratio"], "about {:.2f}"),
    }
    if table["meter"].nunique() > 1:
        columns["meter"] = lambda r: str(r["meter"])
    if len(machines) > 1:
        columns["timed on"] = lambda r: _machine_told({"hardware": r["time_hardware"], "threads": r["time_threads"]})
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    body = [[show(row) for show in columns.values()] for row in rows]
    lines = [
        f"### {panel_b().title}",
        "",
        *aligned([name.strip() for name in columns], body),
        "",
        f"- peak: {meters(table)}, batch {table['batch_size'].iloc[0]}, synthetic inputs",
        f"- seconds: an iteration, {'; '.join(machines) or 'not measured here'}",
        *(f"- paper, {name}: {paper['note']}" for name, paper in _declared()["b"]["paper"].items()),
    ]
    return "\n".join(lines) + "\n"


def _machine_told(machine: Mapping[str, Any]) -> str:
    return f"{machine['hardware']}, threads: {int(machine['threads'])}"


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


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
        return
    first, meter = rows.iloc[0], ", ".join(sorted(set(rows["meter"])))
    where = f"{first['dataset']}, width {first['width']}, {LABELS[fixed]}: {first[fixed]}"
    axes.set_title(f"{where}, meter {meter}", fontsize=9)
    draw_memory(axes, rows, against)


def draw_b(table: pd.DataFrame) -> "Figure":
    """Draw Figure 1b: peak memory on the left and seconds per iteration on the right, with a bar per method.

    Values that were not measured have the words "not measured" in place of a bar. Of several machines, the one that
    measured the memory is drawn, or else the first.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    beside = table[table["time_hardware"] == table["memory_hardware"]]
    first = (beside if len(beside) else table).iloc[0]
    if not pd.isna(first["time_hardware"]):
        same = (table["time_hardware"] == first["time_hardware"]) & (table["time_threads"] == first["time_threads"])
        table = table[same]
    several = table["meter"].nunique() > 1
    left.set_title(f"peak memory, meter {', '.join(dict.fromkeys(table['meter']))}", fontsize=10)
    left.set_ylabel("GiB")
    by = table["meter"] if several else ""
    _bars(left, table.assign(value=table["peak_bytes"] / 2**30, by=by))
    right.set_title(
        f"seconds an iteration, {first['time_hardware'] if not pd.isna(first['time_hardware']) else 'not measured'}",
        fontsize=10,
    )
    right.set_ylabel("s")
    _bars(right, table.assign(value=table["iteration_seconds"], by=""))
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    steps, batch = first["matching_steps"], first["batch_size"]
    figure.suptitle(f"{steps} matching steps, batch {batch}, ConvNet width {_declared()['width']}", fontsize=10)
    return figure


_BAR = 0.26


def _bars(axes: "Axes", table: pd.DataFrame) -> None:
    """Draw the column ``value`` as bars, with the number and the text of column ``by`` on each."""
    datasets, methods = list(dict.fromkeys(table["dataset"])), list(dict.fromkeys(table["method"]))
    for i, method in enumerate(methods):
        rows = table[table["method"] == method].set_index("dataset").reindex(datasets)
        at = [x + (i - (len(methods) - 1) / 2) * _BAR for x in range(len(datasets))]
        axes.bar(at, rows["value"].astype(float).fillna(0), _BAR * 0.92, color=look(method).colour, label=method)
        for x, value, by in zip(at, rows["value"], rows["by"], strict=True):
            missing = pd.isna(value)
            text = "not measured" if missing else f"{value:.3g}\n{by}".strip()
            height = 0 if missing else float(value)
            axes.text(x, height, text, ha="center", va="bottom", fontsize=8, rotation=90 if missing else 0)
    axes.set_xticks(range(len(datasets)), datasets)
    axes.grid(alpha=0.3, axis="y")
    axes.margins(y=0.12)
    axes.set_ylim(bottom=0)  # with bars of no height it would be below 0
