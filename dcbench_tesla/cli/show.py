"""The commands that show something and change nothing: list, info, env, check-method."""

from collections.abc import Callable
from pathlib import Path

import click

from dcbench_tesla.cli.common import Failure, data_dir_option, options, out_option


@click.command(name="list")
@options(click.argument("what", metavar="[methods|evaluators|datasets|cells]"), data_dir_option, out_option)
def list_(what: str, data_dir: Path | None, out: Path) -> None:
    """List methods, evaluators, datasets or finished cells.

    \b
    Examples:
      dcbench list methods
      dcbench list cells --out results
    """
    from dcbench_tesla import listing
    from dcbench_tesla.errors import unknown_name

    listings: dict[str, Callable[[], list[tuple[str, ...]]]] = {
        "methods": lambda: listing.plugins("methods"),
        "evaluators": lambda: listing.plugins("evaluators"),
        "datasets": lambda: listing.datasets(data_dir),
        "cells": lambda: listing.cells(out),
    }
    if what not in listings:
        raise unknown_name("listing", what, listings)
    for line in listing.columns(listings[what]()):
        click.echo(line)


@click.command()
@options(click.argument("name"), data_dir_option)
def info(name: str, data_dir: Path | None) -> None:
    """Describe a method, an evaluator or a data set: what it is, its settings, its files.

    \b
    Examples:
      dcbench info tesla
      dcbench info convnet
      dcbench info cifar10
    """
    from dcbench_tesla import listing

    for line in listing.info(name, data_dir):
        click.echo(line)


@click.command()
@data_dir_option
def env(data_dir: Path | None) -> None:
    """Show hardware, versions and folders: what to put into a bug report.

    \b
    Example:
      dcbench env
    """
    from dcbench_tesla import listing

    for line in listing.columns(listing.environment_lines(data_dir)):
        click.echo(line)


@click.command(name="check-method")
@click.argument("name")
def check_method(name: str) -> None:
    """Check that a method keeps the contract of the Condenser interface, on a tiny problem made on the spot.

    \b
    Example:
      dcbench check-method tesla
    """
    from dcbench_tesla.conformance import check_method as check

    broken = 0
    for outcome in check(name):
        click.echo(f"FAIL  {outcome.name}: {outcome.problem}" if outcome.problem else f"ok    {outcome.name}")
        broken += bool(outcome.problem)
    if broken:
        raise Failure(f"method {name} breaks the contract in {broken} points.", 1)
