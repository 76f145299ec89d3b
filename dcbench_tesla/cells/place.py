"""The place of a cell on disk: its folder, its files, and the rows of its finished stages.

A cell that starts over does not lose its result: the new run works in a folder of its own until it is finished. The
folder is ``.new`` in the cell's folder, with the new rows and the new sheet in it. When the run is finished, a file
there lists what takes the place of what is in the cell's folder. From then on the exchange can be repeated: if the
process is killed in the middle, the next one that opens the cell completes it.
"""

import dataclasses
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcbench_tesla.cells.evaluation import OTHER_LABELS, is_hard, records_name
from dcbench_tesla.cells.identity import CellIdentity
from dcbench_tesla.cells.loop import CHECKPOINT
from dcbench_tesla.config import TEACHER_LABELS
from dcbench_tesla.distilled import DistilledSet
from dcbench_tesla.errors import CorruptFileError, UsageError
from dcbench_tesla.records.store import locked, read_json, write_json, writing
from dcbench_tesla.records.workspace import Workspace

LOCK = ".lock"
KEPT_RESULT = "the result that was there before stays"
_STAGING, _FINISHED = ".new", "finished.json"
_ROWS, _SHEETS = "rows", "sheets"


class Place:
    """The files of one cell under a results folder."""

    def __init__(self, workspace: Workspace, identity: CellIdentity, folder: Path | None = None) -> None:
        self._workspace, self._identity = workspace, identity
        self._folder = folder or workspace.cells / identity.name

    def at(self, folder: Path, workspace: Workspace) -> "Place":
        """Return the place of the same cell in another folder, with its rows in another workspace."""
        return Place(workspace, self._identity, folder)

    @property
    def folder(self) -> Path:
        """The folder with the cell's tensors, checkpoints and logs."""
        return self._folder

    @property
    def staging(self) -> Path:
        """The folder of a run that starts the cell over, until it is finished."""
        return self.folder / _STAGING

    @property
    def kept(self) -> str:
        """What stays if the run fails, for messages: the checkpoint, or the result that the run would replace."""
        return KEPT_RESULT if self.folder.name == _STAGING else "everything up to the last checkpoint is kept"

    @property
    def checkpoint(self) -> Path:
        """The checkpoint of the condensation."""
        return self.folder / CHECKPOINT

    @property
    def execution(self) -> Path:
        """The record of the device, threads and compilation that the cell was started with."""
        return self.folder / "execution.json"

    @property
    def distilled(self) -> Path:
        """The file of the final distilled set."""
        return self.folder / "distilled.safetensors"

    def snapshot(self, iteration: int) -> Path:
        """Return the file of the distilled set after ``iteration`` iterations."""
        if iteration == self._identity.iterations:
            return self.distilled
        return self.folder / "snapshots" / f"{iteration:06d}.safetensors"

    def records(self, evaluator: str) -> Path:
        """Return the folder of an evaluation's records, with one file per distilled set."""
        return self.folder / "evaluations" / records_name(evaluator, self._identity.evaluation_key(evaluator))

    def check_snapshots(self, done: int) -> None:
        """Check that the first ``done`` iterations left all snapshots that an evaluator will test.

        An evaluation on record tests nothing more, nor does one whose row is that of the same labels.

        Raises:
            UsageError: the condensation was started with another ``evaluation.every``.
        """
        identity = self._identity
        lacking: set[int] = set()
        for name in identity.config.evaluators:
            own = {i for i, _ in identity.schedule(name) if i <= done and not self.snapshot(i).exists()}
            if own and not self.evaluated(name) and self.twin(name) is None:
                lacking |= own
        if lacking:
            raise UsageError(
                f"{identity.name} was condensed without a snapshot of iteration {min(lacking)}: choose an "
                "evaluation.every that fits the snapshots it kept, or condense again with --force."
            )

    def has_result(self) -> bool:
        """Return whether there is a distilled set or a row, which a run that starts over must not lose."""
        identity, rows = self._identity, self._workspace.rows
        names = [f"evaluate-{identity.evaluation_key(name)}" for name in identity.config.evaluators]
        found = [(rows / f"{name}.json").exists() for name in (f"condense-{identity.key}", *names)]
        return self.distilled.exists() or any(found)

    def condensed(self) -> bool:
        """Return whether the distilled set and its row exist.

        Raises:
            UsageError: they exist, but a snapshot that an evaluator will test does not.
        """
        if not self.distilled.exists() or self._workspace.row("condense", self._identity.key) is None:
            return False
        self.check_snapshots(self._identity.iterations)
        return True

    def evaluated(self, evaluator: str) -> bool:
        """Return whether an evaluation is finished."""
        return self._workspace.row("evaluate", self._identity.evaluation_key(evaluator)) is not None

    def twin(self, evaluator: str) -> dict[str, Any] | None:
        """Return the row of an evaluation with the same labels under another regime, if there is one.

        Where the labels of a cell's sets are classes, the regimes ``set`` and ``hard`` are the same.

        Raises:
            CorruptFileError: the row, or the file of a set, is damaged.
        """
        identity = self._identity
        regime = identity.config.evaluation.labels
        if regime == TEACHER_LABELS or not self.distilled.exists():
            return None
        evaluation = dataclasses.replace(identity.config.evaluation, labels=OTHER_LABELS[regime])
        other = CellIdentity(
            dataclasses.replace(identity.config, evaluation=evaluation), identity.data, identity.experts
        )
        row = self._workspace.row("evaluate", other.evaluation_key(evaluator))
        if row is None:
            return None
        kept = [path for i, _ in identity.schedule(evaluator) if (path := self.snapshot(i)).exists()]
        return row if all(is_hard(DistilledSet.load(path)) for path in kept) else None

    def half_evaluated(self) -> bool:
        """Return whether an evaluation was started and is not finished."""
        evaluators = self._identity.config.evaluators
        return any(self.records(name).exists() and not self.evaluated(name) for name in evaluators)


