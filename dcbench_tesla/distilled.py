"""The distilled set: complete, so that whoever has the file can train on it."""

import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from dcbench_tesla.compute.state import plain_torch
from dcbench_tesla.data.augmentation import Augmentation
from dcbench_tesla.data.images import LabelledImages
from dcbench_tesla.data.preprocessing import TENSORS, Preprocessing
from dcbench_tesla.errors import CorruptFileError, DivergedError, UsageError
from dcbench_tesla.records import pictures
from dcbench_tesla.records.store import load_tensors, save_tensors

if TYPE_CHECKING:
    from PIL.Image import Image

FORMAT = "dcbench distilled set"
"""What the file of one says it is."""

VERSIONS = (1, 2)
"""The versions of the format: 2 adds learned steps, the space of labels, the decoder and facts of the evaluation."""

PREPROCESSING = "preprocessing."
"""What stands before the names of the preprocessing's tensors in the file of a distilled set."""

REMEDY = "If it is a run's, the same command with --force makes it again; otherwise get it anew."
_SUM_TOLERANCE = 1e-3  # of a soft label, in half precision
_LONGEST = 80  # characters of a value in a message
_TEXTS = ("method", "dataset", "dataset_fingerprint", "protocol", "key")
_NUMBERS = ("ipc", "seed", "iteration")
_NEW_FACTS = ("label_space", "decoder", "evaluation_recipe", "training_steps")
_NEW_TENSORS = ("steps.rates", "steps.batches")

_Faults = Iterator[tuple[str, str, str]]  # field, what it is, what was expected
_ZCA_FOLDER = "preprocessing"

PROBABILITIES, CENTRED = "probabilities", "centred"
"""The spaces of labels: classes or probabilities, or any numbers around one-hot minus 1/K (KIP, FrePo)."""

TILES = "tiles"
"""The decoder of IDC, see :class:`Decoder`."""

LARGEST_FACTOR = 16
"""The largest factor of a decoder."""

_MOST_CLASSES, _MOST_OF_A_CLASS = 100, 50  # in a picture
_RECIPE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_SAME_RATE = 1e-5  # relative: a mean in float32 and in float64
_GREY = 0.5  # what IDC's images are padded with, as a pixel in [0, 1]


@dataclass(frozen=True, eq=False)
class Steps:
    """The training steps that were learned with the images: step t trains on ``batches[t]`` with rate ``rates[t]``.

    Wang et al., "Dataset Distillation" (2018) learn one rate a step, for batches in a fixed order.

    Attributes:
        rates: learning rates, float32 ``(T,)``, positive.
        batches: indices of the images of every step, int64 ``(T, B)``.
    """

    rates: Tensor
    batches: Tensor

    def __len__(self) -> int:
        return len(self.rates)

    @property
    def mean_rate(self) -> float:
        """The mean of the rates: the one rate for a recipe that takes the batches in another order."""
        return float(self.rates.double().mean())


@dataclass(frozen=True)
class Decoder:
    """How stored images become training images: each holds ``factor`` x ``factor`` smaller ones.

    An image is cut into f x f tiles, row by row, and each tile is resized bilinearly to the image's size. If f does not
    divide the side, the image is first padded with grey (0.5) at the right and the bottom. Kim et al., "Dataset
    Condensation via Efficient Synthetic-Data Parameterization" (IDC, ICML 2022).

    Attributes:
        factor: f, from 2 to 16.
        name: the name of the decoder; ``tiles`` is the only one.
    """

    factor: int
    name: str = TILES

    @property
    def images(self) -> int:
        """Training images that one stored image holds."""
        return self.factor**2

    def __call__(self, stored: Tensor, grey: Tensor) -> Tensor:
        """Return the training images ``(N f^2, C, H, H)`` of ``stored`` ``(N, C, H, H)``, tile by tile of each image.

        Args:
            stored: the stored images.
            grey: what to pad with, one value a channel, ``(C,)``.
        """
        n, channels, side, _ = stored.shape
        f, tile = self.factor, -(-side // self.factor)
        padded = grey.to(stored).view(1, -1, 1, 1).repeat(n, 1, f * tile, f * tile)
        padded[:, :, :side, :side] = stored
        tiles = padded.view(n, channels, f, tile, f, tile).permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, tile, tile)
        return F.interpolate(tiles, size=(side, side), mode="bilinear", align_corners=False)


