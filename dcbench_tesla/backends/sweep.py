"""Runs many cells by a backend; one that fails does not stop the others, and what is done is not done again."""

import signal
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager

from dcbench_tesla.backends.base import Backend, Job, Outcome, record_failure
from dcbench_tesla.records.progress import bar, say
from dcbench_tesla.records.rows import drop_settled_failure


def sweep(jobs: Sequence[Job], backend: Backend, *, among: int | None = None) -> list[Outcome]:
    """Run what is not done of ``jobs``, equal ones once, and return how each ended, in their order.

    A cell that failed leaves a row (``rows/failed-<key>.json``); the same call tries it again, and drops the row when
    it succeeds. What a user should know of failures is said as they happen, but for a single cell's. ``among``: how
    many cells the user asked for, where that is more.

    Raises:
        KeyboardInterrupt: by Ctrl-C or SIGTERM; what ran was stopped, and what was done is kept.
    """
    distinct = {job.id: job for job in jobs}
    among = among or len(distinct)
    outcomes = {id: outcome for id, job in distinct.items() if (outcome := _settled(job)) is not None}
    todo = [job for id, job in distinct.items() if id not in outcomes]
    for id, outcome in outcomes.items():
        _tell_failure(distinct[id], outcome, among=among)
    try:
        with (
            _termination_as_interrupt(),
            bar("cells", len(distinct), done=len(outcomes), unit="cell", quiet=backend.in_process) as shown,
            closing(backend.run(todo)) as ended,
        ):
            for job, outcome in ended:
                outcomes[job.id] = outcome
                _tell_failure(job, outcome, among=among)
                failed = sum(not o.ok for o in outcomes.values())
                shown.advance(note=f"{backend.running} running, {failed} failed, last {job.cell.name}")
    except KeyboardInterrupt:
        if len(distinct) > 1:
            say(f"{len(distinct)} cells: {_counts(outcomes.values(), len(distinct))}.")
        raise
    return [outcomes[job.id] for job in jobs]


def _settled(job: Job) -> Outcome | None:
    """Return the outcome of a job that needs no running, or cannot: it is done, or what is there of it is damaged."""
    try:
        if job.force or job.cell.pending():
            return None
        drop_settled_failure(job.cell.workspace, job.cell.key)  # its process was killed after the last stage
    except Exception as error:
        outcome = Outcome.of(error, job.cell.place.folder / "error.txt")
        record_failure(job.freeze(), outcome)
        return outcome
    return Outcome()


def _tell_failure(job: Job, outcome: Outcome, *, among: int) -> None:
    if not outcome.ok and among > 1:  # who asked for a single cell gets its failure as the end of the command
        say(f"Error: {job.cell.name}: {outcome.reason}")


def _counts(outcomes: Collection[Outcome], total: int) -> str:
    counts = Counter[str](outcome.status for outcome in outcomes)
    counts["not finished"] = total - len(outcomes)
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count)


@contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """Take SIGTERM, by which systems say stop, as Ctrl-C."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
