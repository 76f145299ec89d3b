"""Sheets of images for people: as a picture, in a notebook, in a terminal, on the screen.

Shapes: N images, C channels, H = W = side.
"""

import base64
import io
import os
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from dcbench_tesla.records.notebook import in_notebook
from dcbench_tesla.records.progress import say
from dcbench_tesla.records.store import atomic_path

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.text import Text

_GROUPS_A_ROW = 10
_SHORTEST_SIDE = 48
_LINE = 2


def sheet(pixels: Tensor, counts: Sequence[int]) -> "Image":
    """Return a picture of ``pixels`` (N, C, H, W) in [0, 1]: a row a group, small images enlarged by a whole factor.

    Args:
        pixels: the images, group by group.
        counts: number of images of each group. Groups of one image each stand ten in a row.
    """
    from PIL import Image

    rows, columns = list(pixels.split(list(counts))), max(counts)
    if columns == 1:
        rows, columns = list(pixels.split(_GROUPS_A_ROW)), _GROUPS_A_ROW
    images = torch.ones(len(rows) * columns, *pixels.shape[1:])
    for r, row in enumerate(rows):
        images[r * columns : r * columns + len(row)] = row
    factor = max(1, -(-_SHORTEST_SIDE // images.shape[-1]))
    grid = grid_of(F.interpolate(images, scale_factor=factor), columns)
    return Image.fromarray((255 * grid + 0.5).clamp(0, 255).byte().numpy())


def grid_of(images: Tensor, columns: int) -> Tensor:
    """Arrange ``(N, C, H, W)`` in one picture ``(H', W', 3)`` with white lines; importing torchvision takes seconds."""
    framed = F.pad(images, (_LINE, 0, _LINE, 0), value=1.0)
    n, channels, height, width = framed.shape
    grid = framed.reshape(n // columns, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    whole = F.pad(grid.reshape(n // columns * height, columns * width, channels), (0, 0, 0, _LINE, 0, _LINE), value=1.0)
    return whole.expand(-1, -1, 3)


def write_png(image: "Image", path: Path) -> None:
    """Write ``image`` to ``path`` as PNG, atomically."""
    with atomic_path(path) as temporary:
        image.save(temporary, format="png")


def as_html(image: "Image", caption: str) -> str:
    """Return ``image`` with its caption as HTML that needs no other file."""
    file = io.BytesIO()
    image.save(file, format="png")
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return (
        f'<figure style="margin:0"><img alt="{escape(caption)}" src="data:image/png;base64,{data}" '
        f'style="max-width:100%;image-rendering:pixelated"><figcaption>{escape(caption)}</figcaption></figure>'
    )


def as_text(image: "Image", width: int) -> "Text":
    """Return ``image`` in coloured half blocks of at most ``width`` characters, two pixels in each."""
    from PIL import Image
    from rich.text import Text

    factor = min(1.0, width / image.width)
    size = (max(1, int(image.width * factor)), max(2, int(image.height * factor) // 2 * 2))
    small = image.convert("RGB").resize(size, Image.Resampling.BOX)
    data, found = small.tobytes(), Text()
    for y in range(0, size[1], 2):
        for x in range(size[0]):
            upper, lower = ("#" + data[3 * i : 3 * i + 3].hex() for i in (y * size[0] + x, (y + 1) * size[0] + x))
            found.append("▀", style=f"{upper} on {lower}")
        found.append("\n")
    return found


def show(image: "Image") -> None:
    """Show ``image`` in a notebook's output, on the screen, or in the terminal; else say how to keep it as a file."""
    if in_notebook():
        from IPython.display import display

        display(image)  # type: ignore[no-untyped-call]
        return
    from PIL import ImageShow

    screen = sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if screen and ImageShow.show(image):
        return
    if sys.stdout.isatty():
        from rich.console import Console

        console = Console()
        console.print(as_text(image, console.width), end="")
        return
    say("there is no screen here: .picture().save('set.png') writes a file.")
