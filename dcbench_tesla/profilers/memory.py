"""Three meters of a run's peak memory behind one interface.

==============  ==============================================  ======================  ===============================
meter           what is counted                                 what it needs           what it does not see
==============  ==============================================  ======================  ===============================
``cuda``        what PyTorch's allocator handed out, at most    a GPU with room for it  what CUDA itself takes
``allocated``   the bytes of live tensors, at most              a device with room      workspaces, fragmentation
``predicted``   the same, of tensors that have no memory        nothing                 the same, and what values decide
==============  ==============================================  ======================  ===============================

The last two follow the eager program: the dispatch mode they rest on makes ``torch.compile``'s functions run eagerly,
so what they say of a compiled program is what it would need uncompiled.
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
"""Makes a workload and returns its run; a run can be repeated."""

CUDA_ROUNDING_BYTES = 512
"""CUDA's allocator hands out multiples of this."""


@dataclass(frozen=True)
class Peak:
    """The most memory a run needed at once, with what was made for it before and is still there.

    ``peak_bytes``: of tensors on the meter's device. ``reserved_bytes``: what the allocator held of the device
    meanwhile, more than it handed out; ``None`` where there is no allocator to ask. ``status``: ``ok``, or
    ``out of memory``, with the bytes that had been reached when no more were to be had. ``breakdown``: the peak by
    :data:`~dcbench_tesla.profilers.origins.Origin`, adding up to ``peak_bytes``; empty from ``cuda``.
    """

    meter: MeterName
    peak_bytes: int
    reserved_bytes: int | None = None
    status: Status = "ok"
    breakdown: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))


_NO_MEMORY = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def attempt(measured: Callable[[], object]) -> Status:
    """Do what is measured and say how it ended: a GPU's memory may end, everything else is an error."""
    try:
        measured()
    except RuntimeError as error:
        # what PyTorch's allocator could not get has a class of its own, what CUDA's libraries could not only a text
        if not isinstance(error, torch.OutOfMemoryError) and not any(text in str(error) for text in _NO_MEMORY):
            raise
        return "out of memory"
    return "ok"


class MemoryMeter(ABC):
    """Measures the peak memory of a run on ``device``, where what it is given must put its tensors."""

    name: ClassVar[MeterName]

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @abstractmethod
    def measure(self, prepare: Prepare) -> Peak:
        """Call ``prepare``, run what it returns, and return the run's peak.

        What ``prepare`` made and the run's owner still holds counts; what it only made in passing does not. A run is
        one of many: what the first leaves behind (an optimiser's state) is there in the one that is measured.
        """


class CudaMeter(MemoryMeter):
    """What PyTorch's allocator handed out on a GPU, and reserved, in the second run.

    Everything else on this device in the process counts too: measure in a fresh one.
    """

    name = "cuda"

    def measure(self, prepare: Prepare) -> Peak:
        """See :meth:`MemoryMeter.measure`; running out of memory is a result."""
        self._start_over()
        status = attempt(lambda: self._run(prepare()))
        allocated, reserved = torch.cuda.max_memory_allocated(self.device), torch.cuda.max_memory_reserved(self.device)
        return Peak(self.name, allocated, reserved, status)

    def _run(self, run: Callable[[], object]) -> None:
        run()  # loads kernels, chooses algorithms, makes what is made once
        self._start_over()
        run()
        torch.cuda.synchronize(self.device)

    def _start_over(self) -> None:
        """Give back what is cached, cuBLAS's workspaces too, and count peaks from here."""
        torch.cuda.synchronize(self.device)
        gc.collect()
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)


@contextmanager
def older_objects_kept() -> Iterator[None]:
    """Let garbage collections in the block look at what was made in it alone: a hundred times faster than at all."""
    if gc.get_freeze_count():  # somebody else's, who would miss it
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class _TensorMeter(MemoryMeter):
    """What ``allocated`` and ``predicted`` share: the live tensors of a run are counted by a dispatch mode."""

    def __init__(self, device: torch.device, round_to: int) -> None:
        super().__init__(device)
        self._round_to = round_to

    @abstractmethod
    def _live_bytes(self) -> LiveBytes:
        """Return a meter to enter."""

    def measure(self, prepare: Prepare) -> Peak:
        """See :meth:`MemoryMeter.measure`; a GPU's running out of memory is a result."""
        with older_objects_kept(), self._live_bytes() as live:
            status = attempt(lambda: self._run(prepare(), live))
        breakdown = MappingProxyType(live.breakdown(self.device))
        return Peak(self.name, live.peak_bytes(self.device), None, status, breakdown)

    def _run(self, run: Callable[[], object], live: LiveBytes) -> None:
        before = self._rest(live)
        run()
        if self._rest(live, keep_peak=True) > before:  # what it left behind would be there in every later run
            self._rest(live)
            run()

    def _rest(self, live: LiveBytes, *, keep_peak: bool = False) -> int:
        """Return what lives between two runs."""
        gc.collect()
        if not keep_peak:
            live.reset_peak()
        return live.live_bytes(self.device)


class AllocatedMeter(_TensorMeter):
    """The live tensors' bytes on any device, each storage rounded up to a multiple of ``round_to``."""

    name = "allocated"

    def __init__(self, device: torch.device, *, round_to: int = 1) -> None:
        super().__init__(device, round_to)

    def _live_bytes(self) -> LiveBytes:
        return LiveBytes(round_to=self._round_to)


class PredictedMeter(_TensorMeter):
    """The bytes that tensors would take on a device apart from main memory: nothing is computed nor allocated there.

    See :class:`~dcbench_tesla.profilers.imagined.ImaginedBytes`. ``round_to`` is CUDA's by default.
    """

    name = "predicted"

    def __init__(self, *, round_to: int = CUDA_ROUNDING_BYTES) -> None:
        super().__init__(IMAGINED, round_to)
        self._remembered: Remembered = {}

    def _live_bytes(self) -> LiveBytes:
        return ImaginedBytes(round_to=self._round_to, remembered=self._remembered)


def memory_meter(name: str = "auto", device: torch.device | str = "cpu") -> MemoryMeter:
    """Return the meter ``name``; ``auto`` is ``cuda`` where there is a GPU, else ``predicted``.

    ``device``: what ``allocated`` measures, and which GPU ``cuda`` does (``cpu``: the first one).

    Raises:
        UsageError: an unknown name, or ``cuda`` without a GPU.

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
