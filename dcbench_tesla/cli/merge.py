"""`dcbench merge`: collect the results of several machines in one folder."""

from pathlib import Path

import click

from dcbench_tesla.cli.common import Failure, options, out_option
from dcbench_tesla.errors import UsageError


@click.command()
@options(
    click.argument("sources", nargs=-1, required=True, metavar="DIR...", type=click.Path(path_type=Path)),
    out_option,
    click.option("--no-tensors", is_flag=True, help="Merge rows, sheets and figures only, without the cells' folders."),
    click.option("--experts", is_flag=True, help="Copy expert trajectories and whitenings too; they are large."),
)
def merge(sources: tuple[Path, ...], out: Path, no_tensors: bool, experts: bool) -> None:
    """Merge results folders of other machines into --out.

    Rows with equal results count as one, wherever they were computed. If two rows contradict each other, the command
    names both files and what differs, keeps the one in --out, merges everything else and ends with exit code 1. The
    same command again changes nothing.

    \b
    Examples:
      dcbench merge from-laptop/runs from-cluster/runs
      dcbench merge from-cluster/runs --out all --no-tensors
      dcbench merge from-cluster/runs --experts
    """
    from dcbench_tesla.exchange.merge import check_source
    from dcbench_tesla.exchange.merge import merge as merge_results
    from dcbench_tesla.records.progress import say
    from dcbench_tesla.records.workspace import Workspace

    if no_tensors and experts:
        raise UsageError("--no-tensors leaves experts out too: give one of --no-tensors and --experts.")
    target = Workspace(out)
    for source in sources:
        check_source(Workspace(source), target)
    target.check_writable()
    merged = []
    for source in sources:
        merged.append(merge_results(Workspace(source), target, tensors=not no_tensors, experts=experts, tell=say))
        click.echo(f"{source}: {merged[-1]}")
    if not all(m.whole for m in merged):
        raise Failure("some results were not merged, see above; everything else is.", 1)
