"""`dcbench compare`: finished cells and methods side by side."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dcbench_tesla.cli.common import (
    Group,
    damaged_rows_told,
    data_dir_option,
    device_option,
    json_option,
    options,
    out_option,
    set_option,
    shipped_option,
    short_lived,
    terminal_width,
    workspace_of,
)
from dcbench_tesla.cli.completion import DATASETS, EVALUATORS, METHODS
from dcbench_tesla.errors import UsageError
from dcbench_tesla.records.rows import STATISTICS

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from dcbench_tesla.cli.shown.output import Compared
    from dcbench_tesla.compare.points import Point
    from dcbench_tesla.compare.statistics import How
    from dcbench_tesla.records.workspace import Workspace


@click.group(cls=Group)
def compare() -> None:
    """Compare methods: accuracy, memory, time and gradients.

    \b
    Examples:
      dcbench compare accuracy --dataset fashion-mnist --ipc 10
      dcbench compare memory
      dcbench compare time --device cpu --width 32
    """


_which = options(
    click.option(
        "--dataset", "datasets", multiple=True, help="Only this data set.  [default: all]", shell_complete=DATASETS
    ),
    click.option(
        "--method", "methods", multiple=True, help="Only this method.  [default: all]", shell_complete=METHODS
    ),
    click.option("--ipc", "ipcs", multiple=True, type=int, help="Only this IPC.  [default: all]"),
    click.option(
        "--evaluator", "evaluators", multiple=True, help="Only this network.  [default: all]", shell_complete=EVALUATORS
    ),
    click.option("--preset", "presets", multiple=True, help="Only this preset.  [default: all]"),
)


@compare.command()
@options(
    _which,
    click.option(
        "--labels",
        multiple=True,
        type=click.Choice(["set", "hard", "teacher"]),
        help="Only networks trained with these labels.  [default: all]",
    ),
    click.option(
        "--statistic",
        type=click.Choice(STATISTICS),
        default="last",
        show_default=True,
        help="Test accuracy that the table shows; the CSV file has all.",
    ),
    click.option(
        "--interval",
        type=click.Choice(["t", "percentile", "BCa"], case_sensitive=False),
        default="t",
        show_default=True,
        help="Intervals of means: by Student t, or a bootstrap.",
    ),
    click.option("--plot", is_flag=True, help="Also draw accuracy against IPC and against what it costs."),
    out_option,
    shipped_option,
    json_option,
)
@short_lived()
def accuracy(
    datasets: tuple[str, ...],
    methods: tuple[str, ...],
    ipcs: tuple[int, ...],
    evaluators: tuple[str, ...],
    presets: tuple[str, ...],
    labels: tuple[str, ...],
    statistic: str,
    interval: "How",
    plot: bool,
    out: Path,
    shipped: bool,
    as_json: bool,
) -> None:
    """Compare test accuracies, method by evaluator.

    Reads the results under --out; --shipped adds the committed results of the repository. The table shows the standard
    deviations over networks and over seeds separately, the interval of the mean at 95 %, and which methods are level
    with the best: tests in pairs, corrected for their number, decide no difference. The notes say how many seeds would.
    Seconds and peak memory of the condensation stand beside.

    The table is printed as Markdown and written to OUT/tables/accuracy.md, and with all columns to
    OUT/tables/accuracy.csv. --plot draws OUT/figures/accuracy-ipc and accuracy-cost (PNG and SVG): accuracy against
    IPC, and against the seconds and GiB of the condensation.

    \b
    Examples:
      dcbench compare accuracy
      dcbench compare accuracy --shipped --dataset fashion-mnist --ipc 10 --preset quick
      dcbench compare accuracy --evaluator convnet --evaluator vit --statistic best_on_test
      dcbench compare accuracy --plot --dataset fashion-mnist
    """
    from dcbench_tesla.compare.accuracy import Wanted, accuracies, in_markdown, sections

    workspace = workspace_of(out, shipped=shipped)
    wanted = Wanted(
        datasets=datasets, methods=methods, ipcs=ipcs, evaluators=evaluators, presets=presets, labels=labels
    )
    with damaged_rows_told(workspace, ("condense", "evaluate")):
        table = accuracies(workspace, wanted, by=interval)
        text = partial(in_markdown, sections(table, statistic))
        _show("compare accuracy", table, text, workspace, as_json=as_json)
        if plot:
            _plot_accuracies(table, statistic, workspace.figures)


@compare.command()
@options(_which, out_option, shipped_option, json_option)
@short_lived()
def regimes(
    datasets: tuple[str, ...],
    methods: tuple[str, ...],
    ipcs: tuple[int, ...],
    evaluators: tuple[str, ...],
    presets: tuple[str, ...],
    out: Path,
    shipped: bool,
    as_json: bool,
) -> None:
    """Compare methods by the labels that networks are given.

    Shows the accuracy of every method with hard labels (the classes of the set's), with the set's own, stored ones, and
    with those of a teacher for every augmented batch, and in each case the points over `random` with the same labels.
    Reads the results under --out; rows of other labels are made by --set evaluation.labels=hard or teacher, and the
    command names those that are missing. The tables go to OUT/tables/regimes.md and regimes.csv, the plot to
    OUT/figures/regimes (PNG and SVG).

    \b
    Examples:
      dcbench compare regimes
      dcbench compare regimes --dataset fashion-mnist --ipc 1 --preset quick --shipped
      dcbench evaluate runs/cells/* --set evaluation.labels=teacher && dcbench compare regimes
    """
    from dcbench_tesla.compare import regimes as compared
    from dcbench_tesla.compare.accuracy import Wanted
    from dcbench_tesla.compare.files import save_figure
    from dcbench_tesla.records.progress import say

    workspace = workspace_of(out, shipped=shipped)
    wanted = Wanted(datasets=datasets, methods=methods, ipcs=ipcs, evaluators=evaluators, presets=presets)
    with damaged_rows_told(workspace, ("condense", "evaluate")):
        table = compared.regimes(workspace, wanted)
        _show("compare regimes", table, partial(compared.markdown, table), workspace, as_json=as_json)
        figure = compared.figure(table)
        if figure is not None:
            say(f"written: {', '.join(map(str, save_figure(figure, workspace.figures / 'regimes')))}")
        for command in compared.missing(table):
            say(f"missing: {command}")


def _show(
    kind: "Compared", table: "DataFrame", text: Callable[..., str], workspace: "Workspace", *, as_json: bool
) -> None:
    """Print a table, and write it to the folder of tables as CSV and Markdown; ``text`` takes a ``width``."""
    from dcbench_tesla.compare.files import csv_text
    from dcbench_tesla.records.progress import say
    from dcbench_tesla.records.store import write_text

    if as_json:
        _emit(kind, table)
    else:
        click.echo(text(width=terminal_width(None)))
    name = kind.removeprefix("compare ")
    write_text(workspace.tables / f"{name}.csv", csv_text(table))
    write_text(workspace.tables / f"{name}.md", text())
    say(f"written: {workspace.tables / name}.csv, {name}.md")


def _plot_accuracies(table: "DataFrame", statistic: str, figures: Path) -> None:
    """Draw the plots of ``compare accuracy`` that have something to show, and say which do not."""
    from dcbench_tesla.compare.accuracy_plots import against_cost, against_ipc
    from dcbench_tesla.compare.files import save_figure
    from dcbench_tesla.records.progress import say

    for name, draw, needed in (
        ("accuracy-ipc", against_ipc, "a data set with several IPCs"),
        ("accuracy-cost", against_cost, "a data set and IPC with two methods that have a cost"),
    ):
        figure = draw(table, statistic)
        if figure is None:
            say(f"{name} is not drawn: it needs {needed}")
        else:
            say(f"written: {', '.join(map(str, save_figure(figure, figures / name)))}")


def _nothing(text: str) -> None:
    """Show nothing: standard output has JSON."""


def _emit(kind: "Compared", table: "DataFrame") -> None:
    from dcbench_tesla.cli.shown.output import Compare, emit, rows_of

    emit(Compare(kind=kind, rows=rows_of(table)))


def _point_options(methods: str, steps: str, batch_size: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return the options that define the points of a comparison; ``methods`` and ``steps`` are defaults in words."""
    return options(
        click.option(
            "--method", "methods", multiple=True, help=f"A method.  [default: {methods}]", shell_complete=METHODS
        ),
        click.option(
            "--dataset",
            "datasets",
            multiple=True,
            help="Data set of the shapes.  [default: cifar100]",
            shell_complete=DATASETS,
        ),
        click.option("--steps", "steps", multiple=True, type=int, help=f"Matching steps T.  [default: {steps}]"),
        batch_size,
        click.option("--width", type=int, default=128, show_default=True, help="Filters of the ConvNet."),
        click.option(
            "--depth", type=int, default=0, show_default=True, help="Blocks of the ConvNet (0: by image size)."
        ),
        click.option(
            "--set",
            "assignments",
            multiple=True,
            metavar="KEY=VALUE",
            help="Change a setting of the methods that have it: micro_batch=10, weights=host.",
        ),
    )


def _points(
    methods: tuple[str, ...],
    datasets: tuple[str, ...],
    steps: tuple[int, ...],
    ipcs: tuple[int, ...],
    batch_sizes: tuple[int, ...],
    width: int,
    depth: int,
    assignments: tuple[str, ...],
) -> "list[Point]":
    """Return the points that the options define.

    Raises:
        UsageError: a name is unknown, or a number is too small.
    """
    from dcbench_tesla import registry
    from dcbench_tesla.compare.points import points
    from dcbench_tesla.config import parse_set

    registry.check_names("methods", methods)
    registry.check_names("datasets", datasets)
    for name, values in (("steps", steps), ("ipc", ipcs), ("batch-size", batch_sizes), ("width", (width,))):
        if min(values) < 1:
            raise UsageError(f"--{name} must be at least 1, not {min(values)}.")
    return points(
        methods,
        datasets,
        steps=steps,
        ipcs=ipcs,
        batch_sizes=batch_sizes,
        width=width,
        depth=depth,
        overrides=[parse_set(text) for text in assignments],
    )


def _only_what_varies(against: str, **given: tuple[int, ...]) -> None:
    """Check that only the option ``--<against>`` has several values.

    Raises:
        UsageError: another option has several values.
    """
    for name, values in given.items():
        if len(values) > 1 and name != against:
            raise UsageError(f"several --{name} need --against {name}: give one --{name}, or add --against {name}.")


def _keep_figure(figure: "Figure", stem: Path, table: Path) -> None:
    """Save a plot beside the table of its rows, and name the written files."""
    from dcbench_tesla.compare.files import save_figure
    from dcbench_tesla.records.progress import say

    say(f"written: {', '.join(map(str, [table, *save_figure(figure, stem)]))}")


@compare.command()
@options(
    _point_options(
        "mtt, tesla, tesla-exact, dm, dsa",
        "1 5 10 20 30 50",
        click.option("--batch-size", type=int, default=100, show_default=True, help="Synthetic images per step."),
    ),
    click.option("--ipc", "ipcs", multiple=True, type=int, help="Images per class.  [default: 1]"),
    click.option(
        "--against",
        type=click.Choice(["steps", "ipc"]),
        default="steps",
        show_default=True,
        help="What varies; ipc: 1 to 50 at T = 20, unless --ipc and --steps are given.",
    ),
    click.option(
        "--meter",
        default="auto",
        show_default=True,
        help="cuda (allocator), allocated (live tensors), predicted (nothing computed), auto (cuda, else predicted).",
    ),
    device_option,
    out_option,
    json_option,
)
def memory(
    methods: tuple[str, ...],
    datasets: tuple[str, ...],
    steps: tuple[int, ...],
    batch_size: int,
    width: int,
    depth: int,
    assignments: tuple[str, ...],
    ipcs: tuple[int, ...],
    against: str,
    meter: str,
    device: str,
    out: Path,
    as_json: bool,
) -> None:
    """Compare the peak memory of one iteration.

    Varies the matching steps T or the IPC. Only shapes matter: no data files are read, and the meter `predicted`
    computes nothing, so it works for any size on any machine. Rows go to OUT/figures/memory.csv and replace earlier
    rows of the same points; the plot is saved beside it.

    \b
    Examples:
      dcbench compare memory
      dcbench compare memory --dataset imagenet1k-64 --steps 50
      dcbench compare memory --method mtt --method tesla --steps 5 --steps 10 --meter allocated --width 32
      dcbench compare memory --against ipc --dataset cifar10
      dcbench compare memory --steps 50 --method mtt --method tesla-exact --set micro_batch=10 --set weights=host
    """
    from dcbench_tesla.cells.execution import Execution
    from dcbench_tesla.compare import memory as compared
    from dcbench_tesla.compare.files import merge_csv
    from dcbench_tesla.compare.plots import memory_figure
    from dcbench_tesla.compare.table import aligned
    from dcbench_tesla.records.progress import bar
    from dcbench_tesla.records.workspace import Workspace

    by_ipc = against == "ipc"
    _only_what_varies(against, steps=steps, ipc=ipcs)
    wanted = _points(
        methods or compared.METHODS,
        datasets or ("cifar100",),
        steps or ((20,) if by_ipc else compared.STEPS),
        ipcs or (compared.IPCS if by_ipc else (1,)),
        (batch_size,),
        width,
        depth,
        assignments,
    )
    Workspace(out).check_writable()
    figures = Workspace(out).figures
    keep = partial(merge_csv, figures / "memory.csv", key=compared.KEY)
    with bar("memory", len(wanted), unit="point") as shown:
        on = "cpu" if device == "auto" else Execution.resolve(device).device
        table = compared.measure(wanted, meter, on, done=shown.advance, keep=keep)
    column = "ipc" if by_ipc else "matching_steps"
    show = _nothing if as_json else click.echo
    for dataset, rows in table.groupby("dataset", sort=False):
        told = f"; {compared.RATIO_TOLD}" if rows["method"].eq(compared.BASE).any() else ""
        show(f"### Peak memory of one iteration, {dataset}, meter {rows['meter'].iloc[0]}{told}\n")
        head, *body = compared.pivot(rows, column)
        show("\n".join(aligned(head, body)) + "\n")
        measured = "" if (by := rows["meter"].iloc[0]) == "predicted" else f"-{by}"
        stem = figures / f"memory-{against}-{dataset}{measured}"
        _keep_figure(memory_figure(rows, column), stem, figures / "memory.csv")
    if as_json:
        _emit("compare memory", table)


@compare.command("time")
@options(
    _point_options(
        "mtt, tesla, tesla-exact",
        "1 5 10; on a GPU also 20 30 50",
        click.option(
            "--batch-size", "batch_sizes", multiple=True, type=int, help="Synthetic images per step.  [default: 100]"
        ),
    ),
    click.option("--ipc", type=int, default=1, show_default=True, help="Images per class."),
    click.option(
        "--against",
        type=click.Choice(["steps", "batch-size"]),
        default="steps",
        show_default=True,
        help="What varies; batch-size: 10 25 50 100 at T = 5, unless --batch-size and --steps are given.",
    ),
    click.option(
        "--compile",
        type=click.Choice(["off", "on", "both"]),
        default="off",
        show_default=True,
        help="Compile methods that support it; both: eager and compiled iterations alternate.",
    ),
    click.option("--repetitions", type=int, help="Timed iterations per row.  [default: 3; on a GPU 10]"),
    device_option,
    out_option,
    json_option,
)
def time_(
    methods: tuple[str, ...],
    datasets: tuple[str, ...],
    steps: tuple[int, ...],
    batch_sizes: tuple[int, ...],
    against: str,
    compile: str,
    width: int,
    depth: int,
    assignments: tuple[str, ...],
    ipc: int,
    repetitions: int | None,
    device: str,
    out: Path,
    as_json: bool,
) -> None:
    """Compare the seconds of one iteration, and of its two passes.

    Varies the matching steps T or the batch size. Only shapes matter: no data files are read. Iterations of the methods
    alternate, so that noise of the machine affects all alike. A point that does not fit in memory is reported and not
    run. Rows go to OUT/figures/time.csv and replace earlier rows of the same points; the plot is saved beside it.

    \b
    Examples:
      dcbench compare time
      dcbench compare time --steps 1 --steps 5 --width 32 --device cpu
      dcbench compare time --method tesla --method tesla-exact --dataset imagenet1k-64 --steps 2
      dcbench compare time --repetitions 30 --steps 10 --compile both
      dcbench compare time --against batch-size
    """
    from dcbench_tesla.cells.execution import Execution
    from dcbench_tesla.compare import timing
    from dcbench_tesla.compare.files import merge_csv
    from dcbench_tesla.compare.plots import time_figure
    from dcbench_tesla.records.progress import bar
    from dcbench_tesla.records.workspace import Workspace

    execution = Execution.resolve(device)
    repetitions = timing.repetitions(execution) if repetitions is None else repetitions
    by_batch = against == "batch-size"
    _only_what_varies(against, **{"steps": steps, "batch-size": batch_sizes})
    wanted = _points(
        methods or timing.METHODS,
        datasets or ("cifar100",),
        steps or ((5,) if by_batch else timing.steps(execution)),
        (ipc,),
        batch_sizes or (timing.BATCH_SIZES if by_batch else (100,)),
        width,
        depth,
        assignments,
    )
    compiled = {"off": [False], "on": [True], "both": [False, True]}[compile]
    Workspace(out).check_writable()
    figures = Workspace(out).figures
    keep = partial(merge_csv, figures / "time.csv", key=timing.KEY)
    with bar("time", len(timing.variants(wanted, compiled)) * (repetitions + 1), unit="run") as shown:
        table = timing.measure(
            wanted, execution, repetitions=repetitions, compiled=compiled, done=shown.advance, keep=keep
        )
    column = "batch_size" if by_batch else "matching_steps"
    show = _nothing if as_json else click.echo
    for dataset, rows in table.groupby("dataset", sort=False):
        show(timing.markdown(rows, column))
        if (rows["status"] == "ok").any():
            _keep_figure(time_figure(rows, column), figures / f"time-{against}-{dataset}", figures / "time.csv")
    if as_json:
        _emit("compare time", table)


@compare.command()
@options(
    click.option("--method", "methods", multiple=True, help="A method.  [default: tesla, tesla-exact]"),
    click.option("--dataset", default="digits", show_default=True, help="A data set."),
    click.option("--ipc", type=int, default=1, show_default=True, help="Images per class."),
    click.option("--steps", "steps", multiple=True, type=int, help="Matching steps T.  [default: 1 2 5 10 20 50]"),
    click.option(
        "--student-lr",
        "student_lrs",
        multiple=True,
        type=float,
        help="The student's learning rate b.  [default: 0.01 0.02 0.05]",
    ),
    click.option(
        "--repetitions", type=int, default=5, show_default=True, help="Iterations; each draws experts and batches."
    ),
    click.option(
        "--preset", default="quick", show_default=True, help="Preset of experts and settings: paper, quick, smoke."
    ),
    set_option,
    device_option,
    data_dir_option,
    out_option,
    json_option,
)
def gradient(
    methods: tuple[str, ...],
    dataset: str,
    ipc: int,
    steps: tuple[int, ...],
    student_lrs: tuple[float, ...],
    repetitions: int,
    preset: str,
    assignments: tuple[str, ...],
    device: str,
    data_dir: Path | None,
    out: Path,
    as_json: bool,
) -> None:
    """Compare the gradients of trajectory matching with the exact one.

    The exact gradient is that of mtt, unrolled, in float64. Uses real images and real experts, and trains missing
    experts. Shows cosine, ratio of norms and relative error of the gradients of the images and of the student's
    learning rate b, against the matching steps T and b. Rows go to OUT/figures/gradient.csv and replace earlier rows of
    the same points; the plot is saved beside it.

    \b
    Examples:
      dcbench compare gradient
      dcbench compare gradient --dataset fashion-mnist --ipc 10 --steps 1 --steps 20
      dcbench compare gradient --method tesla --student-lr 0.01 --set max_start_epoch=1
    """
    from dcbench_tesla import registry
    from dcbench_tesla.cells.session import Session
    from dcbench_tesla.cells.stages import train_experts
    from dcbench_tesla.compare import gradient as compared
    from dcbench_tesla.compare.files import merge_csv
    from dcbench_tesla.compare.plots import gradient_figure
    from dcbench_tesla.compare.table import aligned
    from dcbench_tesla.config import parse_set
    from dcbench_tesla.datasets import check_dataset_name
    from dcbench_tesla.records.progress import bar

    registry.check_names("methods", methods)
    check_dataset_name(dataset)
    for name, values in (("steps", steps), ("ipc", (ipc,)), ("repetitions", (repetitions,))):
        if any(value < 1 for value in values):
            raise UsageError(f"--{name} must be at least 1, not {min(values)}.")
    if any(not 0 < value < float("inf") for value in student_lrs):
        raise UsageError(f"--student-lr must be positive, not {min(student_lrs):g}.")
    wanted = compared.points(steps or compared.STEPS, student_lrs or compared.STUDENT_LRS, repetitions)
    session = Session(out, data_dir=data_dir, device=device)
    session.workspace.check_writable()
    overrides = [parse_set(text) for text in assignments]
    cells = compared.cells(session, methods or compared.METHODS, dataset, ipc, preset=preset, overrides=overrides)
    reference = cells[compared.REFERENCE]
    assert reference.materials.expert_request is not None, "trajectory matching requests experts"
    compared.check_room(reference, steps or compared.STEPS)
    if "experts" in reference.stages_from_scratch():
        train_experts(reference, reference.materials.expert_count, reference.materials.expert_request.epochs)
    figures = session.workspace.figures
    keep = partial(merge_csv, figures / "gradient.csv", key=compared.KEY)
    with bar("gradients", len(wanted), unit="point") as shown:
        table = compared.measure(cells, wanted, done=shown.advance, keep=keep)
    show = _nothing if as_json else click.echo
    for of, what in (("images", "the images"), ("student_lr", "the student's rate b")):
        show(f"### Gradient of {what} against the unrolled one in float64: relative errors, medians of {repetitions}\n")
        show("\n".join(aligned(*compared.summary(table, of))) + "\n")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", reference.dataset.name)
    stem = figures / f"gradient-{name}-ipc{ipc}"
    _keep_figure(gradient_figure(table, compared.REFERENCE), stem, figures / "gradient.csv")
    if as_json:
        _emit("compare gradient", table)


@compare.command()
@options(_which, out_option, shipped_option, json_option)
@short_lived()
def scores(
    datasets: tuple[str, ...],
    methods: tuple[str, ...],
    ipcs: tuple[int, ...],
    evaluators: tuple[str, ...],
    presets: tuple[str, ...],
    out: Path,
    shipped: bool,
    as_json: bool,
) -> None:
    """Compare what distilled sets are worth beside real images.

    Reads the results under --out and trains nothing. Shows DD-Ranking's scores (IOR, HLR, LRS, ARS), how many random
    images per class reach the same accuracy, the range of accuracies over augmentations, and whether networks of
    several widths and depths are ranked as on all real images. A score whose results are missing is empty, and the
    command that makes them is told. The table is written to OUT/tables/scores.md and scores.csv.

    \b
    Examples:
      dcbench compare scores
      dcbench compare scores --shipped --dataset fashion-mnist --ipc 1
    """
    from dcbench_tesla.compare import scores as compared
    from dcbench_tesla.compare.accuracy import Wanted
    from dcbench_tesla.records.progress import say

    workspace = workspace_of(out, shipped=shipped)
    wanted = Wanted(datasets=datasets, methods=methods, ipcs=ipcs, evaluators=evaluators, presets=presets)
    with damaged_rows_told(workspace, ("condense", "evaluate")):
        found = compared.scores(workspace, wanted)
        _show("compare scores", found.table, partial(compared.markdown, found.table), workspace, as_json=as_json)
        for command in found.missing:
            say(f"missing for {command}")
