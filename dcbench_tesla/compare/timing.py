"""Seconds of one iteration against matching steps, or against the batch size (``dcbench compare time``).

No data files are needed: images are noise and experts are random, and time does not depend on their values. The speed
of a machine drifts, so only measurements taken side by side can be compared. Methods on the same shapes with the same T
therefore take turns: every method runs one iteration, then every method runs the next. What took turns has the same
text in the column ``turns``.

Where T steps do not fit in memory, fewer of them may: time is linear in T, and :func:`extrapolated` is a line through
what was measured.
"""

import gc
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pandas as pd
import torch

from dcbench_tesla import registry
from dcbench_tesla.cells.execution import Execution
from dcbench_tesla.compare.points import COLUMN_TYPES, COLUMNS, Keep, Point, keep_nothing, labelled, pivot
from dcbench_tesla.compare.table import aligned
from dcbench_tesla.compute.compiling import CUDA_WARM_UP
from dcbench_tesla.errors import UsageError
from dcbench_tesla.profilers.clocks import Timing, clock
from dcbench_tesla.profilers.free import free_bytes
from dcbench_tesla.profilers.memory import MemoryMeter, attempt, memory_meter, older_objects_kept
from dcbench_tesla.profilers.phases import Phase, PhaseClock
from dcbench_tesla.records.environment import environment
from dcbench_tesla.records.progress import size

METHODS = ("mtt", "tesla", "tesla-exact")
BATCH_SIZES = (10, 25, 50, 100)
"""The batch sizes of a comparison against them; they divide the hundred images of CIFAR-100 at IPC 1."""

_STEPS = {"cpu": (1, 5, 10), "cuda": (1, 5, 10, 20, 30, 50)}
_REPETITIONS = {"cpu": 3, "cuda": 10}

KEY = [*COLUMNS, "compiled", "meter", "hardware", "threads"]
"""The columns that identify a row."""

COMPILED = ", compiled"

FEWEST = 3
"""The least number of T for a line through their seconds."""

LEVEL = 0.95
"""The level of the interval of an extrapolation."""

_SECONDS = ("iteration_seconds", "iteration_spread_seconds", "step_seconds", "pass1_seconds", "pass2_seconds")


def steps(execution: Execution) -> tuple[int, ...]:
    """Return the default matching steps, which take a reasonable time on the device."""
    return _STEPS[torch.device(execution.device).type]


def repetitions(execution: Execution) -> int:
    """Return the default number of timed iterations per point."""
    return _REPETITIONS[torch.device(execution.device).type]


