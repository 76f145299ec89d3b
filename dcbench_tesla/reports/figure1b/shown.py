"""Figure 1b as Markdown and as a plot."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from dcbench_tesla.compare import timing
from dcbench_tesla.compare.looks import BLACK, look
from dcbench_tesla.compare.memory import BASE
from dcbench_tesla.compare.table import aligned
from dcbench_tesla.records.progress import size
from dcbench_tesla.reports.figure1 import declared, meters, panel_b

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

MEASURES = "dcbench reproduce figure1 --run"
"""The command that measures the times of Figure 1b."""

_EXTRAPOLATED = "extrapolated"


def markdown_b(table: pd.DataFrame) -> str:
    """Return Figure 1b as Markdown, with a line per data set, method and machine, and ratios beside the paper's.

    Meter and machine are in every line if lines differ in them, and otherwise below the table.
    """
    machines = _machines_of(table)
    columns: dict[str, Callable[[Mapping[Any, Any]], str]] = {
        "data set": lambda r: str(r["dataset"]),
        "method": lambda r: f"`{r['method']}`",
        "peak": lambda r: size(r["peak_bytes"]) if r["peak_bytes"] else "",
        "mtt / it": lambda r: _shown(r["memory_ratio"], "{:.1f}"),
        "paper": lambda r: _shown(r["paper_memory_ratio"], "about {:.0f}"),
        "seconds": _seconds,
        "it / mtt": _time_ratio,
        "paper ": lambda r: _shown(r["paper_time_ratio"], "about {:.2f}"),
    }
    if table["meter"].nunique() > 1:
        columns["meter"] = lambda r: str(r["meter"] or "")
    if len(machines) > 1:
        columns["timed on"] = lambda r: _machine_told(r["time_hardware"], r["time_threads"])
    rows = timing.named(table).astype(object).where(timing.named(table).notna(), None).to_dict("records")
    body = [[show(row) for show in columns.values()] for row in rows]
    lines = [
        f"### {panel_b().title}",
        "",
        *aligned([name.strip() for name in columns], body),
        "",
        f"- peak: {meters(table[table['meter'].notna()])}, batch {table['batch_size'].iloc[0]}, synthetic inputs",
        f"- seconds: an iteration, {'; '.join(machines) or 'not measured here'}",
        *_notes(rows),
        *(f"- paper, {name}: {paper['note']}" for name, paper in declared()["b"]["paper"].items()),
    ]
    return "\n".join(lines) + "\n"


def _machines_of(table: pd.DataFrame) -> list[str]:
    """Return the machines with times in a table of Figure 1b, in words."""
    timed = table.dropna(subset=["time_hardware"]).drop_duplicates(["time_hardware", "time_threads"])
    return [_machine_told(row["time_hardware"], row["time_threads"]) for row in timed.to_dict("records")]


def _machine_told(hardware: str, threads: int) -> str:
    return f"{hardware}, threads: {int(threads)}"


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _seconds(row: Mapping[Any, Any]) -> str:
    """Return a median ± half of the interquartile range, or an extrapolation with its interval."""
    value, spread = row["iteration_seconds"], row["iteration_spread_seconds"]
    if value is None:
        return ""
    if row["time_kind"] == _EXTRAPOLATED:
        return f"{value:.3g} ({row['iteration_low_seconds']:.3g} to {row['iteration_high_seconds']:.3g}), extrapolated"
    return f"{value:.3g}" if spread is None else f"{value:.3g} ± {spread / 2:.2g}"


def _time_ratio(row: Mapping[Any, Any]) -> str:
    """Return a ratio of times; one with an extrapolated time says which."""
    ratio, low, high = row["time_ratio"], row["time_ratio_low"], row["time_ratio_high"]
    if ratio is None or row["time_ratio_kind"] != _EXTRAPOLATED:
        return _shown(ratio, "{:.2f}")
    ends = "" if low is None else f" ({low:.2f} to {high:.2f})" if high is not None else f" (at least {low:.2f})"
    return f"{ratio:.2f}{ends}, {_EXTRAPOLATED if row['time_kind'] == _EXTRAPOLATED else f'{BASE} {_EXTRAPOLATED}'}"


def _notes(rows: list[dict[Any, Any]]) -> list[str]:
    """Return what is said below the table: what was not run, what is extrapolated and how, what is not measured."""
    notes = []
    for row in rows:
        what = f"- {row['dataset']}, `{row['method']}`: "
        why = f"T = {row['matching_steps']} was not run: {row['not_run']}" if row["not_run"] else ""
        if row["time_kind"] == _EXTRAPOLATED:
            steps = row["extrapolated_from"].replace(" ", ", ")
            line = f"extrapolated by a least-squares line through T = {steps}; in brackets its interval at 95 %"
            notes.append(what + "; ".join(filter(None, (line, why))))
        elif why and row["iteration_seconds"] is None:
            notes.append(what + why)
    missing = _missing(rows)
    return notes + ([f"- seconds not measured: {missing}; `{MEASURES}` measures them"] if missing else [])


def _missing(rows: list[dict[Any, Any]]) -> str:
    """Return the data sets with methods that have no time, with these methods unless they are all of them."""
    told = []
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        own = [row for row in rows if row["dataset"] == dataset]
        lacking = dict.fromkeys(row["method"] for row in own if row["iteration_seconds"] is None)
        names = "" if len(lacking) == len({row["method"] for row in own}) else f" ({', '.join(lacking)})"
        told += [f"{dataset}{names}"] if lacking else []
    return ", ".join(told)


def draw_b(table: pd.DataFrame) -> "Figure":
    """Draw Figure 1b: peak memory on the left and seconds per iteration on the right, with a bar per method.

    Bars of a method with settings are pale with a dotted edge; those of compiled steps have a dashed edge and no
    filling of their own, as their lines are elsewhere. Extrapolated bars are hatched and named. Short black lines are
    what the paper's ratio makes of our mtt. Values that were not measured have the words "not measured" in place of a
    bar, and the panel the command that measures them. Of several machines, the one that measured the memory is drawn,
    or else the first.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.0, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    table = timing.named(_of_one_machine(table).assign(kind=table["method"]))
    first, metered, hatched = table.iloc[0], table[table["meter"].notna()], table["time_kind"] == _EXTRAPOLATED
    left.set_title(f"peak memory, meter {', '.join(dict.fromkeys(metered['meter']))}", fontsize=10)
    left.set_ylabel("GiB")
    by = metered["meter"] if metered["meter"].nunique() > 1 else ""
    ratios = {"ours": metered["memory_ratio"], "paper": metered["paper_memory_ratio"]}
    peaks = metered.assign(value=metered["peak_bytes"] / 2**30, by=by, of="", hatched=False, **ratios)
    _bars(left, peaks.assign(form="1/{:.3g}", stated=1 / metered["paper_memory_ratio"].astype(float)))
    where = _machines_of(table)
    right.set_title(f"seconds an iteration, {where[0] if where else 'not measured'}", fontsize=10)
    right.set_ylabel("s")
    ratios = {"ours": table["time_ratio"], "paper": table["paper_time_ratio"]}
    by = hatched.map({True: _EXTRAPOLATED, False: ""})
    of = (table["time_ratio_kind"] == _EXTRAPOLATED).map({True: f"of {_EXTRAPOLATED}", False: ""})
    times = table.assign(value=table["iteration_seconds"], by=by, of=of, hatched=hatched, **ratios)
    _bars(right, times.assign(form="{:.3g}x", stated=table["paper_time_ratio"].astype(float)))
    if table["iteration_seconds"].isna().any():
        right.text(0.5, 0.95, f"not measured: {MEASURES}", transform=right.transAxes, ha="center", fontsize=9)
    handles = _legend(table, hatched=bool(hatched.any()))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9)
    steps, batch = first["matching_steps"], first["batch_size"]
    figure.suptitle(f"{steps} matching steps, batch {batch}, ConvNet width {declared()['width']}", fontsize=10)
    return figure