@dataclass(frozen=True)
class StagedWorkspace(Workspace):
    """A results folder whose rows and sheets of one cell lie in ``staging``; everything else is shared."""

    staging: Path = Path()

    @property
    def rows(self) -> Path:
        """The rows of the new run."""
        return self.staging / _ROWS

    @property
    def sheets(self) -> Path:
        """The sheet of the new run."""
        return self.staging / _SHEETS

    def row(self, stage: str, key: str) -> dict[str, Any] | None:
        """Return a row of the new run; experts are shared by all cells, and so are their rows."""
        return self.home.row(stage, key) if stage == "experts" else super().row(stage, key)

    def write_row(self, stage: str, key: str, content: Any) -> None:
        """Write a row of the new run, or the row of experts that all cells share."""
        if stage == "experts":
            self.home.write_row(stage, key, content)
        else:
            super().write_row(stage, key, content)


def staged(place: Place, workspace: Workspace) -> tuple[Place, StagedWorkspace]:
    """Return the place and the workspace of a run that starts the cell at ``place`` over."""
    there = StagedWorkspace(workspace.root, staging=place.staging)
    return place.at(place.staging, there), there


@contextmanager
def alone(place: Place, name: str, tell: Callable[[str], None]) -> Iterator[None]:
    """Hold a cell's lock: a second process that wants the same cell waits, and then finds it finished.

    Raises:
        DcbenchError: the cell's folder cannot be written.
    """
    with locked(place.folder / LOCK, lambda: tell(f"another process is at work on {name}; waiting for it")):
        yield


def complete_exchange(place: Place, workspace: Workspace, name: str, tell: Callable[[str], None]) -> None:
    """Complete an exchange that a killed process began, if there is one; nothing is written otherwise."""
    if exchange_began(place):
        with alone(place, name, tell):
            _exchange(place, workspace)


def settle(place: Place, workspace: Workspace) -> None:
    """Complete a begun exchange, or remove what an interrupted run left. The cell's lock must be held."""
    _exchange(place, workspace)
    discard(place)


def exchange_began(place: Place) -> bool:
    """Return whether a new run is finished and takes the place of the old result."""
    return (place.staging / _FINISHED).exists()


def discard(place: Place) -> None:
    """Remove what a run that starts over has made so far."""
    with writing(place.staging):
        _remove(place.staging)


def take_over(place: Place, workspace: Workspace) -> None:
    """Put the finished new run in the place of the cell's old result. The cell's lock must be held.

    Raises:
        DcbenchError: a folder cannot be written; the next process that opens the cell completes the exchange.
    """
    entries = sorted(path.name for path in place.staging.iterdir() if path.name not in (_ROWS, _SHEETS))
    write_json(place.staging / _FINISHED, {"entries": entries})
    _exchange(place, workspace)


def _exchange(place: Place, workspace: Workspace) -> None:
    staging, marker = place.staging, place.staging / _FINISHED
    if not marker.exists():
        return
    with writing(place.folder):
        for path in sorted(staging.iterdir()):
            if path.name not in (_ROWS, _SHEETS, _FINISHED):
                _move(path, place.folder / path.name)
        listed = _listed(marker)
        for path in place.folder.iterdir() if listed else ():
            if path.name not in {*listed, LOCK, staging.name}:
                _remove(path)
    for source, target in ((staging / _SHEETS, workspace.sheets), (staging / _ROWS, workspace.rows)):
        with writing(target):
            target.mkdir(parents=True, exist_ok=True)
            for path in sorted(source.glob("*")):
                _move(path, target / path.name)
    discard(place)


def _listed(marker: Path) -> Collection[str]:
    """Return the names of all files and folders of the new run; none if the list was damaged, so that nothing goes."""
    try:
        return set(read_json(marker, "finished")["entries"])
    except CorruptFileError:
        return ()


def _move(source: Path, target: Path) -> None:
    """Move a file or folder to the place of another."""
    if target.is_dir() or source.is_dir():
        _remove(target)
    source.replace(target)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
