"""How long a run takes: repeated after a warm-up, by the device's own clock; median and spread."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of a repeated run: ``median_s``, and ``spread_s``, the interquartile range (0 for a single one)."""

    median_s: float
    spread_s: float
    repetitions: int


def time_repeatedly(
    run: Callable[[], object], device: torch.device, *, warm_up: int = 1, repetitions: int = 5
) -> Timing:
    """Time ``run`` on ``device``: by CUDA events on a GPU, which its queue passes, else by ``time.perf_counter``.

    Args:
        run: what is timed; it must be repeatable.
        device: where it computes.
        warm_up: runs before, not counted: kernels are loaded and caches filled in them.
        repetitions: runs that are counted.

    Raises:
        ValueError: fewer than no warm-up runs, or none that count.
    """
    if warm_up < 0 or repetitions < 1:
        raise ValueError(f"warm_up must be at least 0 and repetitions at least 1, not {warm_up} and {repetitions}.")
    once = _by_events if device.type == "cuda" else _by_counter
    for _ in range(warm_up):
        run()
    times = [once(run, device) for _ in range(repetitions)]
    quartiles = statistics.quantiles(times, n=4, method="inclusive") if repetitions > 1 else times * 3
    return Timing(statistics.median(times), quartiles[2] - quartiles[0], repetitions)


def _by_counter(run: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _by_events(run: Callable[[], object], device: torch.device) -> float:
    """Seconds between two marks in the GPU's queue, which is empty at the first."""
    with torch.cuda.device(device):
        torch.cuda.synchronize()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1000  # from milliseconds
