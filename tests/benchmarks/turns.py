"""Work that takes turns, each in a process of its own, so that a drift of the machine hits all of it alike."""

import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Lap:
    """What one run of a worker took."""

    seconds: float
    cpu_seconds: float
    peak_resident_bytes: int


class Worker:
    """A process that runs one piece of work (:mod:`tests.benchmarks.worker`) whenever it is called."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.laps: list[Lap] = []

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "tests.benchmarks.worker", self.name]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
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


def ratio(slow: Worker, fast: Worker) -> float:
    """Return the median, over turns, of how many times as long ``slow`` takes as ``fast``.

    In seconds of the processes: with one thread that is what the work takes, also where the machine is shared.
    """
    return statistics.median(a.cpu_seconds / b.cpu_seconds for a, b in zip(slow.laps, fast.laps, strict=True))
