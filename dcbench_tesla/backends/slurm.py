"""Backend ``slurm``: a job array on a cluster, submitted by submitit; tasks run the same worker as everywhere."""

import math
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dcbench_tesla.backends.base import Ended, FrozenJob, Job, Outcome, Status, record_failure
from dcbench_tesla.backends.process import run_job
from dcbench_tesla.cells.execution import Execution
from dcbench_tesla.errors import DcbenchError, UsageError, unknown_name
from dcbench_tesla.records.progress import say

_CLUSTERS = ("slurm", "debug")
_RESULTS_EVERY_S = 1.0
_QUEUE_EVERY_S = 15.0
_LOST_AFTER_S = 60.0  # a shared file system may show a result that long after the queue has shown the end of its task
_MARGIN_S = 300  # by which Slurm's limit exceeds --timeout, so that ours, which is exact, stops the cell
_OVER: Mapping[str, Status] = {  # states in the queue of a task that has ended, and what they mean if it left no result
    "OUT_OF_MEMORY": "out of memory",
    "TIMEOUT": "timed out",
    "DEADLINE": "timed out",
    **dict.fromkeys(("", "BOOT_FAIL", "CANCELLED", "COMPLETED", "FAILED", "NODE_FAIL", "REVOKED"), "killed"),
}


