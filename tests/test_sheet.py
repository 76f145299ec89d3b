"""The sheet of a distilled set is drawn as torchvision draws grids."""

import io

import pytest
import torch
from PIL import Image
from torchvision.utils import make_grid, save_image

from dcbench_tesla.records.pictures import grid_of


@pytest.mark.parametrize(("channels", "count", "columns"), [(1, 10, 10), (3, 20, 10), (3, 6, 2)])
def test_grid_is_torchvisions(channels: int, count: int, columns: int) -> None:
    images = torch.rand(count, channels, 9, 9, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.2
    file = io.BytesIO()
    save_image(make_grid(images, nrow=columns, padding=2, pad_value=1.0), file, format="png")
    expected = torch.tensor(list(Image.open(file).tobytes()), dtype=torch.uint8)
    drawn = (255 * grid_of(images, columns) + 0.5).clamp(0, 255).byte()
    assert torch.equal(drawn.flatten(), expected)
