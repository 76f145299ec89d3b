"""Live metrics in TensorBoard or Weights & Biases, in addition to the JSON lines in the cell's folder."""

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from dcbench_tesla.errors import DcbenchError, UsageError, unknown_name

_REMEDIES = {"tensorboard": "pip install dcbench-tesla[tensorboard]", "wandb": "pip install wandb"}


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
    name: str, folder: Path, run_name: str, config: Mapping[str, Any], *, key: str, start: int = 0
) -> MetricLog:
    """Open the log ``name`` of a cell.

    An earlier process may have logged iterations after its last checkpoint before it was killed. When they are run
    again, TensorBoard drops the earlier values, and Weights & Biases keeps them; no iteration is shown twice.

    Args:
        name: ``tensorboard`` or ``wandb``.
        folder: the cell's folder.
        run_name: name of the run, for people.
        config: the cell's configuration.
        key: the cell's key, which identifies the run.
        start: the iteration that the run continues with.

    Raises:
        UsageError: the name is unknown, or the package it needs is not installed.
        DcbenchError: Weights & Biases cannot start the run.
    """
    check_logs([name])
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
                project="dcbench", name=run_name, dir=str(folder), id=key, resume=resume, config=dict(config)
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
