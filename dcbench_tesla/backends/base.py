"""The interface of backends: what a backend is given, and how cells end.

A cell is run by the same command everywhere: ``python -m dcbench_tesla.backends.worker JOB.json`` reads a job with the
resolved configuration, writes the cell's folder and rows, and prints one line of JSON.
"""

import dataclasses
import re
import traceback
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

from dcbench_tesla.cells.cell import Cell
from dcbench_tesla.cells.execution import Execution
from dcbench_tesla.cells.stages import cell_facts
from dcbench_tesla.errors import CorruptFileError, DcbenchError, DivergedError, explained, is_out_of_memory
from dcbench_tesla.records.environment import environment
from dcbench_tesla.records.store import content_key, read_json, write_json, write_text
from dcbench_tesla.records.workspace import TrialWorkspace, Workspace

_REMEDY = "Delete it: the command that submitted the job writes it again."
Status = Literal["ok", "diverged", "out of memory", "timed out", "killed", "failed"]


@dataclass(frozen=True)
class Outcome:
    """How a cell ended: its status and, unless that is ``ok``, the reason as users see it, and an exit code."""

    status: Status = "ok"
    reason: str = ""
    exit_code: int = 0

    @property
    def ok(self) -> bool:
        """Whether the cell was finished."""
        return self.status == "ok"

    @classmethod
    def of(cls, error: BaseException, report: Path) -> "Outcome":
        """Return the outcome of a cell that raised ``error``; for a bug, write the traceback to ``report``."""
        reason = explained(error)
        if reason is None:
            reason = f"{type(error).__name__}: {error}. This is a defect of the program or a plugin; see {report}."
            with suppress(DcbenchError):
                write_text(report, "".join(traceback.format_exception(error)))
        status: Status = "out of memory" if is_out_of_memory(error) else "failed"
        return cls("diverged" if isinstance(error, DivergedError) else status, reason, getattr(error, "exit_code", 1))


@dataclass(frozen=True, kw_only=True)
class FrozenJob:
    """A job as a file for a worker: one cell with its resolved settings, and where and how to compute it.

    Args:
        name: name of its files under ``jobs/``.
        cell: name of the cell's folder.
        key: key of the cell.
        evaluations: keys of the evaluations to run.
        out: the results folder.
        data_dir: the folder of the data sets' files.
        device: PyTorch's name of the device.
        threads: number of PyTorch's threads.
        backend: name of the backend.
        logs: see :class:`~dcbench_tesla.cells.execution.Execution`.
        compile: see :class:`~dcbench_tesla.cells.execution.Execution`.
        force: start the cell over.
        timeout_s: seconds that the cell may take.
        config: the cell's configuration, as :meth:`~dcbench_tesla.config.CellConfig.as_dict` returns it.
        facts: columns for the row of a failure, from :func:`~dcbench_tesla.cells.stages.cell_facts`.
        memory_facts: columns about a memory budget for the row of the condensation.
        energy: see :class:`~dcbench_tesla.cells.execution.Execution`.
        trials_of: the results folder of the search that the cell is a trial of; see
            :class:`~dcbench_tesla.cells.session.Session`.
    """

    name: str
    cell: str
    key: str
    evaluations: Sequence[str]
    out: str
    data_dir: str | None
    device: str
    threads: int
    backend: str
    logs: Sequence[str]
    compile: str
    force: bool
    timeout_s: float | None
    config: Mapping[str, Any]
    facts: Mapping[str, Any]
    memory_facts: Mapping[str, int]
    energy: bool = False
    trials_of: str | None = None

    @classmethod
    def read(cls, file: Path) -> "FrozenJob":
        """Read a job from the file that :meth:`write` wrote.

        Raises:
            CorruptFileError: the file holds something else, or another job than its name says.
        """
        content = read_json(file, "job", remedy=_REMEDY)
        if content["name"] != file.stem:
            raise CorruptFileError(f"{file} holds another job, {content['name']}. {_REMEDY}")
        return cls(**{f.name: content[f.name] for f in dataclasses.fields(cls) if f.name in content})

    def write(self) -> "FrozenJob":
        """Write the job to :attr:`file` and return it."""
        write_json(self.file, dataclasses.asdict(self))
        return self

    @property
    def workspace(self) -> Workspace:
        """The results folder."""
        return Workspace(Path(self.out))

    @property
    def file(self) -> Path:
        """The job's file, which the worker reads."""
        return self.workspace.jobs / f"{self.name}.json"

    @property
    def log(self) -> Path:
        """The log of the job's workers; repeated attempts are appended."""
        return self.workspace.jobs / f"{self.name}.log"

    @property
    def report(self) -> Path:
        """The file for the traceback of a bug."""
        return self.workspace.cells / self.cell / "error.txt"


