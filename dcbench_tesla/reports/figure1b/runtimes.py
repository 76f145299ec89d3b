"""The runtimes of Figure 1b: what is on record of a point, measured or extrapolated, and what is still to be timed."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch

from dcbench_tesla.cells.execution import Execution
from dcbench_tesla.compare import timing
from dcbench_tesla.compare.memory import BASE
from dcbench_tesla.compare.points import Point
from dcbench_tesla.profilers.memory import memory_meter
from dcbench_tesla.records.environment import hardware
from dcbench_tesla.reports.figure1 import ladder, of_points, panel_b

Kind = Literal["measured", "extrapolated"]
Extrapolate = Literal["auto", "always", "never"]
"""Whether a point is timed at smaller T: where it does not fit in memory, that of mtt in any case, or not at all."""


@dataclass(frozen=True)
class Machine:
    """A machine that times were measured on: its hardware and the number of threads."""

    hardware: str
    threads: int


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """The seconds of an iteration.

    Attributes:
        kind: ``measured``, or ``extrapolated``: the value of a line through what smaller T took.
        seconds: the seconds.
        turns: what was timed in turns with it has the same text.
        repetitions: how many iterations were timed, at each T.
        spread: the interquartile range, if measured.
        low: the lower end of the interval of an extrapolation.
        high: its upper end.
        steps: the T that an extrapolation rests on.
    """

    kind: Kind
    seconds: float
    turns: str
    repetitions: int
    spread: float | None = None
    low: float | None = None
    high: float | None = None
    steps: tuple[int, ...] = ()


def on_record(time: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of ``time`` that Figure 1b is made of: those of its points, and of smaller T of them."""
    wanted = panel_b().points
    time = of_points(time, [*wanted, *(small for point in wanted for small in ladder(point))])
    # older rows lack some columns, and all are lacking where there are no rows
    absent: dict[str, Any] = {"turns": "", "status": "ok", "compiled": False}
    time = time.assign(**{name: value for name, value in absent.items() if name not in time})
    return time.assign(turns=time["turns"].astype("string").fillna(""))


def machines(time: pd.DataFrame) -> list[Machine]:
    """Return the machines that :func:`on_record` has times of."""
    if time.empty:
        return []
    found = time[["hardware", "threads"]].drop_duplicates().to_dict("records")
    return [Machine(row["hardware"], int(row["threads"])) for row in found]


def runtime(time: pd.DataFrame, point: Point, *, compiled: bool, machine: Machine | None) -> Runtime | None:
    """Return the seconds on record of a point on a machine, or ``None``; a measurement comes before an extrapolation.

    A line goes only through rows that were timed in turns with each other, the latest ones.

    Args:
        time: the rows of :func:`on_record`.
        point: the point.
        compiled: whether its steps are compiled.
        machine: the machine; ``None``: there is none.
    """
    own = _rows_of(time, compiled=compiled, machine=machine)
    itself = of_points(own, [point])
    for row in itself[itself["status"] == "ok"].to_dict("records"):
        spread = row.get("iteration_spread_seconds")
        return Runtime(
            kind="measured",
            seconds=float(row["iteration_seconds"]),
            turns=row["turns"],
            repetitions=int(row["repetitions"]),
            spread=None if spread is None or pd.isna(spread) else float(spread),
        )
    small = of_points(own, ladder(point))
    if small.empty or point.matching_steps is None:
        return None
    turns = str(small["turns"].max())
    small = small[small["turns"] == turns]
    line = timing.extrapolated(small, point.matching_steps)
    if line is None:
        return None
    value, low, high, steps = line
    repetitions = int(small.loc[small["status"] == "ok", "repetitions"].min())
    return Runtime(
        kind="extrapolated", seconds=value, turns=turns, repetitions=repetitions, low=low, high=high, steps=steps
    )


def why_not_run(time: pd.DataFrame, point: Point, *, compiled: bool, machine: Machine | None) -> str:
    """Return why a point was not run on a machine, by its row, or "" where it has none; see :func:`runtime`."""
    itself = of_points(_rows_of(time, compiled=compiled, machine=machine), [point])
    failed = itself[itself["status"] != "ok"]
    return str(failed["status"].iloc[0]).removeprefix("not run: ") if len(failed) else ""


