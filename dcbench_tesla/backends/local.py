"""Backend ``local``: a bounded number of worker processes on this machine."""

import os
import time
from collections import deque
from collections.abc import Sequence

import torch

from dcbench_tesla.backends.base import Ended, Job
from dcbench_tesla.backends.process import POLL_S, WorkerProcess
from dcbench_tesla.cells.execution import Execution
from dcbench_tesla.records.progress import say


class Local:
    """Runs up to ``at_once`` cells at a time, each in its own process, so that a killed process loses only its cell.

    By default there are as many processes as GPUs, or as the cores divided by PyTorch's number of threads. The cores
    are divided among the processes as threads, unless ``OMP_NUM_THREADS`` sets the threads of each. With ``cuda`` every
    process sees one GPU.
    """

    in_process = False
    elsewhere = False

    def __init__(self, device: str = "auto", jobs: int | None = None, timeout_s: float | None = None) -> None:
        found = Execution.resolve(device)
        gpus = _gpus() if found.device == "cuda" else []
        cores = _cores()
        places = jobs or len(gpus) or max(1, cores // found.threads)
        self.at_once: int | None = places
        given = "OMP_NUM_THREADS" in os.environ
        threads = found.threads if given else max(1, cores // places)
        self.execution = Execution(found.device, threads, "local")
        self.running = 0
        self._timeout_s = timeout_s
        self._places = [gpus[i % len(gpus)] if gpus else None for i in range(places)]

    def run(self, jobs: Sequence[Job]) -> Ended:
        """Run the jobs in their order, and yield each when it ends."""
        waiting, free = deque(jobs), deque(self._places)
        busy: dict[WorkerProcess, tuple[Job, str | None]] = {}
        try:
            while waiting or busy:
                while waiting and free:
                    job, place = waiting.popleft(), free.popleft()
                    busy[WorkerProcess(job.freeze(self._timeout_s).write(), place)] = job, place
                for worker in [worker for worker in busy if worker.ended()]:
                    job, place = busy.pop(worker)
                    free.append(place)
                    self.running = len(busy)
                    yield job, worker.outcome()
                time.sleep(POLL_S)
        finally:
            if busy:
                say(f"stopping {len(busy)} worker{'s' * (len(busy) > 1)}; checkpoints are written ...")
                WorkerProcess.stop(list(busy))


def _gpus() -> list[str]:
    """Return the GPUs that this process may use, by their names in ``CUDA_VISIBLE_DEVICES``."""
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    count = torch.cuda.device_count()
    return named[:count] or [str(i) for i in range(count)]


def _cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
