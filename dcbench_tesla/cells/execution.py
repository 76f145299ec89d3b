"""Where a cell computes: device, threads, backend, compilation. Recorded with its results, part of no key."""

from dataclasses import dataclass

import torch

from dcbench_tesla.compute.compiling import compile_training
from dcbench_tesla.compute.malloc import keep_freed_memory
from dcbench_tesla.errors import UsageError

COMPILE = ("auto", "on", "off")


@dataclass(frozen=True)
class Execution:
    """Where a cell computes: recorded with its results, part of no key. Equal settings promise equal bytes.

    ``logs``: where its metrics go besides ``metrics.jsonl``, see :mod:`dcbench_tesla.records.live`. ``compile``:
    whether what can be is compiled, one of :data:`COMPILE`; ``auto`` is decided when a run of the cell begins.
    """

    device: str
    threads: int
    backend: str = "serial"
    logs: tuple[str, ...] = ()
    compile: str = "off"

    @classmethod
    def resolve(cls, device: str = "auto", threads: int | None = None, backend: str = "serial") -> "Execution":
        """Choose the device (``auto``: CUDA where there is one) and the number of threads (``None``: as it is).

        Raises:
            UsageError: the device's name is unknown, or there is none such here.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            kind = torch.device(device).type
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"device {device!r} cannot be used here; try cpu. ({reason})") from error
        if kind not in ("cpu", "cuda"):
            raise UsageError(f"device {device!r} is not supported: cpu and cuda are.")
        return cls(device, threads or torch.get_num_threads(), backend)

    def apply(self) -> None:
        """Set up PyTorch: threads, compilation; on a GPU float32 that is float32 (no TF32), convolutions that repeat.

        Bilinear warps have no deterministic gradient on a GPU, so equal bytes are promised on a CPU only.
        """
        torch.set_num_threads(self.threads)
        compile_training(self.compile == "on")
        if torch.device(self.device).type == "cpu":
            keep_freed_memory()
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
