"""`dcbench import` and `dcbench export`: distilled sets and experts in the file formats of other people's code."""

from pathlib import Path

import click

from dcbench_tesla.cli.common import Group, data_dir_option, options, out_option
from dcbench_tesla.errors import UsageError
from dcbench_tesla.records.workspace import DEFAULT_OUT

_PATH = click.Path(path_type=Path)


@click.group(name="import", cls=Group)
def import_() -> None:
    """Import distilled sets and experts of others.

    \b
    Examples:
      dcbench import set images_best.pt --dataset cifar10 --lr 0.02 --preprocessing zca --output set.safetensors
      dcbench import experts replay_buffer_*.pt --dataset cifar10 --zca
    """


@import_.command(name="set")
@options(
    click.argument("files", type=_PATH, nargs=-1, required=True, metavar="FILE..."),
    click.option("--output", type=_PATH, required=True, help="The distilled set to write, FILE.safetensors."),
    click.option("--dataset", help="The data set it was made from."),
    click.option("--labels", type=_PATH, help="The file of labels.  [default: labels_X.pt beside images_X.pt]"),
    click.option("--hard-labels", is_flag=True, help="There is no file of labels: images are ordered by class."),
    click.option("--index", type=int, help="Experiment in a res_*.pt, counted from 0.  [default: the last]"),
    click.option("--lr", type=float, help="The learning rate that was learned with the images."),
    click.option("--no-lr", is_flag=True, help="No learning rate was learned."),
    click.option("--preprocessing", help="The images' preprocessing: standardise, zca, or a safetensors file with it."),
    click.option("--augmentation", help="The DSA strategy to train with, or none.  [default: the data set's]"),
    click.option("--method", help="Method that made it, for the record: mtt, for instance."),
    click.option("--ipc", type=int, help="Images per class, which the file must have."),
    click.option("--ignore-side-file", is_flag=True, help="Import the .pt itself, which was changed after the export."),
    click.option("--force", is_flag=True, help="Replace what is at --output."),
    data_dir_option,
)
def set_(
    files: tuple[Path, ...],
    output: Path,
    dataset: str | None,
    labels: Path | None,
    hard_labels: bool,
    index: int | None,
    lr: float | None,
    no_lr: bool,
    preprocessing: str | None,
    augmentation: str | None,
    method: str | None,
    ipc: int | None,
    ignore_side_file: bool,
    force: bool,
    data_dir: Path | None,
) -> None:
    """Convert the FILES of one set to a distilled set.

    FILE is images_*.pt of MTT or TESLA, res_*.pt of DC, DSA or DM, or a file or folder of `dcbench export`.
    No code in these files is run.

    \b
    Examples:
      dcbench import set images_best.pt --dataset cifar10 --lr 0.02 --preprocessing zca --output mtt.safetensors
      dcbench import set res_DM_CIFAR10_ConvNet_10ipc.pt --dataset cifar10 --preprocessing standardise --output dm.safetensors
      dcbench import set exported/ --output set.safetensors
    """  # noqa: E501
    _check_file(output, force=force)
    from dcbench_tesla.exchange import Given, import_set
    from dcbench_tesla.exchange.folders import label_kind
    from dcbench_tesla.records.progress import say

    given = Given(
        dataset=dataset,
        labels=labels,
        hard_labels=hard_labels,
        index=index,
        lr=lr,
        no_lr=no_lr,
        preprocessing=preprocessing,
        augmentation=augmentation,
        method=method,
        ipc=ipc,
        ignore_side_file=ignore_side_file,
    )
    distilled, notes = import_set(files, given, data_dir)
    distilled.save(output)
    for note in notes:
        say(f"note: {note}")
    kind, rate = label_kind(distilled), "none" if distilled.lr is None else distilled.lr
    click.echo(
        f"{len(distilled)} images of {len(distilled.class_names)} classes, {kind} labels, learned rate {rate}, "
        f"{distilled.preprocessing.kind}: {output}"
    )
    own = f" --dataset {dataset}" if dataset and ":" in dataset else ""
    click.echo(f"Next: dcbench evaluate {output}{own}")


def _check_file(output: Path, *, force: bool) -> None:
    if output.is_dir():
        raise UsageError(f"{output} is a folder: --output names the file to write.")
    if output.exists() and not force:
        raise UsageError(f"{output} exists already: name another file, or replace it by --force.")


