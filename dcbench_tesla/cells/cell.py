"""A cell: one (method, data set, IPC, seed) with all its settings, ready to run.

It combines its identity (:mod:`~dcbench_tesla.cells.identity`), its data, network and experts
(:mod:`~dcbench_tesla.cells.materials`), its files (:mod:`~dcbench_tesla.cells.place`), and the device and threads it
computes with (:mod:`~dcbench_tesla.cells.execution`).
"""

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dcbench_tesla.cells.execution import Execution
from dcbench_tesla.cells.identity import CellIdentity
from dcbench_tesla.cells.materials import Materials
from dcbench_tesla.cells.place import Place
from dcbench_tesla.config import CellConfig
from dcbench_tesla.data.dataset import Dataset
from dcbench_tesla.data.splits import Splits
from dcbench_tesla.distilled import DistilledSet
from dcbench_tesla.interface import Condenser, ExpertSource, Problem
from dcbench_tesla.records.environment import environment
from dcbench_tesla.records.progress import say
from dcbench_tesla.records.store import read_json
from dcbench_tesla.records.workspace import Workspace

EVALUATE = "evaluate by "
"""The name of an evaluation's stage is this prefix and the evaluator's name."""


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
        shared_splits: preprocessed images by key, shared between cells that use the same ones.
        data_dir: folder of the data sets' files, for other processes.

    Raises:
        UsageError: IPC is less than 1, or more than the smallest class has training images; the images are too large
            for ZCA whitening; or the cell was started on a device that is not available.
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
        shared_splits: dict[str, Splits] | None = None,
        data_dir: Path | None = None,
    ) -> None:
        self.dataset, self.workspace, self.quiet, self.data_dir = dataset, workspace, quiet, data_dir
        shared = {} if shared_splits is None else shared_splits
        self.materials = Materials(config, dataset, workspace, shared_splits=shared, quiet=quiet)
        self.identity = CellIdentity(config, dataset, self.materials.experts_read)
        self.place = Place(workspace, self.identity)
        self.execution = execution if from_scratch else self._begun_with(execution)
        self.device = torch.device(self.execution.device)
        settings = self.method.for_device(config.settings, self.device, self.materials.smallest_class)
        self.config = dataclasses.replace(config, settings=settings)
        self.memory_facts: Mapping[str, int] = {}  # columns for its row, once it has been planned for a budget

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
        other.memory_facts = memory_facts
        return other

    def with_compilation(self, compile: str) -> "Cell":
        """Return this cell with compilation ``on`` or ``off``. The key does not change."""
        other = copy.copy(self)
        other.execution = dataclasses.replace(self.execution, compile=compile)
        return other

    def _begun_with(self, wanted: Execution) -> Execution:
        """Return the execution to use: that of an unfinished run, so that it gives the same bytes, else ``wanted``."""
        if not self.place.execution.exists():
            return wanted
        stored = read_json(self.place.execution)
        if self.place.distilled.exists() and not self.place.half_evaluated():  # later evaluations may run elsewhere
            decided = stored.get("compile", "off") if wanted.compile == "auto" else wanted.compile
            return dataclasses.replace(wanted, compile=decided)
        if stored["device"] != wanted.device:
            self.say(f"{self.name} was started on {stored['device']} and continues there (--force starts over)")
            Execution.resolve(stored["device"])
        began_with = {name: stored[name] for name in ("device", "threads", "compile") if name in stored}
        return dataclasses.replace(wanted, **{"compile": "off", **began_with})

    @property
    def environment(self) -> dict[str, Any]:
        """Hardware, versions, commit and backend, as rows record them."""
        return environment(self.execution.device, self.execution.threads, self.execution.backend)

    def say(self, text: str) -> None:
        """Print a line on standard error, unless the cell is quiet."""
        if not self.quiet:
            say(text)

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

    def stand_in_set(self) -> DistilledSet:
        """Return a set of real images of the size that the distilled set has or will have, for measurements."""
        problem = self.problem(None)
        train = problem.train
        indices = problem.draw_real("stand-in") if self.method.uses_ipc else torch.arange(len(train))
        return problem.distilled(train.pixels[indices], train.labels[indices])

    # ---- what is to be done ----------------------------------------------------------------------------------------

    def pending(self) -> list[str]:
        """Return the stages that are not finished: ``experts``, ``condense``, ``evaluate by <name>``."""
        todo = [f"{EVALUATE}{e}" for e in self.config.evaluators if not self.place.evaluated(e)]
        return todo if not todo or self.place.condensed() else self._from_condensation(todo)

    def stages_from_scratch(self) -> list[str]:
        """Return the stages of a run that starts over. Experts that exist are kept."""
        return self._from_condensation([f"{EVALUATE}{e}" for e in self.config.evaluators])

    def _from_condensation(self, evaluations: list[str]) -> list[str]:
        return ["experts"] * (not self.materials.experts_complete) + ["condense", *evaluations]
