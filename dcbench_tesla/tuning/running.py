"""Runs the trials of a search by any backend. A finished trial leaves a row, and is not repeated."""

import dataclasses
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcbench_tesla.backends.base import Backend, Job, Outcome
from dcbench_tesla.backends.sweep import sweep
from dcbench_tesla.cells.result import CellResult
from dcbench_tesla.cells.session import Session
from dcbench_tesla.config import CellConfig, overrides_from, resolved_again
from dcbench_tesla.data.dataset import Dataset
from dcbench_tesla.errors import DcbenchError, UsageError
from dcbench_tesla.records.environment import environment
from dcbench_tesla.records.progress import duration, say
from dcbench_tesla.records.store import locked
from dcbench_tesla.records.workspace import Workspace
from dcbench_tesla.tuning.draws import Told, draw
from dcbench_tesla.tuning.space import space_of
from dcbench_tesla.tuning.trials import STAGE, Row, Search, best_first, score

_VALIDATION = 0.05  # the share of the training images that a remedy names
_LOST = ("diverged", "out of memory", "timed out")  # what a trial's settings can do; what else fails is tried again


@dataclass(frozen=True, kw_only=True)
class Running:
    """Where and how the trials of a search run.

    Args:
        results: the results folder, which gets the rows.
        backend: runs them.
        data_dir: the folder of the data sets' files.
        compile: whether to compile what can be compiled; see :class:`~dcbench_tesla.cells.execution.Execution`.
    """

    results: Workspace
    backend: Backend
    data_dir: Path | None = None
    compile: str = "auto"

    def session(self, folder: Path) -> Session:
        """Return the session of the trials in a folder: data sets without test images, experts of the results."""
        execution = dataclasses.replace(self.backend.execution, compile=self.compile)
        return Session(folder, data_dir=self.data_dir, execution=execution, trials_of=self.results.root)


def search_for(
    config: CellConfig,
    running: Running,
    asked: Mapping[str, Any],
    *,
    batch: int,
    command: str,
    dataset: Dataset | None = None,
) -> Search:
    """Return the search for the settings of a cell.

    Args:
        config: the cell, with one evaluator.
        running: where it will run.
        asked: the entries of ``--search`` that the cell's method has.
        batch: trials that are drawn before any of them is known.
        command: the command, for rows.
        dataset: the cell's data set, if it is loaded already.

    Raises:
        UsageError: no images are held out to choose on, or there is nothing to search.
    """
    if not config.data.validation:
        raise UsageError(
            f"a search chooses on held-out training images, and {config.method} holds out none: add --set "
            f"data.validation={_VALIDATION}."
        )
    space = space_of(config, asked)
    last_only = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, every=0))
    dataset = dataset or running.session(running.results.tuning).dataset(config.dataset)
    return Search(config=last_only, dataset=dataset, space=space, batch=batch, command=command)


def run_search(search: Search, trials: int, running: Running) -> list[Row]:
    """Run the trials of a search that are not on record, and return the rows of all, by number.

    Trials of a batch are drawn before any of them is known, and may run at the same time. The first trial has the
    preset's values, if the space holds them.

    Raises:
        DcbenchError: a trial failed for a reason that is not its settings'; what was done is kept.
    """
    rows: list[Row] = []
    if len(found := _recorded(search, trials, running)) == trials:
        return [found[number] for number in range(trials)]
    folder = running.results.tuning / search.key
    session = running.session(folder)
    session.use(search.config.dataset, search.dataset)
    with _alone(folder, search):
        for start in range(0, trials, search.batch):
            count = min(search.batch, trials - start)
            told = [Told(row["values"], score(row)) for row in rows]
            drawn = draw(search.space, told, count, search.config.seed, search.preset_values)
            began, missing = time.monotonic(), any(number not in found for number in range(start, start + count))
            rows += _Batch(search, running, session, trials, rows).run(drawn)
            if missing:
                left = trials - len([n for n in found if n >= len(rows)]) - len(rows)
                say(_so_far(search, rows, trials, left * (time.monotonic() - began) / count))
    return rows


def _so_far(search: Search, rows: Sequence[Row], trials: int, seconds_left: float) -> str:
    """Return a line on the best trial so far, and on how long the others will take."""
    best = best_first(rows)[0]
    told = f"{search.config.method}: {len(rows)} of {trials} trials, the best so far {100 * score(best):.1f} % (trial "
    return f"{told}{best['number']})" + (f", {duration(seconds_left)} left" if seconds_left else "")


def _recorded(search: Search, trials: int, running: Running) -> dict[int, Row]:
    found = ((number, search.recorded(running.results, number)) for number in range(trials))
    return {number: row for number, row in found if row is not None}


@contextmanager
def _alone(folder: Path, search: Search) -> Iterator[None]:
    """Hold the search's lock: a second process with the same command waits, and then finds its trials finished."""
    waiting = f"another process searches for the settings of {search.config.method}; waiting for it"
    with locked(folder / ".lock", lambda: say(waiting)):
        yield
    shutil.rmtree(folder, ignore_errors=True)  # the rows of the trials say what counts
    with suppress(OSError):
        folder.parent.rmdir()  # unless another search is there


