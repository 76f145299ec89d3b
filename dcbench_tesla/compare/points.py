"""The shared parts of the comparisons of memory and of time: their points, and the tables they print."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from typing import Any

import pandas as pd
import torch

from dcbench_tesla import registry
from dcbench_tesla.cells.workload import Shape, workload
from dcbench_tesla.errors import UsageError
from dcbench_tesla.profilers.memory import Prepare


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measurement: an iteration of ``method`` on the shapes of ``dataset``.

    ``matching_steps`` and ``batch_size`` are ``None`` for methods without this setting, such as DM and DSA.
    """

    method: str
    dataset: str
    matching_steps: int | None
    ipc: int
    batch_size: int | None
    width: int = 128
    depth: int = 0

    def workload(self, device: torch.device, **how: Any) -> Prepare:
        """Return a function that prepares the iteration on ``device`` and returns a function that runs it.

        Args:
            device: the device.
            how: ``shortened``, ``compile`` and ``chosen_for`` of :func:`~dcbench_tesla.cells.workload.workload`.

        Raises:
            UsageError: the point is invalid; see :func:`~dcbench_tesla.cells.workload.workload`.
        """
        return workload(
            self.method,
            Shape.of(self.dataset),
            ipc=self.ipc,
            steps=self.matching_steps,
            batch_size=self.batch_size,
            width=self.width,
            depth=self.depth,
            device=device,
            **how,
        )


AGAINST = ("matching_steps", "ipc", "batch_size")
"""The columns that a comparison can vary."""

COLUMNS = [f.name for f in fields(Point)]
"""The columns of a row that describe its point."""

Keep = Callable[[pd.DataFrame], object]
"""A function that saves rows as soon as they are measured, so that an interrupted comparison does not lose them."""


def keep_nothing(rows: pd.DataFrame) -> None:
    """Do not save ``rows``; the caller gets all rows at the end."""


COLUMN_TYPES: Mapping[str, Any] = {"matching_steps": "Int64", "batch_size": "Int64"}
"""The types of the columns of a point that can be empty."""


def points(
    methods: Sequence[str],
    datasets: Sequence[str],
    *,
    steps: Sequence[int],
    ipcs: Sequence[int] = (1,),
    batch_sizes: Sequence[int] = (100,),
    width: int = 128,
    depth: int = 0,
) -> list[Point]:
    """Return the points of a comparison, each once.

    A method without the setting ``steps`` or ``batch_size`` has one point in place of one for every value of it.
    """
    found = []
    for dataset, method in product(datasets, methods):
        known = {f.name for f in fields(registry.load_method(method).Settings)}
        counts = steps if "steps" in known else (None,)
        sizes = batch_sizes if "batch_size" in known else (None,)
        for ipc, count, size in product(ipcs, counts, sizes):
            point = Point(
                method=method,
                dataset=dataset,
                matching_steps=count,
                ipc=ipc,
                batch_size=size,
                width=width,
                depth=depth,
            )
            found.append(point)
    return list(dict.fromkeys(found))


def pivot(table: pd.DataFrame, against: str, shown: Callable[[Mapping[Any, Any]], str]) -> list[list[str]]:
    """Return the lines of a table, its head first, with a line per value of ``against`` and a column per method.

    A method that does not depend on ``against`` shows its one row in every line.

    Args:
        table: the rows.
        against: one of :data:`AGAINST`.
        shown: returns the text of a row's cell.

    Raises:
        UsageError: ``against`` is not one of :data:`AGAINST`.
    """
    if against not in AGAINST:
        raise UsageError(f"points are compared against {', '.join(AGAINST)}, not {against!r}.")
    methods = list(dict.fromkeys(table["method"]))
    lines = [[against.replace("_", " "), *methods]]
    for value in sorted(table[against].dropna().unique()) or ["any"]:
        here = table[table[against].isna() | (table[against].astype("string") == str(value))]
        cells = (here[here["method"] == method].to_dict("records") for method in methods)
        lines.append([str(value), *(", ".join(map(shown, rows)) for rows in cells)])
    return lines