@dataclass(frozen=True)
class Job:
    """A cell for a backend to run.

    Args:
        cell: the cell.
        force: start the cell over.
        data_dir: the folder of the data sets' files.
        memory_bytes: memory to request from a cluster; ``None`` if unknown, which leaves it to the cluster's defaults.
    """

    cell: Cell
    force: bool = False
    data_dir: Path | None = None
    memory_bytes: int | None = None

    @cached_property
    def id(self) -> str:
        """Key of the job's work: jobs of one condensation differ by their evaluations."""
        return content_key([self.cell.key, *self._evaluations])

    @property
    def _evaluations(self) -> list[str]:
        return [self.cell.identity.evaluation_key(name) for name in sorted(self.cell.config.evaluators)]

    def freeze(self, timeout_s: float | None = None) -> FrozenJob:
        """Return the job as a worker reads it, with ``timeout_s`` as its time limit."""
        cell, execution, space = self.cell, self.cell.execution, self.cell.workspace
        return FrozenJob(
            name=f"{cell.name}-{self.id[:6]}",
            cell=cell.name,
            key=cell.key,
            evaluations=self._evaluations,
            out=str(cell.workspace.root.absolute()),
            data_dir=str(self.data_dir.absolute()) if self.data_dir else None,
            device=execution.device,
            threads=execution.threads,
            backend=execution.backend,
            logs=execution.logs,
            compile=execution.compile,
            force=self.force,
            timeout_s=timeout_s,
            config=cell.config.as_dict(),
            facts=cell_facts(cell),
            memory_facts=cell.memory_facts,
            energy=execution.energy,
            trials_of=str(space.results.absolute()) if isinstance(space, TrialWorkspace) else None,
        )


Ended = Generator[tuple[Job, Outcome], None, None]


class Backend(Protocol):
    """A way to run cells.

    ``execution`` holds device, threads and the backend's name, which every row records. ``at_once`` is the number of
    cells that run at a time (``None`` if the cluster decides), and ``running`` the number that run now. ``in_process``
    says whether cells run in this process and show their own progress. ``elsewhere`` says whether they run on other
    machines, so that times measured here do not apply.
    """

    execution: Execution
    at_once: int | None
    running: int
    in_process: bool
    elsewhere: bool

    def run(self, jobs: Sequence[Job]) -> Ended:
        """Run all jobs and yield each when it ends. A failure is an outcome, and leaves a row.

        Closing the generator stops the running cells; their finished parts are kept.
        """
        ...


def _failure_before(job: FrozenJob) -> Mapping[str, Any]:
    """Return the row of an earlier failure of the condensation; a damaged one says nothing, and is replaced."""
    try:
        return job.workspace.row("failed", job.key) or {}
    except CorruptFileError:
        return {}


def record_failure(job: FrozenJob, outcome: Outcome, *, hardware: str | None = None) -> None:
    """Write the row of a cell that failed: what, where, why, and the number of attempts. A later success removes it.

    The row names the evaluations that must finish before it is removed, including those of an earlier failure of the
    same condensation. Folders of this machine are removed from the reason, because rows are committed.

    Args:
        job: the job that failed.
        outcome: how it ended.
        hardware: the hardware it ran on, if that is not this machine's.
    """
    here = environment("cpu" if hardware else job.device, job.threads, job.backend) | {"device": job.device}
    here |= {"hardware": hardware} if hardware else {}
    row = {
        **job.facts,
        "hardware": here["hardware"],
        "environment": here,
        "status": outcome.status,
        "reason": re.sub(r"(?<![\w./])/(?:[^\s/'\"]+/)+", "", outcome.reason),
    }
    with suppress(DcbenchError):  # if nothing can be written, the message on the terminal has to be enough
        before = _failure_before(job)
        evaluations = sorted({*before.get("evaluations", ()), *job.evaluations})
        attempts = before.get("attempts", 0) + 1
        job.workspace.write_row("failed", job.key, {**row, "evaluations": evaluations, "attempts": attempts})
