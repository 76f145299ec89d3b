"""Where a cell lies: its folder, its files, and the rows of its finished stages."""

from pathlib import Path

from dcbench_tesla.cells.evaluation import records_name
from dcbench_tesla.cells.identity import CellIdentity
from dcbench_tesla.errors import UsageError
from dcbench_tesla.records.workspace import Workspace


class Place:
    """The files of one cell under a results folder."""

    def __init__(self, workspace: Workspace, identity: CellIdentity) -> None:
        self._workspace, self._identity = workspace, identity

    @property
    def folder(self) -> Path:
        """The folder of the cell's tensors, checkpoints and logs."""
        return self._workspace.cells / self._identity.name

    @property
    def execution(self) -> Path:
        """The record of where the cell was begun."""
        return self.folder / "execution.json"

    @property
    def distilled(self) -> Path:
        """The final distilled set."""
        return self.folder / "distilled.safetensors"

    def snapshot(self, iteration: int) -> Path:
        """Return where the distilled set of an iteration lies."""
        if iteration == self._identity.iterations:
            return self.distilled
        return self.folder / "snapshots" / f"{iteration:06d}.safetensors"

    def records(self, evaluator: str) -> Path:
        """Return the folder of an evaluation's records, a file a distilled set."""
        return self.folder / "evaluations" / records_name(evaluator, self._identity.evaluation_key(evaluator))

    def check_snapshots(self, done: int) -> None:
        """Check that the first ``done`` iterations left the snapshots that some evaluator is to test.

        Raises:
            UsageError: the condensation was begun with another ``evaluation.every``.
        """
        identity = self._identity
        wanted = {i for name in identity.config.evaluators for i, _ in identity.schedule(name)}
        lacking = {i for i in wanted if i <= done and not self.snapshot(i).exists()}
        if lacking:
            raise UsageError(
                f"{identity.name} was condensed without a snapshot of iteration {min(lacking)}: choose an "
                "evaluation.every that fits the snapshots it kept, or condense again with --force."
            )

    def condensed(self) -> bool:
        """Whether the distilled set and its row are here, with the snapshots the schedule asks for.

        Raises:
            UsageError: it was condensed with other snapshots.
        """
        if not self.distilled.exists() or self._workspace.row("condense", self._identity.key) is None:
            return False
        self.check_snapshots(self._identity.iterations)
        return True

    def evaluated(self, evaluator: str) -> bool:
        """Whether an evaluation is finished."""
        return self._workspace.row("evaluate", self._identity.evaluation_key(evaluator)) is not None

    def half_evaluated(self) -> bool:
        """Whether an evaluation was begun and is not finished."""
        evaluators = self._identity.config.evaluators
        return any(self.records(name).exists() and not self.evaluated(name) for name in evaluators)
