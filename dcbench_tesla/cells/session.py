"""The cells of one command: their data sets, each loaded once, and where their results go."""

import gc
from collections.abc import Iterable
from pathlib import Path

import torch

from dcbench_tesla.cells.cell import Cell
from dcbench_tesla.cells.execution import Execution
from dcbench_tesla.compute.malloc import give_back_freed_memory
from dcbench_tesla.config import BASELINE, CellConfig, baseline_of
from dcbench_tesla.data.dataset import Dataset
from dcbench_tesla.data.splits import Splits
from dcbench_tesla.datasets import load_dataset
from dcbench_tesla.records.workspace import DEFAULT_OUT, Workspace


class Session:
    """The data sets of several cells, each loaded once, and where their results go.

    ``execution``: where to compute, as a backend decided it; without it ``device``, in this process.
    """

    def __init__(
        self,
        out: Path | str = DEFAULT_OUT,
        *,
        data_dir: Path | None = None,
        device: str = "auto",
        execution: Execution | None = None,
        quiet: bool = False,
    ) -> None:
        self.workspace = Workspace(Path(out))
        self.execution = execution or Execution.resolve(device)
        self.quiet = quiet
        self._data_dir = data_dir
        self._datasets: dict[str, Dataset] = {}
        self._splits: dict[str, Splits] = {}

    def dataset(self, name: str) -> Dataset:
        """Return the data set ``name``; raises as :func:`dcbench_tesla.datasets.load_dataset`."""
        if name not in self._datasets:
            self._datasets[name] = load_dataset(name, self._data_dir)
        return self._datasets[name]

    def cell(self, config: CellConfig, *, from_scratch: bool = False) -> Cell:
        """Return the cell of a configuration, checked against its data; ``from_scratch``: it will not be resumed."""
        return Cell(
            config,
            self.dataset(config.dataset),
            self.workspace,
            self.execution,
            quiet=self.quiet,
            from_scratch=from_scratch,
            shared_splits=self._splits,
            data_dir=self._data_dir,
        )

    def release(self) -> None:
        """Give back prepared images, and the memory that PyTorch keeps: other processes are going to compute.

        Images are prepared again for a cell that asks for them.
        """
        self._splits.clear()
        gc.collect()  # tensors of estimates, where they refer to one another
        give_back_freed_memory()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def baselines(self, cells: Iterable[Cell]) -> dict[str, Cell]:
        """Return the matching ``random`` cell of every cell that is not one, by the cell's key."""
        matching = {}
        for cell in cells:
            if cell.config.method != BASELINE and cell.method.uses_ipc:
                matching[cell.key] = self.cell(baseline_of(cell.config))
        return matching
