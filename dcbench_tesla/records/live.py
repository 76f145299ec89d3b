"""Live metrics in TensorBoard, Weights & Biases or trackio, in addition to the JSON lines in the cell's folder."""

import io
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import redirect_stdout, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from dcbench_tesla.errors import DcbenchError, UsageError, unknown_name
from dcbench_tesla.records.store import parse_json

METRICS = "metrics.jsonl"
"""The file in the cell's folder with the metrics of every iteration, a line each."""

_PROJECT = "dcbench"
_REMEDIES = {
    "tensorboard": "pip install dcbench-tesla[tensorboard]",
    "trackio": "pip install trackio",
    "wandb": "pip install wandb",
}


class MetricLog(Protocol):
    """Receives the metrics of every iteration, in order."""

    def write(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of one iteration."""
        ...

    def flush(self) -> None:
        """Make everything written so far survive ``kill -9``; iterations before a checkpoint are not repeated."""
        ...

    def close(self) -> None:
        """Finish the log; nothing is written after this."""
        ...


def check_logs(names: Iterable[str]) -> tuple[str, ...]:
    """Return ``names`` without duplicates.

    Raises:
        UsageError: a name is unknown, or the package it needs is not installed.
    """
    wanted = tuple(dict.fromkeys(names))
    for name in wanted:
        if name not in _REMEDIES:
            raise unknown_name("log", name, _REMEDIES)
        if not _installed(name):
            raise UsageError(f"--log {name} needs {name}, which is not installed: {_REMEDIES[name]}")
    return wanted


def _installed(name: str) -> bool:
    spec = find_spec(name)
    return spec is not None and spec.origin is not None  # wandb's run files lie in a folder wandb, which is no package


def open_log(
    name: str, folder: Path, run_name: str, config: Mapping[str, Any], *, key: str, results: Path, start: int = 0
) -> MetricLog:
    """Open the log ``name`` of a cell.

    An earlier process may have logged iterations after its last checkpoint before it was killed. When they are run
    again, TensorBoard drops the earlier values, Weights & Biases keeps them, and trackio is told all iterations anew;
    no iteration is shown twice.

    Args:
        name: ``tensorboard``, ``trackio`` or ``wandb``.
        folder: the cell's folder.
        run_name: name of the run, for people.
        config: the cell's configuration.
        key: the cell's key, which identifies the run.
        results: the results folder.
        start: the iteration that the run continues with.

    Raises:
        UsageError: the name is unknown, or the package it needs is not installed.
        DcbenchError: Weights & Biases cannot start the run.
    """
    check_logs([name])
    if name == "trackio":
        return Trackio(folder, run_name, config, results, start)
    return TensorBoard(folder, start) if name == "tensorboard" else WandB(folder, run_name, config, key, start)


class TensorBoard:
    """Event files under ``<folder>/tensorboard``, with one scalar per metric."""

    def __init__(self, folder: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=start)

    def write(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Add one scalar per metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, iteration)

    def flush(self) -> None:
        """Write the event file."""
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class WandB:
    """A run in the Weights & Biases project ``dcbench`` with the cell's key as id; files go to ``<folder>/wandb``."""

    def __init__(self, folder: Path, run_name: str, config: Mapping[str, Any], key: str, start: int) -> None:
        import wandb

        # a run that begins at iteration 0 starts over: if resumed, wandb would drop every step that it already has
        resume = "allow" if start else None
        try:
            self._run = wandb.init(
                project=_PROJECT, name=run_name, dir=str(folder), id=key, resume=resume, config=dict(config)
            )
        except wandb.Error as error:
            raise DcbenchError(
                f"wandb cannot start the run: {error}. WANDB_MODE=offline keeps it on this machine."
            ) from error

    def write(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics as one step."""
        self._run.log(dict(metrics), step=iteration)

    def flush(self) -> None:
        """Do nothing: wandb hands what was logged to a process of its own, which outlives this one."""

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def _noted(path: Path, start: int) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield the metrics of the iterations before ``start``; the loop tells of lines that are damaged."""
    for line in path.read_bytes().splitlines() if start and path.exists() else ():
        with suppress(ValueError, KeyError, TypeError):
            noted = parse_json(line)
            if (iteration := noted.pop("iteration")) < start:
                yield iteration, noted


class Trackio:
    """A run in the trackio project ``dcbench``, on this machine in ``$TRACKIO_DIR`` or ``<results>/trackio``.

    All cells of a process go to one folder, that of the first: trackio reads its name once.
    """

    def __init__(self, folder: Path, run_name: str, config: Mapping[str, Any], results: Path, start: int) -> None:
        os.environ.setdefault("TRACKIO_DIR", str((results / "trackio").absolute()))
        import trackio

        self._trackio: Any = trackio
        with redirect_stdout(io.StringIO()):  # it greets there, and standard output is for results
            self._forget(run_name)
            how: dict[str, Any] = {"embed": False, "auto_log_cpu": False, "auto_log_gpu": False}
            self._run: Any = trackio.init(project=_PROJECT, name=run_name, config=dict(config), **how)
        for iteration, metrics in _noted(folder / METRICS, start):
            self.write(iteration, metrics)

    def _forget(self, run_name: str) -> None:
        """Remove what an earlier process logged of the cell; the file of its metrics has it."""
        try:
            found = list(self._trackio.Api().runs(_PROJECT))
        except ValueError:  # there is no such project yet
            return
        for run in found:
            if run.name == run_name:
                run.delete()

    def write(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics as one step."""
        self._run.log(dict(metrics), step=iteration)

    def flush(self) -> None:
        """Do nothing: a run that is killed and continued tells trackio all its iterations anew."""

    def close(self) -> None:
        """Finish the run."""
        with redirect_stdout(io.StringIO()):
            self._trackio.finish()
