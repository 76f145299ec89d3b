"""A session: the cells of one command, with their data sets loaded once, and the results folder."""

import gc
from collections.abc import Iterable
from pathlib import Path

import torch

from dcbench_tesla.cells.cell import Cell
from dcbench_tesla.cells.execution import Execution
from dcbench_tesla.compute.malloc import give_back_freed_memory
from dcbench_tesla.config import BASELINE, CellConfig, baseline_of
from dcbench_tesla.data.dataset import Dataset
from dcbench_tesla.data.settings import DataSettings
from dcbench_tesla.data.splits import Splits
from dcbench_tesla.datasets import PREFIXES, load_dataset
from dcbench_tesla.records.measured import NAME, Measured
from dcbench_tesla.records.progress import say
from dcbench_tesla.records.workspace import DEFAULT_OUT, TrialWorkspace, Workspace


class Session:
    """Makes cells that share their data sets, each loaded once, and the results folder.

    Args:
        out: the results folder.
        data_dir: the folder of the data sets' files; by default ``$DCBENCH_DATA`` or the platform's cache folder.
        device: where to compute: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` ...
        execution: device, threads and compilation as a backend chose them; it replaces ``device``.
        quiet: show no progress.
        keep_times: keep what is measured to estimate times in the results folder; what is there is used in any case.
        trials_of: the results folder that a search for settings is for. Its experts are used, ``out`` is the folder of
            the trials, and data sets have no test images: networks are judged by held-out training images.

    Raises:
        UsageError: there is no such device.
    """

    def __init__(
        self,
        out: Path | str = DEFAULT_OUT,
        *,
        data_dir: Path | None = None,
        device: str = "auto",
        execution: Execution | None = None,
        quiet: bool = False,
        keep_times: bool = False,
        trials_of: Path | None = None,
    ) -> None:
        self.workspace = TrialWorkspace(Path(out), results=trials_of) if trials_of else Workspace(Path(out))
        self.execution = execution or Execution.resolve(device)
        self.quiet = quiet
        self._data_dir = data_dir
        self._times = Measured(self.workspace.home.root / NAME, keep=keep_times)
        self._datasets: dict[str, Dataset] = {}
        self._splits: dict[str, Splits] = {}
        self._told: set[tuple[str, DataSettings]] = set()

    def dataset(self, name: str) -> Dataset:
        """Return the data set ``name``; raises the errors of :func:`dcbench_tesla.load_dataset`."""
        if name not in self._datasets:
            loaded, blind = load_dataset(name, self._data_dir), isinstance(self.workspace, TrialWorkspace)
            self._datasets[name] = loaded.without_test_images() if blind else loaded
        return self._datasets[name]

    def use(self, name: str, dataset: Dataset) -> None:
        """Use a data set under ``name`` that is loaded already."""
        self._datasets[name] = dataset

    def cell(self, config: CellConfig, *, from_scratch: bool = False, report_later: bool = False) -> Cell:
        """Return the cell of a configuration.

        Args:
            config: the configuration.
            from_scratch: whether the cell will start over, whatever an earlier run left.
            report_later: report a damaged record of an earlier run by :meth:`Cell.pending`, so that the damage stops no
                other cell.

        Raises:
            UsageError: the data set does not allow the configuration.
            CorruptFileError: the record of the run to be continued is damaged.
        """
        cell = Cell(
            config,
            self.dataset(config.dataset),
            self.workspace,
            self.execution,
            quiet=self.quiet,
            from_scratch=from_scratch,
            report_later=report_later,
            shared_splits=self._splits,
            data_dir=self._data_dir,
        )
        cell.times = self._times
        return cell

    def tell_decisions(self, cells: Iterable[Cell]) -> None:
        """Say once what is decided for each of the user's own data sets, and which setting decides otherwise."""
        for cell in cells:
            own, what = cell.config.dataset.startswith(PREFIXES), (cell.dataset.fingerprint, cell.config.data)
            if own and not self.quiet and what not in self._told:
                self._told.add(what)
                for line in cell.materials.decided().lines():
                    say(line)

    def release(self) -> None:
        """Let go of preprocessed images and of the memory that PyTorch caches, before other processes compute.

        Images are preprocessed again for a cell that asks for them.
        """
        self._splits.clear()
        gc.collect()  # tensors of estimates that refer to one another
        give_back_freed_memory()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def baselines(self, cells: Iterable[Cell]) -> dict[str, Cell]:
        """Return the cell of ``random`` to compare each cell with, by the cell's key.

        Cells of ``random`` and of methods that do not depend on IPC have none.
        """
        matching = {}
        for cell in cells:
            if cell.config.method != BASELINE and cell.method.uses_ipc:
                matching[cell.key] = self.cell(baseline_of(cell.config), report_later=True)
        return matching
