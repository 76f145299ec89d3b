"""The folders that trials begin with: small results with every kind of file, made once by the program itself."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from dcbench_tesla.records.store import content_key
from tests import fixtures_data, fixtures_report
from tests.campaign.processes import Ran, dcbench, run

SETTINGS: dict[str, object] = {
    "data.train_images": 200,
    "network.width": 4,
    "convnet.width": 4,
    "convnet.epochs": 2,
    "evaluation.networks": 2,
}
MATCHING: dict[str, object] = {
    **SETTINGS,
    "experts.count": 2,
    "evaluation.every": 2,
    "evaluation.networks_on_the_way": 1,
    "iterations": 4,
    "steps": 2,
    "expert_epochs": 1,
    "max_start_epoch": 1,
}
SELECTION = {name: value for name, value in SETTINGS.items() if name != "network.width"}
IMPORT = ["--dataset", "digits", "--width", "4", "--train-images", "200", "--validation", "0.1", "--out", "runs"]


def words(settings: Mapping[str, object]) -> list[str]:
    """Return settings as words of a command line."""
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


def cell(method: str, settings: Mapping[str, object], *more: str) -> list[str]:
    """Return a command that runs one small cell."""
    shared = ["--ipc", "1", "--preset", "smoke", "--device", "cpu", "--no-baseline"]
    return ["run", "--method", method, *shared, *words(settings), *more]


TESLA = cell("tesla", MATCHING)
DIVERGING: dict[str, object] = {"experts.lr": 1e30, "network.width": 8}
ZCA: dict[str, object] = {"data.zca": "true"}
FEWER: dict[str, object] = {"data.train_images": 150}
HALF = cell("tesla", MATCHING | ZCA)
WHOLE = cell("tesla", MATCHING | ZCA, "--seed", "1")
OTHER_FIT = cell("random", SELECTION | ZCA | FEWER)
RANDOM = cell("random", SELECTION)
IMPORTED = cell(
    "tesla", {k: v for k, v in MATCHING.items() if k != "experts.count"}, "--set", "experts.imported=colleague"
)
POINT = [
    "--method",
    "tesla",
    "--dataset",
    "digits",
    "--steps",
    "1",
    "--width",
    "4",
    "--batch-size",
    "5",
    "--device",
    "cpu",
]
MEMORY = ["compare", "memory", *POINT]
TIME = ["compare", "time", *POINT, "--repetitions", "1"]
OWN_NPZ = cell("random", {"convnet.width": 4, "convnet.epochs": 1, "evaluation.networks": 1})


class Scenes:
    """Folders to begin with, by name, each made when it is first asked for.

    Args:
        root: where they are made.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._makers: Mapping[str, Callable[[Path], None]] = {
            "empty": lambda folder: None,
            "done": self._done,
            "half": self._half,
            "tested": self._tested,
            "job": self._job,
            "inputs": self._inputs,
            "trained": self._trained,
            "imported": self._imported,
        }

    def folder(self, name: str) -> Path:
        """Return the scene's own folder, which nobody may change."""
        folder = self._root / name
        if not folder.exists():
            folder.mkdir(parents=True)
            self._makers[name](folder)
        return folder

    def copy(self, name: str, to: Path) -> Path:
        """Return a copy at ``to``, free to be damaged; what was there is removed."""
        shutil.rmtree(to, ignore_errors=True)
        return shutil.copytree(self.folder(name), to, symlinks=True)

    def _done(self, folder: Path) -> None:
        """Two finished cells, one that failed, sheets and comparisons."""
        must(folder, TESLA)
        must(folder, RANDOM)
        run(partial(dcbench, cell("tesla", MATCHING | DIVERGING)), folder, limit_s=60)
        for name, rows in {"memory": fixtures_report.memory(), "time": fixtures_report.time()}.items():
            fixtures_report.write_csv(folder / "runs" / "figures" / f"{name}.csv", rows)
        fixtures_report.write_csv(folder / "runs" / "figures" / "gradient.csv", fixtures_report.gradient())

    def _trained(self, folder: Path) -> None:
        """Experts, and nothing condensed."""
        must(folder, TESLA)
        for part in ("cells", "sheets", "rows"):
            shutil.rmtree(folder / "runs" / part)

    def _half(self, folder: Path) -> None:
        """A cell ended after half of its iterations, and others that are finished."""
        must(folder, WHOLE)
        must(folder, OTHER_FIT)
        must(folder, HALF, _stopped_after(2))

    def _imported(self, folder: Path) -> None:
        """Experts of two other people."""
        _import_experts(folder)

    def _tested(self, folder: Path) -> None:
        """A condensed cell whose evaluation was ended before its last network."""
        shutil.copytree(self.folder("half"), folder, dirs_exist_ok=True)
        must(folder, HALF)
        for record in (folder / "runs" / "cells").glob("tesla-*-seed0-*/evaluations/*/000004.json"):
            content = json.loads(record.read_text())
            content |= {"test": content["test"][:1], "validation": content["validation"][:1]}
            del content["digest"]
            content["digest"] = content_key([record.parent.name, content])
            record.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
            (folder / "runs" / "rows" / f"evaluate-{record.parent.name.partition('-')[2]}.json").unlink()

    def _job(self, folder: Path) -> None:
        """Two jobs of worker processes, whose experts are there."""
        shutil.copytree(self.folder("trained"), folder, dirs_exist_ok=True)
        must(folder, [], _write_jobs)

    def _inputs(self, folder: Path) -> None:
        """Files that users bring, and files of others."""
        _write_inputs(folder)
        shutil.copytree(self.folder("done") / "runs", folder / "made")
        (found,) = (folder / "made" / "cells").glob("tesla-*/distilled.safetensors")
        shutil.copy(found, folder / "set.safetensors")
        for layout in ("tensors", "png", "authors"):
            must(folder, ["export", "set.safetensors", "--format", layout, "--output", f"exported-{layout}"])
        shutil.rmtree(folder / "made")


