"""The part with the distilled images: the sheets of ``OUT/sheets`` by data set and IPC, and how they were made."""

import base64
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from dcbench_tesla.errors import CorruptFileError
from dcbench_tesla.records.progress import duration, say, size
from dcbench_tesla.records.rows import stage_rows, tell_contents_apart
from dcbench_tesla.records.store import read_bytes
from dcbench_tesla.records.workspace import MARK, SHIPPED, Workspace
from dcbench_tesla.reports.html.frames import ALL_PIXELS, frames, snapshots
from dcbench_tesla.reports.html.parts import Figure, Frame, Made, Part, Picture
from dcbench_tesla.reports.html.peaks import explained, why_empty

SHEET = "sheet.png"
_LARGEST_BYTES, _LARGEST_PIXELS = 2**26, 2**26
_Row = Mapping[str, Any]
_FACTS: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "protocol": ("protocol", str),
    "seed": ("seed", str),
    "iterations": ("iterations", str),
    "learned learning rate": ("learned_lr", "{:.4g}".format),
    "condensation": ("condense_seconds", duration),
    "peak of the tensors": ("peak_bytes", size),
    "hardware": ("hardware", str),
    "data fingerprint": ("dataset_fingerprint", str),
}


def gallery_part(workspace: Workspace, *, all_pictures: bool = False) -> Part:
    """Return the part with the sheets of distilled images; it names data sets whose images may not be redistributed.

    With ``all_pictures`` their sheets, which lie in the cells' folders, are shown too, and the part warns. A sheet that
    is not an image, is cut or is too large is left out, and the part says so. The user's own sheets come before shipped
    ones, and have the images on the way where the cell kept snapshots.
    """
    made_rows, tested_rows = stage_rows(workspace, "condense"), stage_rows(workspace, "evaluate")
    tell_contents_apart(workspace, [*made_rows, *tested_rows])
    cells = {row.get("cell", ""): row for row in made_rows}
    tested: dict[str, list[_Row]] = defaultdict(list)
    for row in tested_rows:
        tested[row.get("cell", "")].append(row)
    damaged: list[str] = []
    groups: dict[tuple[str, int, str], list[Picture]] = defaultdict(list)
    sheets = [*workspace.files("sheets", "*.png"), *(_private(workspace, cells) if all_pictures else ())]
    found = sorted(sheets, key=lambda sheet: _order(cells.get(_cell_of(sheet[0])), *sheet))
    on_the_way = _OnTheWay(workspace, found, all_pictures)
    for path, origin in found:
        name = _cell_of(path)
        made = cells.get(name)
        try:
            picture = _picture(path, made, tested[name], MARK if origin == SHIPPED else "")
            picture = replace(picture, frames=on_the_way(name, made, picture))
        except (CorruptFileError, FileNotFoundError) as error:
            say(f"left out of the report: {error}")
            damaged.append(path.name)
            continue
        groups[_group(made)].append(picture)
    kept_back = _not_to_be_passed_on(cells.values())
    return Part(
        id="images",
        title="Distilled images",
        short="Images",
        about="The distilled images with preprocessing undone. Each row is a class; at one image per class, a row has "
        "ten classes. The slider goes through the iterations whose sets were kept: those that `evaluation.every` names."
        f"{_told(kept_back, all_pictures)}{_damaged(damaged)}",
        make="dcbench report --all-pictures" if kept_back and not all_pictures else "dcbench run --method tesla",
        figures=[_figure(*group, pictures) for group, pictures in groups.items()],
    )


class _OnTheWay:
    """The frames of pictures, in as many pixels as a page has room for, shared by all cells that kept snapshots."""

    def __init__(self, workspace: Workspace, sheets: Iterable[tuple[Path, str]], all_pictures: bool) -> None:
        names = [_cell_of(path) for path, origin in sheets if origin != SHIPPED]
        own = {name: workspace.cells / name for name in names}
        self._all = all_pictures
        self._cells = {name: cell for name, cell in own.items() if snapshots(cell)}

    def __call__(self, name: str, made: _Row | None, picture: Picture) -> Sequence[Frame]:
        if made is None or name not in self._cells:
            return ()
        if made.get("images_may_be_passed_on") is False and not self._all:
            return ()
        count = ALL_PIXELS // (len(self._cells) * picture.width * picture.height)
        return frames(self._cells[name], made.get("iterations") or 0, count)


