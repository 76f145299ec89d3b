"""How cost grows: time linear in matching steps T and in the batch, memory flat in T.

By the code of ``dcbench compare time`` and ``dcbench compare memory``, which draw the same. Seconds on the wall: on a
machine that does something else meanwhile these fail.
"""

from collections.abc import Sequence

import numpy as np
import pytest

from dcbench_tesla.cells.execution import Execution
from dcbench_tesla.compare import memory, timing
from dcbench_tesla.compare.points import points
from tests.benchmarks.conftest import Record
from tests.benchmarks.turns import THREADS

REPETITIONS = 3
METHODS = ["tesla", "tesla-exact"]


def linear(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Return R squared of a straight line through the points, and where it starts in parts of where it ends."""
    slope, start = np.polyfit(x, y, 1)
    return float(np.corrcoef(x, y)[0, 1] ** 2), float(start / (start + slope * max(x)))


@pytest.mark.parametrize(
    ("against", "varied"),
    [("matching_steps", {"steps": (2, 4, 8), "batch_sizes": (50,)}), ("batch_size", {"steps": (2,)})],
)
def test_time_is_linear(record: Record, against: str, varied: dict[str, Sequence[int]]) -> None:
    sizes = {"batch_sizes": timing.BATCH_SIZES, **varied}
    wanted = points(METHODS, ["cifar100"], **sizes)  # type: ignore[arg-type]
    table = timing.measure(wanted, Execution("cpu", THREADS), repetitions=REPETITIONS)
    for method, rows in table.groupby("method"):
        straight, start = linear(list(rows[against].astype(float)), list(rows["iteration_seconds"]))
        record.note(str(method), f"R^2 of time against {against}", straight, REPETITIONS)
        record.note(str(method), f"time at {against} 0 in parts of the longest", start, REPETITIONS)
        assert straight >= 0.98
        assert abs(start) <= 0.2


def test_measured_memory_is_flat_in_the_matching_steps(record: Record) -> None:
    steps = (2, 4, 8)
    table = memory.measure(points(METHODS, ["cifar100"], steps=steps), "allocated", "cpu")
    for method, rows in table.groupby("method"):
        first, *_, last = rows.sort_values("matching_steps")["peak_bytes"]
        record.note(str(method), f"peak at T = {steps[-1]} against T = {steps[0]}", last / first, 1)
        assert last <= (1.01 if method == "tesla" else 1.05) * first
