"""Peak memory of one iteration against matching steps, or against IPC (``dcbench compare memory``).

No data files are needed: images are noise and experts random, which changes no size. Predicted points share this
process; measured ones have a fresh one each, so that no earlier point's caches count.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import pandas as pd

from dcbench_tesla import registry
from dcbench_tesla.environment import environment
from dcbench_tesla.errors import DcbenchError, UsageError
from dcbench_tesla.profilers.memory import MemoryMeter, memory_meter
from dcbench_tesla.profilers.workload import Shape, workload
from dcbench_tesla.progress import size

METHODS = ("mtt", "tesla", "tesla-exact", "dm", "dsa")
STEPS = (1, 5, 10, 20, 30, 50)
IPCS = (1, 10, 20, 30, 40, 50)


@dataclass(frozen=True, kw_only=True)
class MemoryPoint:
    """What is measured: one iteration of ``method`` on the shapes of ``dataset``.

    ``matching_steps`` and ``batch_size`` are ``None`` for methods that have no such thing (DM, DSA).
    """

    method: str
    dataset: str
    matching_steps: int | None
    ipc: int
    batch_size: int | None
    width: int = 128
    depth: int = 0

    def measure(self, meter: MemoryMeter) -> dict[str, Any]:
        """Measure in this process; return ``peak_bytes``, ``reserved_bytes``, ``status`` and bytes by origin."""
        prepare = workload(
            self.method,
            Shape.of(self.dataset),
            ipc=self.ipc,
            steps=self.matching_steps,
            batch_size=self.batch_size,
            width=self.width,
            depth=self.depth,
            device=meter.device,
        )
        peak = meter.measure(prepare)
        found = {"peak_bytes": peak.peak_bytes, "reserved_bytes": peak.reserved_bytes, "status": peak.status}
        return found | {f"{name}_bytes": held for name, held in peak.breakdown.items()}


KEY = [*(f.name for f in fields(MemoryPoint)), "meter", "hardware"]
"""The columns that tell one row from another."""


def points(
    methods: Sequence[str],
    datasets: Sequence[str],
    *,
    steps: Sequence[int] = STEPS,
    ipcs: Sequence[int] = (1,),
    batch_size: int = 100,
    width: int = 128,
    depth: int = 0,
) -> list[MemoryPoint]:
    """Return the points of a comparison; a method without matching steps has one where the others have many."""
    found = []
    for dataset in datasets:
        for method in methods:
            known = {f.name for f in fields(registry.load_method(method).Settings)}
            for ipc in ipcs:
                for count in steps if "steps" in known else (None,):
                    point = MemoryPoint(
                        method=method,
                        dataset=dataset,
                        matching_steps=count,
                        ipc=ipc,
                        batch_size=batch_size if "batch_size" in known else None,
                        width=width,
                        depth=depth,
                    )
                    found.append(point)
    return found


def measure(
    wanted: Iterable[MemoryPoint], meter_name: str, device: str = "cpu", *, done: Callable[[], None] = lambda: None
) -> pd.DataFrame:
    """Measure every point and return tidy rows, sizes in bytes.

    ``meter_name``: ``cuda``, ``allocated``, ``predicted`` or ``auto``. ``done`` is called after each point. A GPU's
    running out of memory is a row with the status ``out of memory`` and the bytes reached.

    Raises:
        UsageError: an unknown method, data set or meter; or a point that cannot be.
        DcbenchError: the process of a measured point failed; its last words are told.
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
        found = point.measure(meter) if meter.name == "predicted" else _in_fresh_process(point, meter)
        rows.append({**asdict(point), **facts, **found})
        done()
    table = pd.DataFrame(rows)
    return table.astype({name: "Int64" for name in table.columns if name.endswith("_bytes") or name in _INTEGERS})


_INTEGERS = ("matching_steps", "batch_size")


def _in_fresh_process(point: MemoryPoint, meter: MemoryMeter) -> dict[str, Any]:
    task = json.dumps({"point": asdict(point), "meter": meter.name, "device": str(meter.device)})
    command = [sys.executable, "-m", "dcbench_tesla.compare.memory"]
    done = subprocess.run(command, input=task, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        raise DcbenchError(f"measuring {point.method} with {point.matching_steps} matching steps failed: {last}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measure_one(task: dict[str, Any]) -> dict[str, Any]:
    return MemoryPoint(**task["point"]).measure(memory_meter(task["meter"], task["device"]))


def pivot(table: pd.DataFrame, against: str) -> list[list[str]]:
    """Return the lines of a table for people, its head first: ``against`` down, methods across.

    A method that does not depend on ``against`` shows its one value in every line.

    Raises:
        UsageError: ``against`` is no column that varies.
    """
    if against not in ("matching_steps", "ipc"):
        raise UsageError(f"memory is compared against matching_steps or ipc, not {against!r}.")
    methods = list(dict.fromkeys(table["method"]))
    values = sorted(table[against].dropna().unique())
    lines = [[against.replace("_", " "), *methods]]
    for value in values:
        line = [str(value)]
        for method in methods:
            of_it = table[(table["method"] == method) & (table[against].isna() | (table[against] == value))]
            line.append(", ".join(_shown(row) for row in of_it.to_dict("records")))
        lines.append(line)
    return lines


def _shown(row: dict[Any, Any]) -> str:
    reached = size(row["peak_bytes"])
    return reached if row["status"] == "ok" else f"{row['status']} (at {reached})"


if __name__ == "__main__":
    print(json.dumps(_measure_one(json.load(sys.stdin))))
