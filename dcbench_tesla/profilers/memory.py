"""Three meters of a run's peak memory with one interface.

=============  ===========================================  ========================  ===============================
meter          what it measures                             what it needs             what it does not see
=============  ===========================================  ========================  ===============================
``cuda``       peak of what PyTorch's allocator handed out  a GPU with enough memory  memory that CUDA itself takes
``allocated``  peak of the bytes of live tensors            a device with memory      workspaces, fragmentation
``predicted``  the same, for tensors without memory         nothing                   the same, and effects of values
=============  ===========================================  ========================  ===============================

``allocated`` and ``predicted`` measure the eager program: they rest on a dispatch mode, under which functions compiled
by ``torch.compile`` run eagerly. For a compiled program they give what it would need uncompiled.
"""

import gc
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Literal, get_args

import torch

from dcbench_tesla.errors import UsageError, unknown_name
from dcbench_tesla.profilers.imagined import IMAGINED, ImaginedBytes, Remembered
from dcbench_tesla.profilers.live_bytes import LiveBytes

MeterName = Literal["cuda", "allocated", "predicted"]
Status = Literal["ok", "out of memory"]
Prepare = Callable[[], Callable[[], object]]
"""Sets up a workload and returns a function that runs it; the function can be called repeatedly."""

CUDA_ROUNDING_BYTES = 512
"""CUDA's allocator hands out multiples of so many bytes."""


@dataclass(frozen=True)
class Peak:
    """The peak memory of a run, including what was set up for the run and is still held.

    Args:
        meter: name of the meter.
        peak_bytes: bytes of tensors on the meter's device at the peak.
        reserved_bytes: bytes that the allocator had reserved on the device at most, which is more than it handed out;
            ``None`` if there is no allocator to ask.
        status: ``ok``, or ``out of memory``; ``peak_bytes`` is then what had been reached.
        breakdown: the peak by :data:`~dcbench_tesla.profilers.origins.Origin`, adding up to ``peak_bytes``; empty for
            the meter ``cuda``.
    """

    meter: MeterName
    peak_bytes: int
    reserved_bytes: int | None = None
    status: Status = "ok"
    breakdown: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))


_NO_MEMORY = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def attempt(measured: Callable[[], object]) -> Status:
    """Call ``measured`` and return how it ended. Running out of GPU memory is a result; other errors are raised."""
    try:
        measured()
    except RuntimeError as error:
        # PyTorch's allocator raises a class of its own; CUDA's libraries raise RuntimeError, known only by its text
        if not isinstance(error, torch.OutOfMemoryError) and not any(text in str(error) for text in _NO_MEMORY):
            raise
        return "out of memory"
    return "ok"


class MemoryMeter(ABC):
    """Measures the peak memory of a run on ``device``, on which the run must put its tensors."""

    name: ClassVar[MeterName]

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @abstractmethod
    def measure(self, prepare: Prepare) -> Peak:
        """Call ``prepare``, run the function it returns, and return the peak memory of the run.

        What ``prepare`` made counts if it is still held during the run. The run is measured as one of many: state that
        the first run leaves behind, such as an optimiser's, is present in the measured one.
        """


class CudaMeter(MemoryMeter):
    """Measures what PyTorch's allocator hands out and reserves on a GPU, in the second of two runs.

    Everything else in this process on the same device counts too, so measure in a fresh process.
    """

    name = "cuda"

    def measure(self, prepare: Prepare) -> Peak:
        """See :meth:`MemoryMeter.measure`; running out of memory is a result."""
        self._start_over()
        status = attempt(lambda: self._run(prepare()))
        allocated, reserved = torch.cuda.max_memory_allocated(self.device), torch.cuda.max_memory_reserved(self.device)
        return Peak(self.name, allocated, reserved, status)

    def _run(self, run: Callable[[], object]) -> None:
        run()  # loads kernels, chooses algorithms, and makes everything that is made only once
        self._start_over()
        run()
        torch.cuda.synchronize(self.device)

    def _start_over(self) -> None:
        """Release cached memory, cuBLAS's workspaces included, and reset the peaks."""
        torch.cuda.synchronize(self.device)
        gc.collect()
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)


