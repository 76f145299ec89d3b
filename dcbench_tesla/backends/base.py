"""What a backend is, what it is given, and how a cell ended.

A cell is the same command everywhere: ``python -m dcbench_tesla.backends.worker JOB.json`` reads a frozen
configuration, writes the cell's folder and rows, and prints one line of JSON.
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
from dcbench_tesla.records.workspace import Workspace

Status = Literal["ok", "diverged", "out of memory", "timed out", "killed", "failed"]


@dataclass(frozen=True)
class Outcome:
    """How a cell ended: its status, and for all but ``ok`` the reason, as a user is told it, and an exit code."""

    status: Status = "ok"
    reason: str = ""
    exit_code: int = 0

    @property
    def ok(self) -> bool:
        """Whether the cell is finished."""
        return self.status == "ok"

    @classmethod
    def of(cls, error: BaseException, report: Path) -> "Outcome":
        """Return how a cell that raised ``error`` ended; a defect of the program leaves its traceback in ``report``."""
        reason = explained(error)
        if reason is None:
            reason = f"{type(error).__name__}: {error}. This is a defect of the program or a plugin; see {report}."
            with suppress(DcbenchError):
                write_text(report, "".join(traceback.format_exception(error)))
        status: Status = "out of memory" if is_out_of_memory(error) else "failed"
        return cls("diverged" if isinstance(error, DivergedError) else status, reason, getattr(error, "exit_code", 1))


@dataclass(frozen=True, kw_only=True)
class FrozenJob:
    """A cell as a file: the settings as they were resolved, where to compute, and what a failure's row says of it.

    ``name``: of its files under ``jobs/``. ``evaluations``: the keys of those it is to do. ``facts``:
    :func:`~dcbench_tesla.cells.stages.cell_facts`. ``memory_facts``: what its row is to say of a memory budget.
    ``logs`` and ``compile``: as :class:`~dcbench_tesla.cells.execution.Execution` has them.
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

    @classmethod
    def read(cls, file: Path) -> "FrozenJob":
        """Read what :meth:`write` wrote.

        Raises:
            CorruptFileError: the file holds something else.
        """
        try:
            return cls(**read_json(file))
        except TypeError as error:
            raise CorruptFileError(f"{file} is no job of this version of dcbench ({error}).") from error

    def write(self) -> "FrozenJob":
        """Write it to :attr:`file`."""
        write_json(self.file, dataclasses.asdict(self))
        return self

    @property
    def workspace(self) -> Workspace:
        """Where the results go."""
        return Workspace(Path(self.out))

    @property
    def file(self) -> Path:
        """Where the job lies, for the worker."""
        return self.workspace.jobs / f"{self.name}.json"

    @property
    def log(self) -> Path:
        """What its workers say, one attempt below the other."""
        return self.workspace.jobs / f"{self.name}.log"

    @property
    def report(self) -> Path:
        """Where the traceback of a defect goes."""
        return self.workspace.cells / self.cell / "error.txt"


@dataclass(frozen=True)
class Job:
    """A cell that a backend is to run, from scratch with ``force``.

    ``data_dir``: where data sets lie. ``memory_bytes``: what to ask a cluster for; ``None`` where it is not known,
    which leaves it to the cluster's defaults.
    """

    cell: Cell
    force: bool = False
    data_dir: Path | None = None
    memory_bytes: int | None = None

    @cached_property
    def id(self) -> str:
        """What the job does: two jobs of one condensation differ by their evaluations."""
        return content_key([self.cell.key, *self._evaluations])

    @property
    def _evaluations(self) -> list[str]:
        return [self.cell.identity.evaluation_key(name) for name in sorted(self.cell.config.evaluators)]

    def freeze(self, timeout_s: float | None = None) -> FrozenJob:
        """Return the job as a worker reads it; it may take ``timeout_s``."""
        cell, execution = self.cell, self.cell.execution
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
        )


Ended = Generator[tuple[Job, Outcome], None, None]


class Backend(Protocol):
    """Where cells run.

    ``execution``: device, threads and name, which go into every cell's record. ``at_once``: how many cells compute at
    a time, ``None`` where the cluster decides. ``running``: how many do now. ``in_process``: cells run in this process
    and show their own progress. ``elsewhere``: not on this machine, so that nothing measured here says how long they
    take.
    """

    execution: Execution
    at_once: int | None
    running: int
    in_process: bool
    elsewhere: bool

    def run(self, jobs: Sequence[Job]) -> Ended:
        """Run all jobs, and yield each as it ends; a failure is an outcome, and leaves its row.

        Closing the generator stops what runs; the finished parts are kept.
        """
        ...


def record_failure(job: FrozenJob, outcome: Outcome, *, hardware: str | None = None) -> None:
    """Write the row of a cell that failed: what, where, why, and for the how manieth time; a success drops it.

    It names the evaluations that are to be done before it falls, those of an earlier failure of the same set too.
    ``hardware``: what it ran on, where that is not this machine. Folders of the machine are left out of the reason:
    rows are committed.
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
    with suppress(DcbenchError):  # where nothing can be written, the message on the terminal is all there is
        before = job.workspace.row("failed", job.key) or {}
        evaluations = sorted({*before.get("evaluations", ()), *job.evaluations})
        attempts = before.get("attempts", 0) + 1
        job.workspace.write_row("failed", job.key, {**row, "evaluations": evaluations, "attempts": attempts})
