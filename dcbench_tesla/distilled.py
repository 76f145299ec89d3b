"""The distilled set: complete, so that whoever has the file can train on it."""

import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcbench_tesla.compute.state import plain_torch
from dcbench_tesla.data.augmentation import Augmentation
from dcbench_tesla.data.images import LabelledImages
from dcbench_tesla.data.preprocessing import Preprocessing
from dcbench_tesla.errors import CorruptFileError, DivergedError, UsageError
from dcbench_tesla.records.store import load_tensors, save_tensors

FORMAT = "dcbench distilled set"
"""What the file of one says it is."""

PREPROCESSING = "preprocessing."
"""What stands before the names of the preprocessing's tensors in the file of a distilled set."""

REMEDY = "If it is a run's, the same command with --force makes it again; otherwise get it anew."
_SUM_TOLERANCE = 1e-3  # of a soft label, in half precision
_LONGEST = 80  # characters of a value in a message
_TEXTS = ("method", "dataset", "dataset_fingerprint", "protocol", "key")
_NUMBERS = ("ipc", "seed", "iteration")

_Faults = Iterator[tuple[str, str, str]]  # field, what it is, what was expected
_ZCA_FOLDER = "preprocessing"


@dataclass(frozen=True, kw_only=True)
class DistilledSet:
    """Synthetic (or chosen) images with everything a network needs to be trained on them.

    Attributes:
        images: float32 ``(N, C, H, W)`` in network space, that is, preprocessed; or uint8 pixels in ``0..max_value``
            where real images were chosen. :meth:`inputs` returns network inputs for both.
        labels: classes, int64 ``(N,)``, or probabilities, float32 ``(N, K)``.
        class_names: names of the K classes, in the order of the labels.
        preprocessing: the map from pixels in [0, 1] to network space, and back. Test images must go through it.
        augmentation: the DSA strategy to train with, or ``none``.
        max_value: the pixel value that stands for 1.
        lr: the learning rate that was learned for training on the set; ``None`` where none was.
        provenance: who made the set from what, as plain JSON.

    Raises:
        UsageError: shapes or types do not fit together.
        DivergedError: a number is not finite.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    augmentation: str
    max_value: int = 255
    lr: float | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        soft = self.labels.ndim == 2
        if self.images.ndim != 4 or len(self.images) != len(self.labels):
            shapes = f"{tuple(self.images.shape)} and {tuple(self.labels.shape)}"
            raise UsageError(f"a distilled set needs images (N, C, H, W) with N labels, not {shapes}.")
        if self.images.dtype not in (torch.float32, torch.uint8):
            raise UsageError(f"images must be float32 (network space) or uint8 (pixels), not {self.images.dtype}.")
        if self.labels.dtype != (torch.float32 if soft else torch.int64):
            raise UsageError(f"labels must be int64 (N,) or float32 (N, K), not {self.labels.dtype}.")
        if soft and self.labels.shape[1] != len(self.class_names):
            raise UsageError(f"soft labels of {self.labels.shape[1]} classes for {len(self.class_names)} class names.")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise DivergedError(
                f"the learned rate must be positive and finite, not {self.lr}: lower its learning rate."
            )
        whole_numbers = self.images.dtype == torch.uint8  # of a whole data set, possibly: not to be looked through
        if not whole_numbers and not bool(torch.isfinite(self.images).all() and torch.isfinite(self.labels).all()):
            raise DivergedError("the distilled set holds NaN or infinity: the condensation diverged; lower its rates.")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def hard(self) -> Tensor:
        """The most likely class of every image, int64 ``(N,)``."""
        return self.labels.argmax(1) if self.labels.ndim == 2 else self.labels

    def inputs(self, device: torch.device | str = "cpu") -> Tensor:
        """Return the network inputs: float32 ``(N, C, H, W)``, preprocessed, on ``device``."""
        if self.images.dtype == torch.float32:
            return self.images.to(device)
        real = self.as_labelled(torch.device(device))
        return real.inputs(torch.arange(len(self))).float()  # whatever the caller's default dtype is

    def as_labelled(self, device: torch.device) -> LabelledImages:
        """Return a set of real images (uint8 pixels) as labelled images, which preprocess a batch when asked for it."""
        return LabelledImages(
            self.images,
            self.hard,
            classes=len(self.class_names),
            max_value=self.max_value,
            preprocessing=self.preprocessing,
            device=device,
        )

    def pixels(self) -> Tensor:
        """Return the images to look at: float32 ``(N, C, H, W)``, preprocessing undone, clamped to [0, 1]."""
        if self.images.dtype == torch.uint8:
            return self.images.float() / self.max_value
        return self.preprocessing.inverse(self.images).clamp(0, 1)

    def choose(self, indices: Tensor) -> "DistilledSet":
        """Return the set that consists of the images at ``indices``, int64 ``(M,)``, in that order."""
        return replace(self, images=self.images[indices], labels=self.labels[indices])

    def with_provenance(self, **facts: Any) -> "DistilledSet":
        """Return the set with ``facts`` added to its provenance."""
        return replace(self, provenance={**self.provenance, **facts})

    def save(self, path: Path, *, embed_preprocessing: bool = True) -> None:
        """Write the set as one safetensors file; an interrupted call leaves no broken file.

        Args:
            path: the file to write.
            embed_preprocessing: whether the preprocessing goes into the same file. A ZCA matrix is large (38 MB for
                3 x 32 x 32 images). With ``False`` it is written once, to ``preprocessing/<key>.safetensors`` in the
                nearest folder above ``path`` that has a folder ``preprocessing``, and the set names its key.

        Raises:
            FileNotFoundError: ``embed_preprocessing`` is ``False`` and no folder above has a folder ``preprocessing``.
        """
        tensors, meta = self.state()
        if not embed_preprocessing:
            shared = _shared_folder(path) / f"{self.preprocessing.key}.safetensors"
            if not shared.exists():
                save_tensors(shared, _embedded(tensors), {"format": "dcbench preprocessing", **meta["preprocessing"]})
            tensors = {"images": self.images, "labels": self.labels}
            meta["preprocessing"] = {"shared": self.preprocessing.key}
        save_tensors(path, tensors, {"format": FORMAT, "version": 1, **meta})

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return named tensors and JSON facts from which :meth:`from_state` makes the same set again."""
        tensors, facts = self.preprocessing.state()
        meta = {
            "class_names": list(self.class_names),
            "augmentation": self.augmentation,
            "max_value": self.max_value,
            "lr": self.lr,
            "preprocessing": facts,
            "provenance": dict(self.provenance),
        }
        content = {"images": self.images, "labels": self.labels}
        return content | {f"{PREPROCESSING}{name}": tensor for name, tensor in tensors.items()}, meta

    @classmethod
    def from_state(
        cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], where: Path | str = "the distilled set"
    ) -> "DistilledSet":
        """Return the set that :meth:`state` was called on, after checking everything in it.

        ``where`` names the file it was read from.

        Raises:
            CorruptFileError: a part of it is missing or wrong.
        """
        check_set(where, tensors, meta)
        return cls(
            images=tensors["images"],
            labels=tensors["labels"],
            class_names=tuple(meta["class_names"]),
            augmentation=meta["augmentation"],
            max_value=meta["max_value"],
            lr=meta["lr"],
            preprocessing=Preprocessing.from_state(_embedded(tensors), meta["preprocessing"]),
            provenance=meta["provenance"],
        )

    @classmethod
    @plain_torch()
    def load(cls, path: Path) -> "DistilledSet":
        """Read a file that :meth:`save` wrote; everything in it is checked, because others may have written it.

        Raises:
            CorruptFileError: the file is damaged or is no distilled set, or a field of it is wrong, or the file of its
                preprocessing is missing or another one.
        """
        path = Path(path)
        try:
            tensors, meta = load_tensors(path)
        except CorruptFileError as error:
            reason = str(error).removeprefix(f"{path} ")
            raise CorruptFileError(f"{path} is damaged, or is no distilled set of dcbench: it {reason}") from error
        if meta.get("format") != FORMAT:
            raise CorruptFileError(f"{path} is not a distilled set of dcbench.")
        facts = meta.get("preprocessing")
        if isinstance(facts, dict) and "shared" in facts:
            state, facts = _load_shared(path, facts["shared"])
            tensors |= {f"{PREPROCESSING}{name}": tensor for name, tensor in state.items()}
        return cls.from_state(tensors, {**meta, "preprocessing": facts}, path)


