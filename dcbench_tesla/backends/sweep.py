"""Runs many cells by a backend. A failed cell does not stop the others, and finished work is not repeated."""

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager

from dcbench_tesla.backends.base import Backend, Job, Outcome, record_failure
from dcbench_tesla.cells.result import CellResult
from dcbench_tesla.cells.stages import drop_failure
from dcbench_tesla.config import short_names
from dcbench_tesla.records.progress import bar, complain, duration, say


def sweep(
    jobs: Sequence[Job],
    backend: Backend,
    *,
    among: int | None = None,
    ended: Callable[[Job, Outcome], object] = lambda job, outcome: None,
) -> list[Outcome]:
    """Run the ``jobs`` that are not finished, equal ones once; return how each ended, in the order of ``jobs``.

    A cell that failed leaves a row (``rows/failed-<key>.json``). The same call tries it again, and removes the row when
    it succeeds. Every cell that is finished has a line. Failures are reported when they happen, except if the user
    asked for a single cell, whose failure ends the command.

    Args:
        jobs: the jobs.
        backend: runs them.
        among: number of cells that the user asked for, if it is larger than that of ``jobs``.
        ended: called with every job when it has ended, or is found finished, and with its outcome.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM; running cells were stopped, and finished work is kept.
    """
    distinct = {job.id: job for job in jobs}
    among = among or len(distinct)
    outcomes = {id: outcome for id, job in distinct.items() if (outcome := _settled(job)) is not None}
    todo = [job for id, job in distinct.items() if id not in outcomes]
    names = dict(zip(distinct, short_names([job.cell.config for job in distinct.values()]), strict=True))
    began = time.monotonic()
    for id, outcome in outcomes.items():
        _tell_failure(distinct[id], outcome, among=among)
        ended(distinct[id], outcome)
    try:
        with (
            _termination_as_interrupt(),
            bar("cells", len(distinct), done=len(outcomes), unit="cell", quiet=backend.in_process) as shown,
            closing(backend.run(todo)) as running,
        ):
            for job, outcome in running:
                outcomes[job.id] = outcome
                if outcome.ok:
                    say(_finished(job, names[job.id], time.monotonic() - began if backend.in_process else None))
                began = time.monotonic()
                _tell_failure(job, outcome, among=among)
                ended(job, outcome)
                failed = sum(not o.ok for o in outcomes.values())
                shown.advance(note=f"{backend.running} running, {failed} failed, last {job.cell.name}")
    except KeyboardInterrupt:
        if len(distinct) > 1:
            say(f"{len(distinct)} cells: {_counts(outcomes.values(), len(distinct))}.")
        raise
    return [outcomes[job.id] for job in jobs]


def _settled(job: Job) -> Outcome | None:
    """Return the outcome of a job that is finished, or whose files are damaged; ``None`` if it has to run."""
    try:
        if job.force or job.cell.pending():
            return None
        drop_failure(job.cell)  # its process may have been killed after the last stage
    except Exception as error:
        outcome = Outcome.of(error, job.cell.place.folder / "error.txt")
        record_failure(job.freeze(), outcome)
        return outcome
    return Outcome()


def _finished(job: Job, name: str, seconds: float | None) -> str:
    """Return a line about a finished cell; without ``seconds`` the time is that of its stages on record."""
    result = CellResult(job.cell)
    told = [f"{evaluator} {result.accuracy(evaluator)}" for evaluator in result.rows]
    if len(told) == 1:
        told = [str(result.accuracy(evaluator)) for evaluator in result.rows]
    if seconds is None:
        made = job.cell.workspace.row("condense", job.cell.key) or {}
        seconds = (made.get("condense_seconds") or 0.0) + sum(row["evaluate_seconds"] for row in result.rows.values())
    return f"{name}: {', '.join(told)} in {duration(seconds)}"


def _tell_failure(job: Job, outcome: Outcome, *, among: int) -> None:
    if not outcome.ok and among > 1:  # for a single cell the command itself ends with this error
        complain(f"{job.cell.name}: {outcome.reason}")


def _counts(outcomes: Collection[Outcome], total: int) -> str:
    counts = Counter[str](outcome.status for outcome in outcomes)
    counts["not finished"] = total - len(outcomes)
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count)


@contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """Handle SIGTERM, by which systems ask processes to stop, like Ctrl-C."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
