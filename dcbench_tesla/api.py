"""The harness from Python: what ``dcbench run`` does, as functions."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dcbench_tesla.cells.budget import fitted, parse_size
from dcbench_tesla.cells.execution import COMPILE, Execution
from dcbench_tesla.cells.session import Session
from dcbench_tesla.cells.stages import CellResult, run_cell
from dcbench_tesla.config import overrides_from, resolve
from dcbench_tesla.errors import unknown_name
from dcbench_tesla.profilers.memory import PredictedMeter
from dcbench_tesla.records.live import check_logs
from dcbench_tesla.records.workspace import DEFAULT_OUT


def run(
    method: str,
    dataset: str = "digits",
    ipc: int = 1,
    *,
    seed: int = 0,
    preset: str = "paper",
    evaluators: Sequence[str] = ("convnet",),
    settings: Mapping[str, Any] | None = None,
    out: Path | str = DEFAULT_OUT,
    data_dir: Path | None = None,
    device: str = "auto",
    memory_budget: str | int | None = None,
    log: Sequence[str] = (),
    compile: str = "auto",
    force: bool = False,
    quiet: bool = False,
) -> CellResult:
    """Train experts where the method needs them, condense, evaluate, and return the result.

    What was done before, by Python or by the command, is not done again. ``dcbench run`` does the same for each of its
    cells and adds the baseline ``random``. PyTorch's number of threads and its flags for TF32 are set for the process.

    Args:
        method: a registered method (``dcbench list methods``).
        dataset: a registered data set (``dcbench list datasets``), ``npz:PATH`` or ``folder:PATH``.
        ipc: images per class.
        seed: the cell's seed; the same seed gives the same bytes on the same CPU with the same number of threads.
        preset: ``paper``, ``quick`` or ``smoke``.
        evaluators: the networks to train on the distilled set (``dcbench list evaluators``).
        settings: what differs from the preset, ``{"steps": 20, "network.width": 64}``.
        out: the folder of the results.
        data_dir: where data sets lie; default ``$DCBENCH_DATA`` or the platform's cache folder.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` ...
        memory_budget: bytes, or a size such as ``"40GiB"``. A cell that is predicted to need more is not begun; where
            less is needed, as many step graphs are kept as fit (``keep_graphs``), which saves time.
        log: ``tensorboard``, ``wandb`` or both: where the metrics of every iteration go besides ``metrics.jsonl``.
        compile: whether matching steps and the training of ConvNets are compiled: ``on``, ``off``, or ``auto``, which
            compiles where the run is long enough to gain by it.
        force: start over, even if the cell is done.
        quiet: show no progress.

    Returns:
        The cell's result, with ``accuracy()``, the set ``distilled``, its ``folder`` and its ``rows``.

    Raises:
        UsageError: it cannot be done as asked, or not within the memory budget; the message says what can.
        DcbenchError: it failed on the way; called again, it goes on where it was.
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
