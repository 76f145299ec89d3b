"""The harness from Python: what ``dcbench run`` does, as functions."""

import gc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from dcbench_tesla.cells.budget import fitted, parse_size
from dcbench_tesla.cells.cell import COMPILE, Cell, Execution
from dcbench_tesla.cells.stages import CellResult, run_cell
from dcbench_tesla.compute.malloc import give_back_freed_memory
from dcbench_tesla.config import SECTIONS, CellConfig, Override, resolve
from dcbench_tesla.data import load_dataset
from dcbench_tesla.data.dataset import Dataset
from dcbench_tesla.data.splits import Splits
from dcbench_tesla.errors import unknown_name
from dcbench_tesla.profilers.memory import PredictedMeter
from dcbench_tesla.records.live import check_logs
from dcbench_tesla.records.workspace import Workspace

BASELINE = "random"


def overrides_from(settings: Mapping[str, Any]) -> list[Override]:
    """Return settings given as ``{"steps": 20, "network.width": 64}`` as overrides."""
    found = []
    for key, value in settings.items():
        section, dot, name = key.rpartition(".")
        found.append(Override(section if dot else "settings", name, value))
    return found


def resolve_all(
    methods: Sequence[str],
    datasets: Sequence[str],
    ipcs: Sequence[int],
    seeds: Sequence[int],
    *,
    preset: str = "paper",
    evaluators: Sequence[str] = ("convnet",),
    overrides: Sequence[Override] = (),
) -> list[CellConfig]:
    """Resolve every combination; with several methods, each takes the overrides that have an effect on it.

    Raises:
        UsageError: an override has no effect on any of the methods, or is wrong; names that are unknown.
    """
    lenient = len(methods) > 1
    configs = [
        resolve(
            method,
            dataset,
            ipc,
            seed=seed,
            preset=preset,
            evaluators=evaluators,
            overrides=overrides,
            leave_out=lenient,
        )
        for dataset, ipc, seed, method in product(datasets, ipcs, seeds, methods)
    ]
    taken = {label for config in configs for label in config.changed}
    for idle in (o for o in overrides if o.label not in taken):  # no method wants it: the first one says why not
        resolve(methods[0], datasets[0], ipcs[0], preset=preset, evaluators=evaluators, overrides=[idle])
    return configs


def baseline_of(config: CellConfig) -> CellConfig:
    """Return the ``random`` cell that matches ``config``: same data, preprocessing, IPC and seed.

    It is evaluated by the same networks, each by the recipe of the preset for ``random`` with what was changed of it:
    a recipe that belongs to another method's sets (DC's 300 epochs without augmentation) is not the baseline's.
    """
    c = config
    what: dict[str, Any] = {"seed": c.seed, "preset": c.preset, "evaluators": tuple(c.evaluators)}
    plain = resolve(BASELINE, c.dataset, c.ipc, **what)
    changes = [
        Override(section, name, getattr(getattr(c, section) if section in SECTIONS else c.evaluators[section], name))
        for section, _, name in (label.rpartition(".") for label in c.changed)
        if section == "evaluation" or section in c.evaluators
    ]
    own = resolve(BASELINE, c.dataset, c.ipc, **what, overrides=changes, leave_out=True)
    as_given = (plain.data, plain.evaluators, plain.evaluation.networks) == (
        c.data,
        own.evaluators,
        c.evaluation.networks,
    )
    beside = f"data and evaluation as {c.method}"
    return replace(
        own,
        data=c.data,
        evaluation=replace(c.evaluation, every=0),
        changed=(),
        protocol=plain.protocol if as_given else f"{plain.protocol}, {beside}",
        condense_protocol=plain.protocol if plain.data == c.data else f"{plain.protocol}, data as {c.method}",
        command=plain.command if as_given else c.command,
    )


class Session:
    """The data sets of several cells, each loaded once, and where their results go.

    ``execution``: where to compute, as a backend decided it; without it ``device``, in this process.
    """

    def __init__(
        self,
        out: Path | str = "results",
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
        """Return the data set ``name``; raises as :func:`dcbench_tesla.data.load_dataset`."""
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


def run(
    method: str,
    dataset: str = "digits",
    ipc: int = 1,
    *,
    seed: int = 0,
    preset: str = "paper",
    evaluators: Sequence[str] = ("convnet",),
    settings: Mapping[str, Any] | None = None,
    out: Path | str = "results",
    data_dir: Path | None = None,
    device: str = "auto",
    memory_budget: str | int | None = None,
    log: Sequence[str] = (),
    compile: str = "auto",
    force: bool = False,
    quiet: bool = False,
) -> CellResult:
    """Run one cell, or what is missing of it, and return its result.

    The command ``dcbench run`` does this for each of its cells, and adds the baseline and an estimate. PyTorch's number
    of threads and its flags for TF32 are set for the process.

    Args:
        method: a registered method (``dcbench list methods``).
        dataset: a registered data set, ``npz:PATH`` or ``folder:PATH``.
        ipc: images per class.
        seed: the cell's seed; the same seed gives the same bytes on the same CPU, with as many threads.
        preset: ``paper``, ``quick`` or ``smoke``.
        evaluators: the networks to train on the distilled set.
        settings: what differs from the preset, ``{"steps": 20, "network.width": 64}``.
        out: where results go.
        data_dir: where data sets lie; default ``$DCBENCH_DATA`` or the platform's cache folder.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` ...
        memory_budget: bytes, or a size such as ``"40GiB"``: what is predicted to need more is not begun, and graphs are
            kept as far as it goes (``keep_graphs``).
        log: ``tensorboard``, ``wandb`` or both: where the metrics of every iteration go besides ``metrics.jsonl``.
        compile: whether matching steps and training of ConvNets are compiled: ``on``, ``off``, or ``auto``,
            where the run is long enough to gain by it.
        force: start over.
        quiet: show no progress.

    Raises:
        UsageError: it cannot be done as asked, or not within the budget; says what can.
        DcbenchError: it failed on the way; running again goes on where it was.
    """
    overrides = overrides_from(settings or {})
    config = resolve(method, dataset, ipc, seed=seed, preset=preset, evaluators=evaluators, overrides=overrides)
    if compile not in COMPILE:
        raise unknown_name("compile", compile, COMPILE)
    execution = replace(Execution.resolve(device), logs=check_logs(log), compile=compile)
    session = Session(out, data_dir=data_dir, execution=execution, quiet=quiet)
    cell = session.cell(config, from_scratch=force)
    if memory_budget is not None:
        stages = cell.stages_from_scratch() if force else cell.pending()
        cell = fitted(cell, parse_size(str(memory_budget)), PredictedMeter(), stages)
    return run_cell(cell, force=force)
