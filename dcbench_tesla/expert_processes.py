"""Several experts at once, each in a process of its own: on a CPU that is faster than threads that share one.

The processes share the experts out by the locks of the store (:class:`~dcbench_tesla.experts.ExpertStore`): each is
trained by one of them, with as many threads as it has, so that the bytes depend on how many experts and threads there
are and on nothing else.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

from dcbench_tesla.cell import Cell, Execution
from dcbench_tesla.errors import DcbenchError, DivergedError, explained
from dcbench_tesla.experts import Ticker
from dcbench_tesla.profilers.free import free_bytes
from dcbench_tesla.store import write_text

_MANY_IMAGES = 200_000  # seen in all epochs of all experts: below that, processes take longer to start than they save
_MOST = 8
_LIBRARIES_BYTES = 2**30
_POLL_S = 0.5
_GRACE_S = 10.0


def threads_of_each(cell: Cell, count: int) -> int:
    """Return the threads that each of ``count`` experts is trained with, side by side as far as there is room."""
    return max(1, cell.execution.threads // min(count, _MOST))


def processes(cell: Cell, count: int, epochs: int) -> int:
    """Return how many experts to train at once: 0 where they are trained in this process, one after the other.

    That is on a GPU, with one thread or one expert, within a memory budget, and where training is short.
    """
    few = count * epochs * cell.train_images < _MANY_IMAGES
    if cell.device.type != "cpu" or cell.execution.threads < 2 or count < 2 or few or cell.memory_facts:
        return 0
    if not cell.expert_store.missing_epochs(count, epochs):
        return 0
    room = free_bytes(cell.device) // (2 * cell.prepared_bytes + _LIBRARIES_BYTES)
    return max(1, min(cell.execution.threads // threads_of_each(cell, count), room))


def train_at_once(cell: Cell, count: int, epochs: int, at_once: int, ticker: Ticker) -> float:
    """Train the first ``count`` experts of a cell's recipe up to ``epochs`` in processes; return the seconds this took.

    Raises:
        DivergedError: a loss became NaN or infinite.
        DcbenchError: one failed otherwise, or was killed; what was done is kept.
    """
    start, missing = time.perf_counter(), cell.expert_store.missing_epochs(count, epochs)
    execution = dataclasses.replace(cell.execution, threads=threads_of_each(cell, count))
    task = {
        "config": cell.config.as_dict(),
        "out": str(cell.workspace.root.absolute()),
        "data_dir": None if cell.data_dir is None else str(cell.data_dir.absolute()),
        "execution": dataclasses.asdict(execution),
        "count": count,
        "epochs": epochs,
    }
    command = [sys.executable, "-m", "dcbench_tesla.expert_processes", json.dumps(task)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(execution.threads)}
    workers = [_start(command, environment) for _ in range(at_once)]
    try:
        while None in [worker.poll() for worker in workers]:
            if failed := [w for w in workers if w.returncode]:
                raise _error(failed[0])
            left = cell.expert_store.missing_epochs(count, epochs)
            if left < missing:
                ticker.advance(missing - left)
            missing = left
            time.sleep(_POLL_S)
        if failed := [w for w in workers if w.returncode]:
            raise _error(failed[0])
    finally:
        _stop(workers)
    ticker.advance(missing)
    return time.perf_counter() - start


def _start(command: list[str], environment: dict[str, str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,  # it stops when this process is gone
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        text=True,
        start_new_session=True,  # Ctrl-C is for this process, which stops them
    )


def _stop(workers: "list[subprocess.Popen[str]]") -> None:
    for worker in workers:
        worker.terminate()
    for worker in workers:
        try:
            worker.communicate(timeout=_GRACE_S)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.communicate()


def _error(worker: "subprocess.Popen[str]") -> DcbenchError:
    said, _ = worker.communicate()
    if not said:
        why = "killed (perhaps out of memory)" if worker.returncode < 0 else f"ended with {worker.returncode}"
        return DcbenchError(f"a process that trained experts was {why}. What was done is kept: run again.")
    answer = json.loads(said)
    return (DivergedError if answer["diverged"] else DcbenchError)(answer["reason"])


# ---- the process -----------------------------------------------------------------------------------------------------


class _Silent:
    """Takes the epochs, and shows none: who started this process counts the files."""

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Show nothing."""


def main() -> int:
    """Train what is free of the experts of the task on the command line; return the exit code."""
    from dcbench_tesla.api import Session
    from dcbench_tesla.config import CellConfig
    from dcbench_tesla.worker import stop_with_stdin

    parser = argparse.ArgumentParser(prog="python -m dcbench_tesla.expert_processes", description=__doc__)
    parser.add_argument("task", type=json.loads, help="JSON, as train_at_once writes it")
    task = parser.parse_args().task
    stop_with_stdin()
    execution = Execution(**{**task["execution"], "logs": tuple(task["execution"]["logs"])})
    try:
        execution.apply()
        data_dir = None if task["data_dir"] is None else Path(task["data_dir"])
        session = Session(task["out"], data_dir=data_dir, execution=execution, quiet=True)
        cell = session.cell(CellConfig.from_dict(task["config"]), from_scratch=True)
        cell.expert_store.ensure(task["count"], task["epochs"], cell.splits.train, _Silent())
    except Exception as error:
        reason = explained(error)
        if reason is None:
            report = Path(task["out"]) / "experts" / "error.txt"
            write_text(report, "".join(traceback.format_exception(error)))
            reason = f"{type(error).__name__}: {error}. This is a defect of the program or a plugin; see {report}."
        print(json.dumps({"reason": reason, "diverged": isinstance(error, DivergedError)}), flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
