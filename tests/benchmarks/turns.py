"""Work that takes turns, each in a process of its own, so that a drift of the machine hits all of it alike."""

import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).parents[2]
THREADS = int(os.environ.get("DCBENCH_BENCHMARK_THREADS", "1"))


@dataclass(frozen=True)
class Lap:
    """What one run of a worker took; ``rate``: operations a second, of the machine's limit."""

    seconds: float
    cpu_seconds: float
    peak_resident_bytes: int
    rate: float | None = None

    @property
    def took(self) -> float:
        """What counts, in seconds: those of the process, which a shared machine leaves alone; on the wall of several.

        Threads that wait for each other spend the process's seconds too.
        """
        return self.cpu_seconds if THREADS == 1 else self.seconds


class Worker:
    """A process that runs one piece of work (:mod:`tests.benchmarks.worker`) whenever it is called."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.laps: list[Lap] = []

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            _command(self.name),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()

    def __call__(self) -> Lap:
        """Run once, and wait."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the worker of {self.name!r} ended: python -m tests.benchmarks.worker {self.name!r}")
        self.laps.append(Lap(**json.loads(answer)))
        return self.laps[-1]

    def forget(self) -> None:
        """Drop the laps so far: they warmed up."""
        self.laps.clear()


def _command(name: str, *options: str) -> list[str]:
    return [sys.executable, "-m", "tests.benchmarks.worker", name, *options]


@cache
def operations(name: str) -> int:
    """Return the floating-point operations of one run of a piece of work, counted in a process of its own."""
    return int(subprocess.run(_command(name, "--count"), cwd=ROOT, check=True, capture_output=True, text=True).stdout)


def ratio(slow: Worker, fast: Worker) -> float:
    """Return the median, over turns, of how many times as long ``slow`` takes as ``fast``."""
    return statistics.median(a.took / b.took for a, b in zip(slow.laps, fast.laps, strict=True))


def share(worker: Worker, limit: Worker) -> float:
    """Return the median, over turns, of a worker's operations a second in parts of the machine's limit."""
    counted = operations(worker.name)
    rates = [lap.rate for lap in limit.laps]
    return statistics.median(counted / lap.took / rate for lap, rate in zip(worker.laps, rates, strict=True) if rate)
