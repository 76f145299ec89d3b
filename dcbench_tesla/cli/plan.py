"""`dcbench plan`: the time and memory that a table of the paper or a sweep still needs, before anything runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dcbench_tesla.cli.common import (
    config_option,
    data_dir_option,
    device_option,
    json_option,
    options,
    out_option,
    part_options,
    set_option,
    shipped_option,
    verbosity_options,
    workspace_of,
)
from dcbench_tesla.cli.reproduce import checked_cells
from dcbench_tesla.cli.run import resolve_options
from dcbench_tesla.cli.shown.planned import measured, show_plan
from dcbench_tesla.errors import UsageError

if TYPE_CHECKING:
    from dcbench_tesla.config import CellConfig


@click.command()
@click.argument("table", required=False)
@options(
    *part_options,
    click.option("--evaluator", "evaluators", multiple=True, help="A network to evaluate with, without TABLE."),
    click.option("--seed", "seeds", multiple=True, type=int, help="A seed, without TABLE.  [default: 0]"),
    set_option,
    config_option,
    device_option,
    data_dir_option,
    out_option,
    shipped_option,
    json_option,
    *verbosity_options,
)
def plan(
    table: str | None,
    datasets: tuple[str, ...],
    ipcs: tuple[int, ...],
    methods: tuple[str, ...],
    preset: str | None,
    evaluators: tuple[str, ...],
    seeds: tuple[int, ...],
    assignments: tuple[str, ...],
    config_file: Path | None,
    device: str,
    data_dir: Path | None,
    out: Path,
    shipped: bool,
    as_json: bool,
) -> None:
    """Show the time and memory that a table or a sweep needs.

    TABLE is table1, table2, table3 or figure2, and every cell of it has a line. Without TABLE the options are those of
    `dcbench run`, and the cells those that it would run. Nothing is run but a few steps of every stage, from which the
    time on this machine is extrapolated. Experts count with the first cell that uses them. Memory is the predicted peak
    of the tensors of condensation and expert training. A cell is done if its results are under --out; with --shipped
    also if the repository has them.

    \b
    Examples:
      dcbench plan table1 --preset quick --dataset fashion-mnist --ipc 1 --ipc 10
      dcbench plan table2 --dataset npz:my_images.npz --ipc 1 --preset quick --set steps=10
      dcbench plan --method tesla --method dm --dataset cifar10 --ipc 10 --set network.width=64
      dcbench plan figure2 --method tesla --device cuda
    """
    given = {
        "method": methods,
        "dataset": datasets,
        "ipc": ipcs,
        "evaluator": evaluators,
        "seed": seeds,
        "preset": preset,
    }
    if table is None:
        configs = resolve_options(given, assignments, config_file)
    elif evaluators or seeds or config_file:
        raise UsageError(f"--evaluator, --seed and --config are for a sweep: leave them out, or leave out {table}.")
    else:
        configs = _of_table(table, given, assignments)
    from dcbench_tesla.backends.base import Job
    from dcbench_tesla.cells.session import Session
    from dcbench_tesla.reports.plan import open_cells, without_shipped

    session = Session(out, data_dir=data_dir, device=device)
    opened, absent = open_cells(configs, session)
    cells, planned = without_shipped(opened, workspace_of(out, shipped=shipped))
    planned += measured([Job(cell) for cell in cells])
    show_plan([*planned, *absent], session.execution, as_json=as_json)


def _of_table(table: str, given: dict[str, Any], assignments: Sequence[str]) -> "list[CellConfig]":
    """Return the cells of a table with changed settings.

    Raises:
        UsageError: there is no such table, or a setting has no effect on any of its cells.
    """
    from dcbench_tesla.config import parse_set, resolved_with
    from dcbench_tesla.errors import unknown_name
    from dcbench_tesla.records.progress import say
    from dcbench_tesla.reports.declarations import Part, beyond_the_paper, declarations

    if table == "figure1":
        raise UsageError("figure1 has no cells to plan: dcbench reproduce figure1 makes it, with --run its times too.")
    if table not in declarations():
        raise unknown_name("table", table, declarations())
    part = Part(datasets=given["dataset"], ipcs=given["ipc"], methods=given["method"], preset=given["preset"] or "")
    declaration, configs = checked_cells(table, part, to_run=True)
    for text in beyond_the_paper(declaration, part):
        say(text)
    return resolved_with(configs, [parse_set(text) for text in assignments])
