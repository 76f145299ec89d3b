"""`dcbench compare`: finished cells and methods side by side."""

from pathlib import Path

import click

from dcbench_tesla.cli.common import Group, options, out_option

_STATISTICS = ("last", "best_on_validation", "best_on_test")


@click.group(cls=Group)
def compare() -> None:
    """Put methods side by side.

    \b
    Example:
      dcbench compare accuracy --dataset fashion-mnist --ipc 10
    """


@compare.command()
@options(
    click.option("--dataset", "datasets", multiple=True, help="Only this data set.  [default: all]"),
    click.option("--method", "methods", multiple=True, help="Only this method.  [default: all]"),
    click.option("--ipc", "ipcs", multiple=True, type=int, help="Only this IPC.  [default: all]"),
    click.option("--evaluator", "evaluators", multiple=True, help="Only this network.  [default: all]"),
    click.option("--preset", "presets", multiple=True, help="Only what this preset made.  [default: all]"),
    click.option(
        "--statistic",
        type=click.Choice(_STATISTICS),
        default="last",
        show_default=True,
        help="Which test accuracy the table shows; the CSV has all.",
    ),
    out_option,
)
def accuracy(
    datasets: tuple[str, ...],
    methods: tuple[str, ...],
    ipcs: tuple[int, ...],
    evaluators: tuple[str, ...],
    presets: tuple[str, ...],
    statistic: str,
    out: Path,
) -> None:
    """Compare test accuracies, method by evaluator, from what was run under --out.

    Spreads over networks and over seeds stand apart; seconds and peak memory of the condensation stand beside. Prints
    Markdown, and writes it with all columns to OUT/tables/accuracy.md and accuracy.csv.

    \b
    Examples:
      dcbench compare accuracy
      dcbench compare accuracy --dataset fashion-mnist --ipc 10 --preset quick
      dcbench compare accuracy --evaluator convnet --evaluator vit --statistic best_on_test
    """
    from dcbench_tesla.compare.accuracy import Wanted, accuracies, markdown
    from dcbench_tesla.progress import say
    from dcbench_tesla.store import write_text
    from dcbench_tesla.workspace import Workspace

    workspace = Workspace(out)
    wanted = Wanted(datasets=datasets, methods=methods, ipcs=ipcs, evaluators=evaluators, presets=presets)
    table = accuracies(workspace, wanted)
    shown = markdown(table, statistic)
    click.echo(shown)
    write_text(workspace.tables / "accuracy.csv", table.to_csv(index=False))
    write_text(workspace.tables / "accuracy.md", shown)
    say(f"written: {workspace.tables / 'accuracy.csv'}, accuracy.md")