class _Batch:
    """Trials that were drawn together, after the trials ``before``."""

    def __init__(self, search: Search, running: Running, session: Session, budget: int, before: Sequence[Row]) -> None:
        self._search, self._running, self._session, self._budget = search, running, session, budget
        self._before, self._start = before, len(before)
        self._rows: dict[int, Row] = {}
        self._failures: list[str] = []

    def run(self, drawn: Sequence[Mapping[str, Any]]) -> list[Row]:
        """Run those trials that are not on record, and return the rows of all, by number."""
        numbers = range(self._start, self._start + len(drawn))
        values = dict(zip(numbers, drawn, strict=True))
        for number in numbers:
            if (row := self._search.recorded(self._running.results, number)) is not None:
                self._rows[number], values[number] = row, row["values"]
        twins = {number: twin for number in numbers if (twin := self._twin(number, values)) is not None}
        self._sweep({n: v for n, v in values.items() if n not in self._rows and n not in twins})
        if self._failures:
            raise DcbenchError(f"{'; '.join(self._failures)}. What was done is kept: the same command goes on.")
        for number, twin in twins.items():
            if number not in self._rows:
                self._again(number, twin)
        for name in ("cells", "rows", "sheets", "jobs"):
            shutil.rmtree(self._session.workspace.root / name, ignore_errors=True)
        return [self._rows[number] for number in numbers]

    def _twin(self, number: int, values: Mapping[int, Mapping[str, Any]]) -> int | None:
        """Return the first earlier trial that has the same values, which need not be computed again."""
        earlier = {row["number"]: row["values"] for row in self._before} | dict(values)
        return next((other for other, tried in earlier.items() if other < number and tried == values[number]), None)

    def _job(self, values: Mapping[str, Any]) -> Job:
        """Return the job of a trial; raises ``UsageError`` where settings exclude each other."""
        config = resolved_again(self._search.config, overrides_from(values))
        last_only = dataclasses.replace(config.evaluation, every=0)
        cell = self._session.cell(dataclasses.replace(config, evaluation=last_only), report_later=True)
        return Job(cell, data_dir=self._running.data_dir)

    def _sweep(self, values: Mapping[int, Mapping[str, Any]]) -> None:
        """Run trials and record them; those whose values come to the same cell run once."""
        jobs: dict[str, Job] = {}
        numbers: dict[str, list[int]] = {}
        for number, tried in values.items():
            try:
                job = self._job(tried)
            except UsageError as error:
                self._lost(number, tried, Outcome("failed", str(error), 2))
                continue
            jobs.setdefault(job.id, job)
            numbers.setdefault(job.id, []).append(number)

        def ended(job: Job, outcome: Outcome) -> None:
            for number in numbers[job.id]:
                self._ended(number, values[number], job, outcome)

        if not self._running.backend.in_process:
            self._session.release()
        if jobs:
            sweep(list(jobs.values()), self._running.backend, among=self._budget, ended=ended)

    def _ended(self, number: int, tried: Mapping[str, Any], job: Job, outcome: Outcome) -> None:
        if outcome.ok:
            self._done(number, tried, CellResult(job.cell))
        elif outcome.status in _LOST:
            self._lost(number, tried, outcome)
        else:
            self._failures.append(f"trial {number} of {self._search.config.method} failed: {outcome.reason}")

    def _done(self, number: int, tried: Mapping[str, Any], result: CellResult) -> None:
        row = result.rows[self._search.evaluator]
        made = result.cell.workspace.row("condense", result.cell.key) or {}
        condensed = made.get("condense_seconds") or 0.0
        found = {
            "status": "ok",
            "validation": row["accuracy"]["last"]["values"],
            "validation_images": row["test_images"],  # a trial has no others
            "diverged_networks": row["diverged_networks"],
            "recipe": row["recipe"],
            "condense_seconds": condensed,
            "seconds": round(condensed + row["evaluate_seconds"], 3),
            "hardware": row["hardware"],
            "environment": row["environment"],
        }
        self._write(number, tried, found)

    def _lost(self, number: int, tried: Mapping[str, Any], outcome: Outcome) -> None:
        """Record a trial that its settings let fail: it counts, with the accuracy of chance."""
        execution = self._running.backend.execution
        here = environment("cpu" if self._running.backend.elsewhere else execution.device, execution.threads)
        found = {"status": outcome.status, "reason": outcome.reason, "validation": [], "seconds": 0.0}
        where = {"hardware": here["hardware"], "environment": here | {"backend": execution.backend}}
        self._write(number, tried, {**found, **where})

    def _again(self, number: int, twin: int) -> None:
        """Record a trial with the values of an earlier one, whose accuracies it has."""
        row = self._rows[twin] if twin in self._rows else self._before[twin]
        known = ("status", "reason", "validation", "validation_images", "diverged_networks", "recipe")
        found = {name: row[name] for name in (*known, "hardware", "environment") if name in row}
        self._write(number, row["values"], {**found, "seconds": 0.0, "same_as": twin})

    def _write(self, number: int, tried: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        facts = self._search.facts(number, self._budget, tried)
        key, chance = self._search.trial_key(number), 1 / self._search.dataset.classes
        self._running.results.write_row(STAGE, key, {**facts, "chance": chance, **found})
        self._rows[number] = {"stage": STAGE, "key": key, **facts, "chance": chance, **found}
