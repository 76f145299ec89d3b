"""The harness from Python: what ``dcbench run`` does, as functions."""

import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, SupportsIndex

import torch

from dcbench_tesla.cells.budget import fitted, parse_size
from dcbench_tesla.cells.execution import COMPILE, Execution
from dcbench_tesla.cells.session import Session
from dcbench_tesla.cells.stages import CellResult, run_cell
from dcbench_tesla.compute.state import plain_torch
from dcbench_tesla.config import overrides_from, resolve
from dcbench_tesla.datasets import check_dataset_name, dataset_name
from dcbench_tesla.errors import UsageError, unknown_name
from dcbench_tesla.profilers.memory import PredictedMeter
from dcbench_tesla.records.live import check_logs
from dcbench_tesla.records.workspace import DEFAULT_OUT


@plain_torch()
def run(
    method: str,
    dataset: str | os.PathLike[str] = "digits",
    ipc: SupportsIndex = 1,
    *,
    seed: SupportsIndex = 0,
    preset: str = "paper",
    evaluators: str | Sequence[str] = ("convnet",),
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
        dataset: a registered data set (``dcbench list datasets``), ``npz:PATH`` or ``folder:PATH``; also the path of a
            ``.npz`` file or of a folder.
        ipc: images per class; any kind of integer, NumPy's too.
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
        compile: whether matching steps and the training of experts and ConvNets are compiled: ``on``, ``off``, or
            ``auto``, which compiles where the run is long enough to gain by it.
        force: start over, even if the cell is done.
        quiet: show no progress.

    Returns:
        The cell's result, with ``accuracy()``, the set ``distilled``, its ``folder`` and its ``rows``.

    Raises:
        UsageError: it cannot be done as asked, or not within the memory budget; the message says what can.
        DcbenchError: it failed on the way; called again, it goes on where it was.
    """
    dataset = dataset_name(dataset)
    check_dataset_name(dataset)
    config = resolve(
        _text("method", method),
        dataset,
        _whole_number("ipc", ipc, least=1),
        seed=_whole_number("seed", seed, least=0),
        preset=_text("preset", preset),
        evaluators=_texts("evaluators", evaluators),
        overrides=overrides_from(_plain_settings(settings)),
    )
    if compile not in COMPILE:
        raise unknown_name("compile", compile, COMPILE)
    execution = replace(Execution.resolve(str(device)), logs=check_logs(_texts("log", log)), compile=compile)
    session = Session(out, data_dir=Path(data_dir) if data_dir else None, execution=execution, quiet=quiet)
    cell = session.cell(config, from_scratch=force)
    if memory_budget is not None:
        stages = cell.stages_from_scratch() if force else cell.pending()
        cell = fitted(cell, parse_size(str(memory_budget)), PredictedMeter(), stages)
    return run_cell(cell, force=force)


def _whole_number(name: str, value: SupportsIndex, *, least: int) -> int:
    """Return an integer of any kind as Python's own: others cannot be written into rows."""
    try:
        number = operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        number = None
    if number is None or isinstance(value, bool):
        raise UsageError(f"{name} must be an integer, not {value!r} ({type(value).__name__}).")
    if number < least:
        raise UsageError(f"{name} must be at least {least}, not {number}.")
    return number


def _text(name: str, value: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{name} must be a string, not {value!r} ({type(value).__name__}).")
    return str(value)


def _texts(name: str, values: str | Iterable[str]) -> tuple[str, ...]:
    """Return one string or several as a tuple."""
    return (str(values),) if isinstance(values, str) else tuple(_text(f"each of {name}", value) for value in values)


def _plain_settings(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return settings whose values are Python's own, where NumPy's or PyTorch's numbers were given."""
    return {_text("the name of a setting", name): _plain(value) for name, value in (settings or {}).items()}


def _plain(value: Any) -> Any:
    return value.item() if getattr(value, "shape", None) == () else value
