"""Imports distilled sets of others, whose files do not hold everything that training on them needs.

The files of MTT and TESLA hold labels, and images as their networks saw them, but neither the learned learning rate nor
the preprocessing. Those of DC, DSA and DM hold several experiments, and these methods learn no rate. The user must give
what is missing; it is never guessed, since with a wrong preprocessing a network trains equally well but is tested on
images in another space.

Shapes: N images, C channels, H = W = side, K classes.
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dcbench_tesla.data.augmentation import NO_STRATEGY, Augmentation
from dcbench_tesla.data.dataset import Dataset
from dcbench_tesla.data.preprocessing import Preprocessing, fit_standardise, fit_zca
from dcbench_tesla.datasets import load_dataset
from dcbench_tesla.distilled import DistilledSet, check_preprocessing, probabilities
from dcbench_tesla.errors import CorruptFileError, UsageError
from dcbench_tesla.exchange.files import load_torch, natural, plain_tensor, sha256_of
from dcbench_tesla.exchange.folders import found_again, is_export, read_export
from dcbench_tesla.records.store import load_tensors

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_MTT, _DC = "images_*.pt of MTT and TESLA", "res_*.pt of DC, DSA and DM"
_RATES = ("lr", "syn_lr", "learned_lr", "synthetic_lr", "lrs")
_RATE = re.compile(r"(syn_?|learned_|synthetic_)?lrs?[_.-]", re.IGNORECASE)
_PART = re.compile(r"(part|shard|chunk|class)[_-]?\d+|\d+[_-]?of[_-]?\d+", re.IGNORECASE)
_SAME_RATE = 1e-3  # relative: what is printed is rounded
_FITTED = ("standardise", "zca")


@dataclass(frozen=True, kw_only=True)
class Given:
    """The options of ``dcbench import set``: facts about a file that the file does not hold.

    Args:
        dataset: name of the data set.
        labels: the file of labels; by default the one beside the images.
        hard_labels: there is no file of labels, and the images are ordered by class.
        index: number of the experiment, from 0, if there are several; by default the last.
        lr: the learned learning rate.
        no_lr: no learning rate was learned.
        preprocessing: ``standardise``, ``zca`` or a safetensors file.
        augmentation: the DSA strategy; by default that of the data set.
        method: name of the method, for the record.
        ipc: images per class, which is compared with the file.
        ignore_side_file: import a ``.pt`` like one of others, although there is a side file of dcbench beside it.

    Raises:
        UsageError: two options exclude each other, or ``lr`` is not positive and finite.
    """

    dataset: str | None = None
    labels: Path | None = None
    hard_labels: bool = False
    index: int | None = None
    lr: float | None = None
    no_lr: bool = False
    preprocessing: str | None = None
    augmentation: str | None = None
    method: str | None = None
    ipc: int | None = None
    ignore_side_file: bool = False

    def __post_init__(self) -> None:
        if self.lr is not None and self.no_lr:
            raise UsageError("--lr and --no-lr exclude each other: was a learning rate learned or not?")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise UsageError(f"--lr must be positive and finite, not {self.lr:g}: no network trains at such a rate.")
        if self.labels is not None and self.hard_labels:
            raise UsageError("--labels and --hard-labels exclude each other.")

    def options(self) -> list[str]:
        """Return the given options that describe the set itself, as users write them."""
        names = ("labels", "hard_labels", "index", "lr", "no_lr", "preprocessing", "augmentation", "method", "ipc")
        return [f"--{name.replace('_', '-')}" for name in names if getattr(self, name) not in (None, False)]


@dataclass
class _Found:
    """The content of a file: images ``(N, C, H, W)``, labels or ``None``, their origin, and notes for the user.

    ``labels_file`` is the file of the labels, where they lie in another one.
    """

    layout: str
    images: Tensor
    labels: Tensor | None
    source: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    lr: float | None = None
    labels_file: Path | None = None


def import_set(
    files: Path | Sequence[Path], given: Given, data_dir: Path | None = None
) -> tuple[DistilledSet, list[str]]:
    """Return the distilled set in files of others or in an export of dcbench, and notes for the user.

    Args:
        files: the file, the folder of an export, or all files of one set: images, in one file or in parts, and labels
            and a learned rate, as their names say.
        given: facts that the files do not hold.
        data_dir: the folder of the data sets' files.

    Raises:
        UsageError: there is no such file, a fact that it lacks was not given, or it does not fit the data set.
        CorruptFileError: a file is damaged, or contains other objects than tensors, numbers and lists.
        DataMissingError: the data set's files are not on this machine.
    """
    paths = [files] if isinstance(files, Path) else list(files)
    for path in paths:
        if not found_again(path):
            raise UsageError(f"there is no file or folder {path}.")
    parts = _parts(paths, given)
    path = parts.images[0]
    if len(parts.images) == 1 and is_export(path) and not (given.ignore_side_file and path.is_file()):
        return _import_export(path, given, data_dir)
    found = _read_parts(parts, given)
    _refuse_if_lacking(path, found, given)
    assert given.dataset is not None, "checked with what is lacking"
    assert given.preprocessing is not None, "checked with what is lacking"
    dataset = load_dataset(given.dataset, data_dir)
    images = _images(path, found, dataset)
    labels, order = _labels(found.labels_file or path, found, len(images), dataset, given)
    ipc = len(images) // dataset.classes
    if given.ipc not in (None, ipc):
        raise UsageError(f"{path} holds {ipc} images for each of {dataset.classes} classes, not --ipc {given.ipc}.")
    augmentation = Augmentation.for_dataset(dataset.flippable)
    if given.augmentation is not None:
        augmentation = Augmentation(given.augmentation)
    elif given.method == "dc":
        augmentation = Augmentation(NO_STRATEGY)
        found.notes.append("DC's sets are trained without augmentation (--augmentation changes that)")
    elif found.layout == _DC:
        found.notes.append(
            f"to be trained with augmentation {augmentation.strategy}; DC's sets are trained without "
            "(--augmentation none)"
        )
    distilled = DistilledSet(
        images=images[order].contiguous(),
        labels=labels[order].contiguous(),
        class_names=dataset.class_names,
        preprocessing=_preprocessing(given.preprocessing, dataset),
        augmentation=augmentation.strategy,
        max_value=dataset.max_value,
        lr=given.lr if found.lr is None else found.lr,
        provenance={
            "method": given.method or "imported",
            "dataset": dataset.name,
            "dataset_fingerprint": dataset.fingerprint,
            "ipc": ipc,
            "redistributable": dataset.redistributable,
            "imported": {**found.source, "layout": found.layout, "options": _said(given), "notes": found.notes},
        },
    )
    return distilled, found.notes


def _import_export(path: Path, given: Given, data_dir: Path | None) -> tuple[DistilledSet, list[str]]:
    """Return the set of an export of dcbench, which is complete, so that no options may be given."""
    if given.options():
        raise UsageError(f"{path} was exported by dcbench and lacks nothing: leave out {', '.join(given.options())}.")
    distilled, notes = read_export(path)
    if given.dataset is not None:
        dataset = load_dataset(given.dataset, data_dir)
        if (dataset.class_names, dataset.x_test.shape[1:]) != (distilled.class_names, distilled.images.shape[1:]):
            raise UsageError(
                f"{path} has other classes or another image size than {dataset.name}: leave out --dataset."
            )
    return distilled, notes


def _said(given: Given) -> dict[str, Any]:
    """Return the options for the provenance; files are given by their name, without the folders of this machine."""
    said: dict[str, Any] = {
        "lr": given.lr,
        "no_lr": given.no_lr or None,
        "hard_labels": given.hard_labels or None,
        "augmentation": given.augmentation,
        "ipc": given.ipc,
    }
    if given.preprocessing is not None:
        fitted = given.preprocessing in _FITTED
        said["preprocessing"] = given.preprocessing if fitted else Path(given.preprocessing).name
        if not fitted:
            said["preprocessing_sha256"] = sha256_of(Path(given.preprocessing))
    return {name: value for name, value in said.items() if value is not None}


# ------------------------------------------------------------------------------------------------- what the files hold


class _Parts(NamedTuple):
    """The files of one set: its images, its labels, and its learned rate."""

    images: list[Path]
    labels: list[Path]
    rate: Path | None


def _parts(paths: Sequence[Path], given: Given) -> _Parts:
    """Return what each file is, by its name."""
    if len(paths) == 1:
        return _Parts(list(paths), [given.labels] if given.labels else [], _rate_beside(paths[0]))
    ordered = sorted(set(paths), key=natural)
    labels = [path for path in ordered if path.name.startswith("label")]
    rates = [path for path in ordered if _RATE.match(path.name)]
    images = [path for path in ordered if path not in (*labels, *rates)]
    if not images or len(rates) > 1 or len(labels) not in (0, 1, len(images)) or any(map(Path.is_dir, images)):
        raise UsageError(
            f"{len(images)} files of images, {len(labels)} of labels and {len(rates)} of learned rates are no set: "
            "name all its images*.pt, one labels*.pt or as many as of images, and at most one lr*.pt."
        )
    if labels and (given.labels or given.hard_labels):
        raise UsageError(f"{labels[0]} holds the labels: leave out --labels and --hard-labels.")
    if given.labels:
        labels = [given.labels]
    return _Parts(images, labels, rates[0] if rates else _rate_beside(images[0]))


def _rate_beside(path: Path) -> Path | None:
    """The file of a learned rate beside a file of images: ``lr_best.pt`` beside ``images_best.pt``."""
    names = (path.name.replace("images", rate, 1) for rate in _RATES if path.name.startswith("images"))
    return next((path.with_name(name) for name in names if os.path.lexists(path.with_name(name))), None)


def _read_parts(parts: _Parts, given: Given) -> _Found:
    """Read the files of one set, and check that they agree with each other and with what the user says."""
    first = parts.images[0]
    if len(parts.images) == 1:
        found = _read(first, given, parts.labels[0] if parts.labels else None)
        if given.hard_labels and _PART.search(first.name):
            raise UsageError(f"{first.name} is a part of a set by its name: name all of its files together.")
    else:
        found = _joined(parts, given)
    if parts.rate is not None and found.layout == _MTT:
        found.lr = _rate(parts.rate, given)
        found.source |= {"lr_file": parts.rate.name, "lr_sha256": sha256_of(parts.rate)}
        found.notes.append(f"learned rate {found.lr:g}, read from {parts.rate.name}")
    return found


def _joined(parts: _Parts, given: Given) -> _Found:
    """Join images that are stored in several files, in the order of the numbers in their names."""
    read = [_read(path, given, None, alone=False) for path in parts.images]
    if any(found.layout != _MTT or found.images.ndim != 4 for found in read):
        raise UsageError(f"{parts.images[0]} and others are not parts of one set: each must hold one tensor of images.")
    if len({(found.images.shape[1:], found.images.dtype) for found in read}) > 1:
        raise UsageError(f"{parts.images[0]} and others hold images of different sizes or types: they are no one set.")
    found = _Found(_MTT, torch.cat([f.images for f in read]), None, {"files": [f.source for f in read]})
    if parts.labels:
        labels = [plain_tensor(load_torch(path), path, "the content") for path in parts.labels]
        if len({(part.shape[1:], part.dtype) for part in labels}) > 1 or not all(part.ndim for part in labels):
            raise UsageError(f"{parts.labels[0]} and others hold labels of different kinds: they are no one set.")
        found.labels, found.labels_file = torch.cat(labels), parts.labels[0]
        digests = [{"file": path.name, "sha256": sha256_of(path)} for path in parts.labels]
        found.source |= {"labels_files": digests}
    found.notes.append(f"{len(read)} files of images joined: {', '.join(path.name for path in parts.images)}")
    return found


def _rate(path: Path, given: Given) -> float:
    """The learned rate in a file, checked against what the user says."""
    content = load_torch(path)
    number = isinstance(content, (int, float)) and not isinstance(content, bool)
    tensor = torch.tensor(float(content)) if number else plain_tensor(content, path, "the content")
    if tensor.numel() != 1 or not tensor.is_floating_point() or not 0 < float(tensor) < math.inf:
        raise UsageError(
            f"{path} should hold the learned rate, one positive number, but holds {tensor.dtype} of shape "
            f"{tuple(tensor.shape)}: move it away, and give the rate by --lr, if it is something else."
        )
    rate = float(tensor)
    if given.no_lr or (given.lr is not None and not math.isclose(rate, given.lr, rel_tol=_SAME_RATE)):
        said = "--no-lr" if given.no_lr else f"--lr {given.lr:g}"
        raise UsageError(f"{path} holds the learned rate {rate:g}, which contradicts {said}: leave out {said}.")
    return rate


def _read(path: Path, given: Given, labels: Path | None, *, alone: bool = True) -> _Found:
    """Read a file in one of the layouts of others; ``labels``: the file of its labels, where it was named."""
    content = load_torch(path)
    source = {"file": path.name, "sha256": sha256_of(path)}
    if isinstance(content, dict):
        return _read_dc(path, content, source, given)
    if given.index is not None:
        raise UsageError(f"{path} holds one set of images: leave out --index.")
    if isinstance(content, (list, tuple)):
        raise UsageError(f"{path} holds {_list_of(content)}")
    if path.name.startswith("images_zca_"):
        raise UsageError(
            f"{path.name} holds images with the whitening undone, for viewing; networks train on "
            f"{path.name.replace('images_zca_', 'images_')}: import that one, with --preprocessing zca."
        )
    found = _Found(_MTT, plain_tensor(content, path, "the content"), None, source)
    beside = path.with_name(path.name.replace("images", "labels", 1))
    if labels is None and alone and beside != path and os.path.lexists(beside):
        labels = beside
    if labels is not None:
        found.labels, found.labels_file = plain_tensor(load_torch(labels), labels, "the content"), labels
        if given.hard_labels:
            _refuse_part(path, found, labels)
            found.labels = None
            return found
        source |= {"labels_file": labels.name, "labels_sha256": sha256_of(labels)}
    return found


def _refuse_part(path: Path, found: _Found, labels: Path) -> None:
    """Refuse ``--hard-labels`` where the labels beside the images are those of more images."""
    assert found.labels is not None, "read just now"
    if found.labels.ndim and len(found.labels) != len(found.images):
        raise UsageError(
            f"{path} holds {len(found.images)} images and {labels.name} {len(found.labels)} labels: this is a part of "
            "a set, and --hard-labels would give its images other classes. Name all files of the set together."
        )


def _list_of(content: Sequence[Any]) -> str:
    """What a list holds, and what to do about it."""
    if len(content) in (2, 3) and isinstance(content[0], Tensor) and content[0].ndim == 4:
        return (
            "a list [images, labels]: save each on its own, torch.save(content[0], 'images_best.pt') and "
            "torch.save(content[1], 'labels_best.pt'), and import images_best.pt."
        )
    return "a list, as expert buffers do: dcbench import experts reads those."


def _read_dc(path: Path, content: Mapping[Any, Any], source: dict[str, Any], given: Given) -> _Found:
    data = content.get("data")
    if not isinstance(data, list) or not data or not all(isinstance(e, (list, tuple)) and len(e) == 2 for e in data):
        keys = ", ".join(sorted(map(str, content))[:8])
        raise CorruptFileError(
            f"{path} holds a dict ({keys}), but not what DC, DSA and DM write: `data`, a list of [images, labels]."
        )
    if given.labels is not None or given.hard_labels:
        raise UsageError(f"{path} holds its labels: leave out --labels and --hard-labels.")
    index = -1 if given.index is None else given.index
    if not -len(data) <= index < len(data):
        raise UsageError(f"{path} holds {len(data)} experiments: --index must lie in 0 .. {len(data) - 1}.")
    index %= len(data)
    images, labels = (
        plain_tensor(v, path, f"data[{index}][{i}], the {n}")
        for i, (v, n) in enumerate(zip(data[index], ("images", "labels"), strict=True))
    )
    found = _Found(_DC, images, labels, {**source, "index": index, "experiments": len(data)})
    if len(data) > 1:
        found.notes.append(f"{path.name} holds {len(data)} experiments; this is number {index} (--index)")
    return found


def _refuse_if_lacking(path: Path, found: _Found, given: Given) -> None:
    """Raise :class:`UsageError` if facts are missing; the message lists all of them with reason and option."""
    lacking = []
    if given.dataset is None:
        lacking.append("the data set, for its classes and test images: --dataset cifar10, for instance")
    if found.labels is None and not given.hard_labels:
        lacking.append(
            "labels, of which there is no file beside it: --labels FILE, or --hard-labels for images ordered by class"
        )
    if found.layout == _MTT and given.lr is None and found.lr is None and not given.no_lr:
        lacking.append(
            "the learned learning rate, which their code prints (as Synthetic_LR) and does not save: --lr 0.02 for "
            "instance, or --no-lr if none was learned"
        )
    if given.preprocessing is None:
        lacking.append(
            "the preprocessing of its images, which is refitted at every start and not saved: --preprocessing "
            "standardise, zca (for a run with --zca), or a FILE.safetensors that holds it"
        )
    if lacking:
        listed = "; ".join(f"({i}) {text}" for i, text in enumerate(lacking, 1))
        raise UsageError(f"{path} does not hold everything that training on it needs. Missing: {listed}.")


# ---------------------------------------------------------------------------------------------------- whether it fits


def _images(path: Path, found: _Found, dataset: Dataset) -> Tensor:
    """Return the images as float32, after checking them against the data set."""
    images, wanted = found.images, tuple(dataset.x_test.shape[1:])
    if images.ndim != 4 or tuple(images.shape[1:]) != wanted:
        raise UsageError(
            f"{path}: images of shape {tuple(images.shape)}, but those of {dataset.name} are "
            f"(N, {', '.join(map(str, wanted))}): is this the right --dataset?"
        )
    if images.dtype not in _FLOATS:
        raise UsageError(
            f"{path}: images of type {images.dtype}, expected float32 in the space the networks see; none of these "
            "layouts holds pixels as whole numbers."
        )
    if not len(images) or len(images) % dataset.classes:
        raise UsageError(
            f"{path} holds {len(images)} images, which is not a multiple of {dataset.name}'s {dataset.classes} classes."
        )
    if images.dtype != torch.float32:
        found.notes.append(f"images were converted from {str(images.dtype).removeprefix('torch.')} to float32")
        images = images.float()
    spoilt = (~torch.isfinite(images).flatten(1).all(1)).nonzero().flatten().tolist()
    if spoilt:
        raise UsageError(
            f"{path}: image {spoilt[0]} holds NaN or infinity ({len(spoilt)} of {len(images)} images do): the "
            "condensation diverged; take an earlier images_{iteration}.pt."
        )
    if images.min() >= 0 and images.max() <= 1:
        found.notes.append(
            "all values lie in [0, 1]: if these are pixels, and not images in the space the networks see, this import "
            "is of no use"
        )
    return images


def _labels(path: Path, found: _Found, count: int, dataset: Dataset, given: Given) -> tuple[Tensor, Tensor]:
    """Return the labels, int64 ``(N,)`` or float32 ``(N, K)``, and the order that sorts the set by class."""
    classes, in_order = dataset.classes, torch.arange(count)
    hard = torch.arange(classes).repeat_interleave(count // classes)
    if given.hard_labels or found.labels is None:
        return hard, in_order
    labels, shape = found.labels, tuple(found.labels.shape)
    if labels.ndim == 2 and shape == (count, classes) and labels.dtype in _FLOATS:
        return _probabilities(path, labels), in_order
    if shape != (count,) or labels.dtype not in _INTEGERS:
        raise UsageError(
            f"{path}: labels of type {labels.dtype} and shape {shape}, expected whole numbers ({count},) or "
            f"probabilities ({count}, {classes}) for {count} images of {dataset.name}."
        )
    labels = labels.long()
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or most >= classes:
        raise UsageError(f"{path}: labels from {least} to {most}, but {dataset.name} has classes 0 to {classes - 1}.")
    counts = torch.bincount(labels, minlength=classes).tolist()
    if len(set(counts)) > 1:
        few = counts.index(min(counts))
        raise UsageError(
            f"{path}: not the same number of images for every class: {counts[few]} of class {few} "
            f"({dataset.class_names[few]}), up to {max(counts)} of others."
        )
    if torch.equal(labels, hard):
        return labels, in_order
    found.notes.append("images were not ordered by class and were sorted; those of one class keep their order")
    return labels, torch.argsort(labels, stable=True)


def _probabilities(path: Path, labels: Tensor) -> Tensor:
    labels = labels.float()
    wrong = ~probabilities(labels)
    if wrong.any():
        first = int(wrong.nonzero()[0])
        raise UsageError(
            f"{path}: soft label of image {first} is not a probability distribution (sum {labels[first].sum():.4g}, "
            f"least {labels[first].min():.4g}): if these are logits, save torch.softmax(labels, 1)."
        )
    return labels


def _preprocessing(wanted: str, dataset: Dataset) -> Preprocessing:
    """Return the preprocessing ``wanted``: fitted on all training images, or read from a file."""
    if wanted == "standardise":
        return fit_standardise(dataset)
    if wanted == "zca":
        return fit_zca(dataset.x_train, dataset.max_value)
    preprocessing = _stored_preprocessing(Path(wanted))
    channels, size = dataset.channels, dataset.channels * dataset.side**2
    expected = channels if preprocessing.kind == "standardise" else size
    if len(preprocessing.mean) != expected:
        raise UsageError(
            f"{wanted} holds a preprocessing ({preprocessing.kind}) whose mean has {len(preprocessing.mean)} numbers, "
            f"but {dataset.name} needs {expected}."
        )
    return preprocessing


def _stored_preprocessing(path: Path) -> Preprocessing:
    """Read the preprocessing in a whitening of ``OUT/preprocessing``, a distilled set or a side file."""
    if not path.is_file():
        raise UsageError(f"--preprocessing takes standardise, zca or a safetensors file; there is no file {path}.")
    tensors, facts = load_tensors(path)
    if "preprocessing" in facts:
        if isinstance(facts["preprocessing"], dict) and "shared" in facts["preprocessing"]:
            return DistilledSet.load(path).preprocessing
        tensors = {re.sub(r"^preprocessing\.", "", name): tensor for name, tensor in tensors.items()}
        facts = facts["preprocessing"]
    check_preprocessing(path, tensors, facts)
    return Preprocessing.from_state(tensors, facts)
