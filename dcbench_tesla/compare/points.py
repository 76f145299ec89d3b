"""What comparisons of memory and of time share: their points, and their tables for people."""

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

    def workload(self, device: torch.device, **how: Any) -> Prepare:
        """Return what makes the iteration ready on ``device`` and then runs it.

        ``how``: ``shortened``, ``compile`` and ``chosen_for`` of :func:`~dcbench_tesla.cells.workload.workload`.

        Raises:
            UsageError: the point cannot be, see :func:`~dcbench_tesla.cells.workload.workload`.
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
"""The columns that tables and plots can go by."""

COLUMNS = [f.name for f in fields(Point)]
"""The columns that a point gives its row."""

Keep = Callable[[pd.DataFrame], object]
"""Takes rows as soon as they are measured, so that what stops a comparison does not lose them."""


def keep_nothing(rows: pd.DataFrame) -> None:
    """Leave rows to who gets them all in the end."""


COLUMN_TYPES: Mapping[str, Any] = {"matching_steps": "Int64", "batch_size": "Int64"}
"""Of those that can be empty."""


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
    """Return the points of a comparison, each once; a method without matching steps has one where others have many."""
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
    """Return the lines of a table for people, its head first: ``against`` down, methods across.

    ``shown`` says what a row's cell is. A method that does not depend on ``against`` shows its one row in every line.

    Raises:
        UsageError: ``against`` is no column that varies.
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