def _of_one_machine(table: pd.DataFrame) -> pd.DataFrame:
    beside = table[table["time_hardware"] == table["memory_hardware"]]
    first = (beside if len(beside) else table).iloc[0]
    if pd.isna(first["time_hardware"]):
        return table
    same = (table["time_hardware"] == first["time_hardware"]) & (table["time_threads"] == first["time_threads"])
    found: pd.DataFrame = table[same]
    return found


_GROUP = 0.86  # of the distance between two data sets
_FILLED, _LETTER = 0.92, 0.0185  # shares of a panel: what bars with their texts take of its height, and a letter


def _bars(axes: "Axes", table: pd.DataFrame) -> None:
    """Draw the column ``value`` as bars with texts, and the paper's marks.

    Other columns: ``by`` is a text beside the number. ``ours`` and ``paper`` are ratios to mtt, written by ``form``,
    with ``of`` behind ours. ``stated`` is the value that the paper's ratio gives, as a share of that of mtt. Bars that
    are ``hatched`` are so drawn.
    """
    datasets, methods = list(dict.fromkeys(table["dataset"])), list(dict.fromkeys(table["method"]))
    wide, top = _GROUP / len(methods), 0.1
    for row in table.to_dict("records"):
        x = datasets.index(row["dataset"]) + (methods.index(row["method"]) - (len(methods) - 1) / 2) * wide
        height = 0.0 if pd.isna(row["value"]) else float(row["value"])
        axes.bar(x, height, wide * 0.9, **_dress(row, hatched=row["hatched"]))
        (of_mtt,) = table[(table["dataset"] == row["dataset"]) & (table["method"] == BASE)]["value"]
        stated = float("nan") if pd.isna(of_mtt) else float(of_mtt) * row["stated"]
        if not pd.isna(stated):
            axes.hlines(stated, x - wide / 2, x + wide / 2, color=BLACK, linewidth=2)
            height = max(height, stated)
        text = f" {_told(row)}"
        axes.text(x, height, text, ha="center", va="bottom", fontsize=8, rotation=90)
        top = max(top, height / (_FILLED - _LETTER * len(text)))
    axes.set_xticks(range(len(datasets)), datasets)
    axes.grid(alpha=0.3, axis="y")
    axes.set_axisbelow(True)
    axes.set_ylim(0, top)
    if table["value"].isna().all():
        axes.set_yticks([])