def measure(
    wanted: Iterable[Point],
    execution: Execution,
    *,
    repetitions: int,
    compiled: Sequence[bool] = (False,),
    all_steps: bool = False,
    unchecked: bool = False,
    done: Callable[[], None] = lambda: None,
    keep: Keep = keep_nothing,
    every_turn: bool = False,
) -> pd.DataFrame:
    """Time every point and return tidy rows, in seconds.

    A row has the median and the interquartile range of ``repetitions`` iterations, and the medians of their passes. A
    point that needs more memory than is free is not run, and its row has no seconds and a status that says so. The same
    holds if a GPU runs out of memory, or if what is to be compiled cannot be compiled.

    Args:
        wanted: the points.
        execution: device and threads.
        repetitions: number of timed iterations of each row.
        compiled: whether methods that can be compiled are; with both values they have two rows, which take turns.
        all_steps: whether points with different T take turns too.
        unchecked: run what is predicted not to fit in memory too; where main memory ends, the system kills the process.
        done: called ``repetitions + 1`` times per row, once of them for the warm-up.
        keep: called with the rows of methods that took turns, when all of them are finished.
        every_turn: whether ``keep`` is called after every turn, with what the rows are so far: hours may lie between.

    Raises:
        UsageError: a method or data set is unknown, a point is invalid, or ``repetitions`` is less than 1.
    """
    if repetitions < 1:
        raise UsageError(f"repetitions must be at least 1, not {repetitions}.")
    execution.apply()
    meter = memory_meter("predicted")  # one for all points, because it caches its predictions
    device = torch.device(execution.device)
    here = environment(execution.device, execution.threads)
    where = {"meter": clock(device).name, "hardware": here["hardware"], "threads": here["threads"]}
    origin = {"inputs": "synthetic", "commit": here["commit"], "torch": here["versions"]["torch"]}
    rows: list[dict[str, Any]] = []
    with older_objects_kept():
        # all are made before the first one runs, so that an invalid point raises at once and not after hours
        groups = [
            [_Timed(point, how, device, meter, unchecked=unchecked) for point, how in variants(group, compiled)]
            for group in _groups(wanted, all_steps=all_steps)
        ]
        for timed in groups:
            about = {**origin, "turns": datetime.now(UTC).isoformat(timespec="seconds")}
            for turn in range(repetitions + 1):
                for one in timed:
                    one.repeat() if turn else one.warm_up()
                    done()
                if every_turn and 0 < turn < repetitions:
                    keep(_table([one.row(where, about) for one in timed]))
            for one in timed:
                one.release()
            found = [one.row(where, about) for one in timed]
            keep(_table(found))
            rows += found
    return _table(rows)


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows).astype({**COLUMN_TYPES, **dict.fromkeys(_SECONDS, "float64")})


def _groups(wanted: Iterable[Point], *, all_steps: bool) -> list[list[Point]]:
    """Return the points in groups that differ in their method and its settings only, or in T too with ``all_steps``."""
    groups: dict[Point, list[Point]] = {}
    for point in wanted:
        same = replace(point, method="", settings="")
        groups.setdefault(replace(same, matching_steps=None) if all_steps else same, []).append(point)
    return list(groups.values())


def variants(wanted: Iterable[Point], compiled: Sequence[bool]) -> list[tuple[Point, bool]]:
    """Return every point with each value of ``compiled``; methods that cannot be compiled only with ``False``."""
    found = [(p, how and registry.load_method(p.method).compiles) for p in wanted for how in compiled]
    return list(dict.fromkeys(found))


def needed_bytes(point: Point, device: torch.device, meter: MemoryMeter) -> int:
    """Return the predicted peak of an iteration on ``device``; ``meter`` is that of predictions.

    Raises:
        UsageError: the point is invalid.
    """
    return meter.measure(point.workload(meter.device, shortened=True, chosen_for=device)).peak_bytes


def does_not_fit(needed: int, device: torch.device) -> str:
    """Return why an iteration of so many bytes does not fit on ``device``, as a text, or "" if it does."""
    return f"needs {size(needed)}, {size(free)} are free" if needed > (free := free_bytes(device)) else ""


_WARM_UP_STEPS = 2  # matching steps on a CPU: the second one meets all that later ones do
_NOT_COMPILED = ".*could not be compiled"  # of the warning of CompiledFunctions


class Line(NamedTuple):
    """Seconds of an iteration that a line through measured ones gives, with their interval at :data:`LEVEL`.

    Attributes:
        seconds: the line's value.
        low: the lower end of the interval.
        high: its upper end.
        steps: the T that were measured.
    """

    seconds: float
    low: float
    high: float
    steps: tuple[int, ...]


