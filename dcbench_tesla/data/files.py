"""The user's own data sets: ``npz:PATH`` and ``folder:PATH``.

The input is not trusted: archives are read without pickle, and every unexpected content ends in one message that says
what was found and what was expected. Shapes: N images, C channels, H = W = side, K classes.
"""

from __future__ import annotations

import math
import os
import warnings
import zipfile
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from dcbench_tesla.data.checks import check_memory, reading, verify
from dcbench_tesla.data.dataset import Dataset
from dcbench_tesla.data.own import conversions
from dcbench_tesla.errors import CorruptFileError, DataMissingError, UsageError
from dcbench_tesla.records.regular import regular_file
from dcbench_tesla.records.store import atomic_path

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from dcbench_tesla.data.dataset import Labels, Pixels

    Array = NDArray[np.generic]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
REQUIRED_KEYS = ("x_train", "y_train", "x_test", "y_test")
OPTIONAL_KEYS = ("class_names", "max_value", "mean", "std", "flippable", "redistributable")
_PALETTES = ("P", "PA")  # Pillow's modes
_NPZ = "Name a .npz archive."
FOLDER_LAYOUT = "train/<class>/<image> and test/<class>/<image> (or val/<class>/<image>)"


# ---------------------------------------------------------------------------------------------------- npz:PATH


def load_npz(path: Path) -> Dataset:
    """Read the data set ``npz:PATH`` from a ``.npz`` archive written by ``numpy.savez``.

    Its keys are those of :func:`dataset_from`; other keys are ignored.

    Raises:
        DataMissingError: there is no such file.
        UsageError: the path is a folder.
        CorruptFileError: the file is damaged, or its arrays are not as described.
    """
    if not path.exists():
        keys = ", ".join(REQUIRED_KEYS)
        raise DataMissingError(f"npz:{path}: no such file; write one with numpy.savez (keys {keys}).")
    if path.is_dir():
        raise UsageError(f"npz:{path} is a folder, not a .npz file; for a folder of images write folder:{path}.")
    arrays = read_npz(regular_file(path, remedy=_NPZ), str(path), REQUIRED_KEYS, OPTIONAL_KEYS)
    return dataset_from(arrays, path.stem, path)


def dataset_from(arrays: Mapping[str, Array], name: str, file: Path | None = None) -> Dataset:
    """Return the data set ``npz:NAME`` of arrays by key.

    Required keys: ``x_train`` and ``x_test``, uint8 ``(N, H, W, C)`` or grey ``(N, H, W)`` with H = W and C 1 or 3;
    ``y_train`` and ``y_test``, integers ``(N,)`` in ``0..K-1``. Optional keys: ``class_names``, strings ``(K,)``;
    ``max_value``, the pixel value that stands for 1 (default 255); ``mean`` and ``std``, ``(C,)`` for ``pixels /
    max_value``; ``flippable`` and ``redistributable``, one bool each (default False).

    Args:
        arrays: the arrays.
        name: the name of the data set.
        file: the archive that they were read from, for messages; ``None`` for arrays in memory.

    Raises:
        CorruptFileError: the arrays are not as described. Where their values can be converted, the message ends with
            the lines of Python that do it.
    """
    given = _Given(arrays, file)
    x_train, x_test = (given.images(key) for key in conversions.IMAGES)
    if x_train.shape[1:] != x_test.shape[1:]:
        sizes = [" x ".join(map(str, arrays[key].shape[1:])) for key in conversions.IMAGES]
        found = f"x_train has images of {sizes[0]}, x_test of {sizes[1]}"
        raise CorruptFileError(f"{given}: {found} (H x W x C); expected the same.")
    y_train, y_test = (given.labels(key) for key in conversions.LABELS)
    facts: dict[str, Any] = {**given.statistics(x_train.shape[1]), **given.flags()}
    facts |= {"name": f"npz:{name}", "class_names": given.names(y_train, y_test)}
    facts |= {"max_value": given.max_value(max(int(x.max(initial=0)) for x in (x_train, x_test)))}
    made = Dataset(x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test, **facts)
    try:
        return verify(made, file or Path(str(given)))
    except CorruptFileError as error:
        lines = conversions.for_labels(arrays, file) if _gaps(y_train, y_test) else ""
        raise CorruptFileError(f"{error}{lines}") from error


