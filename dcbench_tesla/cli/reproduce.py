"""`dcbench reproduce`: the paper's tables and figures, with own results beside the published numbers."""

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from dcbench_tesla.cli.common import (
    Failure,
    Group,
    backend_options,
    compile_option,
    damaged_rows_told,
    data_dir_option,
    device_option,
    failure,
    log_option,
    options,
    out_option,
    part_options,
    workspace_of,
)
from dcbench_tesla.cli.run import backend_of, run_jobs
from dcbench_tesla.errors import UsageError
from dcbench_tesla.records.workspace import Workspace, shipped_folder, with_shipped

if TYPE_CHECKING:
    from dcbench_tesla.backends.base import Backend
    from dcbench_tesla.cells.cell import Cell
    from dcbench_tesla.cells.session import Session
    from dcbench_tesla.config import CellConfig
    from dcbench_tesla.reports.declarations import Declaration, Part
    from dcbench_tesla.reports.figure1b.runtimes import Extrapolate
    from dcbench_tesla.reports.files import Report


@click.group(cls=Group)
def reproduce() -> None:
    """Make the paper's tables and figures from your results.

    Published numbers stand beside the results under --out. If there are none, a checkout shows its committed results.

    \b
    Examples:
      dcbench reproduce table1
      dcbench reproduce all
    """


_shipped_option = click.option(
    "--shipped/--no-shipped",
    default=None,
    help="Add the repository's committed results, marked (shipped).  [default: in a checkout, if --out has none]",
)
_HOW_TO_RUN = (
    *("device", "data_dir", "backend", "at_once", "timeout", "backend_settings", "logs", "compile"),
    *("compiled", "extrapolate"),
)
_part_options = options(
    *part_options,
    click.option("--run", "run_missing", is_flag=True, help="First run the missing cells of this part."),
    device_option,
    data_dir_option,
    out_option,
    _shipped_option,
    *backend_options,
    log_option,
    compile_option,
    click.option("--force", is_flag=True, help="Replace a table even if it has results no longer on record."),
)


@reproduce.command()
@_part_options
def table1(**given: Any) -> None:
    """Table 1: test accuracy by method.

    Also shows the accuracy as a share of that of the whole data set, and the share of its images. Prints the requested
    part and writes the whole table to OUT/tables/table1 (CSV, Markdown, LaTeX, PNG and SVG). Cells that were not run
    are empty. Every protocol and every data set that is not in the paper has its own rows. Differences are those of
    `best_on_test`, which the paper reports.

    \b
    Examples:
      dcbench reproduce table1
      dcbench reproduce table1 --preset quick --dataset fashion-mnist --ipc 1 --ipc 10 --run
      dcbench reproduce table1 --dataset cifar10 --ipc 10 --method random --method tesla --run --device cuda
    """
    _reproduce("table1", **given)


@reproduce.command()
@_part_options
def table2(**given: Any) -> None:
    """Table 2: TESLA with hard labels and with the teacher's soft labels.

    Writes OUT/tables/table2 (CSV, Markdown, LaTeX, PNG and SVG).

    \b
    Examples:
      dcbench reproduce table2
      dcbench reproduce table2 --dataset npz:my_images.npz --ipc 1 --preset quick --run
    """
    _reproduce("table2", **given)


@reproduce.command()
@_part_options
def table3(**given: Any) -> None:
    """Table 3: test accuracy of networks not used to condense.

    Writes OUT/tables/table3 (CSV, Markdown, LaTeX, PNG and SVG).

    \b
    Examples:
      dcbench reproduce table3
      dcbench reproduce table3 --preset quick --dataset fashion-mnist --run
    """
    _reproduce("table3", **given)


