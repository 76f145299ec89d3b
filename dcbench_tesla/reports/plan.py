"""Plans for many cells before anything runs: the stages to run, their time on this machine, and their memory."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from dcbench_tesla import registry
from dcbench_tesla.backends.base import Job, Outcome
from dcbench_tesla.cells.budget import largest_peak
from dcbench_tesla.cells.cell import TEACHER, Cell
from dcbench_tesla.cells.estimate import Estimate, estimate
from dcbench_tesla.cells.execution import Execution
from dcbench_tesla.cells.session import Session
from dcbench_tesla.config import CellConfig
from dcbench_tesla.experts.store import ExpertStore
from dcbench_tesla.profilers.memory import MemoryMeter
from dcbench_tesla.records.environment import hardware
from dcbench_tesla.records.rows import mark, stage_rows
from dcbench_tesla.records.workspace import Workspace
from dcbench_tesla.reports.declarations import row_name

_T = TypeVar("_T")
_RESIDENT = 1.4  # bytes that a process on a CPU holds per byte of tensors, because freed memory is not all returned
_LIBRARIES_BYTES = 2 * 2**30


@dataclass(frozen=True, kw_only=True)
class PlannedCell:
    """The stages of a cell that remain to be run, with their time and memory.

    Args:
        config: the configuration of the cell.
        name: name of its folder; empty if its data set cannot be read.
        stages: the stages to run; empty for a finished cell, and ``None`` if they cannot be determined.
        estimate: seconds by stage, or ``None`` if they were not requested, there is nothing to run, or it failed.
        peak_bytes: the largest predicted peak of these stages without evaluations, which are not predicted; ``None``
            for the same reasons.
        reason: why a value could not be determined.
        shipped: the cell is done because the repository has its results.
    """

    config: CellConfig
    name: str = ""
    stages: Sequence[str] | None = None
    estimate: Estimate | None = None
    peak_bytes: int | None = None
    reason: str = ""
    shipped: bool = False

    @property
    def done(self) -> bool:
        """Whether there is nothing to run."""
        return self.stages is not None and not self.stages

    @property
    def label(self) -> str:
        """A name of the cell that is unique in its table."""
        c = self.config
        ipc = f"IPC {c.ipc}" if registry.load_method(c.method).uses_ipc else "all images"
        return ", ".join([c.method, row_name(c.dataset), ipc, *(f"{n}={getattr(c.settings, n)}" for n in c.changed)])


def plan(
    jobs: Iterable[Job],
    *,
    measure: bool = True,
    meter: MemoryMeter | None = None,
    begin: Callable[[Cell, Sequence[str]], object] = lambda cell, stages: None,
) -> Iterator[PlannedCell]:
    """Yield the plan of every job's cell, in the order of ``jobs``.

    Experts that several cells share count with the first of them. If planning a cell fails, its plan holds the reason.

    Args:
        jobs: the cells; those with ``force`` start over.
        measure: estimate times from a few steps of every stage on this machine.
        meter: predicts peaks; without a meter there are no peaks.
        begin: called with a cell and its stages before it is measured.
    """
    experts = _SharedExperts()
    for job in jobs:
        yield _planned(job, experts if measure else None, meter, begin)


def _planned(
    job: Job,
    experts: "_SharedExperts | None",
    meter: MemoryMeter | None,
    begin: Callable[[Cell, Sequence[str]], object],
) -> PlannedCell:
    cell = job.cell
    found = PlannedCell(config=cell.config, name=cell.name)
    report = cell.place.folder / "error.txt"
    stages, reason = _tried(report, lambda: cell.stages_from_scratch() if job.force else cell.pending())
    if stages is None:
        return replace(found, reason=reason)
    begin(cell, stages)
    time, untimed = _tried(report, lambda: experts.estimate(job, stages) if experts and stages else None)
    peak, unpredicted = _tried(report, lambda: largest_peak(cell, meter, stages) if meter else None)
    why = " ".join(dict.fromkeys(filter(None, [untimed, unpredicted])))
    return replace(found, stages=tuple(stages), estimate=time, peak_bytes=peak, reason=why)


def _tried(report: Path, work: Callable[[], _T]) -> tuple[_T | None, str]:
    """Return the result of ``work``, or ``None`` and the reason why it failed, so that other cells are still planned.

    The traceback of a bug goes to the file ``report``.
    """
    try:
        return work(), ""
    except Exception as error:
        return None, Outcome.of(error, report).reason


class _SharedExperts:
    """The epochs of experts that are counted already: ``{key of the recipe: {expert: epochs}}``."""

    def __init__(self) -> None:
        self._counted: dict[str, dict[int, int]] = {}

    def estimate(self, job: Job, stages: Sequence[str]) -> Estimate:
        """Estimate a cell's stages without expert epochs counted before, and count its own if this succeeds."""
        materials, before = job.cell.materials, deepcopy(self._counted)
        experts = teacher = 0
        if "experts" in stages and materials.expert_request:
            experts = self._count(materials.expert_store, materials.expert_count, materials.expert_request.epochs)
        if TEACHER in stages:
            teacher = self._count(materials.teacher_store, 1, job.cell.config.evaluation.teacher_epochs)
        try:
            return estimate(job.cell, stages, expert_epochs=experts, teacher_epochs=teacher, from_scratch=job.force)
        except BaseException:
            self._counted = before
            raise

    def _count(self, store: ExpertStore, count: int, to: int) -> int:
        """Return the epochs that the first ``count`` experts lack up to ``to`` beyond those counted, and count them."""
        counted = self._counted.setdefault(store.recipe.key, {})
        since = [max(store.trained(i, to), counted.get(i, 0)) for i in range(count)]
        counted.update({i: max(to, counted.get(i, 0)) for i in range(count)})
        return sum(to - done for done in since if to > done)


