"""What `dcbench plan` and `dcbench run --dry-run` show: cells with their time and memory, before anything runs."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import click

from dcbench_tesla.cli.common import terminal_width
from dcbench_tesla.records.workspace import MARK

if TYPE_CHECKING:
    from dcbench_tesla.backends.base import Job
    from dcbench_tesla.cells.execution import Execution
    from dcbench_tesla.cli.shown import output
    from dcbench_tesla.reports.plan import PlannedCell


def measured(jobs: "Sequence[Job]") -> "list[PlannedCell]":
    """Plan all cells: measure a few steps of each, and predict its memory."""
    from dcbench_tesla.profilers.memory import PredictedMeter
    from dcbench_tesla.records.progress import bar, say
    from dcbench_tesla.reports.plan import plan

    planned = []
    say("measuring a few steps of what is to be done ...")
    with bar("plan", len(jobs), unit="cell") as shown:
        for found in plan(jobs, meter=PredictedMeter(), begin=lambda cell, _: shown.advance(0, cell.name)):
            planned.append(found)
            shown.advance()
    return planned


def show_plan(planned: "Sequence[PlannedCell]", execution: "Execution", *, as_json: bool) -> None:
    """Print the planned cells as a table with totals, or as JSON; each reason for a missing value is told once."""
    from dcbench_tesla.compare.table import wrapped
    from dcbench_tesla.records.progress import say
    from dcbench_tesla.reports.plan import machine, reasons

    for text in reasons(planned):
        say(text)
    if as_json:
        from dcbench_tesla.cli.shown.output import Plan, emit

        emit(Plan(machine=machine(execution), cells=[_as_json(cell) for cell in planned]))
        return
    if not planned:
        return
    width = terminal_width()
    for line in [*_lines(planned, width), "", *wrapped(totals(planned, machine(execution)), width)]:
        click.echo(line)


def _lines(planned: "Sequence[PlannedCell]", width: int) -> list[str]:
    """Return the lines of the table; what all cells share stands once above it."""
    from dcbench_tesla.compare.changes import in_words
    from dcbench_tesla.compare.table import fitted, wrapped
    from dcbench_tesla.config import shared_changes, short_names, shown_dataset
    from dcbench_tesla.records.progress import duration, size

    configs = [cell.config for cell in planned]
    names = short_names(configs)
    same = shared_changes(configs)
    about = [f"data set {', '.join(dict.fromkeys(shown_dataset(c.dataset) for c in configs))}"]
    about += [f"preset {', '.join(dict.fromkeys(c.preset for c in configs))}"]
    about += [f"changed: {in_words(same)}"] if same else []
    body = [
        [
            name,
            duration(cell.estimate.total) if cell.estimate else "",
            "" if cell.peak_bytes is None else size(cell.peak_bytes),
        ]
        for name, cell in zip(names, planned, strict=True)
    ]
    todo = ["" if c.stages is None else ", ".join(c.stages) or f"done{MARK * c.shipped}" for c in planned]
    shown = fitted(["cell", "time", "peak memory"], body, width, told=todo, told_as="to do")
    return [*wrapped(", ".join(about), width), "", *shown]


def totals(planned: "Iterable[PlannedCell]", where: str) -> str:
    """Return one line: the number of cells to do, their time on the machine ``where``, and the largest peak."""
    from dcbench_tesla.records.progress import duration, size

    planned = list(planned)
    todo = [cell for cell in planned if not cell.done]
    text = f"{len(todo)} of {len(planned)} cells to do"
    estimated = [cell.estimate.total for cell in todo if cell.estimate]
    if estimated:
        text += f", about {duration(sum(estimated))} on {where}"
    if len(estimated) < len(todo):
        text += f", {len(todo) - len(estimated)} of them not estimated"
    peaks = [cell.peak_bytes for cell in todo if cell.peak_bytes is not None]
    return text + (f"; the largest needs {size(max(peaks))}" if peaks else "")


def _as_json(cell: "PlannedCell") -> "output.PlannedCell":
    import json

    from dcbench_tesla import registry
    from dcbench_tesla.cli.shown import output
    from dcbench_tesla.config import shown_dataset

    c = cell.config
    return output.PlannedCell(
        name=cell.name,
        method=c.method,
        dataset=shown_dataset(c.dataset),
        ipc=c.ipc if registry.load_method(c.method).uses_ipc else None,
        seed=c.seed,
        preset=c.preset,
        stages=cell.stages,
        seconds=cell.estimate.seconds if cell.estimate else None,
        peak_bytes=cell.peak_bytes,
        reason=cell.reason,
        shipped=cell.shipped,
        config=json.loads(json.dumps(c.as_dict())),
    )
