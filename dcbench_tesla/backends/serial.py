"""Backend ``serial``: one cell after another in this process."""

from collections.abc import Sequence

from dcbench_tesla.backends.base import Ended, Job, Outcome, record_failure
from dcbench_tesla.cells.execution import Execution
from dcbench_tesla.cells.stages import run_cell


class Serial:
    """Runs one cell after another in this process. A signal that kills a cell ends the whole sweep."""

    at_once: int | None = 1
    running = 0
    in_process = True
    elsewhere = False

    def __init__(self, device: str = "auto") -> None:
        self.execution = Execution.resolve(device)

    def run(self, jobs: Sequence[Job]) -> Ended:
        """Run the jobs one after another, and yield each when it ends."""
        for job in jobs:
            yield job, self._run(job)

    def _run(self, job: Job) -> Outcome:
        try:
            run_cell(job.cell, force=job.force)
        except Exception as error:
            outcome = Outcome.of(error, job.cell.place.folder / "error.txt")
            record_failure(job.freeze(), outcome)
            return outcome
        return Outcome()
