"""Growth of memory and time with matching steps, batch size and IPC (TESLA, Section 3.3): formulas and predictions.

T matching steps, B images per step, N synthetic images (IPC times classes), M real images per step, G bytes of the
graph of one image, P parameters, I values of an image, F features. Memory does not include the network itself.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from dcbench_tesla.compare.points import Point
from dcbench_tesla.compare.table import aligned
from dcbench_tesla.profilers.memory import memory_meter
from dcbench_tesla.records.progress import size

DATASETS = ("cifar100", "imagenet1k-64")


@dataclass(frozen=True)
class Growth:
    """The leading terms of the memory and time of a method with some settings, as formulas."""

    memory: str
    time: str
    method: str
    settings: str = ""


GROWTH = {
    "mtt": Growth("T B G + N I", "T B", "mtt"),
    "tesla": Growth("B G + N I", "T B", "tesla"),
    "tesla-exact": Growth("B G + T P + N I", "T B", "tesla-exact"),
    "frepo": Growth("N G + N^2", "N + M + N^3", "frepo"),
    "frepo, micro_batch=100": Growth("N (I + F) + N^2", "N + M + N^3", "frepo", "micro_batch=100"),
}

_BASE = Point(method="", dataset="", matching_steps=20, ipc=10, batch_size=100)
_DOUBLED = ("matching_steps", "batch_size", "ipc")
_SHORT = {"matching_steps": "T", "batch_size": "B", "ipc": "IPC"}


def _points(dataset: str, growth: Growth) -> Iterator[Point]:
    """Yield the base point, then one point for each quantity with that quantity doubled."""
    base = replace(_BASE, method=growth.method, dataset=dataset, settings=growth.settings)
    if growth.method == "frepo":
        base = replace(base, matching_steps=None, batch_size=None)
    yield base
    for name in _DOUBLED:
        if (value := getattr(base, name)) is not None:
            yield replace(base, **{name: 2 * value})


def count(datasets: Sequence[str] = DATASETS) -> int:
    """Return the number of points that :func:`predict` predicts."""
    return sum(len(list(_points(dataset, growth))) for dataset in datasets for growth in GROWTH.values())


def predict(datasets: Sequence[str] = DATASETS, *, done: Callable[[], None] = lambda: None) -> pd.DataFrame:
    """Return tidy rows of the predicted peak bytes of every method at a base point, and with T, B or IPC doubled."""
    meter = memory_meter("predicted")
    rows = []
    for dataset in datasets:
        for method, growth in GROWTH.items():
            for point in _points(dataset, growth):
                rows.append(
                    {
                        "dataset": dataset,
                        "method": method,
                        "matching_steps": point.matching_steps,
                        "batch_size": point.batch_size,
                        "ipc": point.ipc,
                        "width": point.width,
                        "meter": meter.name,
                        "peak_bytes": meter.measure(point.workload(meter.device)).peak_bytes,
                        "memory_grows_as": growth.memory,
                        "time_grows_as": growth.time,
                    }
                )
                done()
    return pd.DataFrame(rows).astype({"matching_steps": "Int64", "batch_size": "Int64"})


def markdown(table: pd.DataFrame) -> str:
    """Return a Markdown table: formulas, bytes at the base point, and the factors with T, B or IPC doubled."""
    parts = []
    for dataset, rows in table.groupby("dataset", sort=False):
        base = f"T = {_BASE.matching_steps}, B = {_BASE.batch_size}, IPC = {_BASE.ipc}"
        head = ["method", "memory", "time", base, *(f"2 {_SHORT[name]}" for name in _DOUBLED)]
        body = [_line(str(method), of_it) for method, of_it in rows.groupby("method", sort=False)]
        title = f"### Section 3.3: growth of memory and time, {dataset}, ConvNet width {_BASE.width}, predicted bytes"
        parts.append("\n".join([title, "", *aligned(head, body)]))
    return "\n\n".join([*parts, _SYMBOLS]) + "\n"


_SYMBOLS = (
    "T matching steps, B images a step, N = IPC times classes synthetic images, M real images a step (1024 of FrePo), "
    "G bytes of one image's graph, P parameters, I values of an image, F features. Last columns: how many times more "
    "bytes with T, B or IPC doubled. FrePo here has the ConvNet of the others, of which it keeps ten with Adam's "
    "moments; its own is wider."
)


def _line(method: str, rows: pd.DataFrame) -> list[str]:
    base, *_ = rows.to_dict("records")
    factors = {
        name: row["peak_bytes"] / base["peak_bytes"]
        for row in rows.to_dict("records")[1:]
        for name in _DOUBLED
        if not pd.isna(row[name]) and row[name] != base[name]
    }
    growth = GROWTH[method]
    shown = [f"x {factors[name]:.2f}" if name in factors else "" for name in _DOUBLED]
    return [f"`{method}`", growth.memory, growth.time, size(base["peak_bytes"]), *shown]