def _embedded(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the preprocessing, by their names there."""
    return {name.removeprefix(PREPROCESSING): t for name, t in tensors.items() if name.startswith(PREPROCESSING)}


def _shared_folder(path: Path) -> Path:
    for folder in Path(os.path.realpath(path)).parents:  # Path.resolve would fail where links lead in a circle
        if (folder / _ZCA_FOLDER).is_dir():
            return folder / _ZCA_FOLDER
    raise FileNotFoundError(f"no folder {_ZCA_FOLDER!r} above {path}")


def load_whitening(folder: Path, key: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a stored whitening; its name is the key of its content.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptFileError: the file is damaged, or its content is another one's.
    """
    if not is_key(key):
        raise CorruptFileError(f"{str(key)!r} is not the key of a whitening under {folder}.")
    path = folder / f"{key}.safetensors"
    tensors, facts = load_tensors(path)
    check_preprocessing(path, tensors, facts)
    if Preprocessing.from_state(tensors, facts).key != key:
        raise CorruptFileError(f"{path} holds another whitening than its name says. Delete it: a run fits it again.")
    return tensors, facts


def _load_shared(path: Path, key: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not is_key(key):
        raise CorruptFileError(f"{path}: preprocessing.shared is not a key of 16 hex digits. {REMEDY}")
    try:
        return load_whitening(_shared_folder(path), key)
    except FileNotFoundError as error:
        raise CorruptFileError(
            f"{path} needs the whitening {_ZCA_FOLDER}/{key}.safetensors, which is not beside it: copy it from the "
            "results folder the set was made in, into a folder of that name beside the set."
        ) from error


# ------------------------------------------------------------------------- the check of a stored set
# A file with a right digest is whole, but not therefore right: somebody else may have written it.


def check_set(where: Path | str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Check all that a stored distilled set consists of: types, shapes and values.

    Args:
        where: the file, for the message.
        tensors: ``images``, ``labels`` and the tensors of the preprocessing.
        meta: the metadata, with the facts of the preprocessing under ``preprocessing``.

    Raises:
        CorruptFileError: a field is missing or wrong; the message names the file, the field and the remedy.
    """
    _refuse(where, _set_faults(tensors, meta))


def check_preprocessing(where: Path | str, tensors: Mapping[str, Tensor], facts: object) -> None:
    """Check a stored preprocessing, whatever size of images it is for.

    Raises:
        CorruptFileError: a field is missing or wrong; the message names the file, the field and the remedy.
    """
    _refuse(where, _preprocessing_faults(tensors, facts, None))


def _refuse(where: Path | str, faults: _Faults) -> None:
    fault = next(faults, None)  # the later checks rely on the earlier ones
    if fault is not None:
        field, found, expected = fault
        raise CorruptFileError(f"{where}: {field} {found}; expected {expected}. {REMEDY}")


def _set_faults(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> _Faults:
    missing = [name for name in ("class_names", "augmentation", "max_value", "lr", "provenance") if name not in meta]
    missing += [name for name in ("images", "labels") if name not in tensors]
    for name in missing:
        yield name, "is missing", "a distilled set with it"
    yield from _name_faults(meta["class_names"])
    yield from _fact_faults(meta)
    yield from _image_faults(tensors["images"], meta["max_value"])
    yield from _label_faults(tensors["labels"], len(tensors["images"]), len(meta["class_names"]))
    own = {name.removeprefix(PREPROCESSING): t for name, t in tensors.items() if name.startswith(PREPROCESSING)}
    yield from _preprocessing_faults(own, meta.get("preprocessing"), tensors["images"].shape[1:])
    yield from _provenance_faults(meta["provenance"])


def _name_faults(names: object) -> _Faults:
    if not isinstance(names, (list, tuple)) or not names or not all(map(_is_text, names)):
        yield "class_names", _shown(names), "a list of strings"
    elif len(set(names)) < len(names):
        yield "class_names", f"holds {_short(Counter(names).most_common(1)[0][0])} twice", "distinct names"


def _fact_faults(meta: Mapping[str, Any]) -> _Faults:
    try:
        known = isinstance(meta["augmentation"], str) and bool(Augmentation(meta["augmentation"]).strategy)
    except UsageError:
        known = False
    if not known:
        yield "augmentation", _shown(meta["augmentation"]), "names of DSA operations joined by _, or none"
    if not _is_whole(meta["max_value"]) or not 1 <= meta["max_value"] <= 255:
        yield "max_value", _shown(meta["max_value"]), "a whole number from 1 to 255"
    if meta["lr"] is not None and not (_is_number(meta["lr"]) and meta["lr"] > 0):
        yield "lr", _shown(meta["lr"]), "a positive number, or null"


def _image_faults(images: Tensor, max_value: int) -> _Faults:
    shape = tuple(images.shape)
    if images.dtype not in (torch.float32, torch.uint8):
        yield "images", f"are {_type(images)}", "float32 (network space) or uint8 (pixels)"
    if images.ndim != 4 or not images.numel() or shape[2] != shape[3]:
        yield "images", f"have shape {shape}", "(N, C, H, W) with H = W and at least one image"
    if images.dtype == torch.uint8:
        if int(images.max()) > max_value:
            yield "images", f"hold pixels up to {int(images.max())}", f"at most max_value = {max_value}"
    elif not torch.isfinite(images).all():
        yield "images", "hold NaN or infinity", "finite numbers"


def _label_faults(labels: Tensor, count: int, classes: int) -> _Faults:
    shape = tuple(labels.shape)
    if (shape, labels.dtype) not in (((count,), torch.int64), ((count, classes), torch.float32)):
        expected = f"int64 ({count},) or float32 ({count}, {classes}) for {count} images of {classes} classes"
        yield "labels", f"are {_type(labels)} of shape {shape}", expected
    if labels.ndim == 1:
        least, most = int(labels.min()), int(labels.max())
        if least < 0 or most >= classes:
            yield "labels", f"lie in {least} .. {most}", f"classes 0 .. {classes - 1}"
    elif not probabilities(labels).all():
        row = int((~probabilities(labels)).nonzero()[0])
        yield "labels", f"of image {row} are no probabilities", "numbers from 0 that sum to 1"


def probabilities(labels: Tensor) -> Tensor:
    """Return which rows of ``labels`` (N, K) are probabilities, not negative and with a sum of 1 to 0.001, as (N,)."""
    return torch.isfinite(labels).all(1) & (labels >= 0).all(1) & ((labels.sum(1) - 1).abs() <= _SUM_TOLERANCE)


def _preprocessing_faults(
    tensors: Mapping[str, Tensor], facts: object, image: tuple[int, ...] | torch.Size | None
) -> _Faults:
    kind = facts.get("kind") if isinstance(facts, Mapping) else None
    if not isinstance(facts, Mapping) or kind not in ("standardise", "zca"):
        yield "preprocessing", _shown(facts), "a fitted preprocessing of kind standardise or zca"
        return
    if facts.get("eps") is not None and not _is_number(facts["eps"]):
        yield "preprocessing.eps", _shown(facts["eps"]), "a number, or null"
    size = None if image is None else image[0] if kind == "standardise" else math.prod(image)
    names = ("mean", "std") if kind == "standardise" else ("mean", "matrix", "inverse_matrix")
    for name in names:
        if name not in tensors:
            yield f"preprocessing.{name}", "is missing", f"all of {', '.join(names)}"
        tensor, size = tensors[name], len(tensors["mean"].view(-1)) if size is None else size
        wanted = (size, size) if "matrix" in name else (size,)
        if tensor.dtype != torch.float32 or tuple(tensor.shape) != wanted or not size:
            yield f"preprocessing.{name}", f"is {_type(tensor)} of shape {tuple(tensor.shape)}", f"float32 {wanted}"
        if not torch.isfinite(tensor).all() or (name == "std" and bool((tensor <= 0).any())):
            expected = "positive finite numbers" if name == "std" else "finite numbers"
            yield f"preprocessing.{name}", "holds others", expected


_OF_CELLS = ("method", "dataset", "dataset_fingerprint", "ipc", "seed", "protocol", "iteration", "redistributable")


def _provenance_faults(facts: object) -> _Faults:
    if not isinstance(facts, Mapping):
        yield "provenance", _shown(facts), "an object"
        return
    for name in (n for n in _TEXTS if not (facts.get(n) is None or _is_text(facts[n]))):
        yield f"provenance.{name}", _shown(facts[name]), "a string"
    for name in (n for n in _NUMBERS if not (facts.get(n) is None or (_is_whole(facts[n]) and facts[n] >= 0))):
        yield f"provenance.{name}", _shown(facts[name]), "a whole number of at least 0"
    if not isinstance(facts.get("redistributable"), (bool, type(None))):
        yield "provenance.redistributable", _shown(facts["redistributable"]), "true or false"
    for name in (n for n in _OF_CELLS if facts.get("key") and n not in facts):
        yield f"provenance.{name}", "is missing", "all that a cell writes beside its key"


def is_key(value: object) -> bool:
    """Return whether ``value`` is a content key: 16 hex digits, and nothing that could lead to another folder."""
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{16}", value) is not None


def _is_text(value: object) -> bool:
    """Whether ``value`` is a string that can be written: JSON can hold halves of characters, which cannot."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _short(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _shown(value: object) -> str:
    return f"is {_short(value)}"
