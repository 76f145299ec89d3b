"""`dcbench report`: all results on one page."""

from pathlib import Path

import click

from dcbench_tesla.cli.common import damaged_rows_told, options, out_option, shipped_option, workspace_of


@click.command()
@options(
    out_option,
    shipped_option,
    click.option(
        "--output", type=click.Path(path_type=Path, dir_okay=False), help="The page.  [default: OUT/report.html]"
    ),
    click.option(
        "--all-pictures",
        is_flag=True,
        help="Also show images that may not be passed on, such as one's own: a page to keep to oneself.",
    ),
)
def report(out: Path, shipped: bool, output: Path | None, all_pictures: bool) -> None:
    """Write one HTML page with all results.

    The page shows all results under --out; --shipped adds the committed results of the repository. It has tables that
    can be sorted, plots, the distilled images, and for each result the command, hardware and configuration that made
    it. It is one file with everything in it, and opens in any browser, on a telephone too, without a network.

    \b
    Examples:
      dcbench report
      dcbench report --shipped --output report.html
      dcbench report --all-pictures
    """
    from dcbench_tesla.records.progress import size
    from dcbench_tesla.records.rows import STAGES
    from dcbench_tesla.records.store import write_text
    from dcbench_tesla.reports.html import page

    path, workspace = output or out / "report.html", workspace_of(out, shipped=shipped)
    with damaged_rows_told(workspace, STAGES):
        write_text(path, page(workspace, all_pictures=all_pictures))
        click.echo(f"{path} ({size(path.stat().st_size)})")
