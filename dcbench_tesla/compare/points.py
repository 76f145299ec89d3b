"""The shared parts of the comparisons of memory and of time: their points, and the tables they print."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from typing import Any

import pandas as pd
import torch

from dcbench_tesla import registry
from dcbench_tesla.cells.workload import Shape, workload
from dcbench_tesla.config import Override, as_text, parse_set, value_in
from dcbench_tesla.errors import UsageError, unknown_name
from dcbench_tesla.profilers.memory import Prepare


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measurement: an iteration of ``method`` on the shapes of ``dataset``.

    ``matching_steps`` and ``batch_size`` are ``None`` for methods without this setting, such as DM and DSA.
    ``settings`` are further settings of the method as text, such as ``micro_batch=10 weights=host``.
    """

    method: str
    dataset: str
    matching_steps: int | None
    ipc: int
    batch_size: int | None
    width: int = 128
    depth: int = 0
    settings: str = ""

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
            settings=_settings_in(self.method, self.settings),
            **how,
        )


def _settings_in(method: str, text: str) -> dict[str, Any]:
    kind = registry.load_method(method).Settings
    return {o.name: value_in(kind, o) for o in map(parse_set, text.split())}


def settings_text(method: str, overrides: Sequence[Override]) -> str:
    """Return those of the overrides that ``method`` has as the text of :attr:`Point.settings`, sorted by name.

    Raises:
        UsageError: a value is of the wrong type.
    """
    kind = registry.load_method(method).Settings
    own = {o.name: as_text(value_in(kind, o)) for o in overrides if o.name in _names(method)}
    return " ".join(f"{name}={value}" for name, value in sorted(own.items()))


def _names(method: str) -> list[str]:
    return [f.name for f in fields(registry.load_method(method).Settings)]


_OPTIONS = {"steps": "--steps", "batch_size": "--batch-size", "network.width": "--width", "network.depth": "--depth"}


def check_settings(methods: Sequence[str], overrides: Sequence[Override]) -> None:
    """Check that every override is a setting of at least one method, and is not what a comparison has an option for.

    Raises:
        UsageError: it is not.
    """
    known = list(dict.fromkeys(name for method in methods for name in _names(method)))
    for override in overrides:
        if override.label in _OPTIONS:
            raise UsageError(f"give {_OPTIONS[override.label]} in place of --set {override.label}.")
        if override.section != "settings" or override.name not in known:
            raise unknown_name(f"setting of {', '.join(methods)}", override.label, known)


AGAINST = ("matching_steps", "ipc", "batch_size")
"""The columns that a comparison can vary."""

COLUMNS = [f.name for f in fields(Point)]
"""The columns of a row that describe its point."""


def labelled(table: pd.DataFrame) -> pd.DataFrame:
    """Return ``table`` with the settings of a row, if there are any, after its ``method``."""
    if "settings" not in table:
        return table
    names = [
        f"{m}, {s}" if isinstance(s, str) and s else m for m, s in zip(table["method"], table["settings"], strict=True)
    ]
    return table.assign(method=names)


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
    overrides: Sequence[Override] = (),
) -> list[Point]:
    """Return the points of a comparison, each once.

    A method without the setting ``steps`` or ``batch_size`` has one point in place of one for every value of it. Of
    the overrides a method takes those that it has.

    Raises:
        UsageError: no method has the setting of an override, the comparison has an option for it, or its value is of
            the wrong type.
    """
    check_settings(methods, overrides)
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
                settings=settings_text(method, overrides),
            )
            found.append(point)
    return list(dict.fromkeys(found))


def pivot(table: pd.DataFrame, against: str, shown: Callable[[Mapping[Any, Any]], str]) -> list[list[str]]:
    """Return the lines of a table, its head first, with a line per value of ``against`` and a column per method.

    A method that does not depend on ``against`` shows its one row in every line. A method with several settings has a
    column for each.

    Args:
        table: the rows.
        against: one of :data:`AGAINST`.
        shown: returns the text of a row's cell.

    Raises:
        UsageError: ``against`` is not one of :data:`AGAINST`.
    """
    if against not in AGAINST:
        raise UsageError(f"points are compared against {', '.join(AGAINST)}, not {against!r}.")
    table = labelled(table)
    methods = list(dict.fromkeys(table["method"]))
    lines = [[against.replace("_", " "), *methods]]
    for value in sorted(table[against].dropna().unique()) or ["any"]:
        here = table[table[against].isna() | (table[against].astype("string") == str(value))]
        cells = (here[here["method"] == method].to_dict("records") for method in methods)
        lines.append([str(value), *(", ".join(map(shown, rows)) for rows in cells)])
    return lines