@reproduce.command()
@_part_options
def related(**given: Any) -> None:
    """Related work: all methods in three families.

    Hard labels on fixed pixels, soft or learned labels, and parametrised sets stand apart, each method with published
    numbers and their sources beside the own ones. Methods that are not installed have published numbers only. Writes
    OUT/tables/related (CSV, Markdown, LaTeX, PNG and SVG).

    \b
    Examples:
      dcbench reproduce related
      dcbench reproduce related --dataset fashion-mnist --ipc 1 --ipc 10
      dcbench reproduce related --preset quick --dataset fashion-mnist --method ld --method rded --run
    """
    _reproduce("related", **given)


@reproduce.command()
@options(
    click.option(
        "--dataset",
        "datasets",
        multiple=True,
        help="Make the figure only if it has this data set; with --run, time only this one.",
    ),
    click.option("--method", "methods", multiple=True, help="Make the figure only if it has this method."),
    click.option("--run", "run_missing", is_flag=True, help="First time the points not yet timed on this machine."),
    click.option(
        "--compile",
        "compiled",
        type=click.Choice(["off", "both"]),
        default="both",
        show_default=True,
        help="With --run, also time compiled steps.",
    ),
    click.option(
        "--extrapolate",
        type=click.Choice(["auto", "always", "never"]),
        default="auto",
        show_default=True,
        help="With --run, time smaller T: of what does not fit in memory, of mtt in any case, of nothing.",
    ),
    device_option,
    out_option,
    _shipped_option,
    click.option("--force", is_flag=True, help="Replace a figure even if it has results no longer on record."),
)
def figure1(
    datasets: tuple[str, ...],
    methods: tuple[str, ...],
    run_missing: bool,
    compiled: str,
    extrapolate: "Extrapolate",
    device: str,
    out: Path,
    shipped: bool | None,
    force: bool,
) -> None:
    """Figure 1: memory against matching steps, and runtime.

    Shows memory against the matching steps and against the batch, memory and runtime at 50 steps, and the table of
    Section 3.3. Memory is measured by CUDA's allocator on a GPU, and otherwise predicted, which computes nothing. For
    every point of OUT/figures/memory.csv a measured row is preferred to a predicted one. Runtimes come from
    OUT/figures/time.csv; points that were not timed are empty. Writes OUT/figures/memory.csv, figure1a and figure1b
    (PNG, SVG, and figure1b.csv) and OUT/tables/figure1.md and growth.csv.

    --run times all methods of a data set in turns, with --dataset only that data set. What does not fit in memory is
    timed at smaller T, and a least-squares line through them gives the time at T = 50, which is named extrapolated.

    \b
    Examples:
      dcbench reproduce figure1
      dcbench reproduce figure1 --run
      dcbench reproduce figure1 --run --dataset cifar100 --compile off
      dcbench reproduce figure1 --run --device cuda
    """
    from dcbench_tesla.records.progress import say
    from dcbench_tesla.reports import figure1 as declared
    from dcbench_tesla.reports.declarations import NotInTableError, Part

    check_part(Part(datasets=datasets, methods=methods))
    wanted = declared.all_points()
    if not any((not datasets or p.dataset in datasets) and (not methods or p.method in methods) for p in wanted):
        known = [*dict.fromkeys(p.dataset for p in wanted), *dict.fromkeys(p.method for p in wanted)]
        raise NotInTableError(
            f"figure1 has nothing of {' and '.join([*datasets, *methods])}: it has {', '.join(known)}."
        )
    _check_effect(click.get_current_context(), run_missing=run_missing, has_effect=("device",))
    workspace = _workspace(out, shipped=shipped, run_missing=run_missing)
    workspace.check_writable()
    figures = workspace.figures
    if run_missing:
        how = [False, True] if compiled == "both" else [False]
        _time_figure1(device, figures / "time.csv", compiled=how, extrapolate=extrapolate, datasets=datasets)
    made = _figure1(device, workspace)
    click.echo(made.text)
    written = [figures / "memory.csv", *made.write(force=force)]
    say(f"written: {', '.join(map(str, written))}")


