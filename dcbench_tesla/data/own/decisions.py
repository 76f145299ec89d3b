"""What is decided for a data set before a run, with the setting or key that decides otherwise.

Shapes: N images, C channels, H = W = side, K classes.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dcbench_tesla.data.augmentation import STRATEGY, STRATEGY_NO_FLIP, Augmentation
from dcbench_tesla.data.dataset import Dataset
from dcbench_tesla.data.preprocessing import Preprocessing
from dcbench_tesla.data.settings import DataSettings

if TYPE_CHECKING:
    from dcbench_tesla.data.dataset import Labels, Pixels

_WIDTH = 80
_PROBES, _MOST = 500, 2000  # images that are looked up, and images to find them among


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One decision: what it is about, what was decided, and what decides otherwise."""

    about: str
    value: str
    change: str


class Decided(NamedTuple):
    """What a run has decided for its images.

    ``train_images`` and ``validation_images`` are the numbers after the split; ``preprocessing`` is ``None`` where it
    has not been fitted yet.
    """

    dataset: Dataset
    settings: DataSettings
    train_images: int
    validation_images: int
    preprocessing: Preprocessing | None
    augmentation: Augmentation

    def facts(self) -> dict[str, Any]:
        """Return the decisions as values that JSON can hold."""
        d, fitted = self.dataset, self.preprocessing
        return {
            "shape": [d.channels, d.side, d.side],
            "class_names": list(d.class_names),
            "train_images": self.train_images,
            "validation_images": self.validation_images,
            "test_images": len(d.x_test),
            "max_value": d.max_value,
            "preprocessing": fitted.describe() if fitted else {"kind": "zca"},
            "augmentation": self.augmentation.strategy,
            "mirrored": self.mirrored,
            "redistributable": d.redistributable,
        }

    @property
    def mirrored(self) -> bool:
        """Whether augmentation mirrors images."""
        return "flip" in self.augmentation.operations

    def decisions(self) -> list[Decision]:
        """Return the decisions, in the order in which a user meets them."""
        found = [self._classes(), self._values(), self._split(), self._preprocessing()]
        return [*found, self._augmentation(), self._mirroring()]

    def lines(self) -> list[str]:
        """Return the decisions as lines of at most 80 characters, but for a setting that is longer."""
        d = self.dataset
        kind = {1: "grey", 3: "colour"}.get(d.channels, f"{d.channels}-channel")
        sizes = f"{len(d.x_train):,} training and {len(d.x_test):,} test images"
        head = f"{d.name}: {sizes}, {kind}, {d.side} x {d.side} pixels, {d.classes} classes."
        lines = [*textwrap.wrap(head, _WIDTH), "Decided, and in brackets what changes it (--set; in Python settings=):"]
        for decision in self.decisions():
            told = textwrap.wrap(decision.value, _WIDTH - 18)
            lines += [f"  {decision.about:<14}  {told[0]}", *(f"{'':18}{line}" for line in told[1:])]
            lines += [f"{'':18}({decision.change})"]
        return lines

    def _key(self, key: str) -> str:
        several = "s" if "," in key else ""
        return f"key{several} {key}" if self.dataset.name.startswith("npz:") else ""

    def _classes(self) -> Decision:
        names = textwrap.shorten(", ".join(self.dataset.class_names), 120, placeholder=" ...")
        folders = "the names of the folders"
        return Decision(about="classes", value=names, change=self._key("class_names") or folders)

    def _values(self) -> Decision:
        d = self.dataset
        both = [x for x in (d.x_train, d.x_test) if len(x)]
        least, most = min(x.min() for x in both), max(x.max() for x in both)
        told = f"{least} .. {most}; networks see pixels / {d.max_value}"
        return Decision(about="pixels", value=told, change=self._key("max_value") or "an archive has the key max_value")

    def _split(self) -> Decision:
        s, told = self.settings, f"{self.train_images:,} images to train on; "
        told += f"{self.validation_images:,}, a share of every class, held out to choose on"
        change = f"data.validation={s.validation:g}, data.train_images={s.train_images}"
        return Decision(about="validation", value=told, change=f"{change}{'' if s.train_images else ': all'}")

    def _preprocessing(self) -> Decision:
        fitted, keys = self.preprocessing, self._key("mean, std")
        if fitted is None or fitted.kind == "zca":
            return Decision(about="preprocessing", value="ZCA whitening", change="data.zca=false standardises")
        mean, std = (", ".join(f"{v:.4g}" for v in fitted.describe()[name]) for name in ("mean", "std"))
        whose = "the training images" if self.dataset.mean is None else "the data set's own"
        change = "data.zca=true whitens" + (f"; {keys}" if keys else "")
        return Decision(about="preprocessing", value=f"mean {mean}; std {std} ({whose})", change=change)

    def _augmentation(self) -> Decision:
        told = ", ".join(self.augmentation.operations) or "none"
        return Decision(about="augmentation", value=told, change="data.augmentation=NAMES joined by _, or none")

    def _mirroring(self) -> Decision:
        key = self._key("flippable")
        value, other = ("yes", STRATEGY_NO_FLIP) if self.mirrored else ("no", STRATEGY)
        change = (f"{key}, or " if key else "") + f"data.augmentation={other}"
        return Decision(about="mirrored", value=value, change=change)


