"""The three folder layouts that ``dcbench export`` writes and ``dcbench import`` reads back, bit for bit.

==========  =====================================================================================================
tensors     ``distilled.safetensors``, complete with its whitening
png         the same file, a PNG per image, ``labels.csv``, and a dataset card in ``README.md``
authors     ``images_best.pt`` and ``labels_best.pt`` as MTT and TESLA write them, and a side file,
            ``dcbench.safetensors``, with everything that these lack, including the pixels of sets of real images
==========  =====================================================================================================

The side file holds digests of the two tensors. If a tensor was changed, the side file no longer describes it, and the
import is refused.
"""

import csv
import io
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dcbench_tesla.distilled import CENTRED, DistilledSet
from dcbench_tesla.errors import CorruptFileError, DcbenchError, UsageError, unknown_name
from dcbench_tesla.exchange.files import load_torch, plain_tensor, tensor_digest
from dcbench_tesla.records.leftovers import bring_back, exchange, sweep, temporary_path
from dcbench_tesla.records.store import load_tensors, save_tensors, write_text, writing
from dcbench_tesla.records.workspace import Workspace

SET, SIDE, IMAGES, LABELS = "distilled.safetensors", "dcbench.safetensors", "images_best.pt", "labels_best.pt"
_TABLE, _CARD = "labels.csv", "README.md"
_OURS = {SET, SIDE, IMAGES, LABELS, _TABLE, _CARD}
_CLASS_FOLDER = re.compile(r"\d+_.+")
_SIDE_FORMAT = "dcbench side file"
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))

# ---------------------------------------------------------------------------------------------------------- writing


def find_set(path: Path, out: Path | None = None) -> Path:
    """Return the file of the distilled set that ``path`` names.

    Args:
        path: the file of a distilled set, a cell's folder, or if ``out`` is given the name of a cell.
        out: the results folder of a cell that is given by its name.

    Raises:
        UsageError: there is no such set.
    """
    if found_again(path) and path.is_file():
        return path
    if os.path.lexists(path / SET):  # what it is, is seen when it is read
        return path / SET
    if out is not None and os.path.lexists(named := Workspace(out).cells / path / SET):
        return named
    if path.is_dir():
        raise UsageError(f"there is no {SET} in {path}: name a distilled set, or the folder of a finished cell.")
    cell = "" if out is None else f", and no finished cell of that name under {out} (--out names another folder)"
    raise UsageError(f"there is no file or folder {path}{cell}.")


def export_set(distilled: DistilledSet, layout: str, output: Path, *, force: bool = False) -> None:
    """Write ``distilled`` into the folder ``output``. If this fails, the folder stays as it was.

    If the process is killed while the new export takes the place of an earlier one, the next process that writes or
    reads an export there puts the earlier one back.

    Args:
        distilled: the set.
        layout: one of :data:`FORMATS`.
        output: the folder.
        force: replace an earlier export there. Other files are never replaced.

    Raises:
        UsageError: the layout is unknown, PNG cannot hold the images, or the folder is not empty and may not be
            replaced.
        DcbenchError: the folder cannot be written.
    """
    if layout not in FORMATS:
        raise unknown_name("format", layout, FORMATS)
    if layout == "png" and distilled.images.shape[1] not in (1, 3):
        raise UsageError(f"PNG cannot hold images of {distilled.images.shape[1]} channels: use --format tensors.")
    output = output.resolve()
    bring_back(output)
    _check_output(output, force=force)
    made = temporary_path(output)
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        sweep(output.parent)
        made.mkdir()
        try:
            FORMATS[layout](distilled, made)
            exchange(made, output)
        finally:
            shutil.rmtree(made, ignore_errors=True)


def found_again(path: Path) -> bool:
    """Return whether there is a file or folder ``path``, once an export that a killed process moved aside is back."""
    for place in () if path.exists() else (path, path.parent):
        bring_back(Path(os.path.realpath(place)))  # Path.resolve would fail where links lead in a circle
    return path.exists()


def _check_output(output: Path, *, force: bool) -> None:
    """Raise :class:`UsageError` if ``output`` holds anything that may not be replaced."""
    if not output.exists():
        return
    if not output.is_dir():
        raise UsageError(f"{output} is a file: --output names a folder.")
    there = {path.name for path in output.iterdir()}
    if there and not force:
        raise UsageError(f"{output} is not empty: name another folder, or replace an earlier export by --force.")
    strange = sorted(name for name in there - _OURS if not _is_class_folder(output / name))
    if there and (strange or not there & {SET, SIDE}):
        shown = strange[0] if strange else "no distilled set"
        raise UsageError(f"{output} holds {shown}, so it is not an export of dcbench and stays: name another folder.")


def _is_class_folder(path: Path) -> bool:
    return (
        bool(_CLASS_FOLDER.fullmatch(path.name)) and path.is_dir() and all(p.suffix == ".png" for p in path.iterdir())
    )


