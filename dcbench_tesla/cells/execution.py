"""The execution of a cell: device, threads, backend, compilation. Rows record it, and no key depends on it."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from dcbench_tesla.compute.compiling import compile_training
from dcbench_tesla.compute.malloc import keep_freed_memory
from dcbench_tesla.errors import UsageError
from dcbench_tesla.records.store import read_json, write_json

COMPILE = ("auto", "on", "off")
_REMEDY = "Delete it: the run then continues as the command says; --force starts over."


@dataclass(frozen=True)
class Execution:
    """Device, threads, backend, logs and compilation of a cell. The same execution promises the same bytes.

    Args:
        device: PyTorch's name of the device.
        threads: number of PyTorch's threads.
        backend: name of the backend.
        logs: where metrics go in addition to ``metrics.jsonl``; see :mod:`dcbench_tesla.records.live`.
        compile: whether to compile what can be compiled, one of :data:`COMPILE`; ``auto`` is decided when a run of the
            cell starts.
        energy: measure the energy of the condensation, where the machine has counters of it.
    """

    device: str
    threads: int
    backend: str = "serial"
    logs: tuple[str, ...] = ()
    compile: str = "off"
    energy: bool = False

    @classmethod
    def resolve(cls, device: str = "auto", threads: int | None = None, backend: str = "serial") -> "Execution":
        """Choose the device (``auto``: CUDA if there is a GPU) and the number of threads (``None``: PyTorch's).

        Raises:
            UsageError: the device is unknown, not available or not supported.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device.partition(":")[0] not in ("cpu", "cuda"):
            raise UsageError(f"device {device!r} is not supported: cpu and cuda are.")
        try:
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"device {device!r} cannot be used here; try cpu. ({reason})") from error
        return cls(device, threads or torch.get_num_threads(), backend)

    def apply(self) -> None:
        """Set PyTorch's threads and compilation; on a GPU also deterministic convolutions and float32 without TF32.

        Bilinear warps have no deterministic gradient on a GPU, so the same bytes are promised on a CPU only.
        """
        torch.set_num_threads(self.threads)
        compile_training(self.compile == "on")
        if torch.device(self.device).type == "cpu":
            keep_freed_memory()
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False


@dataclass(frozen=True)
class Begun:
    """How an earlier run of a cell computes. A run that continues it computes the same way and gives the same bytes.

    Args:
        device: PyTorch's name of the device.
        threads: number of PyTorch's threads.
        compile: ``on`` or ``off``.
        settings: the execution settings of the method, by name; empty in records of earlier versions.
        memory_facts: columns about memory for the row of the condensation.
    """

    device: str
    threads: int
    compile: Literal["on", "off"] = "off"
    settings: Mapping[str, Any] = field(default_factory=dict)
    memory_facts: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Begun":
        """Read the record that :func:`record_begun` wrote.

        Raises:
            CorruptFileError: the file is damaged or holds something else.
        """
        content = read_json(path, "execution", remedy=_REMEDY)
        known = {f.name for f in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in content.items() if name in known})


def record_begun(
    path: Path, execution: Execution, settings: Mapping[str, Any], memory_facts: Mapping[str, int]
) -> None:
    """Write how a run computes, for :meth:`Begun.read`; ``settings`` are the execution settings of its method."""
    write_json(path, {**dataclasses.asdict(execution), "settings": settings, "memory_facts": memory_facts})