def extrapolated(rows: pd.DataFrame, matching_steps: int) -> Line | None:
    """Return the seconds of an iteration with ``matching_steps`` steps from those of ``rows``, which have other T.

    The line ``s = a + b T`` is that of least squares through the medians. With n rows, residuals r and mean T', the
    standard error of its value at T is ``sqrt(sum r^2 / (n - 2) (1 / n + (T - T')^2 / sum (T_i - T')^2))``; the
    interval is that of Student's t with n - 2 degrees of freedom.

    Args:
        rows: rows of one method on the same shapes.
        matching_steps: T.

    Returns:
        The value, or ``None`` if fewer than :data:`FEWEST` different T ran.
    """
    from scipy import stats  # type: ignore[import-untyped]

    ran = rows[rows["status"] == "ok"].sort_values("matching_steps")
    t, seconds = (ran[name].to_numpy(dtype=float) for name in ("matching_steps", "iteration_seconds"))
    if len(set(t)) < FEWEST:
        return None
    line = stats.linregress(t, seconds)
    residual = math.sqrt(float(((seconds - line.intercept - line.slope * t) ** 2).sum()) / (len(t) - 2))
    error = math.hypot(residual / math.sqrt(len(t)), float(line.stderr) * (matching_steps - t.mean()))
    value, half = (
        float(line.intercept + line.slope * matching_steps),
        error * float(stats.t.ppf((1 + LEVEL) / 2, len(t) - 2)),
    )
    return Line(value, value - half, value + half, tuple(map(int, t)))