@import_.command(name="experts")
@options(
    click.argument("files", type=_PATH, nargs=-1, required=True),
    click.option("--dataset", required=True, help="The data set they were trained on."),
    click.option("--zca", is_flag=True, help="They were trained on whitened images (the same as --preprocessing zca)."),
    click.option(
        "--preprocessing",
        type=click.Choice(["standardise", "zca"]),
        help="Preprocessing of their training images.  [default: standardise]",
    ),
    click.option("--width", type=int, default=128, show_default=True, help="Filters of their ConvNet."),
    click.option("--depth", type=int, default=0, show_default=True, help="Blocks of their ConvNet (0: by image size)."),
    click.option("--train-images", type=int, default=0, show_default=True, help="Number of training images (0: all)."),
    click.option("--validation", type=float, default=0.0, show_default=True, help="Fraction of images held out."),
    click.option("--name", default="", help="Their name in --set experts.imported=NAME.  [default: their key]"),
    data_dir_option,
    out_option,
)
def experts_(
    files: tuple[Path, ...],
    dataset: str,
    zca: bool,
    preprocessing: str | None,
    width: int,
    depth: int,
    train_images: int,
    validation: float,
    name: str,
    data_dir: Path | None,
    out: Path,
) -> None:
    """Import expert buffers of MTT or TESLA.

    FILES are replay_buffer_*.pt. The experts go to the expert store under --out, and the command prints how to use
    them. Only runs on the data they were trained on can use them, and they are never trained further. No code in these
    files is run.

    \b
    Examples:
      dcbench import experts replay_buffer_0.pt replay_buffer_1.pt --dataset cifar10 --zca
      dcbench import experts buffers/*.pt --dataset fashion-mnist --width 64 --name colleague
    """
    if zca and preprocessing == "standardise":
        raise UsageError("--zca and --preprocessing standardise exclude each other.")
    if out == Path():
        raise UsageError("--out is empty: name a folder.")
    from dcbench_tesla.config import NetworkSettings
    from dcbench_tesla.data.settings import DataSettings
    from dcbench_tesla.datasets import load_dataset
    from dcbench_tesla.exchange import import_experts
    from dcbench_tesla.records.workspace import Workspace

    whitened = zca or preprocessing == "zca"
    data = DataSettings(train_images=train_images, validation=validation, zca=whitened)
    network = NetworkSettings(width=width, depth=depth)
    workspace = Workspace(out)
    workspace.check_writable()
    loaded = load_dataset(dataset, data_dir)
    done = import_experts(files, loaded, workspace, data=data, network=network, name=name)
    least, most = min(done.epochs), max(done.epochs)
    epochs = f"{least}" if least == most else f"{least} to {most}"
    click.echo(f"{len(done.epochs)} experts of {epochs} epochs{'' if done.new else ', there already'}: {done.folder}")
    words = " ".join(f"--set {text}" for text in done.settings)
    place = "" if out == Path(DEFAULT_OUT) else f" --out {out}"
    click.echo(f"Next: dcbench run --method mtt --dataset {dataset} {words}{place}")


@click.command()
@options(
    click.argument("source", metavar="SET_OR_CELL", type=_PATH),
    click.option("--format", "layout", default="tensors", show_default=True, help="tensors, png or authors."),
    click.option("--output", type=_PATH, required=True, help="The folder to write."),
    click.option("--force", is_flag=True, help="Replace an earlier export there."),
    click.option(
        "--out",
        type=_PATH,
        default=Path(DEFAULT_OUT),
        show_default=True,
        help="Folder of the results, for a cell given by its name.",
    ),
)
def export(source: Path, layout: str, output: Path, force: bool, out: Path) -> None:
    """Write a distilled set in files that others can read.

    SET_OR_CELL is a distilled.safetensors, a cell's folder, or a cell's name under --out. The format tensors is one
    complete file; png is a file per image, with a dataset card; authors is images_best.pt and labels_best.pt as MTT and
    TESLA write them. `dcbench import set` reads each format back without loss.

    \b
    Examples:
      dcbench export runs/cells/NAME --format png --output for_people
      dcbench export distilled.safetensors --format authors --output for_their_code
    """
    from dcbench_tesla.exchange import FORMATS, export_set, find_set

    if layout not in FORMATS:  # before a large set is read
        from dcbench_tesla.errors import unknown_name

        raise unknown_name("format", layout, FORMATS)
    from dcbench_tesla.distilled import DistilledSet

    distilled = DistilledSet.load(find_set(source, out))
    export_set(distilled, layout, output, force=force)
    click.echo(f"{len(distilled)} images as {layout}: {output}")
    if not distilled.provenance.get("redistributable"):
        click.echo("The images this set was made from may not be redistributed, as far as is known: do not publish it.")
