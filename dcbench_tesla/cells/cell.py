"""A cell: one (method, data set, IPC, seed) with all its settings, ready to run.

It combines its identity (:mod:`~dcbench_tesla.cells.identity`), its data, network and experts
(:mod:`~dcbench_tesla.cells.materials`), its files (:mod:`~dcbench_tesla.cells.place`), and the device and threads it
computes with (:mod:`~dcbench_tesla.cells.execution`).
"""

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from dcbench_tesla.cells.execution import Begun, Execution
from dcbench_tesla.cells.identity import CellIdentity, execution_settings
from dcbench_tesla.cells.materials import Materials
from dcbench_tesla.cells.place import Place, complete_exchange, staged
from dcbench_tesla.compute.networks import has_batch_norm, largest_activation
from dcbench_tesla.config import CellConfig
from dcbench_tesla.data.dataset import Dataset
from dcbench_tesla.data.splits import Splits
from dcbench_tesla.distilled import DistilledSet
from dcbench_tesla.errors import CorruptFileError, UsageError
from dcbench_tesla.interface import Condenser, ExpertSource, Problem, Sizes
from dcbench_tesla.records.environment import environment
from dcbench_tesla.records.measured import Measured
from dcbench_tesla.records.progress import say
from dcbench_tesla.records.workspace import Workspace

EVALUATE = "evaluate by "
"""The name of an evaluation's stage is this prefix and the evaluator's name."""

TEACHER = "teacher"
"""The stage that trains the teacher whose labels the evaluations use."""