class _Timed:
    """A point and the times of its runs. It runs only if it fits in memory, or if that is not checked."""

    def __init__(
        self, point: Point, compile: bool, device: torch.device, meter: MemoryMeter, *, unchecked: bool
    ) -> None:
        self.point, self.compile, self._device = point, compile, device
        self._needed_bytes = needed_bytes(point, device, meter)
        self._unchecked = unchecked
        self._laps: list[PhaseClock] = []
        self._run: Callable[[], object] | None = None
        self._status = "ok"

    def warm_up(self) -> None:
        """Run once, so that kernels are loaded and memory is allocated; do not run if an iteration does not fit.

        A GPU, whose memory stays allocated, and compiled code need a whole iteration. A CPU gives memory back, and a
        few steps are enough. A process that takes more main memory than there is would be killed.
        """
        if not self._unchecked and (reason := does_not_fit(self._needed_bytes, self._device)):
            self._status = f"not run: {reason}"
        with warnings.catch_warnings():
            warnings.filterwarnings("error", _NOT_COMPILED)  # its times would be those of eager steps
            try:
                self._attempt(self._make_ready)
            except UserWarning as told:
                self._status = f"not run: {told}"
                self.release()

    def repeat(self) -> None:
        """Run one iteration and record its time."""
        self._attempt(lambda: self._laps.append(self._lap()))

    def _attempt(self, what: Callable[[], object]) -> None:
        if self._status == "ok":
            self._status = attempt(what)
        if self._status != "ok":
            self.release()

    def release(self) -> None:
        """Free the memory of the condenser and of its compiled code, for the other points."""
        self._run = None
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _make_ready(self) -> None:
        """Make the condenser once, since it holds its compiled code. Its images change, which does not affect time."""
        self._run = self.point.workload(self._device, compile=self.compile)()
        steps = self.point.matching_steps
        if self._device.type == "cpu" and not self.compile and steps:
            replace(self.point, matching_steps=min(steps, _WARM_UP_STEPS)).workload(self._device)()()
            return
        for _ in range(CUDA_WARM_UP if self.compile and self._device.type == "cuda" else 1):
            self._lap()

    def _lap(self) -> PhaseClock:
        gc.collect()
        assert self._run is not None, "it was made ready"
        with PhaseClock(self._device) as lap:
            self._run()
        return lap

    def row(self, where: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
        """Return the row, as far as it ran: the point, ``where`` it ran, what was measured, and ``about`` all of it."""
        return {**asdict(self.point), "compiled": self.compile, **where, **self.found(), **about}

    def found(self) -> dict[str, Any]:
        """Return the measured columns of the row."""
        laps = self._laps if self._status == "ok" else []
        found: dict[str, Any] = dict.fromkeys(_SECONDS)
        if laps:
            whole = Timing.of([lap.total_s for lap in laps])
            found |= {"iteration_seconds": whole.median_s, "iteration_spread_seconds": whole.spread_s}
            found |= {"pass1_seconds": _median(laps, "pass 1"), "pass2_seconds": _median(laps, "pass 2")}
            if self.point.matching_steps is not None:
                found["step_seconds"] = whole.median_s / self.point.matching_steps
        return found | {"repetitions": len(laps), "status": self._status}


def _median(laps: list[PhaseClock], name: Phase) -> float | None:
    """Return the median seconds of a pass, or ``None`` if the method does not mark its passes."""
    seconds = [lap.phases_s[name] for lap in laps if name in lap.phases_s]
    return Timing.of(seconds).median_s if seconds else None


def named(table: pd.DataFrame) -> pd.DataFrame:
    """Return ``table`` with its settings and ``compiled`` added to the ``method`` of a row: ``tesla, compiled``."""
    table = labelled(table).drop(columns="settings", errors="ignore")
    names = table["method"].where(~table["compiled"].astype(bool), table["method"] + COMPILED)
    return table.assign(method=names)


def markdown(table: pd.DataFrame, against: str = "matching_steps") -> str:
    """Return rows on the same shapes as Markdown: seconds of an iteration, and of its passes if methods have them.

    Ratios are relative to ``mtt``, or to the first method if ``mtt`` is not in the table.

    Args:
        table: the rows.
        against: ``matching_steps`` or ``batch_size``.
    """
    table = named(table)
    first, base = table.iloc[0], _base(table)
    parts = [
        f"### Seconds of one iteration, {first['dataset']}",
        f"{first['hardware']}, threads: {first['threads']}, by {first['meter']}. Median ± half of the interquartile "
        f"range; in brackets, as a multiple of {base}.",
        _lines(seconds_table(table, base, against)),
    ]
    if len(with_passes := table.dropna(subset=["pass1_seconds", "pass2_seconds"])):
        parts += ["Seconds of a matching step in pass 1 + in pass 2:", _lines(passes_table(with_passes, against))]
    return "\n\n".join(parts) + "\n"


def _base(table: pd.DataFrame) -> str:
    return "mtt" if "mtt" in set(table["method"]) else str(table["method"].iloc[0])


def _lines(table: list[list[str]]) -> str:
    head, *body = table
    return "\n".join(aligned(head, body))


def seconds_table(table: pd.DataFrame, base: str, against: str = "matching_steps") -> list[list[str]]:
    """Return the lines of a table: seconds of an iteration, and their ratio to those of the method ``base``.

    Only methods that took turns are compared, so a method without matching steps is in every line without a ratio.
    """
    of_base = table[table["method"] == base].dropna(subset=against).set_index(against)
    ratio = table["iteration_seconds"] / table[against].map(of_base["iteration_seconds"])
    return pivot(table.assign(ratio=ratio), against, _seconds_shown)


def _seconds_shown(row: Mapping[Any, Any]) -> str:
    if row["status"] != "ok":
        return str(row["status"])
    ratio = "" if pd.isna(row["ratio"]) else f" ({row['ratio']:.2f}x)"
    median, spread = _digits(row["iteration_seconds"], row["iteration_spread_seconds"] / 2)
    return f"{median} ± {spread}{ratio}"


def passes_table(table: pd.DataFrame, against: str = "matching_steps") -> list[list[str]]:
    """Return the lines of a table: seconds per matching step in pass 1 + in pass 2."""
    return pivot(table, against, _passes_shown)


def _passes_shown(row: Mapping[Any, Any]) -> str:
    return " + ".join(_digits(*(row[name] / row["matching_steps"] for name in ("pass1_seconds", "pass2_seconds"))))


def _digits(*seconds: float) -> list[str]:
    """Return seconds as texts, with the decimals that give the first of them three significant digits."""
    decimals = max(0, 2 - math.floor(math.log10(seconds[0]))) if seconds[0] else 0
    return [f"{s:.{decimals}f}" for s in seconds]
