"""What a data set is to the harness: plain pixels, labels, names and a content fingerprint.

Shapes: N images, C channels, H = W = side, K classes. Pixels are integers in ``[0, max_value]``; networks see
``pixels / max_value`` after preprocessing. This module imports neither torch nor numpy at the top, so that data
sets can be listed in no time.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
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
    """A loaded data set: training and test images of one side length, with labels.

    ``x_train`` and ``x_test`` are uint8 ``(N, C, H, W)``, ``y_train`` and ``y_test`` int64 ``(N,)`` in ``0..K-1``.
    ``mean`` and ``std`` (one number a channel, of ``pixels / max_value``) are the field's published ones, or ``None``
    where they are to be computed from the training images. ``flippable`` is False for digits and the like, whose
    mirror image is another thing. ``redistributable`` says whether the images may be passed on. ``known_fingerprint``
    is ``fingerprint`` where it was computed before, as of a memory-mapped set, which takes minutes to hash: whoever
    replaces pixels, labels or names must clear it.
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

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (first 16 hex digits) of shapes, pixels, labels, class names and ``max_value``; not of the name."""
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
    """A data set by name: what is known of it without its files, where it is looked for, and how it is loaded.

    ``find(data_dir)`` returns the path the files would be loaded from, or ``None``; it is cheap. ``load(data_dir)``
    returns the :class:`Dataset`, downloading where the source can, and raises
    :class:`~dcbench_tesla.errors.DataMissingError` with ``remedy`` where it cannot. A plugin registers an instance in
    the entry-point group ``dcbench.datasets``.
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
