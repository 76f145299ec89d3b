"""What the teacher of docs/results/regimes.md says of the distilled images.

    OMP_NUM_THREADS=1 uv run python results/regimes/teacher.py      # after results/fashion-mnist.sh: it reads the cells

For every method, IPC and seed that was run, ``teacher.csv`` beside this file has the share of images that the teacher
puts into their class, as they are (``plain``) and augmented as networks see them (``augmented``, over :data:`DRAWS`
draws of each image), and the probability that it gives to their class there (``probability``, mean).
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from dcbench_tesla.cells.session import Session
from dcbench_tesla.compare.files import csv_text
from dcbench_tesla.config import parse_set, resolve
from dcbench_tesla.distilled import DistilledSet
from dcbench_tesla.evaluators.training import Recipe, TrainingSet
from dcbench_tesla.interface import Teacher
from dcbench_tesla.records.store import write_text

HERE = Path(__file__).parent
METHODS = ("random", "herding", "k-center", "class-means", "rded", "dm", "dc", "dsa", "tesla")
IPCS, SEEDS, DRAWS = (1, 10), (0, 1, 2), 100
AUGMENTED = Recipe(epochs=1, lr=0.01, batch_size=256, weight_decay=0.0)  # nothing is trained: as networks see images
CPU = torch.device("cpu")


def known(distilled: DistilledSet, teacher: Teacher) -> dict[str, float]:
    """Return how often, and how surely, ``teacher`` gives the images of a set their class."""
    images = torch.arange(len(distilled))
    classes = distilled.with_hard_labels().labels
    rng = torch.Generator().manual_seed(0)
    _, plain = TrainingSet(distilled, CPU, replace(AUGMENTED, augmentation=False), teacher).batch(images, rng)
    data = TrainingSet(distilled, CPU, AUGMENTED, teacher)
    augmented = torch.stack([data.batch(images, rng)[1] for _ in range(DRAWS)])  # (draws, images, classes)
    return {
        "plain": float((plain.argmax(1) == classes).double().mean()),
        "augmented": float((augmented.argmax(2) == classes).double().mean()),
        "probability": float(augmented.gather(2, classes.expand(DRAWS, -1)[..., None]).double().mean()),
    }


def rows(results: Path) -> list[dict[str, Any]]:
    """Return a row for every cell under ``results`` that was run."""
    session, found = Session(results, device="cpu", quiet=True), []
    for ipc, method, seed in ((ipc, method, seed) for ipc in IPCS for method in METHODS for seed in SEEDS):
        taught = parse_set("evaluation.labels=teacher")
        cell = session.cell(resolve(method, "fashion-mnist", ipc, preset="quick", seed=seed, overrides=[taught]))
        teacher = cell.materials.teacher(CPU)
        if teacher is not None and cell.place.distilled.exists():
            about = {"method": method, "ipc": ipc, "seed": seed}
            found.append(about | known(DistilledSet.load(cell.place.distilled), teacher))
    return found


if __name__ == "__main__":
    write_text(HERE / "teacher.csv", csv_text(pd.DataFrame(rows(HERE.parent)).round(4)))
