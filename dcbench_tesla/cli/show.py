"""The commands that only show something: list, info, env, check-method, check-evaluator."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dcbench_tesla.cli.common import (
    Failure,
    damaged_rows_told,
    data_dir_option,
    options,
    out_option,
    shipped_option,
    workspace_of,
)
from dcbench_tesla.errors import UsageError

if TYPE_CHECKING:
    from dcbench_tesla.conformance import Outcome


@click.command(name="list")
@options(
    click.argument("what", metavar="[methods|evaluators|datasets|networks|cells]"),
    data_dir_option,
    out_option,
    shipped_option,
)
def list_(what: str, data_dir: Path | None, out: Path, shipped: bool) -> None:
    """List methods, evaluators, datasets, networks or cells.

    \b
    Examples:
      dcbench list methods
      dcbench list networks
      dcbench list cells
      dcbench list cells --shipped
    """
    from dcbench_tesla.cli import listing
    from dcbench_tesla.errors import unknown_name

    workspace = workspace_of(out, shipped=shipped)
    listings: dict[str, Callable[[], list[tuple[str, ...]]]] = {
        "methods": lambda: listing.plugins("methods"),
        "evaluators": lambda: listing.plugins("evaluators"),
        "datasets": lambda: listing.datasets(data_dir),
        "networks": lambda: listing.plugins("networks"),
        "cells": lambda: listing.cells(workspace),
    }
    if what not in listings:
        raise unknown_name("listing", what, listings)
    with damaged_rows_told(workspace, ("evaluate", "failed") if what == "cells" else ()):
        for line in listing.columns(listings[what]()):
            click.echo(line)


@click.command()
@options(
    click.argument("name"),
    data_dir_option,
    click.option(
        "--picture", type=click.Path(path_type=Path), help="Write a picture of your own data set to this PNG file."
    ),
)
def info(name: str, data_dir: Path | None, picture: Path | None) -> None:
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
        own.show(name, picture)
        return
    if picture is not None:
        raise UsageError("--picture is for your own data: npz:PATH or folder:PATH.")
    from dcbench_tesla.cli import listing

    for line in listing.info(name, data_dir):
        click.echo(line)


@click.command()
@data_dir_option
def env(data_dir: Path | None) -> None:
    """Show hardware, versions and folders, for a bug report.

    \b
    Example:
      dcbench env
    """
    from dcbench_tesla.cli import listing

    for line in listing.columns(listing.environment_lines(data_dir)):
        click.echo(line)


@click.command(name="check-method")
@click.argument("name")
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
@click.argument("name")
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
