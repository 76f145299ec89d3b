"""The accuracy of the gradients of trajectory matching (``dcbench compare gradient``).

For the same images, experts, batches and augmentation, every method's gradient ``g`` of one iteration is compared with
the unrolled gradient in float64, ``g*``:

    cosine = <g, g*> / (|g| |g*|),    norm ratio = |g| / |g*|,    relative error = |g - g*| / |g*|,

for the images and for the student's learning rate b. The unrolled gradient in float32 is compared as well, which shows
the error of float32 alone: with ReLU, rounding can flip a sign.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from dcbench_tesla.cells.budget import predicted_peak
from dcbench_tesla.cells.cell import Cell
from dcbench_tesla.cells.identity import describe_network
from dcbench_tesla.cells.session import Session
from dcbench_tesla.compare.points import Keep, keep_nothing
from dcbench_tesla.config import Override, resolve_all
from dcbench_tesla.data.images import LabelledImages
from dcbench_tesla.errors import UsageError
from dcbench_tesla.interface import Condenser, ExpertSource, Problem
from dcbench_tesla.profilers.free import free_bytes
from dcbench_tesla.profilers.memory import PredictedMeter
from dcbench_tesla.records.progress import size

METHODS = ("tesla", "tesla-exact")
REFERENCE = "mtt"
STEPS = (1, 2, 5, 10, 20, 50)
STUDENT_LRS = (0.01, 0.02, 0.05)
DTYPES = {"float64": torch.float64, "float32": torch.float32}
LEARNED = ("images", "student_lr")


@dataclass(frozen=True, kw_only=True)
class GradientPoint:
    """One point of a comparison: matching steps T, the student's learning rate b, and the number of the iteration."""

    matching_steps: int
    student_lr: float
    iteration: int


KEY = [
    *("method", "reference", "dtype", "of", "matching_steps", "student_lr", "iteration"),
    *("dataset", "dataset_fingerprint", "protocol", "ipc", "seed", "batch_size", "width", "depth", "experts"),
    *("meter", "hardware"),
]
"""The columns that tell one row from another."""


def points(
    steps: Sequence[int] = STEPS, student_lrs: Sequence[float] = STUDENT_LRS, repetitions: int = 5
) -> list[GradientPoint]:
    """Return the points of a comparison: every T and b, at the iterations 0 to ``repetitions - 1``."""
    return [
        GradientPoint(matching_steps=t, student_lr=b, iteration=i)
        for b, t, i in product(student_lrs, steps, range(repetitions))
    ]


def cells(
    session: Session,
    methods: Sequence[str],
    dataset: str,
    ipc: int,
    *,
    preset: str,
    overrides: Sequence[Override] = (),
) -> dict[str, Cell]:
    """Return a cell for every method and for :data:`REFERENCE`, by method. The cells differ in their method only.

    Raises:
        UsageError: a method is not trajectory matching or does not expose its gradients; or an override sets ``steps``
            or ``student_lr``, which the comparison varies, or ``network.name``, which its rows do not tell.
    """
    for label in (o.label for o in overrides):
        if label in ("steps", "student_lr"):
            raise UsageError(f"{label} varies here: give --{label.replace('_', '-')} in place of --set {label}.")
        if label == "network.name":
            raise UsageError("gradients are compared on the ConvNet: leave network.name out.")
    names = tuple(dict.fromkeys((REFERENCE, *methods)))
    configs = resolve_all(names, (dataset,), (ipc,), (0,), preset=preset, overrides=overrides)
    found = {config.method: session.cell(config, from_scratch=True) for config in configs}
    for name, cell in found.items():
        if cell.materials.expert_request is None or cell.method.gradients is Condenser.gradients:
            raise UsageError(f"{name} has no gradient of trajectory matching to compare; tesla and tesla-exact do.")
    return found


def check_room(reference: Cell, steps: Sequence[int]) -> None:
    """Check that the unrolled gradient in float64 fits in memory; it needs twice the predicted bytes of float32.

    Raises:
        UsageError: it needs more memory than is free on the device.
    """
    longest = max(steps)
    needed = 2 * predicted_peak(reference, PredictedMeter(), steps=longest)
    free = free_bytes(reference.device)
    if needed > free:
        raise UsageError(
            f"{longest} steps, unrolled in float64, need {size(needed)} (predicted), and {size(free)} are free: "
            "give fewer --steps, or a narrower network (--set network.width=32)."
        )


def measure(
    cells: Mapping[str, Cell],
    wanted: Sequence[GradientPoint],
    *,
    done: Callable[[], None] = lambda: None,
    keep: Keep = keep_nothing,
) -> pd.DataFrame:
    """Compare the gradients of ``cells`` at every point and return tidy rows.

    Args:
        cells: cells by method that differ in their method only; one is :data:`REFERENCE`. Their experts must exist.
        wanted: the points.
        done: called after each point.
        keep: called with the rows of each point.
    """
    reference = cells[REFERENCE]
    reference.execution.apply()
    experts = reference.materials.experts(reference.device)
    assert experts is not None, "trajectory matching requests experts"
    problems = {name: _as(reference.problem(experts), dtype) for name, dtype in DTYPES.items()}
    facts = _facts(reference)
    tables = []
    for point in wanted:
        rows = [{**facts, **asdict(point), **row} for row in _compare(cells, problems, point)]
        tables.append(pd.DataFrame(rows)[[*KEY, *(name for name in rows[0] if name not in KEY)]])
        keep(tables[-1])
        done()
    return pd.concat(tables, ignore_index=True)


