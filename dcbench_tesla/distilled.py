"""The distilled set: complete, so that whoever has the file can train on it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcbench_tesla.data.images import LabelledImages
from dcbench_tesla.data.preprocessing import Preprocessing
from dcbench_tesla.data.stored import PREPROCESSING, REMEDY, check_preprocessing, check_set, is_key
from dcbench_tesla.errors import CorruptFileError, DivergedError, UsageError
from dcbench_tesla.records.store import load_tensors, save_tensors

FORMAT = "dcbench distilled set"
"""What the file of one says it is."""

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
        return real.inputs(torch.arange(len(self)))

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
            raise CorruptFileError(f"{path} is damaged, or is no distilled set of dcbench. {REMEDY}") from error
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
    for folder in Path(path).resolve().parents:
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