@reproduce.command()
@_part_options
def figure2(**given: Any) -> None:
    """Figure 2: label strategies of TESLA by iteration.

    Also shows labels alone, by the teacher's epoch. Writes OUT/figures/figure2a and figure2b (CSV, PNG and SVG) and
    OUT/tables/figure2.md. Curves need evaluations during the condensation (setting evaluation.every).

    \b
    Examples:
      dcbench reproduce figure2
      dcbench reproduce figure2 --dataset tiny-imagenet --preset quick --run
    """
    _reproduce("figure2", **given)


@reproduce.command(name="all")
@_part_options
@click.pass_context
def all_(ctx: click.Context, /, **given: Any) -> None:
    """Make all tables and figures.

    If one fails, the others are still made.

    \b
    Examples:
      dcbench reproduce all
      dcbench reproduce all --preset quick --dataset fashion-mnist --run
    """
    from dcbench_tesla.records.progress import complain, say
    from dcbench_tesla.reports.declarations import NotInTableError, Part

    _check_effect(ctx, run_missing=given["run_missing"], has_effect=("device",))  # figure1's meter uses it
    check_part(Part(**{n: given[n] for n in ("datasets", "ipcs", "methods")}, preset=given["preset"] or ""))
    given["shipped"] = _workspace(**{n: given[n] for n in ("out", "shipped", "run_missing")}).shipped is not None
    failures: list[Failure] = []
    lacking: list[UsageError] = []
    commands = [command for command in reproduce.commands.values() if command is not all_]
    for command in commands:
        known = {p.name for p in command.params}
        try:
            ctx.invoke(command, **{name: value for name, value in given.items() if name in known})
        except NotInTableError as error:
            lacking.append(error)
            say(str(error))
        except UsageError:  # all of them would raise it
            raise
        except Exception as error:
            shown = error if isinstance(error, Failure) else failure(error)
            if shown is None:
                raise
            failures.append(shown)
            complain(f"{command.name}: {shown.format_message()}")
    if len(lacking) == len(commands):
        raise lacking[0]
    if failures:
        raise Failure(f"{len(failures)} of {len(commands)} failed, see above.", failures[-1].exit_code)


def _reproduce(
    name: str,
    *,
    datasets: tuple[str, ...],
    ipcs: tuple[int, ...],
    methods: tuple[str, ...],
    preset: str | None,
    run_missing: bool,
    device: str,
    data_dir: Path | None,
    out: Path,
    shipped: bool | None,
    force: bool,
    logs: tuple[str, ...],
    compile: str,
    **backend: Any,
) -> None:
    """Run the missing cells of a part if ``run_missing``, print the part, and write the whole table."""
    from dcbench_tesla.cells.session import Session
    from dcbench_tesla.records.live import check_logs
    from dcbench_tesla.records.progress import say
    from dcbench_tesla.reports.declarations import Part, beyond_the_paper
    from dcbench_tesla.reports.files import report

    _check_effect(click.get_current_context(), run_missing=run_missing)
    part = Part(datasets=datasets, ipcs=ipcs, methods=methods, preset=preset or "")
    declaration, configs = checked_cells(name, part, to_run=run_missing)
    workspace = _workspace(out, shipped=shipped, run_missing=run_missing)
    wanted_logs = check_logs(logs)
    where = backend_of(device=device, out=out, **backend) if run_missing else None
    workspace.check_writable()
    for text in beyond_the_paper(declaration, part):
        say(text)
    failed = None
    if where:
        execution = replace(where.execution, logs=wanted_logs, compile=compile)
        session = Session(out, data_dir=data_dir, execution=execution)
        failed = _run_missing(configs, where, session, data_dir, workspace)
    with damaged_rows_told(workspace, ("condense", "evaluate")):
        made = report(declaration, workspace, part)
        click.echo(made.text)
        say(f"written: {', '.join(str(path) for path in made.write(force=force))}")
    if failed:
        raise failed