def open_cells(configs: Iterable[CellConfig], session: Session) -> tuple[list[Cell], list[PlannedCell]]:
    """Return the cells of ``configs``, equal ones once, and those that cannot exist, with the reason.

    A data set that cannot be read is tried once for all of its cells. An invalid cell does not affect the others.
    """
    cells: dict[str, Cell] = {}
    unread: dict[str, str] = {}
    failed = []
    for config in configs:
        if config.dataset not in unread:
            _, unread[config.dataset] = _opened(session, partial(session.dataset, config.dataset))
        reason, cell = unread[config.dataset], None
        if not reason:
            cell, reason = _opened(session, partial(_cell_by_id, session, config))
        if cell is not None:
            cells.setdefault(*cell)
        else:
            failed.append(PlannedCell(config=config, reason=reason))
    return list(cells.values()), failed


def _cell_by_id(session: Session, config: CellConfig) -> tuple[str, Cell]:
    cell = session.cell(config)
    return Job(cell).id, cell


def _opened(session: Session, work: Callable[[], _T]) -> tuple[_T | None, str]:
    """Return the result of ``work`` or why it failed; there is no cell's folder yet, so tracebacks go to ``jobs``."""
    return _tried(session.workspace.jobs / "error.txt", work)


def without_shipped(cells: Iterable[Cell], workspace: Workspace) -> tuple[list[Cell], list[PlannedCell]]:
    """Return the cells that are still to be planned, and finished plans of those that the repository has results of.

    The latter are cells whose evaluations are all committed; there are none if ``workspace`` does not include committed
    results.
    """
    shipped = {row["key"] for row in stage_rows(workspace, "evaluate") if mark(row)}
    others, done = [], []
    for cell in cells:
        if {cell.identity.evaluation_key(name) for name in cell.config.evaluators} <= shipped:
            done.append(PlannedCell(config=cell.config, name=cell.name, stages=(), shipped=True))
        else:
            others.append(cell)
    return others, done


def reasons(planned: Iterable[PlannedCell]) -> list[str]:
    """Return every reason for failed cells or missing values once, with the first cell and the number of others."""
    about: dict[str, list[str]] = {}
    for cell in planned:
        if cell.reason:
            about.setdefault(cell.reason, []).append(cell.label)
    return [f"{first}{f' and {len(more)} more' * bool(more)}: {reason}" for reason, (first, *more) in about.items()]


def machine(execution: Execution) -> str:
    """Return the hardware and threads as a text: ``AMD EPYC, 2 cores, 1 thread``."""
    return f"{hardware(execution.device)}, {execution.threads} thread{'s' * (execution.threads > 1)}"


def host_memory_bytes(cell: Cell, peak_bytes: int | None) -> int | None:
    """Return the main memory to request from a cluster: for libraries, images, and on a CPU the tensors.

    Args:
        cell: the cell.
        peak_bytes: the predicted peak of the tensors. If it is ``None``, the result is ``None`` on a CPU.
    """
    beside = _LIBRARIES_BYTES + cell.dataset.x_train.nbytes
    if cell.device.type != "cpu":
        return beside
    return None if peak_bytes is None else beside + int(_RESIDENT * peak_bytes)
