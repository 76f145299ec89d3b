"""`dcbench plan`: the time and memory that a table of the paper still needs, before anything runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dcbench_tesla.cli.common import (
    data_dir_option,
    device_option,
    options,
    out_option,
    part_options,
    shipped_option,
    workspace_of,
)
from dcbench_tesla.cli.reproduce import checked_cells
from dcbench_tesla.records.workspace import MARK

if TYPE_CHECKING:
    from dcbench_tesla.cells.session import Session
    from dcbench_tesla.config import CellConfig
    from dcbench_tesla.records.workspace import Workspace
    from dcbench_tesla.reports.plan import PlannedCell


@click.command()
@click.argument("table")
@options(*part_options, device_option, data_dir_option, out_option, shipped_option)
def plan(
    table: str,
    datasets: tuple[str, ...],
    ipcs: tuple[int, ...],
    methods: tuple[str, ...],
    preset: str | None,
    device: str,
    data_dir: Path | None,
    out: Path,
    shipped: bool,
) -> None:
    """Show the time and memory that a table still needs.

    TABLE is table1, table2, table3 or figure2, and every cell of it has a line. Nothing is run but a few steps of every
    stage, from which the time on this machine is extrapolated. Experts count with the first cell that uses them. Memory
    is the predicted peak of the tensors of condensation and expert training. A cell is done if its results are under
    --out; with --shipped also if the repository has them.

    \b
    Examples:
      dcbench plan table1 --preset quick --dataset fashion-mnist --ipc 1 --ipc 10
      dcbench plan table2 --dataset npz:my_images.npz --ipc 1 --preset quick
      dcbench plan figure2 --method tesla --device cuda
    """
    from dcbench_tesla.cells.session import Session
    from dcbench_tesla.compare.table import aligned
    from dcbench_tesla.errors import UsageError, unknown_name
    from dcbench_tesla.records.progress import say
    from dcbench_tesla.reports.declarations import Part, beyond_the_paper, declarations
    from dcbench_tesla.reports.plan import machine

    if table == "figure1":
        raise UsageError("figure1 has no cells to plan: dcbench reproduce figure1 makes it, with --run its times too.")
    if table not in declarations():
        raise unknown_name("table", table, declarations())
    part = Part(datasets=datasets, ipcs=ipcs, methods=methods, preset=preset or "")
    declaration, configs = checked_cells(table, part, to_run=True)
    for text in beyond_the_paper(declaration, part):
        say(text)
    session = Session(out, data_dir=data_dir, device=device)
    planned = _measured(configs, session, workspace_of(out, shipped=shipped))
    head = ("cell", "to do", "time", "peak memory")
    click.echo("\n".join(aligned(head, [_row(cell) for cell in planned], left=2)))
    click.echo(f"\n{_totals(planned, machine(session.execution))}")


def _measured(configs: "list[CellConfig]", session: "Session", workspace: "Workspace") -> "list[PlannedCell]":
    """Plan all cells, and print every reason for a missing time or memory once.

    Cells with committed results in ``workspace`` come first and are done. Cells that cannot exist come last.
    """
    from dcbench_tesla.backends.base import Job
    from dcbench_tesla.profilers.memory import PredictedMeter
    from dcbench_tesla.records.progress import bar, say
    from dcbench_tesla.reports.plan import open_cells, plan, reasons, without_shipped

    opened, absent = open_cells(configs, session)
    cells, planned = without_shipped(opened, workspace)
    say("measuring a few steps of what is to be done ...")
    with bar("plan", len(cells), unit="cell") as shown:
        for found in plan(map(Job, cells), meter=PredictedMeter(), begin=lambda cell, _: shown.advance(0, cell.name)):
            planned.append(found)
            shown.advance()
    planned += absent
    for text in reasons(planned):
        say(text)
    return planned


def _row(cell: "PlannedCell") -> tuple[str, ...]:
    from dcbench_tesla.records.progress import duration, size

    done = "done" + MARK * cell.shipped
    todo = "" if cell.stages is None else ", ".join(cell.stages) or done
    time = duration(cell.estimate.total) if cell.estimate else ""
    return cell.label, todo, time, "" if cell.peak_bytes is None else size(cell.peak_bytes)


def _totals(planned: "Sequence[PlannedCell]", where: str) -> str:
    """Return one line: the number of cells to do, their time on the machine ``where``, and the largest peak."""
    from dcbench_tesla.records.progress import duration, size

    todo = [cell for cell in planned if not cell.done]
    text = f"{len(todo)} of {len(planned)} cells to do"
    estimated = [cell.estimate.total for cell in todo if cell.estimate]
    if estimated:
        text += f", about {duration(sum(estimated))} on {where}"
    if len(estimated) < len(todo):
        text += f", {len(todo) - len(estimated)} of them not estimated"
    peaks = [cell.peak_bytes for cell in todo if cell.peak_bytes is not None]
    return text + (f"; the largest needs {size(max(peaks))}" if peaks else "")
