"""The content of ``dcbench info npz:FILE`` and ``dcbench info folder:DIR``: the user's own data before a run."""

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dcbench_tesla.data.own.decisions import counts, examples, mirrored_recognised
from dcbench_tesla.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from dcbench_tesla.cli.shown import output
    from dcbench_tesla.data.dataset import Dataset

_WIDTH, _LONGEST_NAME = 80, 40
_MOST_SHOWN = 20  # classes whose images are counted one by one
_OF_EACH, _MOST_CLASSES = 10, 100  # images in the picture


def show(name: str, picture: Path | None) -> None:
    """Print what a data set of the user's own holds and what a run would decide; draw it in a terminal.

    Args:
        name: ``npz:PATH`` or ``folder:PATH``.
        picture: where to write a picture of it as PNG.

    Raises:
        UsageError: ``picture`` is no name of a PNG file.
        DcbenchError: the data is missing or damaged.
    """
    from dcbench_tesla.datasets import load_dataset
    from dcbench_tesla.records.pictures import write_png

    if picture is not None and picture.suffix.lower() != ".png":
        raise UsageError(f"--picture writes a PNG file: name one, such as {picture.with_suffix('.png')}.")
    dataset = load_dataset(name)
    for line in _lines(dataset):
        click.echo(line)
    if picture is not None:
        write_png(_picture(dataset, _OF_EACH), picture)
        click.echo(f"picture: {picture}")
    elif sys.stdout.isatty():
        _draw(dataset)


def as_json(name: str) -> "output.Info":
    """Return what :func:`show` prints of a data set as ``--json`` prints it; raises its errors about the data."""
    from dcbench_tesla.cli.shown import output
    from dcbench_tesla.datasets import load_dataset

    return output.Info(name=name, type="data set", text="\n".join(_lines(load_dataset(name))))


def _lines(dataset: "Dataset") -> Iterator[str]:
    """Yield what the set holds and what would be decided with the default settings."""
    import torch

    from dcbench_tesla.data.augmentation import Augmentation
    from dcbench_tesla.data.own.decisions import Decided
    from dcbench_tesla.data.preprocessing import fit_standardise
    from dcbench_tesla.data.settings import DataSettings
    from dcbench_tesla.data.splits import choose

    settings = DataSettings()
    chosen = choose(torch.from_numpy(dataset.y_train), dataset.classes, settings)
    fitted = fit_standardise(dataset, dataset.x_train[chosen.train.numpy()])
    sizes, augmentation = (len(chosen.train), len(chosen.validation)), Augmentation.for_dataset(dataset.flippable)
    yield from Decided(dataset, settings, *sizes, fitted, augmentation).lines()
    yield ""
    yield from _counted(dataset)
    yield from textwrap.wrap(f"mirrored: {mirrored_recognised(dataset)}", _WIDTH)


def _counted(dataset: "Dataset") -> Iterator[str]:
    """Yield the numbers of images by class."""
    found = counts(dataset)
    width = min(_LONGEST_NAME, max(len("class"), *(len(name) for name, _, _ in found)))
    yield f"{'class':<{width}}  {'training':>8}  {'test':>8}"
    for name, train, test in found[:_MOST_SHOWN]:
        yield f"{name[:width]:<{width}}  {train:>8,}  {test:>8,}"
    if len(found) > _MOST_SHOWN:
        fewest, most = (f(train for _, train, _ in found) for f in (min, max))
        yield f"... {len(found) - _MOST_SHOWN} more classes; {fewest:,} to {most:,} training images a class"


def _picture(dataset: "Dataset", each: int) -> "Image":
    """Return a picture of the first training images of every class."""
    import numpy as np
    import torch

    from dcbench_tesla.records.pictures import sheet

    groups = examples(dataset, each, _MOST_CLASSES)
    pixels = torch.from_numpy(dataset.x_train[np.concatenate(groups)]).float() / dataset.max_value
    return sheet(pixels, [len(group) for group in groups])


def _draw(dataset: "Dataset") -> None:
    """Draw one image of each class in the terminal."""
    from rich.console import Console

    from dcbench_tesla.records.pictures import as_text

    console = Console()
    console.print(as_text(_picture(dataset, 1), console.width), end="")