def _order(made: _Row | None, path: Path, origin: str) -> tuple[bool, tuple[str, int, str], str, int, str]:
    method, seed = (made["method"], made["seed"]) if made else ("", 0)
    return origin == SHIPPED, _group(made), method, seed, _cell_of(path)


def _private(workspace: Workspace, cells: Iterable[str]) -> list[tuple[Path, str]]:
    """Return the sheets in the folders of those ``cells`` that have none in ``sheets/``, in the form of the others."""
    public = {path.stem for path, _ in workspace.files("sheets", "*.png")}
    own = (workspace.cells / name / SHEET for name in cells if name and name not in public)
    return [(path, "") for path in own if path.is_file()]


def _cell_of(path: Path) -> str:
    """Return the cell of a sheet, by the name of its folder or of the file itself."""
    return path.parent.name if path.name == SHEET else path.stem


def _group(made: _Row | None) -> tuple[str, int, str]:
    return (made["dataset"], made["ipc"] or 0, made["preset"]) if made else ("", 0, "")


def _figure(dataset: str, ipc: int, preset: str, pictures: Sequence[Picture]) -> Figure:
    title = f"{dataset}, IPC {ipc or 'all'}, preset {preset}" if dataset else "Sheets without a row"
    return Figure(title=title, caption="", pictures=pictures)


def _picture(path: Path, made: _Row | None, tested: Iterable[_Row], mark: str) -> Picture:
    content, (width, height) = _read(path)
    title = _cell_of(path)
    if made:
        title = made["method"] + (f", seed {made['seed']}" if made["seed"] else "")
    title += mark
    return Picture(
        title=title,
        text=", ".join(sorted(map(_accuracy, tested), key=lambda text: (not text.startswith("convnet"), text))),
        alt=f"Distilled images of {made['dataset']} by {title}" if made else f"Distilled images: {title}",
        data=base64.b64encode(content).decode(),
        width=width,
        height=height,
        made=_made(made) if made else None,
    )


def _read(path: Path) -> tuple[bytes, tuple[int, int]]:
    """Return a sheet's bytes, width and height.

    Raises:
        CorruptFileError: it is not an image, is cut, or has more pixels than any sheet.
    """
    content = read_bytes(path, limit=_LARGEST_BYTES, remedy="Delete it.")
    try:
        with Image.open(BytesIO(content), formats=["PNG"]) as image:
            if image.width * image.height > _LARGEST_PIXELS:
                raise CorruptFileError(f"{path} has {image.width} x {image.height} pixels: too large. Delete it.")
            image.load()
            return content, image.size
    except UnidentifiedImageError as error:
        raise CorruptFileError(f"{path} is not an image. Delete it.") from error
    except (OSError, SyntaxError, ValueError, EOFError, zlib.error, Image.DecompressionBombError) as error:
        raise CorruptFileError(f"{path} is damaged ({error}). Delete it.") from error


def _damaged(names: Sequence[str]) -> str:
    return f" Left out, as the files are damaged or too large: {', '.join(names)}." if names else ""


def _accuracy(row: _Row) -> str:
    last = row["accuracy"]["last"]
    spread = f" ± {100 * last['std']:.1f}" if len(last["values"]) > 1 else ""
    labels = f", {row['labels']['regime']} labels" if "labels" in row else ""
    return f"{row['evaluator']}{labels} {100 * last['mean']:.1f}{spread} %"


def _made(row: _Row) -> Made:
    facts = {title: show(row[name]) for title, (name, show) in _FACTS.items() if row.get(name) is not None}
    if reason := why_empty(row):
        facts["peak of the tensors"] = explained(reason).replace("`", "")
    environment = row["environment"]
    facts |= {"PyTorch": environment.get("versions", {}).get("torch", ""), "commit": environment.get("commit", "")}
    return Made(facts={title: text for title, text in facts.items() if text}, commands=[row["command"]])


def _not_to_be_passed_on(rows: Iterable[_Row]) -> list[str]:
    return sorted({row["dataset"] for row in rows if row.get("images_may_be_passed_on") is False})


def _told(kept_back: Sequence[str], all_pictures: bool) -> str:
    """Return what the part says of data sets whose images may not be passed on."""
    if not kept_back:
        return ""
    names = ", ".join(kept_back)
    if all_pictures:
        return f" This page is for your own eyes: images of {names} may not be passed on."
    where = "Their pictures lie in the cells' folders, as `sheet.png`, and `dcbench report --all-pictures` shows them."
    return f" Left out, as their images may not be passed on: {names}. {where}"
