"""Clocks that run in a device's own time, and summaries of repeated timings."""

import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch

ClockName = Literal["cuda events", "perf_counter"]


@dataclass(frozen=True)
class Timing:
    """Summary of a repeated timing: median and interquartile range (0 for a single repetition), in seconds."""

    median_s: float
    spread_s: float
    repetitions: int

    @classmethod
    def of(cls, times_s: Sequence[float]) -> Self:
        """Summarise the seconds of several repetitions.

        Raises:
            ValueError: ``times_s`` is empty.
        """
        if not times_s:
            raise ValueError("no run was timed: repetitions must be at least 1.")
        quartiles = statistics.quantiles(times_s, n=4, method="inclusive") if len(times_s) > 1 else [0, 0, 0]
        return cls(statistics.median(times_s), quartiles[2] - quartiles[0], len(times_s))


class Clock(ABC):
    """Sets marks in a device's time and returns the seconds between two of them."""

    name: ClassVar[ClockName]

    @abstractmethod
    def mark(self) -> Any:
        """Return a mark of the present moment."""

    @abstractmethod
    def seconds(self, start: Any, end: Any) -> float:
        """Return the seconds between two marks; call :meth:`wait` first."""

    @abstractmethod
    def wait(self) -> None:
        """Wait until the device has finished its work and so has passed every mark."""


class CounterClock(Clock):
    """``time.perf_counter``, for devices on which an operation has finished when its call returns."""

    name = "perf_counter"

    def mark(self) -> float:
        """See :meth:`Clock.mark`."""
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        """See :meth:`Clock.seconds`."""
        return end - start

    def wait(self) -> None:
        """See :meth:`Clock.wait`: there is nothing to wait for."""


class EventClock(Clock):
    """CUDA events: marks in the queue of a GPU's work, which the GPU passes when it gets there."""

    name = "cuda events"

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> torch.cuda.Event:
        """See :meth:`Clock.mark`; takes microseconds and waits for nothing."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """See :meth:`Clock.seconds`."""
        return float(start.elapsed_time(end)) / 1000  # from milliseconds

    def wait(self) -> None:
        """See :meth:`Clock.wait`."""
        torch.cuda.synchronize(self._device)


def clock(device: torch.device) -> Clock:
    """Return the clock of a device: CUDA events on a GPU, ``time.perf_counter`` otherwise."""
    return EventClock(device) if device.type == "cuda" else CounterClock()
