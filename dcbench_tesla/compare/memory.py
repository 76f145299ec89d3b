"""Peak memory of one iteration against matching steps, or against IPC (``dcbench compare memory``).

No data files are needed: images are noise and experts are random, and memory does not depend on their values. Points
are predicted in this process. Each measured point runs in a fresh process, so that caches of earlier points do not
count.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

import pandas as pd

from dcbench_tesla.cells.execution import Execution
from dcbench_tesla.compare import points
from dcbench_tesla.compare.files import keys
from dcbench_tesla.compare.points import COLUMN_TYPES, COLUMNS, Keep, Point, keep_nothing
from dcbench_tesla.errors import DcbenchError
from dcbench_tesla.profilers.memory import MemoryMeter, memory_meter
from dcbench_tesla.records.environment import environment
from dcbench_tesla.records.progress import size

METHODS = ("mtt", "tesla", "tesla-exact", "dm", "dsa")
STEPS = (1, 5, 10, 20, 30, 50)
IPCS = (1, 10, 20, 30, 40, 50)

KEY = [*COLUMNS, "meter", "hardware"]
"""The columns that identify a row."""


def measure(
    wanted: Iterable[Point],
    meter_name: str,
    device: str = "cpu",
    *,
    done: Callable[[], None] = lambda: None,
    keep: Keep = keep_nothing,
) -> pd.DataFrame:
    """Measure every point and return tidy rows, with sizes in bytes.

    If a GPU runs out of memory, the row has the status ``out of memory`` and the bytes reached.

    Args:
        wanted: the points.
        meter_name: ``cuda``, ``allocated``, ``predicted`` or ``auto``.
        device: PyTorch's name of the device.
        done: called after each point.
        keep: called with the row of each point.

    Raises:
        UsageError: a method, data set or meter is unknown, or a point is invalid.
        DcbenchError: the process of a measured point failed; the message has its last line of output.
    """
    meter = memory_meter(meter_name, device)
    here = environment(str(meter.device), 1)
    facts = {
        "meter": meter.name,
        "hardware": "none: predicted" if meter.name == "predicted" else here["hardware"],
        "inputs": "synthetic",
        "commit": here["commit"],
        "torch": here["versions"]["torch"],
    }
    rows = []
    for point in wanted:
        found = measure_here(point, meter) if meter.name == "predicted" else _in_fresh_process(point, meter)
        rows.append({**asdict(point), **facts, **found})
        keep(_table(rows[-1:]))
        done()
    return _table(rows)


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    table = pd.DataFrame(rows).astype(COLUMN_TYPES)
    return table.astype({name: "Int64" for name in table.columns if name.endswith("_bytes")})


def measure_here(point: Point, meter: MemoryMeter) -> dict[str, Any]:
    """Measure a point in this process; return ``peak_bytes``, ``reserved_bytes``, ``status`` and bytes by origin."""
    peak = meter.measure(point.workload(meter.device, shortened=True))
    found = {"peak_bytes": peak.peak_bytes, "reserved_bytes": peak.reserved_bytes, "status": peak.status}
    return found | {f"{name}_bytes": held for name, held in peak.breakdown.items()}


def _in_fresh_process(point: Point, meter: MemoryMeter) -> dict[str, Any]:
    task = json.dumps({"point": asdict(point), "meter": meter.name, "device": str(meter.device)})
    command = [sys.executable, "-m", "dcbench_tesla.compare.memory"]
    done = subprocess.run(command, input=task, capture_output=True, text=True)
    if done.returncode == -signal.SIGKILL:
        remedy = "most likely because main memory ran out: --meter predicted needs none"
        raise DcbenchError(f"measuring {point.method} with {point.matching_steps} matching steps was killed, {remedy}.")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        raise DcbenchError(f"measuring {point.method} with {point.matching_steps} matching steps failed: {last}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measure_one(task: dict[str, Any]) -> dict[str, Any]:
    Execution.resolve(task["device"]).apply()  # as in a run, because algorithms differ in their workspaces
    return measure_here(Point(**task["point"]), memory_meter(task["meter"], task["device"]))


BASE = "mtt"
RATIO_TOLD = f"in brackets: how many times as much {BASE} needs"


def pivot(table: pd.DataFrame, against: str) -> list[list[str]]:
    """Return the lines of a table of peaks; see :func:`dcbench_tesla.compare.points.pivot`.

    Behind a peak stands how many times as much :data:`BASE` needs, by the same meter on the same hardware.
    """
    where = [against, "meter", "hardware"] if {"meter", "hardware"} <= set(table) else [against]
    base = table[(table["method"] == BASE) & (table["status"] == "ok")].dropna(subset=[against])
    peaks = dict(zip(keys(base, where), base["peak_bytes"], strict=True))
    ratios = [
        None if method == BASE or pd.isna(value) or key not in peaks else float(peaks[key]) / float(peak)
        for key, method, peak, value in zip(
            keys(table, where), table["method"], table["peak_bytes"], table[against], strict=True
        )
    ]
    return points.pivot(table.assign(ratio=pd.Series(ratios, table.index, dtype=object)), against, _shown)


def _shown(row: Mapping[Any, Any]) -> str:
    reached = size(row["peak_bytes"])
    if row["status"] != "ok":
        return f"{row['status']} (at {reached})"
    return reached if row["ratio"] is None or pd.isna(row["ratio"]) else f"{reached} ({_times(row['ratio'])})"


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}x" if ratio >= 100 else f"{ratio:.3g}x"


if __name__ == "__main__":
    print(json.dumps(_measure_one(json.load(sys.stdin))))
