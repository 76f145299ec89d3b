"""Cells from Python: one by :func:`run`, many by :func:`sweep`; what ``dcbench run`` does."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

import torch

from dcbench_tesla import registry
from dcbench_tesla.api import arguments
from dcbench_tesla.api.evaluations import own_accuracies
from dcbench_tesla.api.networks import RECIPE, Factory, evaluator_of, told_apart
from dcbench_tesla.cells.budget import fitted, parse_size
from dcbench_tesla.cells.execution import COMPILE, Execution
from dcbench_tesla.cells.result import CellResult
from dcbench_tesla.cells.session import Session
from dcbench_tesla.cells.stages import run_cell
from dcbench_tesla.compute.state import plain_torch
from dcbench_tesla.config import CellConfig, Override, resolve_all
from dcbench_tesla.data.dataset import Dataset
from dcbench_tesla.datasets import check_dataset_name, dataset_name, kept, load_dataset
from dcbench_tesla.errors import explained, unknown_name
from dcbench_tesla.profilers.memory import PredictedMeter
from dcbench_tesla.records.live import check_logs
from dcbench_tesla.records.progress import say
from dcbench_tesla.records.workspace import DEFAULT_OUT

if TYPE_CHECKING:
    import pandas as pd

Evaluators = str | Factory | Sequence[str | Factory] | Mapping[str, Factory]


@plain_torch()
def run(
    method: str,
    dataset: Any = "digits",
    ipc: SupportsIndex = 1,
    *,
    seed: SupportsIndex = 0,
    preset: str = "paper",
    evaluators: Evaluators = ("convnet",),
    settings: Mapping[str, Any] | None = None,
    out: Path | str = DEFAULT_OUT,
    data_dir: Path | str | None = None,
    device: str | torch.device = "auto",
    memory_budget: str | int | None = None,
    log: str | Sequence[str] = (),
    compile: str = "auto",
    force: bool = False,
    quiet: bool = False,
) -> CellResult:
    """Train experts where the method needs them, condense, evaluate, and return the result.

    What was done before, by Python or by the command, is not done again. ``dcbench run`` does the same for each of its
    cells and adds the baseline ``random``. PyTorch's number of threads and its flags for TF32 are set for the process.
    Its other state (gradients switched off, autocast, another default dtype or device) changes no result, and is what
    it was afterwards.

    Args:
        method: a registered method (``dcbench list methods``).
        dataset: a registered data set (``dcbench list datasets``), ``npz:PATH`` or ``folder:PATH``; the path of a
            ``.npz`` file or of a folder; or arrays, two data sets of PyTorch or a loaded data set, as
            :func:`dcbench_tesla.load_dataset` takes them. What is in memory is written to ``OUT/datasets``, so that
            the cell can be continued and evaluated later.
        ipc: images per class; any kind of integer, NumPy's too.
        seed: the cell's seed; the same seed gives the same bytes on the same CPU with the same number of threads.
        preset: ``paper``, ``quick`` or ``smoke``.
        evaluators: the networks to train on the distilled set: names (``dcbench list evaluators``), callables that
            return a fresh ``torch.nn.Module`` as :func:`dcbench_tesla.evaluate` takes them, several of both, or a
            mapping from names to callables. Networks of callables are trained anew by every call, by the recipe of
            ``convnet``, and leave no row: without a version nobody could say whether an old result is still theirs.
        settings: what differs from the preset, ``{"steps": 20, "network.width": 64}``.
        out: the folder of the results.
        data_dir: where data sets lie; default ``$DCBENCH_DATA`` or the platform's cache folder.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` ...
        memory_budget: bytes, or a size such as ``"40GiB"``. A cell that is predicted to need more is not begun; where
            less is needed, as many step graphs are kept as fit (``keep_graphs``), which saves time.
        log: ``tensorboard``, ``wandb`` or both: where the metrics of every iteration go besides ``metrics.jsonl``.
        compile: whether matching steps and the training of experts and ConvNets are compiled: ``on``, ``off``, or
            ``auto``, which compiles where the run is long enough to gain by it.
        force: start over, even if the cell is done.
        quiet: show no progress, and not what is decided for own data.

    Returns:
        The cell's result, with ``accuracy()``, the set ``distilled``, its ``folder``, its ``rows``, ``to_frame()`` and
        ``show()``.

    Raises:
        UsageError: it cannot be done as asked, or not within the memory budget; the message says what can.
        CorruptFileError: the data is not as described; the message says how it can be converted.
        DcbenchError: it failed on the way; called again, it goes on where it was.
    """
    harness = _Harness(
        evaluators, settings, out, data_dir, device, log=log, compile=compile, quiet=quiet, budget=memory_budget
    )
    (config,) = harness.configurations(
        [arguments.text("method", method)],
        [dataset],
        [arguments.whole_number("ipc", ipc, least=1, several="dcbench.sweep")],
        [arguments.whole_number("seed", seed, least=0, several="dcbench.sweep")],
        preset,
    )
    return harness.run(config, force=force)


@plain_torch()
def sweep(
    method: str | Iterable[str],
    dataset: Any = "digits",
    ipc: SupportsIndex | Iterable[SupportsIndex] = 1,
    *,
    seed: SupportsIndex | Iterable[SupportsIndex] = 0,
    preset: str = "paper",
    evaluators: Evaluators = ("convnet",),
    settings: Mapping[str, Any] | None = None,
    out: Path | str = DEFAULT_OUT,
    data_dir: Path | str | None = None,
    device: str | torch.device = "auto",
    memory_budget: str | int | None = None,
    compile: str = "auto",
    force: bool = False,
    quiet: bool = False,
) -> "pd.DataFrame":
    """Run the cell of every combination of methods, data sets, IPCs and seeds; return a table of pandas.

    A cell that fails stops no other one. What was done before is not done again, so that an interrupted sweep goes on.

    Args:
        method: one method or several. Where there are several, each takes those settings that have an effect on it.
        dataset: one data set as :func:`run` takes it, or a list of several; a tuple is one data set.
        ipc: images per class, one number or several.
        seed: one seed or several.
        preset: as for :func:`run`, like all further arguments.
        evaluators: see :func:`run`.
        settings: see :func:`run`.
        out: see :func:`run`.
        data_dir: see :func:`run`.
        device: see :func:`run`.
        memory_budget: see :func:`run`.
        compile: see :func:`run`.
        force: see :func:`run`.
        quiet: see :func:`run`.

    Returns:
        A row an evaluator of every cell, with the columns of :meth:`CellResult.to_frame` and ``error``, which says why
        a cell failed. Accuracies are fractions.

    Raises:
        UsageError: an argument is wrong, before anything is run.
    """
    harness = _Harness(evaluators, settings, out, data_dir, device, compile=compile, quiet=quiet, budget=memory_budget)
    numbers = {
        name: [arguments.whole_number(name, value, least=least) for value in arguments.one_or_several(values)]
        for name, values, least in (("ipc", ipc, 1), ("seed", seed, 0))
    }
    datasets = list(dataset) if isinstance(dataset, list) else [dataset]
    configs = harness.configurations(
        arguments.texts("method", method), datasets, numbers["ipc"], numbers["seed"], preset
    )
    return harness.table(configs, force=force)


class _Harness:
    """What the cells of a call share: the session, the evaluators, and how results are computed."""

    def __init__(
        self,
        evaluators: Evaluators,
        settings: Mapping[str, Any] | None,
        out: Path | str,
        data_dir: Path | str | None,
        device: str | torch.device,
        *,
        log: str | Sequence[str] = (),
        compile: str = "auto",
        quiet: bool = False,
        budget: str | int | None = None,
    ) -> None:
        self._names, self._own = told_apart(evaluators)
        self._overrides = arguments.overrides(settings)
        if compile not in COMPILE:
            raise unknown_name("compile", compile, COMPILE)
        execution = Execution.resolve(str(device))
        execution = replace(execution, logs=check_logs(arguments.texts("log", log)), compile=compile)
        where = Path(data_dir) if data_dir else None
        self._session = Session(out, data_dir=where, execution=execution, quiet=quiet)
        self._data_dir, self._budget = where, None if budget is None else parse_size(str(budget))

    def configurations(
        self, methods: Sequence[str], datasets: Sequence[Any], ipcs: Sequence[int], seeds: Sequence[int], preset: str
    ) -> list[CellConfig]:
        """Return the configuration of every cell; data sets in memory are written to the results folder."""
        preset = arguments.text("preset", preset)
        of_cells = [o for o in self._overrides if not self._own or RECIPE in self._names or o.section != RECIPE]
        registry.check_names("methods", methods)
        names = [self._named(given) for given in datasets]
        if self._own:  # settings of their recipe are checked now, and not after the condensation
            own = self._of_recipe()
            resolve_all(methods, names[:1], ipcs[:1], seeds[:1], preset=preset, evaluators=(RECIPE,), overrides=own)
        return resolve_all(methods, names, ipcs, seeds, preset=preset, evaluators=self._names, overrides=of_cells)

    def _of_recipe(self) -> list[Override]:
        return [o for o in self._overrides if o.section == RECIPE]

    def _named(self, given: Any) -> str:
        """Return the name by which a session finds a data set."""
        if isinstance(given, (str, os.PathLike)):
            name = dataset_name(given)
            check_dataset_name(name)
            return name
        dataset = load_dataset(given)
        known = isinstance(given, Dataset) and dataset.name in registry.names("datasets")
        if known and self._session.dataset(dataset.name).fingerprint == dataset.fingerprint:
            return dataset.name
        return kept(dataset, self._session.workspace.datasets)

    def run(self, config: CellConfig, *, force: bool) -> CellResult:
        """Run one cell and return its result."""
        cell = self._session.cell(config, from_scratch=force)
        if force or cell.pending():
            self._session.tell_decisions([cell])
        sizes = (cell.dataset.channels, cell.dataset.classes, cell.dataset.side)
        for name, factory in self._own.items():  # refused now, and not after the condensation
            evaluator_of(name, factory, sizes)
        if self._budget is not None:
            stages = cell.stages_from_scratch() if force else cell.pending()
            cell = fitted(cell, self._budget, PredictedMeter(), stages)
        result = run_cell(cell, force=force)
        own = own_accuracies(result, self._own, self._of_recipe(), quiet=self._session.quiet)
        return replace(result, own=own)

    def table(self, configs: Sequence[CellConfig], *, force: bool) -> "pd.DataFrame":
        """Run all cells and return the table of their results."""
        import pandas as pd

        parts = [self._row(number, len(configs), config, force=force) for number, config in enumerate(configs, 1)]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

    def _row(self, number: int, count: int, config: CellConfig, *, force: bool) -> "pd.DataFrame":
        import pandas as pd

        what = {"method": config.method, "dataset": config.dataset, "ipc": config.ipc, "seed": config.seed}
        try:
            result = self.run(config, force=force)
        except Exception as error:
            if (reason := explained(error)) is None:
                raise
            self._say(f"{number} of {count}: Error: {reason}")
            return pd.DataFrame([{**what, "error": reason}])
        self._say(f"{number} of {count}: {result!r}")
        return result.to_frame().assign(error=None)

    def _say(self, told: str) -> None:
        if not self._session.quiet:
            say(told)