def _write_tensors(distilled: DistilledSet, folder: Path) -> None:
    distilled.save(folder / SET)


def _write_authors(distilled: DistilledSet, folder: Path) -> None:
    plain = distilled.plain()  # what their code trains on: decoded, and with classes or probabilities
    written = {IMAGES: plain.inputs().contiguous(), LABELS: plain.labels.contiguous()}
    for name, tensor in written.items():
        _torch_save(tensor.clone(), folder / name)  # of a view, torch.save would write the whole storage
    tensors, meta = distilled.state()
    if plain.labels is distilled.labels:
        del tensors["labels"]
    if plain.images is distilled.images and distilled.images.dtype == torch.float32:
        del tensors["images"]
    digests = {name: tensor_digest(tensor) for name, tensor in written.items()}
    save_tensors(
        folder / SIDE, tensors, {"format": _SIDE_FORMAT, "version": distilled.version, "files": digests, **meta}
    )


def _torch_save(tensor: Tensor, path: Path) -> None:
    try:
        torch.save(tensor, path)
    except RuntimeError as error:  # torch.save reports a full disk like this
        raise DcbenchError(f"cannot write {path}: {str(error).splitlines()[0]}. Free space there.") from error


def _write_png(distilled: DistilledSet, folder: Path) -> None:
    from PIL import Image

    distilled.save(folder / SET)
    names = png_names(distilled)
    for name, pixels in zip(names, eight_bit(distilled), strict=True):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / name, format="PNG")
    write_text(folder / _TABLE, _table(distilled, names))
    write_text(folder / _CARD, _card(distilled))


FORMATS: dict[str, Callable[[DistilledSet, Path], None]] = {
    "tensors": _write_tensors,
    "png": _write_png,
    "authors": _write_authors,
}


def png_names(distilled: DistilledSet) -> list[str]:
    """Return every image's file in layout ``png``: ``<class index>_<class name>/<number in the set>.png``."""
    classes, count = len(distilled.class_names), len(distilled)
    folders = [
        f"{c:0{len(str(classes - 1))}d}_{re.sub(r'[^A-Za-z0-9.-]+', '-', name) or 'class'}"
        for c, name in enumerate(distilled.class_names)
    ]
    digits = len(str(max(count - 1, 0)))
    return [f"{folders[label]}/{i:0{digits}d}.png" for i, label in enumerate(distilled.hard.tolist())]


def eight_bit(distilled: DistilledSet) -> "list[np.ndarray[Any, np.dtype[np.uint8]]]":
    """Return the images as 8-bit pixels, for viewing: arrays ``(H, W)`` in grey, ``(H, W, 3)`` in colour."""
    pixels = (distilled.pixels() * 255).round().to(torch.uint8)
    return [image.permute(1, 2, 0).squeeze(2).contiguous().numpy() for image in pixels]


def _table(distilled: DistilledSet, names: list[str]) -> str:
    """Return ``labels.csv``: the class of every file, and its probabilities (p) or centred values (y), if any."""
    soft, letter = distilled.labels.ndim == 2, "y" if distilled.label_space == CENTRED else "p"
    written = io.StringIO()
    table = csv.writer(written, lineterminator="\n")
    table.writerow(
        ["file", "class", "class_name", *(f"{letter}{c}" for c in range(len(distilled.class_names)) if soft)]
    )
    for i, (name, label) in enumerate(zip(names, distilled.hard.tolist(), strict=True)):
        probabilities = [f"{p:.9g}" for p in distilled.labels[i].tolist()] if soft else []  # 9 digits: exact
        table.writerow([name, label, distilled.class_names[label], *probabilities])
    return written.getvalue()


def _card(distilled: DistilledSet) -> str:
    """Return ``README.md``: a dataset card in the style of Hugging Face."""
    p = distilled.provenance
    count, classes, (_, channels, height, width) = len(distilled), len(distilled.class_names), distilled.images.shape
    dataset, method = p.get("dataset", "an unknown data set"), p.get("method", "an unknown method")
    size = next((label for most, label in _SIZES if count < most), "n>1M")
    name = f"{dataset}, {count} images by {method}"
    facts = {
        "method": method,
        "data set": f"{dataset} (fingerprint {p.get('dataset_fingerprint', 'unknown')})",
        "images": f"{count} of {channels} x {height} x {width}, {classes} classes",
        "images per class (IPC)": p.get("ipc") or "not the same for all",
        "protocol": p.get("protocol", "unknown"),
        **_training_facts(distilled),
        "preprocessing": json.dumps(distilled.preprocessing.describe()),
        "augmentation": distilled.augmentation,
    }
    head = ["---", f"pretty_name: {json.dumps(name)}", "task_categories:", "- image-classification"]
    head += ["size_categories:", f"- {size}", "tags:", "- dataset-distillation", "---", ""]
    body = [f"# {name}", ""]
    if not p.get("redistributable"):
        unknown = "it is not known whether they may" if p.get("redistributable") is None else "they may not"
        body += [
            f"> **Do not publish this folder.** Its images are made from those of {dataset}, and {unknown} be passed",
            "> on.",
            "",
        ]
    body += [
        "This is a condensed training set. Networks are trained on the images in `distilled.safetensors`, with the",
        "preprocessing, augmentation and learning rate given there, and tested on the data set's own test images:",
        f"`dcbench evaluate {SET}`.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {_cell(value)} |" for key, value in facts.items()),
        "",
        f"- `{SET}`: the complete set, as the networks see it.",
        "- `<class index>_<class name>/<number>.png`: the images for viewing, with preprocessing undone, clamped and",
        f"  rounded to 8 bits (pixels of 0 to {distilled.max_value} stretched to 0 to 255). Do not train on these.",
        f"- `{_TABLE}`: the class of each" + (", and its soft label." if distilled.labels.ndim == 2 else "."),
        "",
        "## Provenance",
        "",
        "```json",
        json.dumps(dict(p), indent=1, sort_keys=True),
        "```",
        "",
    ]
    return "\n".join(head + body)


