"""A worker process under supervision: its answer, its time limit, and the signal that killed it."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from dcbench_tesla.backends.base import FrozenJob, Outcome, record_failure
from dcbench_tesla.compute.processes import GRACE_S
from dcbench_tesla.records.progress import duration

POLL_S = 0.1


class WorkerProcess:
    """Runs ``python -m dcbench_tesla.backends.worker`` on a job's file; its output goes to the job's log.

    The worker stops by itself when this process is gone, because its standard input then ends.

    Args:
        job: the job.
        gpu: the only GPU that the worker sees, as ``cuda``.
    """

    def __init__(self, job: FrozenJob, gpu: str | None = None) -> None:
        self.job = job
        environment = {**os.environ, "OMP_NUM_THREADS": str(job.threads)}
        if gpu is not None and job.device == "cuda":  # a cell that was started on cuda:1 continues on cuda:1
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        with job.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dcbench_tesla.backends.worker", str(job.file), "--stop-with-stdin"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C goes to the parent, which then stops its workers
            )
        self._deadline = time.monotonic() + (job.timeout_s or math.inf)
        self._late = ""  # the reason, once the worker was stopped for its time
        self._why = f"after {duration(job.timeout_s)} (--timeout)" if job.timeout_s else ""

    def time_is_up(self, why: str) -> None:
        """End the worker's time now, for the reason ``why``."""
        self._deadline, self._why = time.monotonic(), why

    def ended(self) -> bool:
        """Return whether the worker has ended; stop it if its time is up."""
        if self._process.poll() is not None:
            return True
        overtime = time.monotonic() - self._deadline
        if overtime > GRACE_S:
            self._process.kill()
        elif overtime > 0 and not self._late:
            self._late = self._why
            self._process.terminate()
        return False

    def outcome(self) -> Outcome:
        """Return how the worker, which must have ended, ended. A failure leaves a row."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        with stdin, stdout:
            outcome = self._outcome(_answer(stdout), self._process.wait())
        if not outcome.ok:
            record_failure(self.job, outcome)
        return outcome

    def _outcome(self, answer: Outcome | None, exit_code: int) -> Outcome:
        if answer is not None and (answer.ok or not self._late):
            return answer
        if self._late:
            return Outcome("timed out", f"timed out {self._late}. What was done is kept.", 1)
        if exit_code < 0:
            name = signal.Signals(-exit_code).name
            perhaps = "; perhaps out of memory" if name == "SIGKILL" else ""  # the signal of the system's OOM killer
            return Outcome("killed", f"killed ({name}{perhaps})", 1)
        return Outcome("failed", f"its process ended with exit code {exit_code} and no answer; see {self.job.log}", 1)

    @staticmethod
    def stop(workers: "Sequence[WorkerProcess]") -> None:
        """Stop all workers at once, with time to write their checkpoints; a second Ctrl-C kills them."""
        for worker in workers:
            worker._process.terminate()
        deadline = time.monotonic() + GRACE_S
        try:
            for worker in workers:
                with suppress(subprocess.TimeoutExpired):
                    worker._process.wait(max(0.0, deadline - time.monotonic()))
        finally:
            for worker in workers:
                worker._process.kill()


def _answer(stdout: IO[bytes]) -> Outcome | None:
    """Read a worker's line of JSON; ``None`` if the worker did not write it."""
    try:
        said = json.loads(stdout.read())
        return Outcome(said["status"], said["reason"], said["exit_code"])
    except (ValueError, KeyError, TypeError):
        return None


def run_job(file: str) -> Outcome:
    """Run the job in ``file`` by a worker and wait for its end. This is what a node of a cluster does.

    Slurm sends SIGUSR2 when the time limit is near, and before it preempts the job.
    """
    worker = WorkerProcess(FrozenJob.read(Path(file)))
    before = signal.signal(
        signal.SIGUSR2, lambda *_: worker.time_is_up("by Slurm: its time limit is near, or the job is preempted")
    )
    try:
        while not worker.ended():
            time.sleep(POLL_S)
        return worker.outcome()
    finally:
        signal.signal(signal.SIGUSR2, before)
        WorkerProcess.stop([worker])