def _facts(cell: Cell) -> dict[str, Any]:
    c, settings = cell.config, cell.config.settings
    images = c.ipc * cell.dataset.classes
    environment, network = cell.environment, describe_network(cell.dataset, c.network)
    return {
        "reference": REFERENCE,
        "dataset": cell.dataset.name,
        "protocol": ", ".join([c.preset, *sorted(re.findall(r"--set (\S+)", c.command))]),
        "ipc": c.ipc,
        "seed": c.seed,
        "batch_size": min(settings.batch_size or images, images),
        "width": network["width"],
        "depth": network["depth"],
        "meter": "autograd",
        "hardware": environment["hardware"],
        "dataset_fingerprint": cell.dataset.fingerprint,
        "experts": cell.materials.expert_store.recipe.key,
        "commit": environment["commit"],
        "torch": environment["versions"]["torch"],
    }


def _compare(
    cells: Mapping[str, Cell], problems: Mapping[str, Problem], point: GradientPoint
) -> Iterator[dict[str, Any]]:
    where, true = _gradients(cells[REFERENCE], problems["float64"], point)
    for (dtype, problem), (method, cell) in product(problems.items(), cells.items()):
        if (dtype, method) == ("float64", REFERENCE):
            continue
        _, found = _gradients(cell, problem, point)
        for name in LEARNED:
            yield {"method": method, "dtype": dtype, "of": name, **compared(found[name], true[name]), **where}


def _gradients(
    cell: Cell, problem: Problem, point: GradientPoint
) -> tuple[dict[str, float | int], Mapping[str, Tensor]]:
    """Return the matching loss, the expert and its start epoch, and the gradients by name."""
    b = point.student_lr
    settings = cell.config.settings
    least = min(settings.min_student_lr, b)
    condenser = cell.method(replace(settings, steps=point.matching_steps, student_lr=b, min_student_lr=least))
    condenser.setup(problem)
    record, gradients = condenser.gradients(point.iteration)
    where = {name: int(record.metrics[name]) for name in ("expert", "start_epoch")}
    return {"matching_loss": record.loss, **where}, gradients


def compared(gradient: Tensor, true: Tensor) -> dict[str, float]:
    """Return ``cosine``, ``norm_ratio`` and ``relative_error`` of a gradient against the true one of the same shape.

    Example:
        >>> compared(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0]))["norm_ratio"]
        2.0
    """
    g, t = gradient.double().flatten(), true.double().flatten()
    return {
        "cosine": float(torch.dot(g, t) / (g.norm() * t.norm())),
        "norm_ratio": float(g.norm() / t.norm()),
        "relative_error": float((g - t).norm() / t.norm()),
    }


def summary(table: pd.DataFrame, of: str) -> tuple[list[str], list[list[str]]]:
    """Return head and lines of a table: medians over iterations for the gradient of ``of``, by b and T."""
    rows = table[table["of"] == of]
    columns = [c for c in _columns(rows) if of == "images" or c[2] == "relative_error"]
    keys = ["student_lr", "matching_steps"]
    medians = rows.groupby([*keys, "method", "dtype"], sort=True)[list(_SHOWN)].median()
    lines = []
    for b, t in rows[keys].drop_duplicates().sort_values(keys).itertuples(index=False):
        shown = [_SHOWN[value].format(medians.loc[(b, t, method, dtype), value]) for method, dtype, value in columns]
        lines.append([f"{b:g}", str(t), *shown])
    return ["student lr", "T", *(_title(*c) for c in columns)], lines


_SHOWN = {"cosine": "{:.3f}", "norm_ratio": "{:.2f}", "relative_error": "{:.1e}"}


def _columns(rows: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Return the columns (method, dtype, value); for methods that are exact, cosine and norm ratio are left out."""
    methods = [m for m in dict.fromkeys(rows["method"]) if m != REFERENCE]
    error = "relative_error"
    cosines = [(m, "float64", value) for m in methods for value in ("cosine", "norm_ratio", error)]
    exact = rows[rows["dtype"] == "float64"].groupby("method")[error].max() < _EXACT
    kept = [c for c in cosines if c[2] == error or not exact[c[0]]]
    return [*kept, *((m, "float32", error) for m in methods if exact[m]), (REFERENCE, "float32", error)]


_EXACT = 1e-8


def _title(method: str, dtype: str, value: str) -> str:
    name = value.replace("_", " ")
    return f"{method} {name}" if value != "relative_error" else f"{method} error, {dtype}"


# ---- the same problem in another precision --------------------------------------------------------------------------


def _as(problem: Problem, dtype: torch.dtype) -> Problem:
    assert problem.experts is not None
    return replace(problem, train=_CastImages(problem.train, dtype), experts=_CastExperts(problem.experts, dtype))


class _CastImages(LabelledImages):
    """Images whose inputs are the float32 values cast to another dtype."""

    def __init__(self, images: LabelledImages, dtype: torch.dtype) -> None:
        super().__init__(
            images.pixels,
            images.labels,
            classes=images.classes,
            max_value=images.max_value,
            preprocessing=images.preprocessing,
            device=images.device,
        )
        self._images, self._dtype = images, dtype

    def inputs(self, indices: Tensor) -> Tensor:
        return self._images.inputs(indices).to(self._dtype)


class _CastExperts:
    def __init__(self, experts: ExpertSource, dtype: torch.dtype) -> None:
        self._experts, self._dtype = experts, dtype

    def __len__(self) -> int:
        return len(self._experts)

    def snapshot(self, expert: int, epoch: int) -> Tensor:
        return self._experts.snapshot(expert, epoch).to(self._dtype)
