"""A small made-up folder of results with everything that the report shows, and with text that tries to break out."""

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from PIL import Image

from dcbench_tesla.data.preprocessing import Preprocessing
from dcbench_tesla.distilled import DistilledSet
from dcbench_tesla.records.workspace import Workspace

BREAK_OUT = "a \"machine\" </script><script>document.title='broken'</script><b onclick='x()'>"
ENVIRONMENT = {"commit": "0123456789ab", "versions": {"torch": "2.15.0", "dcbench-tesla": "0.1"}}
SHAPES = {"dataset": "cifar100", "ipc": 1, "width": 128, "depth": 0}
WHERE = {"hardware": "a machine", "commit": "0123456789ab", "torch": "2.15.0"}
STEPS = (1, 10, 50)
CUT = {"network": {"width": 32}, "data": {"train_images": 1000}}
SETTINGS = {"labels": "hard", "last_epoch": 50, "label_space": "logits", "lr_labels": 1.0, "iterations": 100}
SETTINGS |= {"lr_images": 100.0, "lr_student_lr": 1e-5}

# test accuracy of the networks by iteration; what chooses images stands at iteration 0
CURVES: dict[tuple[str, int], dict[int, list[float]]] = {
    ("tesla", 1): {50: [0.40, 0.44], 100: [0.60, 0.64]},
    ("tesla", 10): {50: [0.70, 0.74], 100: [0.80, 0.82]},
    ("random", 1): {0: [0.30, 0.30]},
    ("random", 10): {0: [0.50, 0.54]},
    ("dm", 1): {100: [0.55, 0.57]},
}


# of Figure 2: test accuracy by iteration of two strategies, and of labels alone by the teacher's epoch
STRATEGIES: dict[str, dict[int, list[float]]] = {
    "hard": {50: [0.04, 0.06], 100: [0.02, 0.02], 150: [0.03, 0.05]},
    "target": {50: [0.02, 0.02], 100: [0.06, 0.06], 150: [0.09, 0.11]},
}
ALONE: dict[int, list[float]] = {0: [0.01, 0.01], 3: [0.03, 0.05]}
_ALONE = {"labels": "last", "iterations": 1, "lr_images": 0.0, "lr_student_lr": 0.0}


def write_results(root: Path) -> None:
    """Write rows, sheets and figures' CSV under ``root``."""
    for (method, ipc), curve in CURVES.items():
        write_cell(root, method, ipc, curve)
    write_cell(root, "tesla", 1, {100: [0.465, 0.475]}, dataset="cifar10", preset="paper")
    write_labels(root)
    write_failure(root)
    figures = {"memory": memory(), "time": time(), "gradient": gradient()}
    for name, rows in figures.items():
        write_csv(root / "figures" / f"{name}.csv", rows)


def write_labels(root: Path) -> None:
    """Write the cells of Figure 2 on a data set that is not the paper's."""
    for labels, curve in STRATEGIES.items():
        sets = {"labels": labels, "evaluation.every": 50}
        write_cell(root, "tesla", 1, curve, dataset="npz:mine", preset="quick", sets=sets)
    for epoch, values in ALONE.items():
        sets = {**_ALONE, "last_epoch": epoch}
        write_cell(root, "tesla", 1, {1: values}, dataset="npz:mine", preset="quick", sets=sets)


def write_failure(root: Path) -> None:
    """Write the row of a cell that failed."""
    row = {
        **{"cell": "mtt-digits", "method": "mtt", "dataset": "digits", "ipc": 1, "seed": 0, "preset": "smoke"},
        **{"protocol": "smoke", "hardware": "a machine", "environment": ENVIRONMENT, "attempts": 2},
        **{"status": "diverged", "reason": "the loss is NaN", "command": "dcbench run --method mtt --dataset digits"},
    }
    Workspace(root).write_row("failed", "mtt", row)


