"""The data set as the harness sees it: integer pixels, labels, class names and a content fingerprint.

Shapes: N images, C channels, H = W = side, K classes. Pixels are integers in ``[0, max_value]``; networks see
``pixels / max_value`` after preprocessing. This module imports neither torch nor numpy at its top, so that listing data
sets is fast.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]
    Labels = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A loaded data set: square training and test images of one size, with labels.

    Args:
        name: name of the data set.
        x_train: training images, uint8 ``(N, C, H, W)`` in ``0..max_value``.
        y_train: training labels, int64 ``(N,)`` in ``0..K-1``.
        x_test: test images, like ``x_train``.
        y_test: test labels, like ``y_train``.
        class_names: the K class names.
        max_value: the largest pixel value.
        mean: published mean of ``pixels / max_value`` per channel; ``None`` to compute it from the training images.
        std: published standard deviation of ``pixels / max_value`` per channel, or ``None`` likewise.
        flippable: whether a mirrored image still shows its class (False for digits).
        redistributable: whether the images may be passed on.
        known_fingerprint: the fingerprint, if it was computed before; hashing a memory-mapped set takes minutes. It
            must be cleared when pixels, labels or names are replaced.
    """

    name: str
    x_train: "Pixels"
    y_train: "Labels"
    x_test: "Pixels"
    y_test: "Labels"
    class_names: tuple[str, ...]
    max_value: int = 255
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    flippable: bool = True
    redistributable: bool = False
    known_fingerprint: str = ""

    def __repr__(self) -> str:
        sizes = f"{len(self.x_train):,} training and {len(self.x_test):,} test images"
        return f"Dataset({self.name}: {sizes} of {self.channels} x {self.side} x {self.side}, {self.classes} classes)"

    @property
    def channels(self) -> int:
        """Number of colour channels C."""
        return int(self.x_train.shape[1])

    @property
    def side(self) -> int:
        """Height and width of the images, in pixels."""
        return int(self.x_train.shape[2])

    @property
    def classes(self) -> int:
        """Number of classes K."""
        return len(self.class_names)

    def without_test_images(self) -> "Dataset":
        """Return the data set with no test images, for what must not see them; it keeps the whole's fingerprint."""
        return replace(self._training_images, known_fingerprint=self.fingerprint)

    @property
    def _training_images(self) -> "Dataset":
        return replace(self, x_test=self.x_train[:0], y_test=self.y_train[:0], known_fingerprint="")

    @cached_property
    def train_fingerprint(self) -> str:
        """The fingerprint of the data set without its test images, which are not read."""
        return self._training_images.fingerprint

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (first 16 hex digits) of shapes, pixels, labels, class names and ``max_value``, without the name."""
        if self.known_fingerprint:
            return self.known_fingerprint
        digest = hashlib.sha256()
        arrays = (self.x_train, self.y_train, self.x_test, self.y_test)
        head = [[list(a.shape) for a in arrays], list(self.class_names), self.max_value]
        digest.update(json.dumps(head).encode())
        for array in arrays:
            for start in range(0, len(array), 8192):
                digest.update(array[start : start + 8192].tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class DatasetSource:
    """A named data set before it is loaded: its known facts, where its files are found, and how to load them.

    A plugin registers an instance in the entry-point group ``dcbench.datasets``.

    Args:
        name: name of the data set.
        summary: one line about the data set and its licence.
        channels: image channels C.
        side: height and width of the images in pixels.
        classes: number of classes K.
        train_images: number of training images.
        test_images: number of test images.
        find: ``find(data_dir)`` returns the path that the files would be loaded from, or ``None``. It is cheap.
        load: ``load(data_dir)`` returns the :class:`Dataset` and downloads its files if the source can. Otherwise it
            raises :class:`~dcbench_tesla.errors.DataMissingError` with ``remedy``.
        remedy: how to get the files.
        redistributable: whether the images may be passed on.
    """

    name: str
    summary: str
    channels: int
    side: int
    classes: int
    train_images: int
    test_images: int
    find: Callable[[Path], Path | None]
    load: Callable[[Path], Dataset]
    remedy: str = ""
    redistributable: bool = False
