"""`dcbench evaluate`: networks trained on a distilled set that is there."""

from pathlib import Path

import click

from dcbench_tesla.cli.common import data_dir_option, device_option, options, preset_option, set_option


@click.command()
@options(
    click.argument("file", type=click.Path(path_type=Path)),
    click.option("--evaluator", "evaluators", multiple=True, help="A network to evaluate with.  [default: convnet]"),
    click.option("--dataset", help="The data set to test on.  [default: the one the set was made from]"),
    click.option("--seed", type=int, default=0, show_default=True, help="A seed."),
    preset_option,
    set_option,
    device_option,
    data_dir_option,
)
def evaluate(
    file: Path,
    evaluators: tuple[str, ...],
    dataset: str | None,
    seed: int,
    preset: str | None,
    assignments: tuple[str, ...],
    device: str,
    data_dir: Path | None,
) -> None:
    """Train networks on the distilled set in FILE and print their test accuracy; nothing is kept.

    \b
    Examples:
      dcbench evaluate results/cells/NAME/distilled.safetensors
      dcbench evaluate distilled.safetensors --dataset npz:my_images.npz --set evaluation.networks=3
    """
    from dcbench_tesla.config import PRESETS, parse_set
    from dcbench_tesla.errors import unknown_name

    if preset is not None and preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    from dcbench_tesla.api import evaluate_file

    overrides = [parse_set(text) for text in assignments]
    found = evaluate_file(
        file,
        evaluators=evaluators or ("convnet",),
        dataset=dataset,
        seed=seed,
        preset=preset or "paper",
        overrides=overrides,
        data_dir=data_dir,
        device=device,
    )
    for name, accuracy in found.items():
        click.echo(f"{name}: {accuracy} test accuracy over {len(accuracy.values)} networks")
