"""Readers for data sets of small images in their published formats: MNIST's IDX, CIFAR's batches, SVHN's .mat.

Every reader takes the folder with the files and raises :class:`CorruptFileError` for a file with unexpected content.
Shapes: N images, C channels, H = W = side.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dcbench_tesla.data.checks import reading
from dcbench_tesla.data.download import packed_or_not
from dcbench_tesla.errors import CorruptFileError
from dcbench_tesla.records.regular import regular_file

if TYPE_CHECKING:
    from dcbench_tesla.data.dataset import Labels, Pixels


_MOST_BYTES = 1 << 30  # of a file: the largest published one has a tenth of it


class Contents(NamedTuple):
    """The contents of a data set's files: images uint8 ``(N, C, H, W)``, labels int64 ``(N,)`` and class names."""

    x_train: Pixels
    y_train: Labels
    x_test: Pixels
    y_test: Labels
    class_names: tuple[str, ...] = tuple("0123456789")


def read_idx_set(folder: Path) -> Contents:
    """Read four files in MNIST's format, gzipped or not: grey images of 28 x 28 pixels, and labels."""
    x_train, x_test = (_read_idx(folder / f"{split}-images-idx3-ubyte.gz", (28, 28)) for split in ("train", "t10k"))
    y_train, y_test = (_read_idx(folder / f"{split}-labels-idx1-ubyte.gz", ()) for split in ("train", "t10k"))
    return Contents(x_train[:, None], y_train.astype("int64"), x_test[:, None], y_test.astype("int64"))


def _read_idx(path: Path, item_shape: tuple[int, ...]) -> Pixels:
    """Read an IDX file of unsigned bytes, ``(N, *item_shape)``, gzipped or unpacked."""
    import numpy as np

    path = regular_file(packed_or_not(path), most_bytes=_MOST_BYTES)
    with reading(f"{path}: cannot be read"), gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        raw = file.read(_MOST_BYTES)  # what a header promises beyond this is missing
    if raw[:3] != b"\0\0\x08" or len(raw) < 4 + 4 * raw[3]:
        raise CorruptFileError(f"{path}: not an IDX file of unsigned bytes; get it again.")
    start = 4 + 4 * raw[3]
    shape = tuple(int.from_bytes(raw[i : i + 4], "big") for i in range(4, start, 4))
    if not shape or shape[1:] != item_shape or len(raw) - start != prod(shape):
        expected = ", ".join(["N", *map(str, item_shape)])
        found = f"{len(raw) - start} bytes, its header promises {prod(shape)} of shape {shape}"
        raise CorruptFileError(f"{path}: {found}; expected ({expected}); get it again.")
    return np.frombuffer(bytearray(raw), np.uint8, offset=start).reshape(shape)  # a bytearray, as torch wants to write


def read_cifar(folder: Path, files: Sequence[str], classes: int, kind: str = "") -> Contents:
    """Read CIFAR's pickled files of 3 x 32 x 32 images.

    Args:
        folder: the folder with the files.
        files: names of the training batches, the test batch and the file of class names, in this order.
        classes: number of classes.
        kind: prefix of the keys (``fine_`` for the 100 classes of CIFAR-100).
    """
    from dcbench_tesla.data.pickles import read_batch

    *train, test, meta = files
    with open(regular_file(folder / meta, most_bytes=_MOST_BYTES), "rb") as file:
        names = read_batch(file, str(folder / meta)).get(f"{kind}label_names")
    if not isinstance(names, list) or len(names) != classes:
        raise CorruptFileError(f"{folder / meta}: no list '{kind}label_names' of {classes} names; get it again.")
    x_train, y_train = _cifar_split([folder / name for name in train], f"{kind}labels")
    x_test, y_test = _cifar_split([folder / test], f"{kind}labels")
    return Contents(x_train, y_train, x_test, y_test, tuple(map(str, names)))


def _cifar_split(paths: Iterable[Path], label_key: str) -> tuple[Pixels, Labels]:
    import numpy as np

    from dcbench_tesla.data.pickles import batch_rows, read_batch

    batches = []
    for path in paths:
        with open(regular_file(path, most_bytes=_MOST_BYTES), "rb") as file:
            batches.append(batch_rows(read_batch(file, str(path)), label_key, 3 * 32 * 32, str(path)))
    rows, labels = zip(*batches, strict=True)
    return np.concatenate(rows).reshape(-1, 3, 32, 32), np.concatenate(labels)


def read_svhn(folder: Path) -> Contents:
    """Read SVHN's two files of 3 x 32 x 32 pixels."""
    train, test = (_read_mat(folder / f"{split}_32x32.mat") for split in ("train", "test"))
    return Contents(*train, *test)


def _read_mat(path: Path) -> tuple[Pixels, Labels]:
    """Read ``X``, uint8 ``(32, 32, 3, N)``, and ``y``, ``(N, 1)``, where class 10 stands for the digit 0."""
    import numpy as np
    from scipy.io import loadmat  # type: ignore[import-untyped]

    with reading(f"{path}: not SVHN's .mat file, or damaged"):
        content = loadmat(regular_file(path, most_bytes=_MOST_BYTES), variable_names=["X", "y"])
        x, y = content["X"], content["y"]
    if x.dtype != np.uint8 or x.shape[:3] != (32, 32, 3) or y.shape != (x.shape[-1], 1):
        found = f"X {x.dtype} {x.shape} and y {y.shape}"
        raise CorruptFileError(f"{path}: holds {found}, expected X uint8 (32, 32, 3, N) and y (N, 1); get it again.")
    labels = y[:, 0].astype(np.int64)
    return np.ascontiguousarray(x.transpose(3, 2, 0, 1)), np.where(labels == 10, 0, labels)
