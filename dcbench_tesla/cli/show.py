"""The commands that only show something: list, show, info, env, check-method, check-evaluator."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dcbench_tesla.cli.common import (
    Failure,
    damaged_rows_told,
    data_dir_option,
    json_option,
    options,
    out_option,
    shipped_option,
    terminal_width,
    workspace_of,
)
from dcbench_tesla.cli.completion import CELLS, DATASETS, EVALUATORS, METHODS, PLUGINS, one_of
from dcbench_tesla.errors import UsageError

if TYPE_CHECKING:
    from dcbench_tesla.conformance import Outcome
    from dcbench_tesla.records.workspace import Workspace
    from dcbench_tesla.registry import Kind

_KINDS: "dict[str, Kind]" = {"methods": "methods", "evaluators": "evaluators", "networks": "networks"}
_LISTINGS = (*_KINDS, "datasets", "cells")


@click.command(name="list")
@options(
    click.argument("what", metavar="[methods|evaluators|datasets|networks|cells]", shell_complete=one_of(_LISTINGS)),
    click.option("--method", "methods", multiple=True, help="Only cells of this method.", shell_complete=METHODS),
    click.option("--dataset", "datasets", multiple=True, help="Only cells of this data set.", shell_complete=DATASETS),
    click.option(
        "--status",
        "statuses",
        multiple=True,
        type=click.Choice(["ok", "unfinished", "failed", "diverged", "out of memory", "timed out", "killed"]),
        help="Only cells that ended so; failed: in any way.",
    ),
    click.option("--last", type=click.IntRange(1), help="Only so many cells, the latest."),
    click.option(
        "--sort",
        type=click.Choice(["cell", "accuracy", "time"]),
        default="cell",
        show_default=True,
        help="Order of cells: by name, the best first, the latest first. Failed cells come first.",
    ),
    data_dir_option,
    out_option,
    shipped_option,
    json_option,
)
def list_(
    what: str,
    methods: tuple[str, ...],
    datasets: tuple[str, ...],
    statuses: tuple[str, ...],
    last: int | None,
    sort: str,
    data_dir: Path | None,
    out: Path,
    shipped: bool,
    as_json: bool,
) -> None:
    """List methods, evaluators, datasets, networks or cells.

    \b
    Examples:
      dcbench list methods
      dcbench list networks
      dcbench list cells
      dcbench list cells --method tesla --last 10 --sort accuracy
      dcbench list cells --status failed --shipped
    """
    from dcbench_tesla.errors import UsageError, unknown_name

    if what not in _LISTINGS:
        raise unknown_name("listing", what, _LISTINGS)
    if what == "cells":
        wanted = {"methods": methods, "datasets": datasets, "statuses": statuses, "last": last, "sort": sort}
        _list_cells(workspace_of(out, shipped=shipped), wanted, as_json=as_json)
    elif methods or datasets or statuses or last:
        raise UsageError(f"--method, --dataset, --status and --last choose cells: leave them out of list {what}.")
    else:
        _list_plugins(what, data_dir, as_json=as_json)


def _list_cells(workspace: "Workspace", wanted: dict[str, Any], *, as_json: bool) -> None:
    from dcbench_tesla.cli.shown.cells import as_json as content
    from dcbench_tesla.cli.shown.cells import chosen, found_cells, listed

    with damaged_rows_told(workspace, ("evaluate", "failed")):
        everything = found_cells(workspace)
        cells = chosen(everything, **wanted)
        if as_json:
            from dcbench_tesla.cli.shown.output import Cells, emit

            emit(Cells(cells=[content(cell) for cell in cells]))
        elif cells:
            for line in listed(cells, terminal_width()):
                click.echo(line)
        elif everything:
            click.echo(f"none of {len(everything)} cells under {workspace.root} is among those asked for")
        else:
            click.echo(f"no finished cells under {workspace.root}; in a checkout, --shipped lists the committed ones")


def _list_plugins(what: str, data_dir: Path | None, *, as_json: bool) -> None:
    from dcbench_tesla.cli import listing

    if as_json:
        from dcbench_tesla.cli.shown.output import emit

        emit(listing.as_json(what, data_dir))
        return
    rows = listing.datasets(data_dir) if what == "datasets" else listing.plugins(_KINDS[what])
    for line in listing.columns(rows):
        click.echo(line)


@click.command(name="show")
@options(click.argument("cell", shell_complete=CELLS), out_option, shipped_option, json_option)
def show_cell(cell: str, out: Path, shipped: bool, as_json: bool) -> None:
    """Show everything about one cell.

    CELL is the name of its folder, the folder itself, or the beginning of its name or of the key at the end of it.
    Shows what differs from the preset, accuracies, the curve over the iterations, the files, and how it was made.

    \b
    Examples:
      dcbench show tesla-digits-ipc1-seed0-527f85b20d
      dcbench show 527f
      dcbench show tesla-fashion-mnist-ipc10 --shipped
    """
    from dcbench_tesla.cli.shown.cells import described, find, found_cells, show_as_json

    found = find(found_cells(workspace_of(out, shipped=shipped)), cell)
    if as_json:
        from dcbench_tesla.cli.shown.output import emit

        emit(show_as_json(found))
        return
    for line in described(found, terminal_width(100)):
        click.echo(line)


@click.command()
@options(
    click.argument("name", shell_complete=PLUGINS),
    data_dir_option,
    click.option(
        "--picture", type=click.Path(path_type=Path), help="Write a picture of your own data set to this PNG file."
    ),
    json_option,
)
def info(name: str, data_dir: Path | None, picture: Path | None, as_json: bool) -> None:
    """Describe a method, an evaluator, a data set or a network.

    Shows the description and settings of a method, evaluator or network, and the size and files of a data set. Of your
    own data it shows classes, values, a picture in a terminal, and what a run would decide.

    \b
    Examples:
      dcbench info tesla
      dcbench info convnet
      dcbench info timm:resnet26d
      dcbench info cifar10
      dcbench info lenet
      dcbench info npz:my_images.npz
      dcbench info folder:my_images --picture my_images.png
    """
    from dcbench_tesla.datasets import PREFIXES, check_dataset_name

    if name.startswith(PREFIXES):
        from dcbench_tesla.cli import own

        check_dataset_name(name)
        if as_json:
            from dcbench_tesla.cli.shown.output import emit

            emit(own.as_json(name))
        else:
            own.show(name, picture)
        return
    if picture is not None:
        raise UsageError("--picture is for your own data: npz:PATH or folder:PATH.")
    from dcbench_tesla.cli import listing

    if as_json:
        from dcbench_tesla.cli.shown.output import emit

        emit(listing.info_as_json(name, data_dir))
        return
    for line in listing.info(name, data_dir):
        click.echo(line)


@click.command()
@options(data_dir_option, json_option)
def env(data_dir: Path | None, as_json: bool) -> None:
    """Show hardware, versions and folders, for a bug report.

    \b
    Example:
      dcbench env
    """
    from dcbench_tesla.cli import listing

    if as_json:
        from dcbench_tesla.cli.shown.output import emit

        emit(listing.environment_as_json(data_dir))
        return
    for line in listing.columns(listing.environment_lines(data_dir)):
        click.echo(line)


@click.command(name="check-method")
@click.argument("name", shell_complete=METHODS)
def check_method(name: str) -> None:
    """Check that a method keeps the interface's contract.

    Checks the contract of Condenser point by point, on a tiny generated problem.

    \b
    Example:
      dcbench check-method tesla
    """
    from dcbench_tesla.conformance import check_method as check

    _report(f"method {name}", check(name))


@click.command(name="check-evaluator")
@click.argument("name", shell_complete=EVALUATORS)
def check_evaluator(name: str) -> None:
    """Check that an evaluator keeps the interface's contract.

    Checks the contract of Evaluator point by point, on tiny generated sets.

    \b
    Examples:
      dcbench check-evaluator resnet18
      dcbench check-evaluator timm:resnet26d
    """
    from dcbench_tesla.conformance import check_evaluator as check

    _report(f"evaluator {name}", check(name))


def _report(what: str, outcomes: "Iterator[Outcome]") -> None:
    """Print every point when it has been checked; fail if any is broken."""
    broken = 0
    for outcome in outcomes:
        click.echo(f"FAIL  {outcome.name}: {outcome.problem}" if outcome.problem else f"ok    {outcome.name}")
        broken += bool(outcome.problem)
    if broken:
        raise Failure(f"{what} breaks the contract in {broken} points.", 1)