def write_cell(root: Path, method: str, ipc: int, curve: dict[int, list[float]], **changes: Any) -> None:
    """Write a finished cell: its rows and its sheet. ``changes``: as read below; ``made``: of the first row."""
    dataset, preset, sets = changes.get("dataset", "digits"), changes.get("preset", "smoke"), changes.get("sets", {})
    seed = changes.get("seed", 0)
    name = "-".join([method, dataset.replace(":", "-"), f"ipc{ipc}", f"seed{seed}", *map(str, sets.values())])
    words = "".join(f" --set {key}={value}" for key, value in sets.items())
    settings = {} if method == "random" else {**SETTINGS, **{k: v for k, v in sets.items() if "." not in k}}
    evaluated = [{"iteration": i, "test": values, "validation": [], "diverged": 0} for i, values in curve.items()]
    accuracies = [_accuracy(i, values) for i, values in curve.items()]
    shared = {
        **{"cell": name, "method": method, "dataset": dataset, "ipc": ipc, "seed": seed, "preset": preset},
        **{"protocol": preset, "hardware": BREAK_OUT, "environment": ENVIRONMENT, "dataset_fingerprint": "f1"},
        "command": f"dcbench run --method {method} --dataset {dataset} --ipc {ipc} --preset {preset}{words}",
    }
    condense = {
        "identity": {"method": method, "ipc": ipc, "seed": seed, "settings": settings, **CUT},
        "settings": settings,
        "distilled_images": 10 * ipc,
        **{"condense_seconds": 100.0 * ipc, "peak_bytes": 2**20, "iterations": max(curve), "learned_lr": 0.0123},
        **changes.get("made", {}),
    }
    evaluate = {
        **{"condense_key": name, "evaluator": "convnet", "recipe": "published", "settings": {"width": 32}},
        **{"networks": len(curve[max(curve)]), "evaluated": evaluated, "diverged_networks": 0, "evaluate_seconds": 1.0},
        "accuracy": {
            "last": accuracies[-1],
            "best_on_validation": None,
            "best_on_test": max(accuracies, key=lambda a: float(a["mean"])),
        },
    }
    workspace = Workspace(root)
    workspace.write_row("condense", name, {**shared, **condense})
    workspace.write_row("evaluate", name + changes.get("evaluation", ""), {**shared, **evaluate})
    workspace.sheets.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (200, 20), "gray").save(workspace.sheets / f"{name}.png")


def write_snapshot(path: Path, grey: int) -> None:
    """Write a distilled set of ten grey images."""
    DistilledSet(
        images=torch.full((10, 1, 4, 4), grey, dtype=torch.uint8),
        labels=torch.arange(10),
        class_names=tuple("0123456789"),
        preprocessing=Preprocessing("standardise", torch.zeros(1), torch.ones(1)),
        augmentation="none",
    ).save(path)


def _accuracy(iteration: int, values: list[float]) -> dict[str, Any]:
    mean = sum(values) / len(values)
    std = (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5
    return {"mean": mean, "std": std, "values": values, "iteration": iteration}


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as a comparison does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(path, index=False)


def memory() -> list[dict[str, Any]]:
    """MTT grows and runs out of memory at T = 50, TESLA is flat, DM has no T."""
    shared = {**SHAPES, **WHERE, "meter": "cuda", "inputs": "synthetic", "status": "ok", "batch_size": 100}
    rows = [{**shared, "method": "mtt", "matching_steps": t, "peak_bytes": t * 2**30} for t in STEPS]
    rows[-1]["status"] = "out of memory"
    rows += [{**shared, "method": "tesla", "matching_steps": t, "peak_bytes": 2**29} for t in STEPS]
    without = {"matching_steps": None, "batch_size": None}
    return [*rows, {**shared, **without, "method": "dm", "peak_bytes": 3 * 2**30}]


def time() -> list[dict[str, Any]]:
    """MTT was not run at T = 50."""
    shared = {**SHAPES, **WHERE, "meter": "perf_counter", "threads": 1, "batch_size": 100, "inputs": "synthetic"}
    shared["compiled"] = False
    rows = []
    for method, factor in (("mtt", 0.2), ("tesla", 0.3)):
        for t in STEPS:
            ran = {"iteration_seconds": factor * t, "iteration_spread_seconds": 0.02 * t, "step_seconds": factor}
            rows.append({**shared, "method": method, "matching_steps": t, **ran, "repetitions": 3, "status": "ok"})
    rows[2] |= {"iteration_seconds": None, "iteration_spread_seconds": None, "step_seconds": None}
    rows[2] |= {"repetitions": 0, "status": "not run: needs 58 GiB"}
    return rows


def gradient() -> list[dict[str, Any]]:
    """Three repetitions; tesla's gradient drifts with T, tesla-exact's is equal."""
    rows = []
    for method, drifts in (("tesla", (0.01, 0.02, 0.04)), ("tesla-exact", (0.0, 0.0, 1e-17))):
        for t in STEPS:
            for iteration, drift in enumerate(drifts):
                found = {"cosine": 1 - drift * t / 50, "norm_ratio": 1.0, "relative_error": drift * t}
                at = {"matching_steps": t, "student_lr": 0.01, "iteration": iteration, "expert": 0, "start_epoch": 0}
                how = {"reference": "mtt", "dtype": "float64", "of": "images", "protocol": "quick", "batch_size": 20}
                how |= {"dataset_fingerprint": "f1", "seed": 0, "experts": "e1"}
                rows.append({"method": method, **SHAPES, **WHERE, "meter": "", **how, **at, **found})
    return rows
