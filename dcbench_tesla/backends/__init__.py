"""Backends, which run cells: ``serial`` in this process, ``local`` in several processes, ``slurm`` on a cluster."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcbench_tesla.backends.base import Backend
from dcbench_tesla.errors import UsageError, unknown_name
from dcbench_tesla.records.workspace import Workspace

BACKENDS = ("serial", "local", "slurm")


def make_backend(
    name: str = "serial",
    *,
    device: str = "auto",
    out: Path,
    jobs: int | None = None,
    timeout_s: float | None = None,
    options: Mapping[str, Any] | None = None,
) -> Backend:
    """Return the backend ``name``.

    Args:
        name: ``serial``, ``local`` or ``slurm``.
        device: PyTorch's name of the device, or ``auto``.
        out: the results folder.
        jobs: number of cells to run at a time.
        timeout_s: seconds that each cell may take.
        options: options for Slurm.

    Raises:
        UsageError: the name is unknown, an option has no effect on this backend, or the backend cannot work here.
    """
    if name not in BACKENDS:
        raise unknown_name("backend", name, BACKENDS)
    if jobs is not None and jobs < 1:
        raise UsageError(f"--jobs must be at least 1, not {jobs}.")
    if name == "slurm":
        from dcbench_tesla.backends.slurm import Slurm

        return Slurm(Workspace(out).jobs / "slurm", device, jobs, timeout_s, options)
    if options:
        raise UsageError(f"--backend-option has no effect on backend {name}: it is for slurm. Leave it out.")
    if name == "local":
        from dcbench_tesla.backends.local import Local

        return Local(device, jobs, timeout_s)
    for option, value in (("--jobs", jobs), ("--timeout", timeout_s)):
        if value is not None:
            raise UsageError(f"{option} has no effect on backend serial: choose --backend local or slurm.")
    from dcbench_tesla.backends.serial import Serial

    return Serial(device)