@contextmanager
def older_objects_kept() -> Iterator[None]:
    """Restrict garbage collection in the block to objects made in it, which is a hundred times faster."""
    if gc.get_freeze_count():  # another caller has frozen objects, and unfreezing would release them
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class _TensorMeter(MemoryMeter):
    """The base of ``allocated`` and ``predicted``, which count live tensors by a dispatch mode."""

    def __init__(self, device: torch.device, round_to: int) -> None:
        super().__init__(device)
        self._round_to = round_to

    @abstractmethod
    def _live_bytes(self) -> LiveBytes:
        """Return a meter to enter."""

    def measure(self, prepare: Prepare) -> Peak:
        """See :meth:`MemoryMeter.measure`; running out of GPU memory is a result."""
        with older_objects_kept(), self._live_bytes() as live:
            status = attempt(lambda: self._run(prepare(), live))
        breakdown = MappingProxyType(live.breakdown(self.device))
        return Peak(self.name, live.peak_bytes(self.device), None, status, breakdown)

    def _run(self, run: Callable[[], object], live: LiveBytes) -> None:
        before = self._rest(live)
        run()
        if self._rest(live, keep_peak=True) > before:  # state is left behind, which every later run will find
            self._rest(live)
            run()

    def _rest(self, live: LiveBytes, *, keep_peak: bool = False) -> int:
        """Collect garbage and return the live bytes between two runs; reset the peak unless ``keep_peak``."""
        gc.collect()
        if not keep_peak:
            live.reset_peak()
        return live.live_bytes(self.device)


class AllocatedMeter(_TensorMeter):
    """Measures the bytes of live tensors on any device, each storage rounded up to a multiple of ``round_to``."""

    name = "allocated"

    def __init__(self, device: torch.device, *, round_to: int = 1) -> None:
        super().__init__(device, round_to)

    def _live_bytes(self) -> LiveBytes:
        return LiveBytes(round_to=self._round_to)


class PredictedMeter(_TensorMeter):
    """Predicts the bytes that tensors would take on a device with its own memory; allocates and computes nothing there.

    See :class:`~dcbench_tesla.profilers.imagined.ImaginedBytes`. ``round_to`` is that of CUDA by default.
    """

    name = "predicted"

    def __init__(self, *, round_to: int = CUDA_ROUNDING_BYTES) -> None:
        super().__init__(IMAGINED, round_to)
        self._remembered: Remembered = {}

    def _live_bytes(self) -> LiveBytes:
        return ImaginedBytes(round_to=self._round_to, remembered=self._remembered)


def memory_meter(name: str = "auto", device: torch.device | str = "cpu") -> MemoryMeter:
    """Return the meter ``name``; ``auto`` is ``cuda`` if there is a GPU, otherwise ``predicted``.

    Args:
        name: ``cuda``, ``allocated``, ``predicted`` or ``auto``.
        device: the device that ``allocated`` measures, or the GPU that ``cuda`` measures (``cpu``: the first one).

    Raises:
        UsageError: the name is unknown, or ``cuda`` is asked for without a GPU.

    Example:
        >>> meter = memory_meter("predicted")
        >>> weights = lambda: torch.zeros(100, 10**9, device=meter.device)
        >>> meter.measure(lambda: lambda: weights().sum()).peak_bytes // 10**9
        400
    """
    device = torch.device(device)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "predicted"
    if name == "cuda":
        if not torch.cuda.is_available():
            raise UsageError("the meter 'cuda' needs a GPU that PyTorch can use; 'predicted' needs none.")
        return CudaMeter(device if device.type == "cuda" else torch.device("cuda"))
    if name == "allocated":
        return AllocatedMeter(device, round_to=CUDA_ROUNDING_BYTES if device.type == "cuda" else 1)
    if name == "predicted":
        return PredictedMeter()
    raise unknown_name("memory meter", name, [*get_args(MeterName), "auto"])
