"""`dcbench reproduce`: the paper's tables and figures, from what was run, beside what was published."""

from pathlib import Path

import click

from dcbench_tesla.cli.common import Group, device_option, options, out_option


@click.group(cls=Group)
def reproduce() -> None:
    """Make the paper's tables and figures, from what was run under --out, beside what was published.

    \b
    Examples:
      dcbench reproduce figure1
      dcbench reproduce figure1 --run
    """


@reproduce.command()
@options(
    click.option("--run", "run_missing", is_flag=True, help="Time what was not timed on this machine first."),
    device_option,
    out_option,
)
def figure1(run_missing: bool, device: str, out: Path) -> None:
    """Figure 1: memory against matching steps, and memory and runtime at 50 of them, with the table of Section 3.3.

    Memory is measured by CUDA's allocator where there is a GPU, else predicted, which computes nothing. Runtimes are
    those on record in OUT/figures/time.csv; what was not timed stays empty. Writes OUT/figures/figure1a and figure1b
    (PNG, SVG, and figure1b.csv) and OUT/tables/figure1.md and growth.csv.

    \b
    Examples:
      dcbench reproduce figure1
      dcbench reproduce figure1 --run
      dcbench reproduce figure1 --run --device cuda
    """
    from dcbench_tesla.compare import memory as memories
    from dcbench_tesla.compare import timing
    from dcbench_tesla.compare.files import merge_csv, read_csv, save_figure
    from dcbench_tesla.compare.plots import memory_figure
    from dcbench_tesla.progress import bar, say
    from dcbench_tesla.reports import figure1 as declared
    from dcbench_tesla.reports import growth
    from dcbench_tesla.store import write_text
    from dcbench_tesla.workspace import Workspace

    workspace = Workspace(out)
    workspace.check_writable()
    figures, tables = workspace.figures, workspace.tables
    if run_missing:
        _time_figure1(device, figures / "time.csv")
    a, b = declared.panel_a().points, declared.panel_b().points
    wanted = list(dict.fromkeys([*a, *b]))
    with bar("memory", len(wanted) + growth.count(), unit="point") as shown:
        memory = memories.measure(wanted, "auto", "cpu" if device == "auto" else device, done=shown.advance)
        grown = growth.predict(done=shown.advance)
    merge_csv(figures / "memory.csv", memory, memories.KEY)
    table = declared.figure_b(memory, read_csv(figures / "time.csv", timing.KEY))
    text = "\n".join([declared.markdown_a(memory), declared.markdown_b(table), growth.markdown(grown)])
    click.echo(text)
    write_text(tables / "figure1.md", text)
    write_text(tables / "growth.csv", grown.to_csv(index=False))
    write_text(figures / "figure1b.csv", table.to_csv(index=False))
    written = save_figure(memory_figure(declared.of_points(memory, a), "matching_steps"), figures / "figure1a")
    written += save_figure(declared.draw_b(table), figures / "figure1b")
    say(f"written: {', '.join(map(str, [*written, figures / 'figure1b.csv', tables / 'figure1.md']))}")


def _time_figure1(device: str, path: Path) -> None:
    """Time the points of Figure 1b that were not timed on this machine, and keep each data set's rows as they come."""
    from dcbench_tesla.cell import Execution
    from dcbench_tesla.compare import timing
    from dcbench_tesla.compare.files import merge_csv, read_csv
    from dcbench_tesla.environment import hardware
    from dcbench_tesla.progress import bar
    from dcbench_tesla.reports import figure1 as declared

    execution = Execution.resolve(device)
    known = read_csv(path, timing.KEY)
    wanted = declared.untimed(known, hardware(execution.device), execution.threads)
    repetitions = timing.repetitions(execution)
    with bar("time", len(wanted) * (repetitions + 1), unit="run") as shown:
        for dataset in dict.fromkeys(p.dataset for p in wanted):
            of_it = [p for p in wanted if p.dataset == dataset]
            merge_csv(path, timing.measure(of_it, execution, repetitions=repetitions, done=shown.advance), timing.KEY)
