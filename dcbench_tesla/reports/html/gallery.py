"""The part with the distilled images: the sheets of ``OUT/sheets`` by data set and IPC, and how they were made."""

import base64
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from dcbench_tesla.errors import CorruptFileError
from dcbench_tesla.records.progress import duration, size
from dcbench_tesla.records.rows import stage_rows
from dcbench_tesla.records.workspace import MARK, SHIPPED, Workspace
from dcbench_tesla.reports.html.parts import Figure, Made, Part, Picture

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


def gallery_part(workspace: Workspace) -> Part:
    """Return the part with the sheets of distilled images; it names data sets whose images may not be redistributed.

    Raises:
        CorruptFileError: a sheet is not an image file.
    """
    cells = {row.get("cell", ""): row for row in stage_rows(workspace, "condense")}
    tested: dict[str, list[_Row]] = defaultdict(list)
    for row in stage_rows(workspace, "evaluate"):
        tested[row.get("cell", "")].append(row)
    groups: dict[tuple[str, int, str], list[Picture]] = defaultdict(list)
    found = sorted(workspace.files("sheets", "*.png"), key=lambda sheet: _order(cells.get(sheet[0].stem), sheet[0]))
    for path, origin in found:
        made = cells.get(path.stem)
        groups[_group(made)].append(_picture(path, made, tested[path.stem], MARK if origin == SHIPPED else ""))
    return Part(
        id="images",
        title="Distilled images",
        about="The distilled images with preprocessing undone. Each row is a class; at one image per class, a row has "
        f"ten classes.{_left_out(cells.values())}",
        make="dcbench run --method tesla",
        figures=[_figure(*group, pictures) for group, pictures in sorted(groups.items())],
    )


def _order(made: _Row | None, path: Path) -> tuple[str, int, str]:
    return (made["method"], made["seed"], path.stem) if made else ("", 0, path.stem)


def _group(made: _Row | None) -> tuple[str, int, str]:
    return (made["dataset"], made["ipc"] or 0, made["preset"]) if made else ("", 0, "")


def _figure(dataset: str, ipc: int, preset: str, pictures: Sequence[Picture]) -> Figure:
    title = f"{dataset}, IPC {ipc or 'all'}, preset {preset}" if dataset else "Sheets without a row"
    return Figure(title=title, caption="", pictures=pictures)


def _picture(path: Path, made: _Row | None, tested: Iterable[_Row], mark: str) -> Picture:
    try:
        with Image.open(path) as image:
            width, height = image.size
    except UnidentifiedImageError as error:
        raise CorruptFileError(f"{path} is not an image. Delete it.") from error
    title = path.stem
    if made:
        title = made["method"] + (f", seed {made['seed']}" if made["seed"] else "")
    title += mark
    return Picture(
        title=title,
        text=", ".join(sorted(map(_accuracy, tested), key=lambda text: (not text.startswith("convnet"), text))),
        alt=f"Distilled images of {made['dataset']} by {title}" if made else f"Distilled images: {title}",
        data=base64.b64encode(path.read_bytes()).decode(),
        width=width,
        height=height,
        made=_made(made) if made else None,
    )


def _accuracy(row: _Row) -> str:
    last = row["accuracy"]["last"]
    spread = f" ± {100 * last['std']:.1f}" if len(last["values"]) > 1 else ""
    return f"{row['evaluator']} {100 * last['mean']:.1f}{spread} %"


def _made(row: _Row) -> Made:
    facts = {title: show(row[name]) for title, (name, show) in _FACTS.items() if row.get(name) is not None}
    environment = row["environment"]
    facts |= {"PyTorch": environment.get("versions", {}).get("torch", ""), "commit": environment.get("commit", "")}
    return Made(facts={title: text for title, text in facts.items() if text}, commands=[row["command"]])


def _left_out(rows: Iterable[_Row]) -> str:
    names = sorted({row["dataset"] for row in rows if row.get("images_may_be_passed_on") is False})
    return f" Left out, as their images may not be passed on: {', '.join(names)}." if names else ""