def _workspace(out: Path, *, shipped: bool | None, run_missing: bool) -> Workspace:
    """Return the workspace to read; it includes committed results if requested, or by default if it has no own rows."""
    from dcbench_tesla.records.progress import say

    if shipped is not None:
        return workspace_of(out, shipped=shipped)
    if run_missing or shipped_folder() is None or any(Workspace(out).rows.glob("*.json")):
        return Workspace(out)
    say(f"no results under {out} yet: showing the repository's, marked (shipped); --no-shipped leaves them out")
    return with_shipped(out)


def _check_effect(ctx: click.Context, *, run_missing: bool, has_effect: Collection[str] = ()) -> None:
    """Raise :class:`UsageError` if an option that says how to run is given without ``--run``."""
    if run_missing:
        return
    for name in _HOW_TO_RUN:
        if name not in has_effect and ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            (option,) = (parameter.opts[0] for parameter in ctx.command.params if parameter.name == name)
            raise UsageError(f"{option} has no effect without --run: leave it out, or add --run.")


def checked_cells(name: str, part: "Part", *, to_run: bool) -> "tuple[Declaration, list[CellConfig]]":
    """Return the declaration of a table or figure, and the configurations of the cells in a part of it.

    Args:
        name: name of the table or figure.
        part: the part.
        to_run: whether the cells are to be run, so that there must be some.

    Raises:
        UsageError: a name is unknown, the table has none of the methods, or there are no cells to run.
    """
    from dcbench_tesla.reports.declarations import cells, check_methods, declarations, nothing_to_run

    check_part(part)
    declaration = declarations()[name]
    check_methods(declaration, part.methods)
    configs = cells(declaration, part)
    if to_run and not configs:
        raise nothing_to_run(declaration, part)
    return declaration, configs


def check_part(part: "Part") -> None:
    """Raise :class:`UsageError` if no table and no plugin has a name, or an IPC is below 1."""
    from dcbench_tesla import registry
    from dcbench_tesla.datasets import check_dataset_name
    from dcbench_tesla.errors import unknown_name
    from dcbench_tesla.presets import PRESETS
    from dcbench_tesla.reports.declarations import declarations

    for dataset in part.datasets:
        check_dataset_name(dataset)
    if part.preset and part.preset not in PRESETS:
        raise unknown_name("preset", part.preset, PRESETS)
    known = {*registry.names("methods"), *(m for declared in declarations().values() for m in declared.methods)}
    for method in part.methods:
        if method not in known:
            raise unknown_name("method", method, known)
    if any(ipc < 1 for ipc in part.ipcs):
        raise UsageError(f"--ipc must be at least 1, not {min(part.ipcs)}.")


def _run_missing(
    configs: "list[CellConfig]", backend: "Backend", session: "Session", data_dir: Path | None, workspace: Workspace
) -> Failure | None:
    """Run the cells that are not done; return a failure instead of raising it, so that the table can still be made.

    Cells with committed results in ``workspace`` are done.
    """
    from dcbench_tesla.backends.base import Job
    from dcbench_tesla.records.progress import complain, say

    todo, failed = _pending(configs, session, workspace)
    try:
        if todo:
            baselines = _baselines(session, todo)
            run_jobs([Job(cell, data_dir=data_dir) for cell in todo], backend, session, baselines=baselines)
        elif not failed:
            say("nothing of it is missing")
    except Failure as error:
        complain(error.format_message())
        failed += 1
    return Failure("not everything could be run, see above.", 1) if failed else None


def _baselines(session: "Session", cells: "Sequence[Cell]") -> "dict[str, Cell]":
    """Return the baselines of ``cells`` without running them; a baseline that is damaged is left out."""
    from dcbench_tesla.errors import DcbenchError

    found: dict[str, Cell] = {}
    for cell in cells:
        with suppress(DcbenchError, UsageError):
            baseline = session.baselines([cell])
            for other in baseline.values():
                other.pending()
            found |= baseline
    return found


