"""The place of a cell on disk: its folder, its files, and the rows of its finished stages."""

from pathlib import Path

from dcbench_tesla.cells.evaluation import records_name
from dcbench_tesla.cells.identity import CellIdentity
from dcbench_tesla.cells.loop import CHECKPOINT
from dcbench_tesla.errors import UsageError
from dcbench_tesla.records.workspace import Workspace


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
        return self.folder / ".new"

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

        Raises:
            UsageError: the condensation was started with another ``evaluation.every``.
        """
        identity = self._identity
        wanted = {i for name in identity.config.evaluators for i, _ in identity.schedule(name)}
        lacking = {i for i in wanted if i <= done and not self.snapshot(i).exists()}
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

    def half_evaluated(self) -> bool:
        """Return whether an evaluation was started and is not finished."""
        evaluators = self._identity.config.evaluators
        return any(self.records(name).exists() and not self.evaluated(name) for name in evaluators)
