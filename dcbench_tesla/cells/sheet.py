"""A PNG sheet of a distilled set for people: one row per class, with the preprocessing undone."""

from pathlib import Path

import torch
from torch.nn import functional as F

from dcbench_tesla.distilled import DistilledSet
from dcbench_tesla.records.store import atomic_path

_MOST_ROWS, _MOST_COLUMNS = 100, 50
_CLASSES_A_ROW = 10
_SHORTEST_SIDE = 48
_LINE = 2


def write_sheet(distilled: DistilledSet, path: Path) -> None:
    """Write up to 100 classes x 50 images to ``path`` as PNG; small images are enlarged by a whole factor."""
    from PIL import Image

    rows = _rows(distilled)[:_MOST_ROWS]
    columns = max(len(row) for row in rows)
    if columns == 1:  # one image per class: show ten classes per row
        rows, columns = list(torch.cat(rows).split(_CLASSES_A_ROW)), _CLASSES_A_ROW
    pixels = distilled.pixels()
    images = torch.ones(len(rows) * columns, *pixels.shape[1:])
    for r, row in enumerate(rows):
        images[r * columns : r * columns + len(row)] = pixels[row]
    factor = max(1, -(-_SHORTEST_SIDE // images.shape[-1]))
    grid = _grid(F.interpolate(images, scale_factor=factor), columns)
    with atomic_path(path) as temporary:
        Image.fromarray((255 * grid + 0.5).clamp(0, 255).byte().numpy()).save(temporary, format="png")


def _grid(images: torch.Tensor, columns: int) -> torch.Tensor:
    """Arrange ``(N, C, H, W)`` in one picture ``(H', W', 3)`` with white lines; importing torchvision takes seconds."""
    framed = F.pad(images, (_LINE, 0, _LINE, 0), value=1.0)
    n, channels, height, width = framed.shape
    grid = framed.reshape(n // columns, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    whole = F.pad(grid.reshape(n // columns * height, columns * width, channels), (0, 0, 0, _LINE, 0, _LINE), value=1.0)
    return whole.expand(-1, -1, 3)


def _rows(distilled: DistilledSet) -> list[torch.Tensor]:
    """Return the indices of each class's images: by position in a synthetic set, because soft labels can differ."""
    count, classes = len(distilled), len(distilled.class_names)
    if count % classes == 0 and distilled.images.dtype == torch.float32:
        return [row[:_MOST_COLUMNS] for row in torch.arange(count).split(count // classes)]
    return [(distilled.hard == c).nonzero().flatten()[:_MOST_COLUMNS] for c in distilled.hard.unique()]
