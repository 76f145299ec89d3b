"""A PNG sheet of a distilled set as people look at it: preprocessing undone, a row a class."""

from pathlib import Path

import torch
from torch.nn import functional as F

from dcbench_tesla.distilled import DistilledSet
from dcbench_tesla.store import atomic_path

_MOST_ROWS, _MOST_COLUMNS = 100, 50
_SHORTEST_SIDE = 48


def write_sheet(distilled: DistilledSet, path: Path) -> None:
    """Write up to 100 classes x 50 images to ``path`` as PNG; small images are enlarged by whole factors."""
    from torchvision.utils import make_grid, save_image

    by_class = [(distilled.hard == c).nonzero().flatten()[:_MOST_COLUMNS] for c in distilled.hard.unique()]
    columns = max(len(members) for members in by_class[:_MOST_ROWS])
    if columns == 1:  # one image a class: ten classes a row
        chosen, columns = torch.cat(by_class[:_MOST_ROWS]), 10
    else:
        chosen = torch.cat([members for members in by_class[:_MOST_ROWS] if len(members) == columns])
    images = distilled.pixels()[chosen]
    factor = max(1, -(-_SHORTEST_SIDE // images.shape[-1]))
    grid = make_grid(F.interpolate(images, scale_factor=factor), nrow=columns, padding=2, pad_value=1.0)
    with atomic_path(path) as temporary:
        save_image(grid, temporary, format="png")
