"""The execution of a cell: device, threads, backend, compilation. Rows record it, and no key depends on it."""

from dataclasses import dataclass

import torch

from dcbench_tesla.compute.compiling import compile_training
from dcbench_tesla.compute.malloc import keep_freed_memory
from dcbench_tesla.errors import UsageError

COMPILE = ("auto", "on", "off")


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
    """

    device: str
    threads: int
    backend: str = "serial"
    logs: tuple[str, ...] = ()
    compile: str = "off"

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
