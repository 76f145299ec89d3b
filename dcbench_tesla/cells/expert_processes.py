"""Training several experts at once, each in its own process: on a CPU this is faster than one process with threads.

The locks of :class:`~dcbench_tesla.experts.store.ExpertStore` distribute the experts among the processes: each expert
is trained by one of them. Their output goes to ``processes.log`` beside the experts.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from dcbench_tesla.cells.cell import Cell
from dcbench_tesla.cells.execution import Execution
from dcbench_tesla.cells.session import Session
from dcbench_tesla.compute.processes import GRACE_S, stop_with_stdin, tell_parent
from dcbench_tesla.config import CellConfig
from dcbench_tesla.errors import (
    CorruptFileError,
    DataMissingError,
    DcbenchError,
    DivergedError,
    UsageError,
    explained,
)
from dcbench_tesla.experts.imported import ImportedStore
from dcbench_tesla.experts.store import Ticker
from dcbench_tesla.profilers.free import free_bytes
from dcbench_tesla.records.progress import bar
from dcbench_tesla.records.store import writing

_MANY_IMAGES = 200_000  # images in all epochs of all experts; with fewer, starting processes takes longer than it saves
_LIBRARIES_BYTES = 2**30
_POLL_S = 0.5
_ERRORS: dict[str, type[DcbenchError] | type[UsageError]] = {
    kind.__name__: kind for kind in (DcbenchError, DataMissingError, CorruptFileError, DivergedError, UsageError)
}


@contextmanager
def threads_of_each(cell: Cell) -> Iterator[None]:
    """Use one thread in the block on a CPU, whether or not other processes train experts as well.

    The bytes of an expert then depend neither on the number of threads nor on the number of processes, so experts can
    be trained further anywhere.
    """
    before = torch.get_num_threads()
    if cell.device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def processes(cell: Cell, count: int, epochs: int) -> int:
    """Return the number of processes to train experts in; 1 trains them in this process, one after the other.

    The result is 1 on a GPU, with one thread, for one untrained expert, with a memory budget, and for short training.
    """
    few = count * epochs * cell.materials.train_images < _MANY_IMAGES
    if cell.device.type != "cpu" or few or cell.memory_facts or isinstance(cell.materials.expert_store, ImportedStore):
        return 1
    unfinished = sum(cell.materials.expert_store.trained(i, epochs) < epochs for i in range(count))
    room = free_bytes(cell.device) // (2 * cell.materials.prepared_bytes + _LIBRARIES_BYTES)
    return max(1, min(cell.execution.threads, unfinished, room))


def train_at_once(cell: Cell, count: int, epochs: int, at_once: int, ticker: Ticker) -> float:
    """Train the first ``count`` experts of a cell up to ``epochs`` in ``at_once`` processes; return the seconds taken.

    Raises:
        DcbenchError: a process was killed or failed, with the subclass of its error (``DivergedError``,
            ``CorruptFileError``); finished epochs are kept.
        UsageError: the processes do not find the data set.
    """
    start, missing = time.perf_counter(), cell.materials.expert_store.missing_epochs(count, epochs)
    execution = dataclasses.replace(cell.execution, threads=1)
    task = {
        "config": cell.config.as_dict(),
        "out": str(cell.workspace.root.absolute()),
        "data_dir": None if cell.data_dir is None else str(cell.data_dir.absolute()),
        "execution": dataclasses.asdict(execution),
        "count": count,
        "epochs": epochs,
    }
    command = [sys.executable, "-m", "dcbench_tesla.cells.expert_processes", json.dumps(task)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(execution.threads)}
    log = cell.materials.expert_store.folder / "processes.log"
    with writing(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"")
    workers = [_start(command, environment, log) for _ in range(at_once)]
    try:
        while None in [worker.poll() for worker in workers]:
            if failed := [w for w in workers if w.returncode]:
                raise _error(failed[0], log)
            left = cell.materials.expert_store.missing_epochs(count, epochs)
            if left < missing:
                ticker.advance(missing - left)
            missing = left
            time.sleep(_POLL_S)
        if failed := [w for w in workers if w.returncode]:
            raise _error(failed[0], log)
    finally:
        _stop(workers)
    ticker.advance(missing)
    return time.perf_counter() - start


def _start(command: list[str], environment: dict[str, str], log: Path) -> "subprocess.Popen[str]":
    with log.open("ab") as said:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # the process stops when this one is gone
            stdout=subprocess.PIPE,
            stderr=said,
            env=environment,
            text=True,
            start_new_session=True,  # Ctrl-C goes to this process, which then stops its workers
        )


def _stop(workers: "list[subprocess.Popen[str]]") -> None:
    for worker in workers:
        worker.terminate()
    for worker in workers:
        try:
            worker.communicate(timeout=GRACE_S)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.communicate()


def _error(worker: "subprocess.Popen[str]", log: Path) -> DcbenchError | UsageError:
    answer, _ = worker.communicate()
    if not answer:
        code = worker.returncode
        why = "was killed (perhaps out of memory)" if code < 0 else f"ended with exit code {code}"
        return DcbenchError(f"a process that trained experts {why}, see {log}. What was done is kept: run again.")
    told = json.loads(answer)
    return _ERRORS.get(told["kind"], DcbenchError)(told["reason"])


# ---- the process -----------------------------------------------------------------------------------------------------


def main() -> int:
    """Train the experts of the task that no other process is training; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m dcbench_tesla.cells.expert_processes", description=__doc__)
    parser.add_argument("task", type=json.loads, help="JSON, as train_at_once writes it")
    task = parser.parse_args().task
    stop_with_stdin()
    execution = Execution(**{**task["execution"], "logs": tuple(task["execution"]["logs"])})
    answer = os.dup(1)
    os.dup2(2, 1)  # standard output is for the answer only, not for what plugins and libraries print
    try:
        execution.apply()
        data_dir = None if task["data_dir"] is None else Path(task["data_dir"])
        session = Session(task["out"], data_dir=data_dir, execution=execution, quiet=True)
        cell = session.cell(CellConfig.from_dict(task["config"]), from_scratch=True)
        with bar("experts", 0, quiet=True) as silent:  # the parent process counts the files
            cell.materials.expert_store.ensure(task["count"], task["epochs"], cell.splits.train, silent)
    except Exception as error:
        traceback.print_exc()
        defect = f"{type(error).__name__}: {error}. This is a defect of the program or a plugin; see the log."
        tell_parent(answer, json.dumps({"kind": type(error).__name__, "reason": explained(error) or defect}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
