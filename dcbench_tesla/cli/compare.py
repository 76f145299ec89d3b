"""`dcbench compare`: finished cells and methods side by side."""

from pathlib import Path

import click

from dcbench_tesla.cli.common import Group, device_option, options, out_option
from dcbench_tesla.errors import UsageError

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


@compare.command()
@options(
    click.option("--method", "methods", multiple=True, help="A method.  [default: mtt, tesla, tesla-exact, dm, dsa]"),
    click.option("--dataset", "datasets", multiple=True, help="Whose shapes.  [default: cifar100]"),
    click.option("--steps", "steps", multiple=True, type=int, help="Matching steps T.  [default: 1 5 10 20 30 50]"),
    click.option("--batch-size", type=int, default=100, show_default=True, help="Synthetic images in a step."),
    click.option("--ipc", "ipcs", multiple=True, type=int, help="Images per class.  [default: 1]"),
    click.option(
        "--against",
        type=click.Choice(["steps", "ipc"]),
        default="steps",
        show_default=True,
        help="What varies; ipc: 1 to 50 at T = 20, unless --ipc and --steps say otherwise.",
    ),
    click.option("--width", type=int, default=128, show_default=True, help="Filters of the ConvNet."),
    click.option("--depth", type=int, default=0, show_default=True, help="Blocks of the ConvNet (0: by image size)."),
    click.option(
        "--meter",
        default="auto",
        show_default=True,
        help="cuda (allocator), allocated (live tensors), predicted (nothing computed), auto (cuda, else predicted).",
    ),
    device_option,
    out_option,
)
def memory(
    methods: tuple[str, ...],
    datasets: tuple[str, ...],
    steps: tuple[int, ...],
    batch_size: int,
    ipcs: tuple[int, ...],
    against: str,
    width: int,
    depth: int,
    meter: str,
    device: str,
    out: Path,
) -> None:
    """Compare the peak memory of one iteration against matching steps T, or against IPC.

    Shapes suffice: no data files are read, and with the meter `predicted` nothing is computed, so that any size can be
    asked on any machine. Rows go to OUT/figures/memory.csv, where equal ones are replaced; the plot stands beside.

    \b
    Examples:
      dcbench compare memory
      dcbench compare memory --dataset imagenet1k-64 --steps 50
      dcbench compare memory --method mtt --method tesla --steps 5 --steps 10 --meter allocated --width 32
      dcbench compare memory --against ipc --dataset cifar10
    """
    from dcbench_tesla import registry
    from dcbench_tesla.compare import memory as compared
    from dcbench_tesla.compare.files import merge_csv, save_figure
    from dcbench_tesla.compare.plots import memory_figure
    from dcbench_tesla.progress import bar, say
    from dcbench_tesla.table import aligned
    from dcbench_tesla.workspace import Workspace

    by_ipc = against == "ipc"
    registry.check_names("methods", methods)
    registry.check_names("datasets", datasets)
    for name, values in (("steps", steps), ("ipc", ipcs), ("batch-size", (batch_size,)), ("width", (width,))):
        if any(value < 1 for value in values):
            raise UsageError(f"--{name} must be at least 1, not {min(values)}.")
    Workspace(out).check_writable()
    wanted = compared.points(
        methods or compared.METHODS,
        datasets or ("cifar100",),
        steps=steps or ((20,) if by_ipc else compared.STEPS),
        ipcs=ipcs or (compared.IPCS if by_ipc else (1,)),
        batch_size=batch_size,
        width=width,
        depth=depth,
    )
    with bar("memory", len(wanted), unit="point") as shown:
        table = compared.measure(wanted, meter, "cpu" if device == "auto" else device, done=shown.advance)
    figures = Workspace(out).figures
    merge_csv(figures / "memory.csv", table, compared.KEY)
    column = "ipc" if by_ipc else "matching_steps"
    for dataset, rows in table.groupby("dataset", sort=False):
        click.echo(f"### Peak memory of one iteration, {dataset}, meter {rows['meter'].iloc[0]}\n")
        head, *body = compared.pivot(rows, column)
        click.echo("\n".join(aligned(head, body)) + "\n")
        stem = figures / f"memory-{against}-{dataset}"
        paths = save_figure(memory_figure(rows, column), stem)
        say(f"written: {figures / 'memory.csv'}, {', '.join(str(p) for p in paths)}")
