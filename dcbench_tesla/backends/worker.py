"""The worker, ``python -m dcbench_tesla.backends.worker JOB.json``: runs one job, on any machine.

It writes the cell's folder and rows, reports on standard error, and prints one line of JSON on standard output:
``{"status": "ok", "reason": "", "exit_code": 0}``, or how else the job ended (``dcbench_tesla.backends.base.Outcome``).
"""

import argparse
import dataclasses
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

from dcbench_tesla.backends.base import FrozenJob, Outcome
from dcbench_tesla.cells.execution import Execution
from dcbench_tesla.cells.session import Session
from dcbench_tesla.cells.stages import run_cell
from dcbench_tesla.compute.processes import stop_with_stdin, tell_parent
from dcbench_tesla.config import CellConfig
from dcbench_tesla.errors import CorruptFileError, UsageError, explained
from dcbench_tesla.records.progress import say


def run_frozen(job: FrozenJob) -> Outcome:
    """Run the stages of a job's cell that are not finished, and return how it ended."""
    data_dir = None if job.data_dir is None else Path(job.data_dir)
    try:
        execution = Execution.resolve(job.device, job.threads, job.backend)
        execution = dataclasses.replace(execution, logs=tuple(job.logs), compile=job.compile, energy=job.energy)
        trials_of = None if job.trials_of is None else Path(job.trials_of)
        session = Session(job.workspace.root, data_dir=data_dir, execution=execution, trials_of=trials_of)
        cell = session.cell(_configuration(job), from_scratch=job.force)
        cell = cell.planned({}, job.memory_facts)
        if cell.key != job.key:
            raise UsageError(
                f"{job.file}: {job.cell} has other data or another version here than where it was submitted."
            )
        todo = ", ".join(cell.stages_from_scratch() if job.force else cell.pending())
        where = f"{job.backend}, {job.device}, threads {job.threads}, process {os.getpid()} on {socket.gethostname()}"
        _log(f"{cell.name}: {todo or 'nothing to do'} ({where})")
        run_cell(cell, force=job.force)
    except KeyboardInterrupt:
        return Outcome("killed", "killed (asked to stop). What was done is kept.", 130)
    except Exception as error:
        return Outcome.of(error, job.report)
    return Outcome()


def _configuration(job: FrozenJob) -> CellConfig:
    try:
        return CellConfig.from_dict(job.config)
    except UsageError as error:
        raise UsageError(f"{job.file}: {error}") from error


def _log(text: str) -> None:
    say(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}")


def main() -> int:
    """Run the job in the file named on the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m dcbench_tesla.backends.worker", description="Run one frozen cell.")
    parser.add_argument("job", type=Path, help="the job's file, under OUT/jobs/")
    parser.add_argument("--stop-with-stdin", action="store_true", help="stop when standard input ends")
    arguments = parser.parse_args()
    if arguments.stop_with_stdin:
        stop_with_stdin()
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Slurm signals all processes of a job; the parent process reacts
    try:
        job = FrozenJob.read(arguments.job)
    except (OSError, CorruptFileError) as error:
        parser.error(str(explained(error)))
    answer = os.dup(1)
    os.dup2(2, 1)  # standard output is for the answer only, not for what plugins and libraries print
    outcome = run_frozen(job)
    _log(f"ended: {outcome.reason or outcome.status}")
    tell_parent(answer, json.dumps(dataclasses.asdict(outcome)))
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main())