def _pending(configs: "list[CellConfig]", session: "Session", workspace: Workspace) -> "tuple[list[Cell], int]":
    """Return the cells to run and the number of those that cannot be run; print every reason for the latter once."""
    from dcbench_tesla.backends.base import Job
    from dcbench_tesla.records.progress import complain
    from dcbench_tesla.reports.plan import open_cells, plan, reasons, without_shipped

    opened, absent = open_cells(configs, session)
    cells, _ = without_shipped(opened, workspace)
    planned = list(plan(map(Job, cells), measure=False))
    for text in reasons([*planned, *absent]):
        complain(text)
    damaged = sum(found.stages is None for found in planned)
    return [cell for cell, found in zip(cells, planned, strict=True) if found.stages], damaged + len(absent)


def _figure1(device: str, workspace: Workspace) -> "Report":
    """Return Figure 1 from what is on record, after its memory was measured or predicted and saved."""
    from dcbench_tesla.cells.execution import Execution
    from dcbench_tesla.compare import memory as memories
    from dcbench_tesla.compare import timing
    from dcbench_tesla.compare.files import add_shipped, csv_text, merge_csv, read_csv
    from dcbench_tesla.records.progress import bar
    from dcbench_tesla.reports import figure1 as declared
    from dcbench_tesla.reports import growth
    from dcbench_tesla.reports.figure1b.rows import figure_b, lost
    from dcbench_tesla.reports.figure1b.shown import draw_b, markdown_b
    from dcbench_tesla.reports.files import Report

    wanted, figures, tables = declared.all_points(), workspace.figures, workspace.tables
    on = "cpu" if device == "auto" else Execution.resolve(device).device
    with bar("memory", len(wanted) + growth.count(), unit="point") as shown:
        memory = memories.measure(wanted, "auto", on, done=shown.advance)
        grown = growth.predict(done=shown.advance)
    memory = merge_csv(figures / "memory.csv", memory, memories.KEY)
    memory = declared.best(add_shipped(memory, workspace, "memory.csv", memories.KEY))
    time = add_shipped(read_csv(figures / "time.csv", timing.KEY), workspace, "time.csv", timing.KEY)
    table = figure_b(memory, time)
    panels = [declared.markdown_a(memory), declared.markdown_batch(memory), markdown_b(table)]
    text = "\n".join([*panels, growth.markdown(grown)])
    return Report(
        text=text,
        rows={figures / "figure1b.csv": table},
        texts={tables / "figure1.md": text, tables / "growth.csv": csv_text(grown)},
        figures={
            figures / "figure1a": declared.draw_a(memory),
            figures / "figure1b": draw_b(table),
        },
        column="paper_time_ratio",
        lost=lost,
    )


def _time_figure1(
    device: str, path: Path, *, compiled: "Sequence[bool]", extrapolate: "Extrapolate", datasets: tuple[str, ...]
) -> None:
    """Time the points of Figure 1b that were not timed on this machine; save those of a data set after every turn."""
    from dcbench_tesla.cells.execution import Execution
    from dcbench_tesla.compare import timing
    from dcbench_tesla.compare.files import merge_csv, read_csv
    from dcbench_tesla.records.progress import bar, say
    from dcbench_tesla.reports.figure1b.runtimes import to_time

    execution = Execution.resolve(device)
    known = read_csv(path, timing.KEY)
    repetitions = timing.repetitions(execution)
    plan = to_time(
        known, execution, compiled=compiled, extrapolate=extrapolate, datasets=datasets, repetitions=repetitions
    )
    for text in plan.told:
        say(text)
    with bar("time", len(timing.variants(plan.points, compiled)) * (repetitions + 1), unit="run") as shown:
        timing.measure(
            plan.points,
            execution,
            repetitions=repetitions,
            compiled=compiled,
            all_steps=True,
            unchecked=extrapolate == "never",
            done=shown.advance,
            keep=partial(merge_csv, path, key=timing.KEY),
            every_turn=True,
        )
