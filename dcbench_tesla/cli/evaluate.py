"""`dcbench evaluate`: train networks on existing distilled sets, and test them."""

from pathlib import Path
from typing import Any

import click

from dcbench_tesla.cli.common import (
    Failure,
    data_dir_option,
    device_option,
    failure,
    options,
    out_option,
    preset_option,
    set_option,
)
from dcbench_tesla.cli.completion import CELLS, EVALUATORS


@click.command()
@options(
    click.argument("targets", metavar="CELL_OR_FILE...", nargs=-1, required=True, shell_complete=CELLS),
    click.option(
        "--evaluator",
        "evaluators",
        multiple=True,
        help="A network to evaluate with.  [default: convnet; for a cell: the evaluators of its run]",
        shell_complete=EVALUATORS,
    ),
    click.option("--dataset", help="The data set to test on.  [default: the one the set was made from]"),
    click.option("--seed", type=int, help="A seed, for files only.  [default: 0]"),
    preset_option,
    set_option,
    device_option,
    data_dir_option,
    out_option,
    click.option("--force", is_flag=True, help="Repeat evaluations that are on record."),
)
def evaluate(
    targets: tuple[str, ...],
    evaluators: tuple[str, ...],
    dataset: str | None,
    seed: int | None,
    preset: str | None,
    assignments: tuple[str, ...],
    device: str,
    data_dir: Path | None,
    out: Path,
    force: bool,
) -> None:
    """Train networks on finished cells or distilled sets.

    Prints their test accuracy. A cell (its folder, or its name under --out) keeps its preset, seed and schedule and is
    not condensed again; the new rows go to the results folder of the cell. A file is evaluated with the settings of
    --preset, and its rows go to --out. Evaluations on record are not repeated.

    \b
    Examples:
      dcbench evaluate runs/cells/* --evaluator resnet18 --evaluator vit
      dcbench evaluate tesla-digits-ipc1-seed0-0123456789 --evaluator timm:resnet26d
      dcbench evaluate distilled.safetensors --dataset npz:my_images.npz --set evaluation.networks=3
    """
    from dcbench_tesla import registry
    from dcbench_tesla.config import parse_set
    from dcbench_tesla.errors import unknown_name
    from dcbench_tesla.presets import PRESETS

    if preset is not None and preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    registry.check_names("evaluators", evaluators)
    overrides = [parse_set(text) for text in assignments]
    from dcbench_tesla.cells.saved import evaluate_saved
    from dcbench_tesla.records.progress import complain

    failures: list[Failure] = []
    for target in targets:
        try:
            rows = evaluate_saved(
                target,
                evaluators,
                overrides=overrides,
                preset=preset,
                seed=seed,
                dataset=dataset,
                out=out,
                data_dir=data_dir,
                device=device,
                force=force,
            )
        except Exception as error:  # the other targets are still evaluated
            shown = failure(error)
            if shown is None or len(targets) == 1:
                raise
            failures.append(shown)
            complain(f"{target}: {shown.format_message()}")
            continue
        _show(rows, named=len(targets) > 1)
    if failures:
        others = "; the others are done" if len(failures) < len(targets) else ""
        raise Failure(f"{len(failures)} of {len(targets)} sets could not be evaluated, see above{others}.", 1)


@click.command()
@options(
    click.argument("file", type=click.Path(path_type=Path)),
    click.option("--claim", required=True, metavar="PERCENT", help="The claimed test accuracy, such as 71.6."),
    click.option("--std", type=float, help="The standard deviation that is printed beside it."),
    click.option(
        "--claim-networks", type=int, default=5, show_default=True, help="The number of networks that --std is over."
    ),
    click.option("--networks", type=int, help="Networks to train here.  [default: those of the preset]"),
    click.option("--evaluator", default="convnet", show_default=True, help="The network.", shell_complete=EVALUATORS),
    click.option("--dataset", help="The data set to test on.  [default: the one the set was made from]"),
    click.option("--seed", type=int, default=0, show_default=True, help="A seed."),
    preset_option,
    set_option,
    device_option,
    data_dir_option,
    out_option,
)
def verify(
    file: Path,
    claim: str,
    std: float | None,
    claim_networks: int,
    networks: int | None,
    evaluator: str,
    dataset: str | None,
    seed: int,
    preset: str | None,
    assignments: tuple[str, ...],
    device: str,
    data_dir: Path | None,
    out: Path,
) -> None:
    """Check the claimed accuracy of a distilled set.

    Networks are trained on FILE by the recipe that its authors publish, where the set names one, else by the common
    one. The verdict is consistent, below or above, with the interval of the mean, or undecided where the measurement is
    too coarse to judge the claim; more --networks make it finer. If the claim does not hold, one thing at a time is
    changed that files often lack or say wrongly, the augmentation, the learned rate, the preprocessing and the labels,
    and the change that closes the gap is named. Evaluations leave rows under --out and are not repeated.

    \b
    Examples:
      dcbench verify mtt.safetensors --claim 71.6 --std 0.2
      dcbench verify set.safetensors --claim 46.3 --networks 10 --evaluator resnet18
    """
    from dcbench_tesla import registry
    from dcbench_tesla.config import parse_set
    from dcbench_tesla.errors import unknown_name
    from dcbench_tesla.presets import PRESETS

    if preset is not None and preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    registry.check_names("evaluators", (evaluator,))
    overrides = [parse_set(text) for text in assignments]
    from dcbench_tesla.exchange.verify import Claim
    from dcbench_tesla.exchange.verify import verify as verified
    from dcbench_tesla.records.progress import say

    found = verified(
        file,
        Claim(printed=claim, std=std, networks=claim_networks),
        evaluator=evaluator,
        overrides=overrides,
        networks=networks,
        dataset=dataset,
        preset=preset or "paper",
        seed=seed,
        out=out,
        data_dir=data_dir,
        device=device,
        tell=say,
    )
    click.echo("\n".join(found.lines()))


def _show(rows: dict[str, dict[str, Any]], *, named: bool) -> None:
    """Print a line for every evaluator, preceded by the name of the set if ``named``."""
    from dcbench_tesla.cells.evaluation import Accuracy
    from dcbench_tesla.compare.accuracy import told_labels

    for name, row in rows.items():
        last = Accuracy(**row["accuracy"]["last"])
        of = f"{row['cell']}: " if named else ""
        how = f"{row['recipe']}{told_labels(row)}"
        click.echo(f"{of}{name}: {last} test accuracy over {len(last.values)} networks ({how})")