def _rows_of(time: pd.DataFrame, *, compiled: bool, machine: Machine | None) -> pd.DataFrame:
    if machine is None:
        return time.iloc[:0]
    own = time[(time["hardware"] == machine.hardware) & (time["threads"] == machine.threads)]
    return own[own["compiled"].astype(bool) == compiled]


@dataclass(frozen=True)
class Plan:
    """What is to be timed: the points, and what there is to say of them."""

    points: list[Point]
    told: list[str]


def to_time(
    time: pd.DataFrame,
    execution: Execution,
    *,
    compiled: Sequence[bool] = (False, True),
    extrapolate: Extrapolate = "auto",
    datasets: Collection[str] = (),
    repetitions: int = 1,
) -> Plan:
    """Return the points of Figure 1b to time on this machine, those of a data set together.

    Only what was timed in turns is compared. So a data set is timed whole, unless all its points have a runtime of the
    same turns on record, and were timed as often as wanted: turns that were interrupted are made again. A point that
    does not fit in memory is timed at those smaller T that fit, if at least three do, beside its own, which then leaves
    a row that says why it was not run.

    Args:
        time: the rows on record.
        execution: device and threads.
        compiled: whether steps are compiled; both values are compared.
        extrapolate: ``auto``; ``always``: the time of mtt is extrapolated even if it fits; ``never``: points are run
            even if they are predicted not to fit.
        datasets: only these data sets; empty: all.
        repetitions: the number of timed iterations that is wanted of each point.
    """
    here = Machine(hardware(execution.device), execution.threads)
    wanted = [p for p in panel_b().points if not datasets or p.dataset in datasets]
    known, found, told = on_record(time), list[Point](), list[str]()
    smaller = _smaller(torch.device(execution.device))
    for dataset in dict.fromkeys(p.dataset for p in wanted):
        own = [p for p in wanted if p.dataset == dataset]
        runtimes = [runtime(known, p, compiled=how, machine=here) for p, how in timing.variants(own, compiled)]
        if _is_whole(runtimes, extrapolate, repetitions):
            continue
        for point in own:
            points, text = smaller(point, extrapolate) if extrapolate != "never" else ([point], "")
            found += points
            told += [text] if text else []
    return Plan(found, told)


def _is_whole(runtimes: Sequence[Runtime | None], extrapolate: Extrapolate, repetitions: int) -> bool:
    """Return whether all are known by the same turns, often enough, and measured if nothing is to be extrapolated."""
    turns = {r and r.turns for r in runtimes}
    measured = all(r is not None and r.kind == "measured" for r in runtimes)
    often = all(r is not None and r.repetitions >= repetitions for r in runtimes)
    return len(turns) == 1 and None not in turns and often and (measured or extrapolate != "never")


def _smaller(device: torch.device) -> Callable[[Point, Extrapolate], tuple[list[Point], str]]:
    """Return a function that returns what to time of a point, and a sentence if that is smaller T."""
    meter = memory_meter("predicted")  # one for all points, because it caches its predictions

    def lacks(point: Point) -> str:
        """Return why a point does not fit in memory, or "" if it does."""
        return timing.does_not_fit(timing.needed_bytes(point, device, meter), device)

    def choose(point: Point, extrapolate: Extrapolate) -> tuple[list[Point], str]:
        """Return the point, or what is timed in its place, and a sentence on that."""
        reason, always = lacks(point), extrapolate == "always" and point.method == BASE
        if not reason and not always:
            return [point], ""
        few = [small for small in ladder(point) if not lacks(small)]
        what = f"{point.dataset}, {point.method}: T = {point.matching_steps} {reason or 'is not run (always)'}"
        if len(few) < timing.FEWEST:
            return [point], f"{what}; nor do {timing.FEWEST} smaller T fit, so it stays without a time"
        steps = ", ".join(str(small.matching_steps) for small in few)
        remedy = "--extrapolate never runs it all the same" if reason else "--extrapolate auto measures it"
        return [*few, *([] if always else [point])], f"{what}: timed at T = {steps} and extrapolated; {remedy}"

    return choose