def _told(row: Mapping[Any, Any]) -> str:
    """Return the text of a bar: its value, and its ratio to mtt beside the paper's."""
    paper = "" if pd.isna(row["paper"]) else f" (paper {row['form'].format(row['paper'])})"
    if pd.isna(row["value"]):
        return f"not measured{paper}"
    value = f"{row['value']:.3g} {row['by']}".strip()
    if pd.isna(row["ours"]) or row["kind"] == BASE:
        return value + paper
    return f"{value}, {row['form'].format(row['ours'])} {row['of']}".strip() + paper


def _dress(row: Mapping[Any, Any], *, hatched: bool) -> dict[str, Any]:
    """Return how the bar of a method looks: its colour, and the line of its settings and of compiled steps."""
    colour, pale = look(row["kind"]).colour, "=" in row["method"]
    style = "--" if row["compiled"] else ":" if pale else "-"
    face: Any = (colour, 0.3) if pale else "white" if row["compiled"] or hatched else colour
    return {
        "facecolor": face,
        "edgecolor": colour,
        "linestyle": style,
        "linewidth": 1.2,
        "hatch": "///" if hatched else "",
    }


def _legend(table: pd.DataFrame, *, hatched: bool) -> "list[Patch | Any]":
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    rows = table.drop_duplicates("method").to_dict("records")
    entries: list[Any] = [Patch(label=row["method"], **_dress(row, hatched=False)) for row in rows]
    if hatched:
        entries.append(Patch(label=_EXTRAPOLATED, facecolor="white", edgecolor="grey", hatch="///"))
    return [*entries, Line2D([], [], color=BLACK, linewidth=2, label="by the paper's ratio to our mtt")]
