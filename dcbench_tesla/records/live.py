"""Metrics where people watch them: TensorBoard or Weights & Biases, besides the JSON lines in the cell's folder."""

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from dcbench_tesla.errors import DcbenchError, UsageError, unknown_name

_REMEDIES = {"tensorboard": "pip install dcbench-tesla[tensorboard]", "wandb": "pip install wandb"}


class MetricLog(Protocol):
    """Takes the metrics of iterations, in order."""

    def write(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of an iteration."""
        ...

    def flush(self) -> None:
        """Make what was written survive ``kill -9``: iterations before a checkpoint are not made again."""
        ...

    def close(self) -> None:
        """Take no more."""
        ...


def check_logs(names: Iterable[str]) -> tuple[str, ...]:
    """Return the logs to write, each once.

    Raises:
        UsageError: a name is unknown, or what it needs is not installed.
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
    return spec is not None and spec.origin is not None  # wandb leaves a folder of its name, which is no package


def open_log(
    name: str, folder: Path, run_name: str, config: Mapping[str, Any], *, key: str, start: int = 0
) -> MetricLog:
    """Open the log ``name`` of a cell: ``folder`` is the cell's, ``key`` and ``run_name`` tell it from others.

    ``start``: the iteration the run goes on with. What an earlier process, killed after its last checkpoint, wrote of
    that iteration and of later ones does not stand twice: TensorBoard drops it, and Weights & Biases keeps the first.

    Raises:
        UsageError: as :func:`check_logs`.
        DcbenchError: Weights & Biases cannot begin the run.
    """
    check_logs([name])
    return TensorBoard(folder, start) if name == "tensorboard" else WandB(folder, run_name, config, key, start)


class TensorBoard:
    """Event files under ``<folder>/tensorboard``, a scalar a metric."""

    def __init__(self, folder: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=start)

    def write(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Add a scalar a metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, iteration)

    def flush(self) -> None:
        """Write the event file."""
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class WandB:
    """A run of project ``dcbench`` whose id is the cell's key; its files lie under ``<folder>/wandb``."""

    def __init__(self, folder: Path, run_name: str, config: Mapping[str, Any], key: str, start: int) -> None:
        import wandb

        # from the first iteration on the run starts over: resumed, it would drop every step it has
        resume = "allow" if start else None
        try:
            self._run = wandb.init(
                project="dcbench", name=run_name, dir=str(folder), id=key, resume=resume, config=dict(config)
            )
        except wandb.Error as error:
            raise DcbenchError(f"wandb cannot begin the run: {error}. WANDB_MODE=offline keeps it here.") from error

    def write(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics as one step."""
        self._run.log(dict(metrics), step=iteration)

    def flush(self) -> None:
        """Do nothing: a process of its own, which outlives this one, has what was logged."""

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()