def label_kind(distilled: DistilledSet) -> str:
    """Return what kind of labels a set has: ``hard``, ``soft`` or ``centred``."""
    return CENTRED if distilled.label_space == CENTRED else "soft" if distilled.labels.ndim == 2 else "hard"


def _training_facts(distilled: DistilledSet) -> dict[str, str]:
    """Return what the card says of labels, rates, stored form and recipe."""
    lr = "none learned" if distilled.lr is None else f"{distilled.lr!r}, learned"
    facts = {"labels": label_kind(distilled), "learning rate": lr}
    if distilled.steps is not None:
        facts["learned steps"] = f"{len(distilled.steps)}, a rate for each; the learning rate above is their mean"
    if distilled.decoder is not None:
        f = distilled.decoder.factor
        facts["stored form"] = f"each image holds {f} x {f} smaller ones, resized to its size for training"
    if distilled.training_steps:
        facts["steps to train"] = f"{distilled.training_steps}, found with the set"
    if distilled.evaluation_recipe:
        facts["its authors' evaluation"] = distilled.evaluation_recipe
    return facts


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


# ---------------------------------------------------------------------------------------------------------- reading


def is_export(path: Path) -> bool:
    """Return whether ``path`` is an export of dcbench or a file of one."""
    if path.is_dir() or path.suffix == ".safetensors":
        return True
    return path.name == IMAGES and os.path.lexists(path.parent / SIDE)


def read_export(path: Path) -> tuple[DistilledSet, list[str]]:
    """Return the set in a folder or file of ``dcbench export``, bit for bit, and notes for the user.

    Raises:
        UsageError: there is no set, or ``images_best.pt`` or ``labels_best.pt`` was changed after the export.
        CorruptFileError: a file is damaged.
    """
    folder = path if path.is_dir() else path.parent
    if path.name in (SIDE, IMAGES) or (path.is_dir() and os.path.lexists(path / SIDE)):
        return _read_authors(folder), []
    if path.is_dir() and not os.path.lexists(path / SET):
        raise UsageError(f"{path} is not an export of dcbench: name the file of images in it, for instance {IMAGES}.")
    distilled = DistilledSet.load(find_set(path))
    return distilled, _changed_pngs(distilled, folder) if path.is_dir() else []


def _read_authors(folder: Path) -> DistilledSet:
    side = folder / SIDE
    tensors, meta = load_tensors(side)
    if meta.get("format") != _SIDE_FORMAT:
        raise CorruptFileError(f"{side} is not the side file of an export of dcbench. Export the set again.")
    if not isinstance(meta.get("files"), dict) or set(meta["files"]) != {IMAGES, LABELS}:
        raise CorruptFileError(f"{side} does not say which files it describes. Export the set again.")
    for name, digest in meta["files"].items():
        path = folder / name
        tensor = plain_tensor(load_torch(path), path, "the content")
        if tensor_digest(tensor) != digest:
            raise UsageError(
                f"{path} was changed after the export, so {SIDE} does not describe it any more. Export again, or "
                f"import it as somebody else's with --ignore-side-file (and --preprocessing {side})."
            )
        tensors.setdefault("images" if name == IMAGES else "labels", tensor)
    return DistilledSet.from_state(tensors, meta, side)


def _changed_pngs(distilled: DistilledSet, folder: Path) -> list[str]:
    """Return a note if PNG files differ from the set or are missing. The import does not use them."""
    if not (folder / _TABLE).is_file():
        return []
    from PIL import Image

    changed = 0
    for name, pixels in zip(png_names(distilled), eight_bit(distilled), strict=True):
        try:
            with Image.open(folder / name) as image:
                same = np.array_equal(np.asarray(image), pixels)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            same = False
        changed += not same
    if not changed:
        return []
    return [f"{changed} PNG files are missing or differ from {SET}: they are for viewing, and {SET} was imported"]