def counts(dataset: Dataset) -> list[tuple[str, int, int]]:
    """Return the name, the number of training images and of test images of every class."""
    both = [np.bincount(y, minlength=dataset.classes).tolist() for y in (dataset.y_train, dataset.y_test)]
    return list(zip(dataset.class_names, *both, strict=True))


class Mirrored(NamedTuple):
    """How often the training image nearest to an image is of its class: as it is, and mirrored (fractions)."""

    as_it_is: float
    mirrored: float
    images: int

    @property
    def differs(self) -> bool:
        """Whether mirrored images are recognised less often, by more than two standard errors."""
        spread = sum(p * (1 - p) for p in (self.as_it_is, self.mirrored)) / self.images
        return self.as_it_is - self.mirrored > 2 * math.sqrt(spread)

    def __str__(self) -> str:
        told = f"the nearest other image has the same class for {100 * self.as_it_is:.0f} % of {self.images} training "
        told += f"images, and for {100 * self.mirrored:.0f} % when they are mirrored: "
        return told + ("mirroring would mislead." if self.differs else "mirroring seems to keep the class.")


def mirrored_recognised(dataset: Dataset) -> Mirrored:
    """Return how well training images are recognised by their nearest neighbour, as they are and mirrored.

    Up to 500 images are looked up among up to 2,000 others, by the Euclidean distance of their pixels. Test images are
    not looked at.
    """
    order = np.random.default_rng(0).permutation(len(dataset.x_train))
    probes = order[: min(_PROBES, len(order) // 2)]
    among = order[len(probes) : len(probes) + _MOST]
    x, y = dataset.x_train, dataset.y_train
    right = [_recognised(images, y[probes], x[among], y[among]) for images in (x[probes], x[probes][..., ::-1])]
    return Mirrored(right[0], right[1], len(probes))


def _recognised(images: Pixels, labels: Labels, others: Pixels, their_labels: Labels) -> float:
    a, b = (x.reshape(len(x), -1).astype(np.float32) for x in (images, others))
    distances = (b**2).sum(1)[None] - 2 * a @ b.T
    return float((their_labels[distances.argmin(1)] == labels).mean())


def examples(dataset: Dataset, each: int, most_classes: int) -> Sequence[Labels]:
    """Return the positions of the first ``each`` training images of the first ``most_classes`` classes."""
    found = [np.flatnonzero(dataset.y_train == c)[:each] for c in range(min(dataset.classes, most_classes))]
    return [positions for positions in found if len(positions)]