class Slurm:
    """Runs cells as one job array on a Slurm cluster with a shared file system.

    Every task gets ``cpus_per_task`` threads (else ``OMP_NUM_THREADS``, else one), one GPU with ``cuda``, and the
    largest memory that any of the jobs requests.

    Args:
        folder: for submitit's files.
        device: ``auto``, ``cpu`` or ``cuda``; ``auto`` is ``cpu``.
        jobs: number of tasks that run at a time.
        timeout_s: seconds that each cell may take.
        options: parameters of ``submitit.SlurmExecutor.update_parameters``, which are those of sbatch (``partition``,
            ``account``, ``mem``, ``time`` in minutes ...). They take precedence over those set here.
            ``cluster="debug"`` runs the tasks on this machine, one after another.

    Raises:
        UsageError: submitit or Slurm is not installed, an option is unknown, or a number of threads is invalid.
    """

    in_process = False
    elsewhere = True

    def __init__(
        self,
        folder: Path,
        device: str = "auto",
        jobs: int | None = None,
        timeout_s: float | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if device not in ("auto", "cpu", "cuda"):
            raise UsageError(f"backend slurm takes --device cpu or cuda, not {device}: Slurm chooses the GPU.")
        self._given = dict(options or {})
        cluster = str(self._given.pop("cluster", "slurm"))
        if cluster not in _CLUSTERS:
            raise unknown_name("cluster", cluster, _CLUSTERS)
        self._debug = cluster == "debug"
        self.execution = Execution("cuda" if device == "cuda" else "cpu", _threads(self._given), "slurm")
        self.at_once, self.running = jobs, 0
        self._timeout_s = timeout_s
        self._executor = _executor(folder, debug=self._debug)
        self._ask_for({})

    def run(self, jobs: Sequence[Job]) -> Ended:
        """Submit the jobs as an array and yield each when it ends. Closing the generator cancels the others."""
        if not jobs:
            return
        waiting = self._submit(jobs)
        queue = _Queue()
        try:
            while waiting:
                states = None if self._debug else queue.states()
                self.running = sum((states or {}).get(task.id) == "RUNNING" for task in waiting)
                for task in list(waiting):
                    outcome = task.outcome(states)
                    if outcome is not None:
                        waiting.remove(task)
                        yield task.job, outcome
                if waiting:
                    time.sleep(_RESULTS_EVERY_S)
        finally:
            if waiting and not self._debug:
                say(f"cancelling {len(waiting)} tasks; those that run write their checkpoints")
                subprocess.run(["scancel", *{task.id.partition("_")[0] for task in waiting}], check=False)

    def _submit(self, jobs: Sequence[Job]) -> "list[_Task]":
        self._ask_for(_requests(jobs, self._timeout_s))
        frozen = [job.freeze(self._timeout_s).write() for job in jobs]
        try:
            with self._executor.batch():
                handles = [self._executor.submit(run_job, str(job.file)) for job in frozen]
        except (RuntimeError, subprocess.CalledProcessError) as error:
            raise DcbenchError(f"Slurm rejected the jobs: {_in_one_line(error)}") from error
        ended = type(handles[0]).done if self._debug else _has_result
        return [_Task(job, frozen, handle, ended) for job, frozen, handle in zip(jobs, frozen, handles, strict=True)]

    def _ask_for(self, requests: Mapping[str, Any]) -> None:
        """Set the parameters of the array. Without a time limit the partition's limit applies."""
        if self._debug:
            return
        threads = self.execution.threads
        parameters = {
            "job_name": "dcbench",
            "time": None,
            "cpus_per_task": threads,
            "srun_args": [f"--cpus-per-task={threads}"],  # srun does not inherit it from sbatch
            **({"gpus_per_node": 1} if self.execution.device == "cuda" else {}),
            **({"array_parallelism": self.at_once} if self.at_once else {}),
        }
        if any(name.startswith("mem") for name in self._given):  # Slurm takes one of mem, mem_per_cpu, mem_per_gpu
            requests = {name: value for name, value in requests.items() if name != "mem"}
        try:
            self._executor.update_parameters(**{**parameters, **requests, **self._given})
        except (ValueError, TypeError) as error:
            raise UsageError(f"--backend-option: {_in_one_line(error)}") from error


def _threads(options: Mapping[str, Any]) -> int:
    """Return the number of threads of a task. A list in ``OMP_NUM_THREADS`` starts with the outer level, which counts.

    Raises:
        UsageError: the number is not a positive integer.
    """
    given = {
        "--backend-option cpus_per_task": str(options.get("cpus_per_task", "")),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip(),
    }
    name, value = next(((name, value) for name, value in given.items() if value), ("", "1"))
    if not (value.isdecimal() and int(value)):
        raise UsageError(f"{name} must be a positive whole number, not {value!r}.")
    return int(value)


def _executor(folder: Path, *, debug: bool) -> Any:
    try:
        import submitit
    except ImportError as error:
        raise UsageError("backend slurm needs submitit: pip install 'dcbench-tesla[slurm]'.") from error
    if debug:
        return submitit.DebugExecutor(folder)
    try:
        return submitit.SlurmExecutor(folder)
    except RuntimeError as error:
        raise UsageError("there is no Slurm here (no srun): choose --backend local.") from error


def _requests(jobs: Sequence[Job], timeout_s: float | None) -> dict[str, Any]:
    """Return the memory and the minutes to request. An array has one request, so it is the largest of its tasks.

    If the memory of any job is unknown, none is requested, because that job may need more than all others.
    """
    known = [job.memory_bytes for job in jobs if job.memory_bytes is not None]
    requests: dict[str, Any] = {"mem": f"{math.ceil(max(known) / 2**20)}M"} if len(known) == len(jobs) else {}
    return requests | ({"time": math.ceil((timeout_s + _MARGIN_S) / 60)} if timeout_s else {})


class _Task:
    """One task of the array, and how it ended."""

    def __init__(self, job: Job, frozen: FrozenJob, handle: Any, ended: Callable[[Any], bool]) -> None:
        self.job = job
        self.id: str = handle.job_id
        self._frozen, self._handle, self._ended = frozen, handle, ended
        self._gone_since = math.inf

    def outcome(self, states: Mapping[str, str] | None) -> Outcome | None:
        """Return how the task ended, ``None`` before that; ``states`` is ``None`` if the queue did not answer."""
        if self._ended(self._handle):
            return self._result()
        state = "" if states is None else states.get(self.id, "")
        if states is None or state not in _OVER:
            self._gone_since = math.inf
            return None
        self._gone_since = min(self._gone_since, time.monotonic())
        if time.monotonic() - self._gone_since < _LOST_AFTER_S:
            return None
        return self._lost(Outcome(_OVER[state], f"{_OVER[state]} (Slurm: {state or 'the job is gone'})", 1))

    def _result(self) -> Outcome:
        try:
            outcome: Outcome = self._handle.result()
        except RuntimeError:  # raised by submitit for failures outside the worker
            return self._lost(Outcome("failed", f"Slurm's task failed, see {self._handle.paths.stderr}", 1))
        return outcome

    def _lost(self, outcome: Outcome) -> Outcome:
        record_failure(self._frozen, outcome, hardware="unknown: a node of the cluster")
        return outcome


def _has_result(handle: Any) -> bool:
    """Return whether a task has a result. (submitit's ``done`` needs Slurm's accounting, which some clusters lack.)"""
    return bool(handle.paths.result_pickle.exists())


class _Queue:
    """The states of the user's tasks, requested from Slurm every quarter of a minute."""

    def __init__(self) -> None:
        self._states: dict[str, str] | None = None
        self._asked = -math.inf

    def states(self) -> dict[str, str] | None:
        """Return the state of every task by its id, or ``None`` if Slurm does not answer."""
        if time.monotonic() - self._asked > _QUEUE_EVERY_S:
            command = ["squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i %T"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            lines = [line.split() for line in done.stdout.splitlines()]
            self._states = None if done.returncode else {line[0]: line[1] for line in lines}
            self._asked = time.monotonic()
        return self._states


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())