def save_npz(dataset: Dataset, path: Path) -> None:
    """Write a data set as an archive that :func:`load_npz` reads."""
    import numpy as np

    arrays: dict[str, Any] = {"class_names": np.array(dataset.class_names), "max_value": np.array(dataset.max_value)}
    for part in ("train", "test"):
        arrays[f"x_{part}"] = getattr(dataset, f"x_{part}").transpose(0, 2, 3, 1)
        arrays[f"y_{part}"] = getattr(dataset, f"y_{part}")
    arrays |= {key: np.array(getattr(dataset, key)) for key in ("flippable", "redistributable")}
    arrays |= {key: np.array(value) for key in ("mean", "std") if (value := getattr(dataset, key)) is not None}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def _gaps(y_train: Labels, y_test: Labels) -> bool:
    """Return whether classes are not numbered from 0 without gaps, alike in training and test."""
    found = set(y_train.tolist())
    return found == set(y_test.tolist()) and found != set(range(len(found)))


def read_npz(
    file: Path | IO[bytes], where: str, required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> dict[str, Array]:
    """Read the arrays ``required``, and those of ``optional`` that exist, from a ``.npz`` archive without pickle.

    Raises:
        CorruptFileError: a required key is missing, an array holds objects, or the file is damaged; the message names
            ``where``.
    """
    import numpy as np

    if not zipfile.is_zipfile(file):  # np.load would report it as a pickle
        raise CorruptFileError(f"{where}: not a .npz archive, or cut short; get it or write it (numpy.savez) anew.")
    _check_sizes(file, where, {*required, *optional})
    with reading(f"{where}: damaged", "get it or write it anew"), np.load(file, allow_pickle=False) as archive:
        missing = ", ".join(key for key in required if key not in archive)
        if missing:
            found = f"lacks {missing}, found {', '.join(archive.files) or 'nothing'}"
            raise CorruptFileError(f"{where}: {found}; expected {', '.join(required)}.")
        return {key: _member(archive, key, where) for key in (*required, *optional) if key in archive}


def _check_sizes(file: Path | IO[bytes], where: str, keys: Set[str]) -> None:
    """Check, before numpy takes memory for them, that the arrays are as large as their headers say, and fit."""
    with reading(f"{where}: damaged", "get it or write it anew"), zipfile.ZipFile(file) as archive:
        members = [info for info in archive.infolist() if info.filename.removesuffix(".npy") in keys]
        for info in members:
            with archive.open(info) as member:
                promised = _promised_bytes(member)
                if promised is not None and promised != info.file_size - member.tell():
                    found = f"{info.filename} promises {promised} bytes and holds {info.file_size - member.tell()}"
                    raise CorruptFileError(f"{where}: {found}; get it or write it anew.")
        check_memory(where, sum(info.file_size for info in members))
    if not isinstance(file, Path):
        file.seek(0)


def _promised_bytes(member: IO[bytes]) -> int | None:
    """Return the bytes of an array by its header, which is read; ``None`` where the size says nothing of the values."""
    import numpy as np

    if member.read(6) != np.lib.format.MAGIC_PREFIX:
        return None  # not an array, which is said when it is read
    major, minor = member.read(2)
    readers = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    if major not in readers:
        raise ValueError(f"a header of version {major}.{minor}, which plain numbers never have")
    shape, _, kind = readers[major](member)
    return None if kind.hasobject else math.prod(shape) * kind.itemsize


def _member(archive: Mapping[str, Any], key: str, where: str) -> Array:
    try:
        array: Array = archive[key]
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        problem = f"{key} is an object array, which needs pickle and is not read"
        raise CorruptFileError(f"{where}: {problem}; expected plain numbers or strings.") from error
    if not hasattr(array, "dtype"):  # numpy returns members in another format as bytes
        raise CorruptFileError(f"{where}: {key} is not an array; write the file with numpy.savez.")
    return array


class _Given:
    """Arrays by key, and what they say of a data set; :func:`dataset_from` tells what each key holds."""

    def __init__(self, arrays: Mapping[str, Array], file: Path | None) -> None:
        self._arrays, self._file = arrays, file

    def __str__(self) -> str:
        return str(self._file or "data")

    def _wrong(self, key: str, expected: str) -> CorruptFileError:
        array = self._arrays[key]
        return CorruptFileError(f"{self}: {key} is {array.dtype} of shape {array.shape}; expected {expected}.")

    def images(self, key: str) -> Pixels:
        """Return ``(N, C, H, W)`` from ``(N, H, W)`` or ``(N, H, W, C)``."""
        array = self._arrays[key]
        expected = "uint8 N x H x W x C or N x H x W, H = W, C 1 or 3"
        images = array[..., None] if array.ndim == 3 else array
        if (
            images.ndim != 4
            or images.shape[1] != images.shape[2]
            or images.shape[3] not in (1, 3)
            or not images.shape[1]
        ):
            if not conversions.channels_first(array):
                raise self._wrong(key, expected)
            expected += " (this looks like N x C x H x W: transpose(0, 2, 3, 1) first)"
            raise CorruptFileError(f"{self._wrong(key, expected)}{conversions.for_images(self._arrays, self._file)}")
        if array.dtype != "uint8":
            wrong = self._wrong(key, f"{expected}, values 0..255")
            raise CorruptFileError(f"{wrong}{conversions.for_images(self._arrays, self._file)}")
        return images.transpose(0, 3, 1, 2).astype("uint8", order="C")

    def labels(self, key: str) -> Labels:
        """Return the class numbers."""
        array = self._arrays[key]
        if array.ndim != 1 or array.dtype.kind not in "iu":
            wrong = self._wrong(key, "integers of shape (N,), class numbers 0..K-1")
            raise CorruptFileError(f"{wrong}{conversions.for_labels(self._arrays, self._file)}")
        return array.astype("int64")

    def names(self, y_train: Labels, y_test: Labels) -> tuple[str, ...]:
        """Return the class names; by default the numbers."""
        if "class_names" in self._arrays:
            names = self._arrays["class_names"]
            if names.ndim != 1 or names.dtype.kind != "U" or not len(names):
                raise self._wrong("class_names", "strings of shape (K,)")
            return tuple(map(str, names))
        highest = max((int(y.max()) for y in (y_train, y_test) if len(y)), default=-1)
        if highest >= max(len(y_train), 1):  # otherwise a stray label could make a billion class names
            found = f"highest label {highest} with {len(y_train)} training images"
            raise CorruptFileError(f"{self}: {found}; expected labels 0..K-1 and every class in train.")
        return tuple(map(str, range(highest + 1)))

    def max_value(self, largest: int) -> int:
        """Return the pixel value that stands for 1; ``largest`` is the largest one there is."""
        array = self._arrays.get("max_value")
        if array is None:
            return 255
        if array.shape != () or array.dtype.kind not in "iu" or not max(largest, 1) <= int(array) <= 255:
            raise self._wrong("max_value", f"one integer from the largest pixel, {largest}, to 255")
        return int(array)

    def statistics(self, channels: int) -> dict[str, tuple[float, ...]]:
        """Return the optional ``mean`` and ``std``, one number per channel each; both or neither must be given."""
        keys = ("mean", "std") if "mean" in self._arrays or "std" in self._arrays else ()
        expected = f"mean and std together, {channels} finite number(s) each"
        for key in keys:
            if key not in self._arrays:
                raise CorruptFileError(f"{self}: {key} is missing; expected {expected}.")
            array = self._arrays[key]
            numbers = array.shape == (channels,) and array.dtype.kind in "fiu"
            if not numbers or not all(map(math.isfinite, array.tolist())):
                raise self._wrong(key, expected)
        found = {key: tuple(map(float, self._arrays[key].tolist())) for key in keys}
        if min(found.get("std", (1,))) <= 0:
            raise CorruptFileError(f"{self}: std is {found['std']}; expected numbers above 0 (of pixels / max_value).")
        return found

    def flags(self) -> dict[str, bool]:
        """Return whether images may be mirrored and passed on; by default neither."""
        found = {key: self._arrays[key] for key in ("flippable", "redistributable") if key in self._arrays}
        for key, array in found.items():
            if array.shape != () or array.dtype.kind != "b":
                raise self._wrong(key, "one bool")
        return {"flippable": False, **{key: bool(array) for key, array in found.items()}}


# ------------------------------------------------------------------------------------------------- folder:PATH


def load_folder(path: Path) -> Dataset:
    """Read the data set ``folder:PATH`` from ``train/<class>/*`` and ``test/<class>/*`` (or ``val/<class>/*``).

    Images are PNG, JPEG, WebP or BMP files of one square size, turned as their EXIF orientation says. The class names
    are the sorted folder names, which must be the same in both splits. If every image is grey there is one channel,
    otherwise three. Grey are files without colours, with or without transparency, and files whose palette holds only
    greys; transparency is dropped. Hidden files are ignored. Images are not mirrored, nor may they be passed on.

    Raises:
        DataMissingError: a folder does not exist.
        UsageError: the path is a file.
        CorruptFileError: the folder is not laid out so, or an image cannot be read or has another size.
    """
    import numpy as np

    if not path.exists():
        raise DataMissingError(f"folder:{path}: no such folder; expected one with {FOLDER_LAYOUT}.")
    if not path.is_dir():
        raise UsageError(f"folder:{path} is a file; write npz:PATH for an archive. A folder has {FOLDER_LAYOUT}.")
    test_name = "test" if (path / "test").is_dir() else "val"
    train, test = _class_images(path / "train"), _class_images(path / test_name)
    differing = {name for name, _ in train} ^ {name for name, _ in test}
    if differing:
        name = min(differing)
        here, there = ("train", test_name) if (path / "train" / name).is_dir() else (test_name, "train")
        raise CorruptFileError(f"{path}: class {name!r} is in {here} but not in {there}; expected the same classes.")
    names, y = np.unique([name for name, _ in (*train, *test)], return_inverse=True)
    x, y, n = _decoded([image for _, image in (*train, *test)]), y.astype(np.int64), len(train)
    facts: dict[str, Any] = {"name": f"folder:{Path(os.path.abspath(path)).name}", "class_names": tuple(names.tolist())}
    facts |= {"flippable": False}
    return verify(Dataset(x_train=x[:n], y_train=y[:n], x_test=x[n:], y_test=y[n:], **facts), path)


def _class_images(split: Path) -> list[tuple[str, Path]]:
    """Return the class and path of every image, sorted."""
    if not split.is_dir():
        raise DataMissingError(f"{split}: no such folder; expected {FOLDER_LAYOUT}.")
    folders = _visible(split)
    loose = [folder for folder in folders if not folder.is_dir()]
    if loose or not folders:
        found = f"{loose[0]}: a file beside the class folders" if loose else f"{split}: empty"
        raise CorruptFileError(f"{found}; expected {FOLDER_LAYOUT}.")
    return [(folder.name, image) for folder in folders for image in _images_in(folder)]


def _images_in(folder: Path) -> list[Path]:
    files = _visible(folder)
    other = [file for file in files if file.suffix.lower() not in IMAGE_SUFFIXES or not file.is_file()]
    if other or not files:
        what = "not a regular file" if other and not (other[0].is_file() or other[0].is_dir()) else "not an image"
        found = f"{other[0]}: {what}" if other else f"{folder}: no images"
        raise CorruptFileError(f"{found}; expected files ending in {', '.join(IMAGE_SUFFIXES)}.")
    return files


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _decoded(paths: Sequence[Path]) -> Pixels:
    """Decode images of one square size to ``(N, C, H, W)``; C is 1 if all are grey, else 3."""
    import numpy as np

    images: list[Pixels] = []
    first, side = None, 0
    for path in paths:
        images.append(decode_image(path, str(path), keep_grey=True, upright=True))
        height, width = images[-1].shape[1:]
        if first is None:
            first, side = path, height
            check_memory(path.parent.parent.parent, len(paths) * images[-1].nbytes)
        if height != width or height != side:
            other = f", where {first} has {side} x {side}" if path != first else ""
            remedy = f"resize the folder first (ImageMagick: mogrify -resize '{side}x{side}!')"
            raise CorruptFileError(f"{path}: {width} x {height} pixels{other}; expected one square size: {remedy}.")
    channels = max(len(image) for image in images)
    return np.stack([np.broadcast_to(image, (channels, side, side)) for image in images])


def decode_image(
    file: Path | IO[bytes], where: str, *, keep_grey: bool = False, upright: bool = False, box_side: int | None = None
) -> Pixels:
    """Decode an image of 8 bits per channel to uint8 ``(3, H, W)``.

    Args:
        file: the image file.
        where: its name in messages.
        keep_grey: return ``(1, H, W)`` for a grey image, with or without transparency or a palette of greys.
        upright: turn the image as its EXIF orientation says, as image viewers do.
        box_side: shrink the image to this side in pixels with a box filter.

    Raises:
        CorruptFileError: the image cannot be read or has more than 8 bits per channel.
    """
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    with reading(f"{where}: cannot be read as an image", "replace or remove it"):
        try:
            image: Image.Image = Image.open(file)
        except UnidentifiedImageError as error:
            raise ValueError("not an image") from error
        if image.format == "PNG":  # the reader looks at no checksum of the pixels
            image.verify()
            image = Image.open(_again(file))
        with image:
            if image.mode.startswith(("I", "F")):
                problem = f"more than 8 bits a channel (mode {image.mode}); convert the folder to 8 bits first"
                raise CorruptFileError(f"{where}: {problem}.")
            image = _turned(image) if upright else image
            grey = keep_grey and _is_grey(image)
            image = _without_palette(image).convert("L" if grey else "RGB")
    if box_side is not None:
        image = image.resize((box_side, box_side), Image.Resampling.BOX)
    pixels = np.asarray(image, dtype=np.uint8)
    return np.ascontiguousarray(pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1))


def _again(file: Path | IO[bytes]) -> Path | IO[bytes]:
    """Return a file to be read from its beginning."""
    if not isinstance(file, Path):
        file.seek(0)
    return file


def _turned(image: Image.Image) -> Image.Image:
    """Turn and mirror an image as its EXIF orientation says; one that cannot be read says nothing."""
    from PIL import ImageOps

    image.load()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data can make its reader raise nearly anything, and the pixels are right
        return image


def _is_grey(image: Image.Image) -> bool:
    """Whether an image has no colours: a grey mode, or a palette whose colours in use are all grey."""
    import numpy as np

    if image.mode not in _PALETTES:
        return image.mode in ("1", "L", "LA", "La")
    colours = np.asarray(_without_palette(image).convert("RGB"))
    return bool((colours == colours[..., :1]).all())


def _without_palette(image: Image.Image) -> Image.Image:
    """The image with its colours in place of a palette; Pillow warns where transparency does not pass through RGBA."""
    return image.convert("RGBA") if image.mode in _PALETTES else image
