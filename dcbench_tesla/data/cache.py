"""A cache for ImageNet-size data sets: decoded once into ``.npy`` files, then read by memory map.

The folder holds ``x_train.npy`` and ``x_test.npy``, uint8 ``(N, C, H, W)``; ``y_train.npy`` and ``y_test.npy``, int64
``(N,)``; and ``meta.json`` with the class names and the fingerprint, which would take minutes to compute at each start.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from filelock import FileLock

from dcbench_tesla.data.checks import reading, verify
from dcbench_tesla.data.dataset import Dataset
from dcbench_tesla.data.files import decode_image
from dcbench_tesla.data.trees import Tree
from dcbench_tesla.errors import CorruptFileError, DcbenchError
from dcbench_tesla.records.leftovers import sweep, temporary_path
from dcbench_tesla.records.regular import regular_file

if TYPE_CHECKING:
    from dcbench_tesla.data.dataset import Labels, Pixels

logger = logging.getLogger(__name__)

CHUNK = 4096  # images decoded or copied at a time: 50 MB at 64 x 64
_MOST_META = 1 << 20
_NPY_HEADER_BYTES = 128  # numpy pads the header to this size for any number of images


class Split(NamedTuple):
    """The contents of a cache: chunks of images ``(n, C, H, W)`` and labels ``(n,)``, and the class names."""

    train: Iterable[tuple[Pixels, Labels]]
    test: Iterable[tuple[Pixels, Labels]]
    class_names: Sequence[str]


def decoded(tree: Tree, labels: Mapping[str, int], side: int, shrink: bool) -> Iterator[tuple[Pixels, Labels]]:
    """Decode the images that ``labels`` names, in its order, as chunks of images and labels.

    Images are resized to ``side`` pixels if ``shrink`` is true, and must have that size otherwise.

    Raises:
        CorruptFileError: an image cannot be read or has another size.
    """

    def decode(name: str) -> Pixels:
        where = f"{tree.where}/{name}"
        pixels = decode_image(BytesIO(tree.read(name)), where, box_side=side if shrink else None)
        if pixels.shape != (3, side, side):
            raise CorruptFileError(f"{where}: {pixels.shape[2]} x {pixels.shape[1]} pixels, expected {side} x {side}.")
        return pixels

    names, y = list(labels), np.array(list(labels.values()), dtype=np.int64)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow lets other threads run while it decodes
        for start in range(0, len(names), CHUNK):
            logger.info("decoding %s ... %d/%d", tree.where, start, len(names))
            images = pool.map(decode, names[start : start + CHUNK])
            yield np.stack(list(images)), y[start : start + CHUNK]


def make(cache: Path, build: Callable[[], Split]) -> None:
    """Write the folder ``cache`` from what ``build`` returns, unless the folder exists.

    The folder gets its name when it is complete. A second process that wants it waits for the first one. What killed
    processes left beside it is removed.

    Raises:
        DcbenchError: the folder cannot be written.
        CorruptFileError: ``build`` or reading its images found damaged files.
    """
    part = temporary_path(cache)
    try:
        with FileLock(f"{cache}.lock"):
            if cache.is_dir():
                return
            sweep(cache.parent)
            try:
                _write(part, build())
                part.rename(cache)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        remedy = "check the disk's room and permissions, or choose another place with --data-dir"
        raise DcbenchError(f"{cache}: decoding into this folder failed ({error}); {remedy}.") from error


def read(name: str, cache: Path, original: tuple[int, int] | None = None) -> Dataset:
    """Load a cache folder as a data set with ImageNet's channel statistics. The images stay on the disk.

    Args:
        name: name of the data set.
        cache: the folder.
        original: number of training and test images of the original; other numbers cause a warning.

    Raises:
        CorruptFileError: the cache is damaged.
    """
    with reading(f"{cache}: damaged", "delete this folder, it will be made anew"):
        meta = json.loads(regular_file(cache / "meta.json", most_bytes=_MOST_META).read_text(encoding="utf-8"))
        if not isinstance(meta["fingerprint"], str):
            raise TypeError("its fingerprint is no string")
        dataset = Dataset(
            name=name,
            x_train=_mapped(cache / "x_train.npy"),
            y_train=np.array(_mapped(cache / "y_train.npy")),
            x_test=_mapped(cache / "x_test.npy"),
            y_test=np.array(_mapped(cache / "y_test.npy")),
            class_names=tuple(meta["class_names"]),
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            known_fingerprint=meta["fingerprint"],
        )
    return verify(dataset, cache, original)


def _mapped(path: Path) -> np.ndarray[Any, np.dtype[Any]]:
    """Map an array copy-on-write, because torch warns of read-only arrays. The file itself is never written to.

    A map is never larger than the file, whatever its header promises.
    """
    array: np.ndarray[Any, np.dtype[Any]]
    try:
        array = np.load(regular_file(path), mmap_mode="c")
    except OSError:  # Linux refuses copy-on-write maps larger than memory and swap: then read-only, despite the warning
        array = np.load(path, mmap_mode="r")
    return array


def _write(folder: Path, split: Split) -> None:
    folder.mkdir()
    _write_arrays(folder, "train", split.train)
    _write_arrays(folder, "test", split.test)
    meta = {"class_names": list(split.class_names), "fingerprint": ""}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    meta["fingerprint"] = read("", folder).fingerprint  # computed, because meta.json holds none yet
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


def _write_arrays(folder: Path, split: str, chunks: Iterable[tuple[Pixels, Labels]]) -> None:
    """Write the chunks to one ``.npy`` file. The header is written last, when the number of images is known."""
    labels: list[Labels] = []
    image_shape: tuple[int, ...] = ()
    with open(folder / f"x_{split}.npy", "wb") as file:
        file.write(bytes(_NPY_HEADER_BYTES))
        for x, y in chunks:
            file.write(np.ascontiguousarray(x).data)
            labels.append(y)
            image_shape = x.shape[1:]
        y_all = np.concatenate(labels)
        file.seek(0)
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(y_all), *image_shape)}
        np.lib.format.write_array_header_1_0(file, header)
        assert file.tell() == _NPY_HEADER_BYTES
    np.save(folder / f"y_{split}.npy", y_all)
