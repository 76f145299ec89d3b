"""The energy of a stretch of work, read from counters of the machine. Nothing is estimated.

codecarbon reads them: RAPL, the counter of the processor, and NVML, that of an NVIDIA GPU. Its estimates, from what a
processor or memory is designed for, are not used: where there is no counter, there is no energy. RAPL counts everything
that the processor does, other programs included.
"""

import logging
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Protocol, Self

import torch

from dcbench_tesla.errors import UsageError

_JOULES = 3.6e6  # of a kilowatt hour
_EVERY_S = 30.0  # a counter of 32 bits of 61 microjoules begins anew after some minutes under load


@dataclass(frozen=True)
class Energy:
    """An energy, and the counters that it was read from: ``RAPL``, ``NVML`` or ``NVML, RAPL``."""

    joules: float
    by: str


class Counter(Protocol):
    """A counter of energy."""

    @property
    def name(self) -> str:
        """Its name in rows."""
        ...

    def start(self) -> None:
        """Begin to count."""
        ...

    def joules(self) -> float:
        """Return the joules since :meth:`start`, or since this was called last."""
        ...


def check_installed() -> None:
    """Check that codecarbon is installed.

    Raises:
        UsageError: it is not.
    """
    if find_spec("codecarbon") is None:
        raise UsageError("--energy needs codecarbon: pip install 'dcbench-tesla[energy]'.")


def counters_for(device: str) -> list[Counter]:
    """Return the counters that this machine shows for work on a device: those of the processor and of a GPU.

    Raises:
        UsageError: codecarbon is not installed.
    """
    check_installed()
    logging.getLogger("codecarbon").setLevel(logging.ERROR)
    from codecarbon.core.cpu import is_rapl_available
    from codecarbon.external.hardware import CPU

    found: list[Counter] = []
    if torch.device(device).type == "cuda" and (gpu := _gpu(device)) is not None:
        found.append(_OfCodecarbon("NVML", gpu))
    if is_rapl_available():
        found.append(_OfCodecarbon("RAPL", CPU.from_utils(output_dir=".", mode="intel_rapl", model="")))
    return found


def _gpu(device: str) -> Any:
    """Return codecarbon's meter of a GPU, which it knows by another number than PyTorch; ``None`` if it has none."""
    from codecarbon.external.hardware import GPU

    own = str(getattr(torch.cuda.get_device_properties(device), "uuid", "no uuid"))
    known = GPU(gpu_ids=None).devices.get_gpu_static_info()
    numbers = [info["gpu_index"] for info in known if own in str(info["uuid"])]
    return GPU(gpu_ids=numbers) if numbers else None


class _OfCodecarbon:
    """A counter that codecarbon reads."""

    def __init__(self, name: str, hardware: Any) -> None:
        self.name, self._hardware, self._since = name, hardware, 0.0

    def start(self) -> None:
        """See :meth:`Counter.start`."""
        self._hardware.start()
        self._since = time.perf_counter()

    def joules(self) -> float:
        """See :meth:`Counter.joules`."""
        now = time.perf_counter()
        _, energy = self._hardware.measure_power_and_energy(now - self._since)
        self._since = now
        return float(energy.kWh) * _JOULES


class EnergyMeter:
    """Measures the energy of a ``with`` block; ``energy`` is ``None`` without counters, and until the block has ended.

    Args:
        counters: what to read.
        every_s: seconds between two readings in the block, so that no counter begins anew unseen.
    """

    def __init__(self, counters: Sequence[Counter], every_s: float = _EVERY_S) -> None:
        self._counters, self._every_s = counters, every_s
        self._joules = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.energy: Energy | None = None

    def __enter__(self) -> Self:
        for counter in self._counters:
            counter.start()
        if self._counters:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._counters:
            return
        self._over.set()
        self._thread.join()
        self._read()
        if math.isfinite(self._joules) and self._joules > 0:  # a counter that stands still counts nothing
            self.energy = Energy(round(self._joules, 3), ", ".join(sorted(counter.name for counter in self._counters)))

    def _watch(self) -> None:
        while not self._over.wait(self._every_s):
            self._read()

    def _read(self) -> None:
        self._joules += sum(counter.joules() for counter in self._counters)
