"""The rows of Figure 1b: memory and runtime of every method beside what the paper states."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from dcbench_tesla.compare import timing
from dcbench_tesla.compare.files import keys
from dcbench_tesla.compare.memory import BASE
from dcbench_tesla.compare.points import Point
from dcbench_tesla.records.workspace import MARK
from dcbench_tesla.reports.figure1 import PREDICTED, declared, of_points, panel_b
from dcbench_tesla.reports.figure1b.runtimes import Machine, Runtime, machines, on_record, runtime, why_not_run


def figure_b(memory: pd.DataFrame, time: pd.DataFrame) -> pd.DataFrame:
    """Return the tidy rows of Figure 1b: one for each data set, method with its settings, and machine that timed it.

    Compiled methods have rows where they were timed, without a peak: meters follow the eager program. ``memory_ratio``
    is the peak of mtt divided by that of the method, if the same meter measured both on one machine. ``time_ratio`` is
    the seconds of the method divided by those of mtt, if they took turns. ``time_kind`` says whether the seconds were
    measured or extrapolated, and ``time_ratio_kind`` whether both were measured; the ends of an interval stand beside
    what is extrapolated. What is unknown is empty. Columns with ``paper_`` hold what the paper states.
    """
    memory, time = of_points(memory, panel_b().points), on_record(time)
    timed = [m for m in machines(time) if any(_runtimes(time, m).values())]
    rows = [row for machine in (*timed, *([] if timed else [None])) for row in _rows(memory, time, machine)]
    return pd.DataFrame(rows)


_Variant = tuple[Point, bool]


def _runtimes(time: pd.DataFrame, machine: Machine | None) -> dict[_Variant, Runtime | None]:
    """Return the runtimes on a machine of all points, eager and compiled."""
    variants = timing.variants(panel_b().points, (False, True))
    return {(p, how): runtime(time, p, compiled=how, machine=machine) for p, how in variants}


def _rows(memory: pd.DataFrame, time: pd.DataFrame, machine: Machine | None) -> Iterator[dict[str, Any]]:
    """Yield the rows of one machine."""
    runtimes = _runtimes(time, machine)
    bases = {p.dataset: p for p, _ in runtimes if p.method == BASE}
    for (point, compiled), own in runtimes.items():
        base = bases[point.dataset]
        peak = {} if compiled else _row_of(memory, point)
        if not peak and not own:
            continue
        yield {
            "dataset": point.dataset,
            "method": point.method,
            "settings": point.settings,
            "compiled": compiled,
            "matching_steps": point.matching_steps,
            "batch_size": point.batch_size,
            **_peaks(peak, _row_of(memory, base)),
            **_seconds(own, runtimes[base, False]),
            "not_run": why_not_run(time, point, compiled=compiled, machine=machine),
            "time_hardware": machine and machine.hardware,
            "time_threads": machine and machine.threads,
            **_paper(point, compiled=compiled),
        }


def _row_of(memory: pd.DataFrame, point: Point) -> dict[Any, Any]:
    """Return the row of a point, or an empty one."""
    rows = of_points(memory, [point]).to_dict("records")
    return rows[0] if rows else {}


def _peaks(row: Mapping[Any, Any], of_mtt: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a peak and its ratio to that of mtt; only peaks of one meter on one machine are compared."""
    peak, alike = _peak(row), all(row.get(name) == of_mtt.get(name) for name in ("meter", "hardware"))
    return {
        "peak_bytes": peak,
        "memory_ratio": _ratio(_peak(of_mtt), peak) if alike else None,
        "meter": row.get("meter"),
        "memory_hardware": row.get("hardware"),
    }


def _peak(row: Mapping[Any, Any]) -> float | None:
    return float(row["peak_bytes"]) if row.get("status") == "ok" else None


def _seconds(own: Runtime | None, mtt: Runtime | None) -> dict[str, Any]:
    """Return the seconds of a method, and their ratio to those of mtt if they took turns."""
    columns: dict[str, Any] = {
        "iteration_seconds": own and own.seconds,
        "iteration_spread_seconds": own and own.spread,
        "iteration_low_seconds": own and own.low,
        "iteration_high_seconds": own and own.high,
        "time_kind": own and own.kind,
        "extrapolated_from": " ".join(map(str, own.steps)) if own else "",
    }
    return columns | (_against(own, mtt) if own and mtt and own.turns == mtt.turns else dict.fromkeys(_RATIO))


_RATIO = ("time_ratio", "time_ratio_kind", "time_ratio_low", "time_ratio_high")


def _against(own: Runtime, mtt: Runtime) -> dict[str, Any]:
    """Return the ratio of two runtimes; where one is extrapolated, with the ends that its interval leads to."""
    kinds, low, high = {own.kind, mtt.kind}, None, None
    if "extrapolated" in kinds and own != mtt:
        low = _ratio(own.low or own.seconds, mtt.high or mtt.seconds)
        high = _ratio(own.high or own.seconds, mtt.seconds if mtt.low is None else mtt.low)
    kind = "extrapolated" if "extrapolated" in kinds else "measured"
    return dict(zip(_RATIO, (_ratio(own.seconds, mtt.seconds), kind, low, high), strict=True))


def _paper(point: Point, *, compiled: bool) -> dict[str, Any]:
    """Return what the paper states of TESLA, which it ran eagerly and with the whole batch."""
    stated = point.method == "tesla" and not point.settings and not compiled
    paper = declared()["b"]["paper"][point.dataset] if stated else {}
    return {
        "paper_memory_ratio": paper.get("memory_ratio"),
        "paper_time_ratio": paper.get("time_ratio"),
        "paper_note": paper.get("note", ""),
    }


def _ratio(over: float | None, under: float | None) -> float | None:
    return over / under if over and under and under > 0 else None


def lost(old: pd.DataFrame, new: pd.DataFrame) -> list[str]:
    """Return the measurements of an old Figure 1b that a new one lacks, as texts."""
    kept = set(_measured(new))
    return [", ".join(filter(None, name)) for name in _measured(old) if name not in kept]


def _measured(table: pd.DataFrame) -> list[tuple[str, ...]]:
    """Return the measurements in a table of Figure 1b that only their machine can repeat: peaks of GPUs, and times."""
    compiled = table["compiled"].astype(bool).map({True: "compiled", False: ""}) if "compiled" in table else ""
    table = table.assign(settings=table.get("settings", ""), compiled=compiled)
    of = ["dataset", "method", "settings", "compiled"]
    about = {
        "peak": (table[table["meter"] != PREDICTED].dropna(subset=["peak_bytes"]), ["memory_hardware"]),
        "time": (table.dropna(subset=["iteration_seconds"]), ["time_hardware", "time_threads"]),
    }
    return [
        (name, *key)
        for name, (rows, machine) in about.items()
        for key in dict.fromkeys(keys(rows, [*of, *machine]))
        if not any(text.endswith(MARK) for text in key)  # committed results are not lost
    ]
