"""The distilled images on the way: small pictures of a cell's snapshots, for the slider beneath its sheet."""

import base64
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from dcbench_tesla.errors import CorruptFileError
from dcbench_tesla.records.progress import say
from dcbench_tesla.reports.html.parts import Frame

ALL_PIXELS = 2**26
"""The pixels of all snapshots on a page, so that it stays some tens of MiB."""
_MOST, _QUALITY = 12, 80
_LONGEST_SIDE = 8192  # WebP ends at 16383


def snapshots(cell: Path) -> list[Path]:
    """Return the files of the snapshots in a cell's folder, by iteration."""
    return sorted(path for path in cell.glob("snapshots/*.safetensors") if path.stem.isdecimal())


def frames(cell: Path, last: int, count: int) -> Sequence[Frame]:
    """Return at most ``count`` snapshots of the cell, evenly spaced, and the picture itself after iteration ``last``.

    Snapshots that are damaged are left out and told. Without any snapshot there is no frame.
    """
    found = [path for path in snapshots(cell) if int(path.stem) < last]
    on_the_way = [frame for path in _spaced(found, min(count, _MOST)) if (frame := _frame(path))]
    return [*on_the_way, Frame(last, None)] if on_the_way else []


def _spaced(paths: Sequence[Path], count: int) -> Sequence[Path]:
    if len(paths) <= count:
        return paths
    return [paths[i * (len(paths) - 1) // max(count - 1, 1)] for i in range(count)]


def _frame(path: Path) -> Frame | None:
    from dcbench_tesla.distilled import DistilledSet

    try:
        picture, file = DistilledSet.load(path).picture(), BytesIO()
    except (CorruptFileError, FileNotFoundError) as error:
        say(f"left out of the report: {error}")
        return None
    picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    picture.save(file, format="webp", quality=_QUALITY)
    return Frame(int(path.stem), base64.b64encode(file.getvalue()).decode())
