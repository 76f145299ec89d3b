"""The check of a stored distilled set or preprocessing: every field, once, before anything is trained on it.

A file with a right digest is whole, but not therefore right: somebody else may have written it.

Shapes: N images, C channels, H = W = side, K classes, D = C H W.
"""

import math
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcbench_tesla.data.augmentation import Augmentation
from dcbench_tesla.errors import CorruptFileError, UsageError

PREPROCESSING = "preprocessing."
"""What stands before the names of the preprocessing's tensors in the file of a distilled set."""

REMEDY = "If it is a run's, the same command with --force makes it again; otherwise get it anew."
_SUM_TOLERANCE = 1e-3  # of a soft label, in half precision
_LONGEST = 80  # characters of a value in a message
_TEXTS = ("method", "dataset", "dataset_fingerprint", "protocol", "key")
_NUMBERS = ("ipc", "seed", "iteration")

_Faults = Iterator[tuple[str, str, str]]  # field, what it is, what was expected


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
