"""Why the exact gradient ends higher or lower: noise and growth of both gradients, and the loss on fresh draws.

    OMP_NUM_THREADS=1 uv run python results/exact/why.py        # after results/exact/run.sh, whose cells it reads

For T = 20 and each rate b, both gradients g of the matching loss with respect to the images are taken at the same
images: those that a condensation starts from, and those that it ends with. The draws (expert, segment, order of the
batches and augmentation) are fresh: no condensation has seen them. ``why.csv`` has

    noise = E|g - E g|^2 / |E g|^2,    cosine = <E g_tesla, E g_exact> / (|E g_tesla| |E g_exact|),

the norm of both means, the largest norm over the median one, and the matching loss on these draws beside that of the
last iterations. |E g|^2 is estimated without bias: |mean|^2 less the noise of the mean.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, median
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file
from summary import EXACT, HERE, TRUNCATED, chosen, read
from torch import Tensor

from dcbench_tesla.cells.cell import Cell
from dcbench_tesla.cells.session import Session
from dcbench_tesla.compare.files import csv_text
from dcbench_tesla.config import parse_set, resolve_all, settings_given
from dcbench_tesla.records.rows import stage_rows
from dcbench_tesla.records.store import write_text
from dcbench_tesla.records.workspace import Workspace

STEPS, DRAWS, SEED = 20, 48, 1
FRESH = 10_000  # the number of the first draw: condensations end long before
LATE = 50  # iterations at the end of a condensation, whose losses are averaged


def cells() -> dict[tuple[float, str], Cell]:
    """Return the finished cells of T = 20 and one seed that have the chosen rate of the images, by b and method."""
    session, found = Session(HERE), {}
    tried = read()
    for row in stage_rows(Workspace(HERE), "condense"):
        given = settings_given(row["command"])
        if (int(given["steps"]), row["seed"]) != (STEPS, SEED) or row["method"] not in (TRUNCATED, EXACT):
            continue
        b = float(given["student_lr"])
        if float(given["lr_images"]) != chosen(tried[STEPS, b], row["method"]):  # type: ignore[index]
            continue
        overrides = [parse_set(f"{name}={value}") for name, value in given.items()]
        (config,) = resolve_all(
            (row["method"],), (row["dataset"],), (row["ipc"],), (SEED,), preset=row["preset"], overrides=overrides
        )
        found[b, row["method"]] = session.cell(config)
    return dict(sorted(found.items()))


def gradients(cell: Cell, state: dict[str, Tensor] | None) -> tuple[Tensor, list[float]]:
    """Return the gradients ``(DRAWS, pixels)`` of a cell's method at the images of ``state``, and the losses."""
    experts = cell.materials.experts(cell.device)
    condenser = cell.method(cell.config.settings)
    condenser.setup(cell.problem(experts))
    if state is not None:
        condenser.load_state_dict(state)
    drawn = [condenser.gradients(FRESH + i) for i in range(DRAWS)]
    return torch.stack([found["images"].flatten().double() for _, found in drawn]), [one.loss for one, _ in drawn]


def spread(g: Tensor) -> tuple[float, float]:
    """Return |E g|^2 and E|g - E g|^2, both without bias, from draws ``(n, pixels)``."""
    n, mean = len(g), g.mean(0)
    variance = float((g - mean).square().sum()) / (n - 1)
    return float(mean.square().sum()) - variance / n, variance


def late_loss(cell: Cell) -> float:
    """Return the mean matching loss of the last iterations of a condensation."""
    lines = (cell.place.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-LATE:]
    return fmean(json.loads(line)["loss"] for line in lines)


def rows() -> Iterator[dict[str, Any]]:
    """Yield a row for every b, images and method."""
    found = cells()
    for b in sorted({b for b, _ in found}):
        both = {method: found[b, method] for method in (TRUNCATED, EXACT)}
        ends = {f"end of {method}": load_file(cell.place.checkpoint) for method, cell in both.items()}
        for where, state in {"start": None, **ends}.items():
            drawn = {method: gradients(cell, state) for method, cell in both.items()}
            means = {method: g.mean(0) for method, (g, _) in drawn.items()}
            cosine = torch.nn.functional.cosine_similarity(means[TRUNCATED], means[EXACT], dim=0)
            for method, (g, losses) in drawn.items():
                signal, noise = spread(g)
                norms = g.norm(dim=1).tolist()
                yield {
                    "student_lr": b,
                    "images": where,
                    "method": method,
                    "noise": noise / signal,
                    "mean_norm": max(signal, 0) ** 0.5,
                    "largest_norm": max(norms) / median(norms),
                    "cosine": float(cosine),
                    "fresh_loss": fmean(losses),
                    "late_loss": late_loss(both[method]) if where == f"end of {method}" else None,
                    "draws": DRAWS,
                }


def main() -> None:
    """Write ``why.csv``."""
    table = pd.DataFrame(rows())
    write_text(Path(HERE) / "why.csv", csv_text(table.round(6)))
    sys.stdout.write(f"{table.to_string()}\n")


if __name__ == "__main__":
    main()
