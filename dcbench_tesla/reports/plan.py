"""What is to be done of many cells, how long that takes here and how much memory it needs, before anything runs."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from dcbench_tesla import registry
from dcbench_tesla.backends.base import Job, Outcome
from dcbench_tesla.cells.budget import largest_peak
from dcbench_tesla.cells.cell import Cell
from dcbench_tesla.cells.estimate import Estimate, estimate
from dcbench_tesla.cells.execution import Execution
from dcbench_tesla.cells.session import Session
from dcbench_tesla.config import CellConfig
from dcbench_tesla.profilers.memory import MemoryMeter
from dcbench_tesla.records.environment import hardware
from dcbench_tesla.records.rows import mark, stage_rows
from dcbench_tesla.records.workspace import Workspace
from dcbench_tesla.reports.declarations import row_name

_T = TypeVar("_T")
_RESIDENT = 1.4  # what a process on a CPU holds for every byte of tensors: freed ones are not all given back
_LIBRARIES_BYTES = 2 * 2**30


@dataclass(frozen=True, kw_only=True)
class PlannedCell:
    """What is to be done of a cell, and what it takes.

    ``name``: of its folder; empty where its data set is not here. ``stages``: those to be done, none of a finished
    cell, ``None`` where that cannot be told. ``estimate``: seconds by stage. ``peak_bytes``: the largest predicted peak
    of those stages, evaluations apart, which are not predicted. A figure that is missing was not asked for, or is of
    nothing, or could not be had; ``reason`` says why. ``shipped``: it is done by what the repository ships.
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
        """Whether nothing is to be done."""
        return self.stages is not None and not self.stages

    @property
    def label(self) -> str:
        """What tells it from the other cells of its table, for people."""
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
    """Yield what is to be done of every job's cell, in their order; nothing of it is done.

    Experts that several cells share are counted with the first. A cell that fails says why, and the others go on.

    Args:
        jobs: the cells; those with ``force`` start over.
        measure: estimate times, by a few steps of every stage on this machine.
        meter: what predicts peaks; without one none is.
        begin: called with a cell and its stages before anything of it is measured.
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
    """Return what ``work`` does, or why it failed: running will report it, and the others go on.

    ``report``: where the traceback of a defect goes.
    """
    try:
        return work(), ""
    except Exception as error:
        return None, Outcome.of(error, report).reason


class _SharedExperts:
    """Which epochs of which experts are counted already: ``{recipe's key: {expert: epochs}}``."""

    def __init__(self) -> None:
        self._counted: dict[str, dict[int, int]] = {}

    def estimate(self, job: Job, stages: Sequence[str]) -> Estimate:
        """Estimate a cell's stages, its experts without what is counted; count them, if that succeeds."""
        wanted = self._wanted(job.cell) if "experts" in stages else {}
        counted = self._counted.setdefault(job.cell.materials.expert_store.recipe.key, {})
        epochs = sum(to - max(since, counted.get(i, 0)) for i, (since, to) in wanted.items() if to > counted.get(i, 0))
        found = estimate(job.cell, stages, expert_epochs=epochs, from_scratch=job.force)
        counted.update({i: max(to, counted.get(i, 0)) for i, (_, to) in wanted.items()})
        return found

    def _wanted(self, cell: Cell) -> dict[int, tuple[int, int]]:
        """From which epoch to which one every expert of a cell is to be trained."""
        to = cell.materials.expert_request.epochs if cell.materials.expert_request else 0
        return {i: (cell.materials.expert_store.trained(i, to), to) for i in range(cell.materials.expert_count)}


def open_cells(configs: Iterable[CellConfig], session: Session) -> tuple[list[Cell], list[PlannedCell]]:
    """Return the cells of ``configs``, equal ones once, and those that there cannot be, with the reason.

    A data set that cannot be read is tried once for all of its cells; what is wrong with a cell stops no other one.
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
    """Return what ``work`` opens, or why it failed; there is no cell yet whose folder could take a traceback."""
    return _tried(session.workspace.jobs / "error.txt", work)


def without_shipped(cells: Iterable[Cell], workspace: Workspace) -> tuple[list[Cell], list[PlannedCell]]:
    """Return the cells that are not shipped, and those whose evaluations all are, which are done.

    None is shipped where ``workspace`` reads no shipped rows; a cell of which a part is own is not.
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
    """Return why cells failed or figures of them are missing, for people: a reason once, with how many it is of."""
    about: dict[str, list[str]] = {}
    for cell in planned:
        if cell.reason:
            about.setdefault(cell.reason, []).append(cell.label)
    return [f"{first}{f' and {len(more)} more' * bool(more)}: {reason}" for reason, (first, *more) in about.items()]


def machine(execution: Execution) -> str:
    """Return what computes, for people: ``AMD EPYC, 2 cores, 1 thread``."""
    return f"{hardware(execution.device)}, {execution.threads} thread{'s' * (execution.threads > 1)}"


def host_memory_bytes(cell: Cell, peak_bytes: int | None) -> int | None:
    """Return the main memory to ask a cluster for: libraries, images, and on a CPU the tensors of ``peak_bytes``.

    ``None`` where those are not predicted.
    """
    beside = _LIBRARIES_BYTES + cell.dataset.x_train.nbytes
    if cell.device.type != "cpu":
        return beside
    return None if peak_bytes is None else beside + int(_RESIDENT * peak_bytes)
