"""A PNG sheet of a distilled set as people look at it: preprocessing undone, a row a class."""

from pathlib import Path

import torch
from torch.nn import functional as F

from dcbench_tesla.distilled import DistilledSet
from dcbench_tesla.store import atomic_path

_MOST_ROWS, _MOST_COLUMNS = 100, 50
_CLASSES_A_ROW = 10
_SHORTEST_SIDE = 48


def write_sheet(distilled: DistilledSet, path: Path) -> None:
    """Write up to 100 classes x 50 images to ``path`` as PNG; small images are enlarged by whole factors."""
    from torchvision.utils import make_grid, save_image

    rows = _rows(distilled)[:_MOST_ROWS]
    columns = max(len(row) for row in rows)
    if columns == 1:  # one image a class: ten classes a row
        rows, columns = list(torch.cat(rows).split(_CLASSES_A_ROW)), _CLASSES_A_ROW
    pixels = distilled.pixels()
    images = torch.ones(len(rows) * columns, *pixels.shape[1:])
    for r, row in enumerate(rows):
        images[r * columns : r * columns + len(row)] = pixels[row]
    factor = max(1, -(-_SHORTEST_SIDE // images.shape[-1]))
    grid = make_grid(F.interpolate(images, scale_factor=factor), nrow=columns, padding=2, pad_value=1.0)
    with atomic_path(path) as temporary:
        save_image(grid, temporary, format="png")


def _rows(distilled: DistilledSet) -> list[torch.Tensor]:
    """The indices of each class's images: by position in a class-major set (soft labels can say otherwise)."""
    count, classes = len(distilled), len(distilled.class_names)
    if count % classes == 0 and distilled.images.dtype == torch.float32:
        return [row[:_MOST_COLUMNS] for row in torch.arange(count).split(count // classes)]
    return [(distilled.hard == c).nonzero().flatten()[:_MOST_COLUMNS] for c in distilled.hard.unique()]
