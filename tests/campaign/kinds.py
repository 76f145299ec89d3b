"""The kinds of files that the program reads: where they lie, which commands read them, and what they may change."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from tests.campaign import operators, scenes
from tests.campaign.judge import changed_fields
from tests.campaign.operators import Operator
from tests.campaign.processes import dcbench, worker

HALF = "runs/cells/tesla-*-seed0-*"
WHOLE = "runs/cells/tesla-*-seed1-*"
EXPERTS = "runs/experts"


@dataclass(frozen=True)
class Kind:
    """A kind of files.

    Args:
        name: what it is called in the table.
        scene: the folder to begin with.
        files: pattern of the files that may be damaged.
        commands: those that read it; each trial runs one of them. ``{cell}`` stands for the cell whose file it is.
        operators: what may be done to it.
        siblings: pattern of files to swap it with; by default ``files``.
        results: pattern of the JSON fields that carry results; changes of others may change results honestly.
        plausible: pattern of the fields in which a number of the right size cannot be told from a true one.
        free: operators whose files are sound, and only other than before.
        named: operators after which a refusal need not name the file.
        work: what to run instead of commands.
    """

    name: str
    scene: str
    files: str
    commands: Sequence[Sequence[str]]
    operators: Mapping[str, Operator]
    siblings: str = ""
    results: str = ".*"
    plausible: str = "(?!)"
    free: frozenset[str] = frozenset()
    unnamed: frozenset[str] = frozenset({"dangling link"})
    work: Callable[[Path], Callable[[], None]] | None = field(default=None, compare=False)

    def only(self, wanted: Sequence[str]) -> "Kind":
        """Return the kind with the operators that are wanted; with all if none is named."""
        return replace(self, operators={n: o for n, o in self.operators.items() if not wanted or n in wanted})

    def choose(self, folder: Path) -> list[Path]:
        """Return the files that may be damaged."""
        return sorted(path for path in folder.glob(self.files) if path.is_file())

    def others(self, folder: Path, path: Path) -> list[Path]:
        """Return the files of the same kind."""
        return sorted(p for p in folder.glob(self.siblings or self.files) if p.is_file() and p != path)

    def command(self, number: int, path: Path) -> list[str]:
        """Return a command that reads ``path``."""
        chosen = self.commands[number % len(self.commands)]
        name = next((p.name for p in path.parents if p.parent.name == "cells"), "")
        return [word.format(cell=name) if "{cell}" in word else word for word in chosen]

    def to_do(self, number: int, path: Path) -> Callable[[], None]:
        """Return the work that reads ``path``."""
        return self.work(path) if self.work else partial(dcbench, self.command(number, path))

    def is_free(self, operator: str, before: bytes, path: Path) -> bool:
        """Return whether the damage may change results honestly."""
        if operator in self.free:
            return True
        if not path.is_file() or path.suffix not in (".json", ".jsonl"):
            return False
        try:
            changes = changed_fields(before.decode(), path.read_bytes().decode())
        except UnicodeDecodeError:
            return False
        if changes is None:
            return False
        return all(not re.fullmatch(self.results, name) or self._is_plausible(name, new) for name, new in changes)

    def _is_plausible(self, name: str, new: object) -> bool:
        is_share = isinstance(new, float) and 0 <= new <= 1
        return bool(re.fullmatch(self.plausible, name)) and is_share


def _job(path: Path) -> Callable[[], None]:
    return partial(worker, f"runs/jobs/{path.name}")


TABLES = (
    ["list", "cells"],
    ["compare", "accuracy"],
    ["list", "cells"],
    ["report"],
    ["merge", "runs", "--out", "merged"],
    ["reproduce", "table2", "--preset", "smoke", "--no-shipped"],
)
RUN_HALF = [scenes.HALF]
IMPORT_SET = ["--dataset", "digits", "--lr", "0.02", "--preprocessing", "standardise", "--output", "new.safetensors"]
SOUND = frozenset({"swapped"})
FIGURES = (["report"], ["merge", "runs", "--out", "merged"])
OF_PICTURES = frozenset({"swapped", "other picture", "dangling link", "link", "endless device"})

KINDS: tuple[Kind, ...] = (
    Kind("row-experts", "done", "runs/rows/experts-*.json", [*TABLES, scenes.TESLA], operators.JSON,
         "runs/rows/*.json", results="stage|key"),
    Kind("row-condense", "done", "runs/rows/condense-*.json", [*TABLES, scenes.TESLA], operators.JSON,
         results=r"stage|key|identity.*"),
    Kind("row-evaluate", "done", "runs/rows/evaluate-*.json", [*TABLES, scenes.TESLA], operators.JSON,
         results=r"stage|key|accuracy\..*|evaluated\..*|diverged_networks", plausible=r"evaluated\.validation"),
    Kind("row-failed", "done", "runs/rows/failed-*.json", [*TABLES, scenes.TESLA], operators.JSON,
         "runs/rows/*.json", results="stage|key"),
    Kind("config", "half", f"{WHOLE}/config.json", [["evaluate", "{cell}"], scenes.WHOLE], operators.JSON,
         "runs/cells/*/config.json", results=r"identity.*|key"),
    Kind("config of a begun cell", "half", f"{HALF}/config.json", RUN_HALF, operators.JSON,
         "runs/cells/*/config.json"),
    Kind("execution", "half", "runs/cells/tesla-*/execution.json", [scenes.HALF, scenes.WHOLE], operators.JSON,
         results=r"(?!)"),
    Kind("environment", "half", "runs/cells/tesla-*/environment.json", [scenes.HALF, ["report"]], operators.JSON),
    Kind("record", "tested", f"{HALF}/evaluations/*/*.json", RUN_HALF, operators.JSON, plausible="test|validation"),
    Kind("checkpoint", "half", f"{HALF}/checkpoint.safetensors", RUN_HALF, operators.TENSORS,
         "runs/cells/*/*.safetensors"),
    Kind("metrics", "half", f"{HALF}/metrics.jsonl", RUN_HALF, operators.JSON, "runs/cells/*/metrics.jsonl"),
    Kind("expert", "half", f"{EXPERTS}/*/*/*.safetensors", RUN_HALF, operators.TENSORS),
    Kind("imported expert", "imported", f"{EXPERTS}/*/*/*.safetensors", [scenes.IMPORTED], operators.TENSORS),
    Kind("recipe", "half", f"{EXPERTS}/*/recipe.json", RUN_HALF, operators.JSON,
         "runs/cells/*/config.json"),
    Kind("imported index", "imported", f"{EXPERTS}/*/imported.json", [scenes.IMPORTED], operators.JSON),
    Kind("preprocessing fit", "half", "runs/preprocessing/fit-*.json", RUN_HALF, operators.JSON),
    Kind("whitening", "half", "runs/preprocessing/*.safetensors", [scenes.HALF, scenes.OTHER_FIT],
         operators.TENSORS),
    Kind("distilled set", "tested", f"{HALF}/distilled.safetensors",
         [scenes.HALF, ["evaluate", "{cell}"], ["export", "runs/cells/{cell}", "--format", "png", "--output", "out"]],
         operators.TENSORS, "runs/cells/*/distilled.safetensors"),
    Kind("distilled set, a file", "inputs", "set.safetensors",
         [["evaluate", "set.safetensors", "--preset", "smoke", "--set", "convnet.epochs=1", "--set", "convnet.width=4",
           "--set", "evaluation.networks=1"]], operators.TENSORS, "exported-tensors/*.safetensors"),
    Kind("snapshot", "tested", f"{HALF}/snapshots/*.safetensors", RUN_HALF, operators.TENSORS,
         "runs/cells/*/*.safetensors"),
    Kind("job", "job", "runs/jobs/*.json", [["worker"]], operators.JSON, results=r"(?!)", work=_job),
    Kind("memory.csv", "done", "runs/figures/memory.csv", [*FIGURES, scenes.MEMORY], operators.CSV,
         "runs/figures/*.csv"),
    Kind("time.csv", "done", "runs/figures/time.csv", [*FIGURES, scenes.TIME], operators.CSV, "runs/figures/*.csv"),
    Kind("gradient.csv", "done", "runs/figures/gradient.csv", FIGURES, operators.CSV, "runs/figures/*.csv"),
    Kind("sheet", "done", "runs/sheets/*.png", [["report"], ["merge", "runs", "--out", "merged"]],
         operators.PICTURE),
    Kind("own npz", "inputs", "own.npz", [[*scenes.OWN_NPZ, "--dataset", "npz:own.npz"]], operators.NPZ, "other.npz",
         free=SOUND),
    Kind("own pictures", "inputs", "pictures/*/*/*.png", [[*scenes.OWN_NPZ, "--dataset", "folder:pictures"]],
         operators.PICTURE, free=OF_PICTURES),
    Kind("configuration", "inputs", "run.toml", [["run", "--config", "run.toml", "--dry-run"]], operators.TOML,
         "other.toml", free=frozenset(operators.TOML)),
    Kind("images of others", "inputs", "images_best.pt", [["import", "set", "images_best.pt", *IMPORT_SET]],
         operators.TORCH, "*.pt", free=SOUND),
    Kind("labels of others", "inputs", "labels_best.pt", [["import", "set", "images_best.pt", *IMPORT_SET]],
         operators.TORCH, "*.pt", free=SOUND),
    Kind("sets of DC", "inputs", "res_DM_best.pt",
         [["import", "set", "res_DM_best.pt", "--dataset", "digits", "--no-lr", *IMPORT_SET[4:]]],
         operators.TORCH, "*.pt", free=SOUND),
    Kind("experts of others", "inputs", "replay_buffer_0.pt",
         [["import", "experts", "replay_buffer_0.pt", *scenes.IMPORT]], operators.TORCH, "*.pt", free=SOUND),
    Kind("export", "inputs", "exported-tensors/*.*",
         [["import", "set", "exported-tensors", "--output", "new.safetensors"]], operators.ANY, "exported-png/*.*"),
    Kind("export for others", "inputs", "exported-authors/*.*",
         [["import", "set", "exported-authors", "--output", "new.safetensors"]], operators.ANY),
)  # fmt: skip