def grey_of(preprocessing: Preprocessing, shape: Iterable[int], device: torch.device | str = "cpu") -> Tensor:
    """Return what a :class:`Decoder` pads images of ``shape`` (C, H, W) with in network space: ``(C,)``."""
    return preprocessing.forward(torch.full((1, *shape), _GREY, device=device)).mean((0, 2, 3))


@dataclass(frozen=True, kw_only=True)
class DistilledSet:
    """Synthetic (or chosen) images with everything a network needs to be trained on them.

    Attributes:
        images: float32 ``(N, C, H, W)`` in network space, that is, preprocessed; or uint8 pixels in ``0..max_value``
            where real images were chosen. :meth:`inputs` returns network inputs for both.
        labels: classes, int64 ``(N,)``, or float32 ``(N, K)`` in the space that ``label_space`` names.
        class_names: names of the K classes, in the order of the labels.
        preprocessing: the map from pixels in [0, 1] to network space, and back. Test images must go through it.
        augmentation: the DSA strategy to train with, or ``none``.
        max_value: the pixel value that stands for 1.
        lr: the learning rate that was learned for training on the set; ``None`` where none was. Where a rate was
            learned for every step, it is their mean, which may be left out.
        provenance: who made the set from what, as plain JSON.
        steps: the training steps that were learned with the images, with a rate each; ``None`` where none were.
        label_space: ``probabilities``, or ``centred`` for any numbers around one-hot minus 1/K.
        decoder: how the stored images become the ones to train on; ``None`` where they are the same.
        evaluation_recipe: the name of the recipe by which the method's authors train networks on its sets, or empty.
        training_steps: the number of optimiser steps that was found best for training on the set; 0: none was.

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
    steps: Steps | None = None
    label_space: str = PROBABILITIES
    decoder: Decoder | None = None
    evaluation_recipe: str = ""
    training_steps: int = 0

    def __post_init__(self) -> None:
        if self.steps is not None and self.lr is None and len(self.steps):
            object.__setattr__(self, "lr", self.steps.mean_rate)
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
        if self.steps is not None and not bool(torch.isfinite(self.steps.rates).all() and (self.steps.rates > 0).all()):
            raise DivergedError("the learned rates must be positive and finite: lower their learning rate.")
        further, facts = self._format_2()
        tensors = {"images": self.images, "labels": self.labels, **further}
        meta = {**facts, "lr": self.lr}
        fault = next(chain(_new_fact_faults(tensors, meta), _new_part_faults(tensors, meta)), None)
        if fault is not None:
            raise UsageError(f"{fault[0]} {fault[1]}; a distilled set needs {fault[2]}.")

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        shape, told = " x ".join(map(str, self.images.shape[1:])), self.provenance
        facts = [f"{len(self):,} images of {shape}", f"{len(self.class_names)} classes"]
        facts += [f"{told['method']} on {told.get('dataset')}"] if told.get("method") else []
        facts += [f"IPC {told['ipc']}"] if told.get("ipc") else []
        facts += [f"learned rate {self.lr:.3g}"] if self.lr is not None else []
        return f"DistilledSet({', '.join(facts)})"

    def _repr_html_(self) -> str:
        return pictures.as_html(self.picture(), repr(self))

    def picture(self) -> "Image":
        """Return a picture of the set, preprocessing undone: a row a class, 100 classes and 50 images of each at most.

        Sets of one image a class have ten classes in a row.
        """
        rows = self._rows()[:_MOST_CLASSES]
        return pictures.sheet(self.choose(torch.cat(rows)).pixels(), [len(row) for row in rows])

    def show(self) -> None:
        """Show :meth:`picture` in a notebook's output, or on the screen."""
        pictures.show(self.picture())

    def _rows(self) -> list[Tensor]:
        """The indices of each class's images: by position in a synthetic set, because soft labels can differ."""
        count, classes = len(self), len(self.class_names)
        if count % classes == 0 and self.images.dtype == torch.float32:
            return [row[:_MOST_OF_A_CLASS] for row in torch.arange(count).split(count // classes)]
        return [(self.hard == c).nonzero().flatten()[:_MOST_OF_A_CLASS] for c in self.hard.unique()]

    def as_torch_dataset(self) -> TensorDataset:
        """Return what a network is trained on, as a data set of PyTorch: float32 inputs ``(C, H, W)`` and labels.

        Labels are classes, or probabilities ``(K,)``. Images of other origin (test images) become inputs by
        ``preprocessing.forward``. Stored images are decoded; learned steps are left out.
        """
        plain = self.plain()
        return TensorDataset(plain.inputs(), plain.labels)

    @property
    def version(self) -> int:
        """The version of the format that the set is written in: 1, or 2 where a field needs it."""
        tensors, meta = self._format_2()
        return 2 if tensors or meta else 1

    def _format_2(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors and facts that only format 2 has, without those that say what format 1 means."""
        meta: dict[str, Any] = {}
        if self.label_space != PROBABILITIES:
            meta["label_space"] = self.label_space
        if self.decoder is not None:
            meta["decoder"] = {"name": self.decoder.name, "factor": self.decoder.factor}
        if self.evaluation_recipe:
            meta["evaluation_recipe"] = self.evaluation_recipe
        if self.training_steps:
            meta["training_steps"] = self.training_steps
        steps = self.steps
        return {} if steps is None else {"steps.rates": steps.rates, "steps.batches": steps.batches}, meta

    @property
    def training_images(self) -> int:
        """Number of images that a network trains on: N, or more where stored images are decoded."""
        return len(self) * (self.decoder.images if self.decoder else 1)

    def decoded(self) -> "DistilledSet":
        """Return the set of the images to train on, each with the label of its stored image."""
        if self.decoder is None:
            return self
        images = self.decoder(self.images, grey_of(self.preprocessing, self.images.shape[1:]))
        labels = self.labels.repeat_interleave(self.decoder.images, 0)
        return replace(self, images=images, labels=labels, decoder=None)

    def plain(self) -> "DistilledSet":
        """Return the set as format 1 has it, which any recipe can train on; a set of that format itself.

        Stored images are decoded, centred labels become the class of the largest value, and the learned rates of the
        steps their mean.
        """
        if self.version == 1:
            return self
        labels = self.hard if self.label_space == CENTRED else self.labels
        as_in_1: dict[str, Any] = {"steps": None, "evaluation_recipe": "", "training_steps": 0}
        return replace(self, labels=labels, label_space=PROBABILITIES, **as_in_1).decoded()

    def centred_labels(self) -> Tensor:
        """Return the labels minus 1/K, float32 ``(N, K)``; labels in the centred space as they are."""
        if self.label_space == CENTRED:
            return self.labels
        classes = len(self.class_names)
        soft = self.labels if self.labels.ndim == 2 else F.one_hot(self.labels, classes).float()
        return soft - 1 / classes

    @property
    def hard(self) -> Tensor:
        """The most likely class of every image, int64 ``(N,)``."""
        return self.labels.argmax(1) if self.labels.ndim == 2 else self.labels

    def with_hard_labels(self) -> "DistilledSet":
        """Return the set with the most likely class of every image as its label; a set of classes itself.

        Learned probabilities and centred labels become the class of their largest value, of equal ones the first. A
        stored image's class is that of all images decoded from it. Everything else stays.
        """
        if self.labels.ndim == 1:
            return self
        return replace(self, labels=self.hard, label_space=PROBABILITIES)

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
        """Return the set of the images at ``indices``, int64 ``(M,)``, in that order, without learned steps."""
        return replace(self, images=self.images[indices], labels=self.labels[indices], steps=None)

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
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(PREPROCESSING)}
            meta["preprocessing"] = {"shared": self.preprocessing.key}
        save_tensors(path, tensors, {"format": FORMAT, "version": self.version, **meta})

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return named tensors and JSON facts from which :meth:`from_state` makes the same set again."""
        tensors, facts = self.preprocessing.state()
        further, facts_2 = self._format_2()
        meta = {
            "class_names": list(self.class_names),
            "augmentation": self.augmentation,
            "max_value": self.max_value,
            "lr": self.lr,
            "preprocessing": facts,
            "provenance": dict(self.provenance),
            **facts_2,
        }
        content = {"images": self.images, "labels": self.labels, **further}
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
            steps=Steps(tensors["steps.rates"], tensors["steps.batches"]) if "steps.rates" in tensors else None,
            label_space=meta.get("label_space", PROBABILITIES),
            decoder=Decoder(**meta["decoder"]) if "decoder" in meta else None,
            evaluation_recipe=meta.get("evaluation_recipe", ""),
            training_steps=meta.get("training_steps", 0),
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
        if meta.get("version", 1) not in VERSIONS:
            told = f"{path} is a distilled set in version {_short(meta['version'])} of the format"
            raise CorruptFileError(
                f"{told}; this dcbench knows {' and '.join(map(str, VERSIONS))}. Install a newer one."
            )
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
    yield from _new_fact_faults(tensors, meta)
    centred = meta.get("label_space") == CENTRED
    yield from _label_faults(tensors["labels"], len(tensors["images"]), len(meta["class_names"]), centred=centred)
    yield from _new_part_faults(tensors, meta)
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


def _label_faults(labels: Tensor, count: int, classes: int, *, centred: bool) -> _Faults:
    shape = tuple(labels.shape)
    if (shape, labels.dtype) not in (((count,), torch.int64), ((count, classes), torch.float32)):
        expected = f"int64 ({count},) or float32 ({count}, {classes}) for {count} images of {classes} classes"
        yield "labels", f"are {_type(labels)} of shape {shape}", expected
    if labels.ndim == 1:
        least, most = int(labels.min()), int(labels.max())
        if least < 0 or most >= classes:
            yield "labels", f"lie in {least} .. {most}", f"classes 0 .. {classes - 1}"
    elif centred and not torch.isfinite(labels).all():
        yield "labels", "hold NaN or infinity", "finite numbers"
    elif not centred and not probabilities(labels).all():
        row = int((~probabilities(labels)).nonzero()[0])
        yield "labels", f"of image {row} are no probabilities", "numbers from 0 that sum to 1"


def _new_fact_faults(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> _Faults:
    """Check the facts that only format 2 has; of format 1 nothing is looked at."""
    added = [name for name in (*_NEW_FACTS, *_NEW_TENSORS) if name in meta or name in tensors]
    if added and meta.get("version", 2) == 1:
        yield added[0], "stands in a file of version 1", "version 2"
    space, recipe = meta.get("label_space", PROBABILITIES), meta.get("evaluation_recipe", "none")
    if space not in (PROBABILITIES, CENTRED):
        yield "label_space", _shown(space), f"{PROBABILITIES} or {CENTRED}"
    if space == CENTRED and tensors["labels"].ndim != 2:
        yield "label_space", "is centred, but the labels are classes", "float32 labels (N, K)"
    if not (_is_text(recipe) and _RECIPE_NAME.fullmatch(recipe)):
        yield "evaluation_recipe", _shown(recipe), "a name of small letters, digits and hyphens"
    steps = meta.get("training_steps", 1)
    if not _is_whole(steps) or steps < 1:
        yield "training_steps", _shown(steps), "a whole number of at least 1"


def _new_part_faults(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> _Faults:
    if "decoder" in meta:
        yield from _decoder_faults(meta["decoder"], tensors)
    if any(name in tensors for name in _NEW_TENSORS):
        yield from _step_faults(tensors, meta.get("lr"))


def _decoder_faults(decoder: object, tensors: Mapping[str, Tensor]) -> _Faults:
    named = isinstance(decoder, Mapping) and set(decoder) == {"name", "factor"} and decoder["name"] == TILES
    factor: Any = decoder["factor"] if isinstance(decoder, Mapping) and named else None
    images = tensors["images"]
    if not _is_whole(factor) or not 2 <= factor <= LARGEST_FACTOR:
        yield "decoder", _shown(decoder), f"the name {TILES} with a factor from 2 to {LARGEST_FACTOR}"
    elif factor > images.shape[-1]:
        yield "decoder", f"cuts images of {images.shape[-1]} pixels into {factor} x {factor}", "a pixel a tile"
    if images.dtype != torch.float32:
        yield "decoder", "stands beside pixels", "images in network space"
    if "steps.rates" in tensors:
        yield "decoder", "stands beside learned steps, whose batches are of stored images", "one of the two"


def _step_faults(tensors: Mapping[str, Tensor], lr: Any) -> _Faults:
    for name in (n for n in _NEW_TENSORS if n not in tensors):
        yield name, "is missing", "rates with batches"
    rates, batches, count = tensors["steps.rates"], tensors["steps.batches"], len(tensors["images"])
    if rates.dtype != torch.float32 or rates.ndim != 1 or not len(rates):
        yield "steps.rates", f"are {_type(rates)} of shape {tuple(rates.shape)}", "float32 (T,) with T of at least 1"
    elif not (torch.isfinite(rates).all() and (rates > 0).all()):
        yield "steps.rates", "hold others", "positive finite numbers"
    if batches.dtype != torch.int64 or batches.ndim != 2 or len(batches) != len(rates) or not batches.numel():
        expected = f"int64 ({len(rates)}, B), a batch for every rate"
        yield "steps.batches", f"are {_type(batches)} of shape {tuple(batches.shape)}", expected
    elif int(batches.min()) < 0 or int(batches.max()) >= count:
        yield "steps.batches", f"lie in {int(batches.min())} .. {int(batches.max())}", f"images 0 .. {count - 1}"
    mean = Steps(rates, batches).mean_rate
    if not _is_number(lr) or not math.isclose(lr, mean, rel_tol=_SAME_RATE):
        yield "lr", _shown(lr), f"the mean of steps.rates, {mean:g}"


def probabilities(labels: Tensor) -> Tensor:
    """Return which rows of ``labels`` (N, K) are probabilities, not negative and with a sum of 1 to 0.001, as (N,)."""
    return torch.isfinite(labels).all(1) & (labels >= 0).all(1) & ((labels.sum(1) - 1).abs() <= _SUM_TOLERANCE)


def _preprocessing_faults(
    tensors: Mapping[str, Tensor], facts: object, image: tuple[int, ...] | torch.Size | None
) -> _Faults:
    kind = facts.get("kind") if isinstance(facts, Mapping) else None
    if not isinstance(facts, Mapping) or kind not in tuple(TENSORS):
        yield "preprocessing", _shown(facts), f"a fitted preprocessing of kind {' or '.join(TENSORS)}"
        return
    if facts.get("eps") is not None and not _is_number(facts["eps"]):
        yield "preprocessing.eps", _shown(facts["eps"]), "a number, or null"
    size = None if image is None else image[0] if kind == "standardise" else math.prod(image)
    names = TENSORS[kind]
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