def must(folder: Path, command: list[str], work: Callable[[], None] | None = None) -> Ran:
    """Run a command that has to succeed."""
    ran = run(work or partial(dcbench, command), folder, limit_s=120)
    if ran.code != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {ran.code}:\n{ran.text}")
    return ran


def _stopped_after(iterations: int) -> Callable[[], None]:
    def work() -> None:
        from dcbench_tesla.cells.loop import CondenseLoop

        save = CondenseLoop._save

        def save_and_end(loop: CondenseLoop, done: int, log: object) -> None:
            save(loop, done, log)  # type: ignore[arg-type]
            if done == iterations:
                os._exit(0)

        CondenseLoop._is_due = lambda loop: True  # type: ignore[method-assign, assignment]
        CondenseLoop._save = save_and_end  # type: ignore[method-assign, assignment]
        dcbench(HALF)

    return work


def _write_jobs() -> None:
    from dcbench_tesla.backends.base import Job
    from dcbench_tesla.cells.session import Session
    from dcbench_tesla.config import parse_set, resolve

    overrides = [parse_set(f"{name}={value}") for name, value in MATCHING.items()]
    for seed in (0, 1):
        config = resolve("tesla", "digits", 1, seed=seed, preset="smoke", overrides=overrides)
        Job(Session(Path("runs"), device="cpu", quiet=True).cell(config)).freeze().write()


def _import_experts(folder: Path) -> None:
    write_buffers(folder)
    for number, name in ((0, "colleague"), (1, "other")):
        must(folder, ["import", "experts", f"replay_buffer_{number}.pt", *IMPORT, "--name", name])


def write_buffers(folder: Path) -> None:
    """Write two files of expert trajectories, as MTT and TESLA do."""
    import torch

    from dcbench_tesla.compute.networks import ConvNet

    for number in range(2):
        torch.manual_seed(number)
        networks = [ConvNet(channels=1, classes=10, side=8, width=4) for _ in range(3)]
        experts = [[[p.detach().clone() for p in n.parameters()] for n in networks] for _ in range(2)]
        torch.save(experts, folder / f"replay_buffer_{number}.pt")


def _write_inputs(folder: Path) -> None:
    import numpy as np
    import torch

    write_buffers(folder)
    for number, name in enumerate(("own", "other")):
        arrays = fixtures_data.npz_arrays(side=16, train_per_class=6 + number)
        np.savez(folder / f"{name}.npz", **arrays)
    fixtures_data.write_image_folder(folder / "pictures", side=16)
    for number, name in enumerate(("best", "old")):
        images = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(number))
        torch.save(images, folder / f"images_{name}.pt")
        torch.save(torch.arange(10), folder / f"labels_{name}.pt")
        torch.save({"data": [[images, torch.arange(10)]], "accs_all_exps": {}}, folder / f"res_DM_{name}.pt")
    lines = ['method = ["tesla"]', 'dataset = "digits"', "ipc = [1]", "seed = [0]", 'preset = "smoke"']
    for section in ("settings", "data", "network", "experts", "convnet", "evaluation"):
        of_it = [
            (n.rpartition(".")[2], v) for n, v in MATCHING.items() if (n.rpartition(".")[0] or "settings") == section
        ]
        lines += [f"[{section}]", *(f"{name} = {value}" for name, value in of_it)]
    (folder / "run.toml").write_text("\n".join([*lines, ""]))
    (folder / "other.toml").write_text('method = ["random"]\ndataset = "digits"\npreset = "smoke"\n')