class Cell:
    """One cell of a benchmark with its data and its folders; :func:`dcbench_tesla.cells.stages.run_cell` runs it.

    Args:
        config: the cell's configuration.
        dataset: its data set.
        workspace: the results folder.
        execution: device, threads and compilation. A cell that was started before keeps those it was started with,
            unless ``from_scratch`` is true.
        quiet: print nothing.
        from_scratch: the run starts over.
        report_later: raise an error about the record of an earlier run in :meth:`pending`, and not here.
        shared_splits: preprocessed images by key, shared between cells that use the same ones.
        data_dir: folder of the data sets' files, for other processes.

    Raises:
        UsageError: IPC is less than 1, or more than the smallest class has training images; the images are too large
            for ZCA whitening; or the cell was started on a device that is not available.
        CorruptFileError: the record of the run to be continued is damaged.
    """

    def __init__(
        self,
        config: CellConfig,
        dataset: Dataset,
        workspace: Workspace,
        execution: Execution,
        *,
        quiet: bool = False,
        from_scratch: bool = False,
        report_later: bool = False,
        shared_splits: dict[str, Splits] | None = None,
        data_dir: Path | None = None,
    ) -> None:
        self.dataset, self.workspace, self.quiet, self.data_dir = dataset, workspace, quiet, data_dir
        shared = {} if shared_splits is None else shared_splits
        self.materials = Materials(config, dataset, workspace, shared_splits=shared, quiet=quiet)
        self.identity = CellIdentity(config, dataset, self.materials.experts_read, self.materials.teacher_key)
        self.place = Place(workspace, self.identity)
        self.times = Measured()  # of steps, for estimates
        self.memory_facts: Mapping[str, int] = {}  # columns for its row, once it has been planned for a budget
        self.taken_up: Mapping[str, Any] = {}  # the execution settings of the run that is continued
        self._asked, self._from_scratch, self._given = execution, from_scratch, config
        self._planned: Mapping[str, Any] = {}
        self._unreadable: CorruptFileError | None = None
        self._said: set[str] = set()
        self._compute_with(execution)
        complete_exchange(self.place, workspace, self.name, self.say)
        try:
            self._continue()
        except CorruptFileError as error:
            if not report_later:
                raise
            self._unreadable = error

    def _compute_with(self, execution: Execution) -> None:
        self.execution, self.device = execution, torch.device(execution.device)
        given, dataset, skeleton = self._given, self.dataset, self.materials.network_skeleton
        sizes = Sizes(
            smallest_class=self.materials.smallest_class,
            images=given.ipc * dataset.classes,
            activation=largest_activation(skeleton, dataset.channels, dataset.side),
            coupled=has_batch_norm(skeleton),
        )
        settings = self.method.for_device(given.settings, self.device, sizes)
        self.config = dataclasses.replace(self._given, settings=dataclasses.replace(settings, **self._planned))

    @property
    def method(self) -> type[Condenser]:
        """The method's class."""
        return self.identity.method

    @property
    def key(self) -> str:
        """The key of the condensation."""
        return self.identity.key

    @property
    def name(self) -> str:
        """The name of the cell's folder."""
        return self.identity.name

    # ---- how it computes -------------------------------------------------------------------------------------------

    def planned(self, changes: Mapping[str, Any], memory_facts: Mapping[str, int]) -> "Cell":
        """Return this cell with other execution settings of its method. Its results and its key do not change.

        Args:
            changes: execution settings of the method, by name.
            memory_facts: columns about memory for the row of the condensation.
        """
        other = copy.copy(self)
        other.config = dataclasses.replace(self.config, settings=dataclasses.replace(self.config.settings, **changes))
        other.memory_facts, other._planned = memory_facts, {**self._planned, **changes}
        return other

    def with_compilation(self, compile: str) -> "Cell":
        """Return this cell with compilation ``on`` or ``off``. The key does not change."""
        other = copy.copy(self)
        other.execution = dataclasses.replace(self.execution, compile=compile)
        return other

    def as_begun(self) -> "Cell":
        """Return this cell as the run that it continues computes; to be called when the cell's lock is held.

        Another process may have started or continued the cell since this object was made.

        Raises:
            CorruptFileError: the record of that run is damaged.
            UsageError: the device of that run is not available.
        """
        other = copy.copy(self)
        other._compute_with(self._asked)
        other._continue()
        return other

    def staged(self) -> "Cell":
        """Return this cell in a folder of its own, where a run that starts over works until it is finished."""
        other = copy.copy(self)
        other.place, other.workspace = staged(self.place, self.workspace)
        return other

    def _continue(self) -> None:
        """Compute as the run that is continued, if there is one."""
        begun = None if self._from_scratch else self._begun()
        if begun is None:
            return
        self._compute_with(self._joined(self._asked, begun))
        if not self.place.checkpoint.exists() or self.workspace.row("condense", self.key) is not None:
            return
        now = execution_settings(self.config.settings)
        self.taken_up = {name: value for name, value in begun.settings.items() if name in now}
        self.config = dataclasses.replace(self.config, settings=self._replaced(self.taken_up))
        if others := ", ".join(f"{name}={value}" for name, value in self.taken_up.items() if value != now[name]):
            self._say_once(f"{self.name} was started with {others} and continues with it (--force starts over)")
        self.memory_facts = self.memory_facts or begun.memory_facts

    def _replaced(self, kept: Mapping[str, Any]) -> Any:
        now = self.config.settings
        try:
            if any(type(value) is not type(getattr(now, name)) for name, value in kept.items()):
                raise UsageError(f"settings of another kind ({kept})")
            return dataclasses.replace(now, **kept)
        except UsageError as error:
            path = self.place.execution
            raise CorruptFileError(f"{path} is damaged: {error}. Delete it, or start over with --force.") from error

    def _begun(self) -> Begun | None:
        """Return how the run that is continued computes; ``None`` if none was started, or what it left is not known."""
        if not self.place.execution.exists():
            return None
        try:
            return Begun.read(self.place.execution)
        except CorruptFileError:
            if self._condensation_is_over():
                return None  # nothing of it is needed
            raise

    def _condensation_is_over(self) -> bool:
        """Return whether only whole evaluations are left, if anything; they may run elsewhere than the rest did."""
        evaluated = all(self.place.evaluated(name) for name in self.config.evaluators)
        return evaluated or (self.place.distilled.exists() and not self.place.half_evaluated())

    def _joined(self, wanted: Execution, begun: Begun) -> Execution:
        """Return the execution to use: that of an unfinished run, so that it gives the same bytes, else ``wanted``."""
        if self._condensation_is_over():
            return dataclasses.replace(wanted, compile=begun.compile if wanted.compile == "auto" else wanted.compile)
        if begun.device != wanted.device:
            self._say_once(f"{self.name} was started on {begun.device} and continues there (--force starts over)")
            Execution.resolve(begun.device)
        return dataclasses.replace(wanted, device=begun.device, threads=begun.threads, compile=begun.compile)

    @property
    def environment(self) -> dict[str, Any]:
        """Hardware, versions, commit and backend, as rows record them."""
        return environment(self.execution.device, self.execution.threads, self.execution.backend)

    def say(self, text: str) -> None:
        """Print a line on standard error, unless the cell is quiet."""
        if not self.quiet:
            say(text)

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self.say(text)

    # ---- what it computes with -------------------------------------------------------------------------------------

    @property
    def splits(self) -> Splits:
        """Training, validation and test images on the cell's device."""
        return self.materials.splits(self.device)

    def problem(self, experts: ExpertSource | None) -> Problem:
        """Return the problem that the condenser is given."""
        return Problem(
            task=self.materials.task,
            train=self.splits.train,
            ipc=self.config.ipc,
            seed=self.config.seed,
            device=self.device,
            build_network=self.materials.build_network,
            experts=experts,
            compile=self.execution.compile == "on",
        )

    def distilled_set(self, iteration: int) -> DistilledSet:
        """Read the set that the cell's condensation had made after ``iteration`` iterations.

        Raises:
            CorruptFileError: the file is damaged, or holds the set of another cell or iteration.
        """
        path = self.place.snapshot(iteration)
        found = DistilledSet.load(path)
        told = found.provenance
        if (told.get("key"), told.get("iteration")) != (self.key, iteration):
            raise CorruptFileError(
                f"{path} holds another set: iteration {told.get('iteration')} of {told.get('method')} (key "
                f"{told.get('key')}). The same command with --force makes the right one again."
            )
        # a set that was made before its method named a recipe has none in its file
        return dataclasses.replace(found, evaluation_recipe=self.method.evaluation_recipe)

    def stand_in_set(self) -> DistilledSet:
        """Return a set of real images of the size that the distilled set has or will have, for measurements."""
        problem = self.problem(None)
        train = problem.train
        indices = problem.draw_real("stand-in") if self.method.uses_ipc else torch.arange(len(train))
        real = problem.distilled(train.pixels[indices], train.labels[indices])
        named = dataclasses.replace(real, evaluation_recipe=self.method.evaluation_recipe)
        return self.method.stand_in(self.config.settings, named)

    # ---- what is to be done ----------------------------------------------------------------------------------------

    def pending(self) -> list[str]:
        """Return the stages that are not finished: ``experts``, ``condense``, ``teacher``, ``evaluate by <name>``.

        Raises:
            CorruptFileError: a row, or the record of the run to be continued, is damaged.
        """
        if self._unreadable is not None:
            raise self._unreadable
        todo = self.evaluations([e for e in self.config.evaluators if not self.place.evaluated(e)])
        return todo if not todo or self.place.condensed() else self._from_condensation(todo)

    def stages_from_scratch(self) -> list[str]:
        """Return the stages of a run that starts over. Experts that exist are kept."""
        return self._from_condensation(self.evaluations(self.config.evaluators))

    def evaluations(self, evaluators: Iterable[str]) -> list[str]:
        """Return the stages that evaluate by ``evaluators``, after that of the teacher if it is not trained yet."""
        todo = [f"{EVALUATE}{e}" for e in evaluators]
        return [TEACHER, *todo] if todo and not self.materials.teacher_complete else todo

    def _from_condensation(self, evaluations: list[str]) -> list[str]:
        return ["experts"] * (not self.materials.experts_complete) + ["condense", *evaluations]
