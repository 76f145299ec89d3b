"""Images and labels out of files: ``npz:PATH``, ``folder:PATH``, and the file formats of the named data sets.

Nothing here trusts its input: pickles are read with an allow-list, archives without pickle, and whatever does not hold
what it should ends in one message that says what was found and what was expected. Shapes: N images, C channels,
H = W = side, K classes. numpy and Pillow are imported inside the functions, so that importing this costs nothing.
"""

from __future__ import annotations

import gzip
import io
import os
import pickle
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from dcbench_tesla.data.dataset import Dataset
from dcbench_tesla.errors import CorruptFileError, DataMissingError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dcbench_tesla.data.dataset import Labels, Pixels

    Array = NDArray[np.generic]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
REQUIRED_KEYS = ("x_train", "y_train", "x_test", "y_test")
OPTIONAL_KEYS = ("class_names", "mean", "std", "flippable", "redistributable")
FOLDER_LAYOUT = "train/<class>/<image> and test/<class>/<image> (or val/<class>/<image>)"


def verify(dataset: Dataset, where: Path) -> Dataset:
    """Return ``dataset`` if both splits hold images, one label each in ``0..K-1``, and train holds every class.

    Raises :class:`CorruptFileError`, naming ``where``, otherwise.
    """
    import numpy as np

    classes = dataset.classes
    for split, x, y in (("train", dataset.x_train, dataset.y_train), ("test", dataset.x_test, dataset.y_test)):
        if not len(x):
            raise CorruptFileError(f"{where}: holds no {split} images; expected at least one.")
        if len(x) != len(y):
            raise CorruptFileError(f"{where}: {len(x)} {split} images but {len(y)} {split} labels; expected as many.")
        if y.min() < 0 or y.max() >= classes:
            found = f"{split} labels from {y.min()} to {y.max()}"
            raise CorruptFileError(f"{where}: {found}; expected 0..{classes - 1} for {classes} classes.")
    absent = np.flatnonzero(np.bincount(dataset.y_train, minlength=classes) == 0)
    if len(absent):
        first = f"{absent[0]} ({dataset.class_names[absent[0]]})"
        raise CorruptFileError(
            f"{where}: {len(absent)} of {classes} classes have no training image, the first is {first}; "
            "expected some of every class."
        )
    return dataset


# ---------------------------------------------------------------------------------------------------- npz:PATH


def load_npz(path: Path) -> Dataset:
    """Read the data set ``npz:PATH`` from a ``.npz`` archive written by ``numpy.savez``.

    Keys: ``x_train``, ``x_test`` uint8 ``(N, H, W, C)`` or grey ``(N, H, W)``, H = W, C 1 or 3; ``y_train``, ``y_test``
    integers ``(N,)`` in ``0..K-1``. Optional: ``class_names`` strings ``(K,)``; ``mean`` and ``std`` ``(C,)`` of
    ``pixels / 255``; ``flippable`` (default True) and ``redistributable`` (default False), one bool each. Other keys
    are not looked at. Raises :class:`DataMissingError`, :class:`UsageError` or :class:`CorruptFileError`.
    """
    path = path.expanduser()
    if not path.exists():
        raise DataMissingError(
            f"npz:{path}: no such file; write one with numpy.savez (keys {', '.join(REQUIRED_KEYS)})."
        )
    if path.is_dir():
        raise UsageError(f"npz:{path} is a folder, not a .npz file; for a folder of images write folder:{path}.")
    arrays = read_npz(path, str(path), REQUIRED_KEYS, OPTIONAL_KEYS)
    x_train, x_test = (_npz_images(arrays[key], f"{path}: {key}") for key in ("x_train", "x_test"))
    y_train, y_test = (_npz_labels(arrays[key], f"{path}: {key}") for key in ("y_train", "y_test"))
    if x_train.shape[1:] != x_test.shape[1:]:
        found = f"x_train has images of {_hwc(x_train)}, x_test of {_hwc(x_test)}"
        raise CorruptFileError(f"{path}: {found} (H x W x C); expected the same.")
    mean, std = _npz_statistics(arrays, x_train.shape[1], path)
    dataset = Dataset(
        name=f"npz:{path.stem}",
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
        class_names=_npz_names(arrays, y_train, y_test, path),
        mean=mean,
        std=std,
        flippable=_npz_flag(arrays, "flippable", True, path),
        redistributable=_npz_flag(arrays, "redistributable", False, path),
    )
    return verify(dataset, path)


def read_npz(
    file: Path | IO[bytes], where: str, required: Iterable[str], optional: Iterable[str] = ()
) -> dict[str, Array]:
    """Read the arrays ``required``, and those of ``optional`` that are there, from a ``.npz`` archive, without pickle.

    Raises :class:`CorruptFileError`, naming ``where``, for missing keys, object arrays and damaged files.
    """
    import numpy as np

    if not zipfile.is_zipfile(file):  # np.load would take it for a pickle and say so
        raise CorruptFileError(f"{where}: not a .npz archive, or cut short; get it or write it (numpy.savez) anew.")
    required = tuple(required)
    try:
        with np.load(file, allow_pickle=False) as archive:
            missing = [key for key in required if key not in archive]
            if missing:
                found = f"lacks {', '.join(missing)}, found {', '.join(archive.files) or 'nothing'}"
                raise CorruptFileError(f"{where}: {found}; expected {', '.join(required)}.")
            present = [key for key in (*required, *optional) if key in archive]
            return {key: _npz_member(archive, key, where) for key in present}
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError) as error:
        raise CorruptFileError(f"{where}: damaged ({error}); get it or write it anew.") from error


def _npz_member(archive: Mapping[str, Any], key: str, where: str) -> Array:
    import numpy as np

    try:
        array = archive[key]
    except ValueError as error:
        if "pickle" not in str(error):
            raise CorruptFileError(f"{where}: {key} is damaged ({error}); get it or write it anew.") from error
        raise CorruptFileError(
            f"{where}: {key} is an object array, which needs pickle and is not read; "
            "expected plain numbers or strings (dtype uint8, int64, <U...)."
        ) from error
    if not isinstance(array, np.ndarray):  # numpy hands out members in another format as bytes
        raise CorruptFileError(f"{where}: {key} is not an array; write the file with numpy.savez.")
    return array


def _npz_images(array: Array, where: str) -> Pixels:
    """Return ``(N, C, H, W)`` from ``(N, H, W)`` or ``(N, H, W, C)``; ``where`` names file and key."""
    import numpy as np

    expected = "expected uint8 N x H x W x C or N x H x W, H = W, C 1 or 3"
    found = f"{array.dtype} of shape {array.shape}"
    if array.dtype != np.uint8:
        raise CorruptFileError(f"{where} is {found}; {expected}, values 0..255.")
    if array.ndim == 3:
        array = array[..., np.newaxis]
    if array.ndim != 4 or array.shape[1] != array.shape[2] or array.shape[3] not in (1, 3) or not array.shape[1]:
        channels_first = array.ndim == 4 and array.shape[1] in (1, 3)
        hint = " (this looks like N x C x H x W: transpose(0, 2, 3, 1) first)" if channels_first else ""
        raise CorruptFileError(f"{where} is {found}; {expected}{hint}.")
    return np.ascontiguousarray(array.transpose(0, 3, 1, 2), dtype=np.uint8)


def _npz_labels(array: Array, where: str) -> Labels:
    import numpy as np

    if array.ndim != 1 or array.dtype.kind not in "iu":
        found = f"{array.dtype} of shape {array.shape}"
        raise CorruptFileError(f"{where} is {found}; expected integers of shape (N,), class numbers 0..K-1.")
    return array.astype(np.int64)


def _npz_names(arrays: Mapping[str, Array], y_train: Labels, y_test: Labels, path: Path) -> tuple[str, ...]:
    names = arrays.get("class_names")
    if names is not None:
        if names.ndim != 1 or names.dtype.kind != "U" or not len(names):
            found = f"{names.dtype} of shape {names.shape}"
            raise CorruptFileError(f"{path}: class_names is {found}; expected strings of shape (K,).")
        return tuple(str(name) for name in names)
    highest = max((int(y.max()) for y in (y_train, y_test) if len(y)), default=-1)
    if highest >= max(len(y_train), 1):  # a stray label must not make a billion class names
        raise CorruptFileError(
            f"{path}: highest label {highest} with {len(y_train)} training images; "
            "expected labels 0..K-1 and every class in train."
        )
    return tuple(str(label) for label in range(highest + 1))


def _npz_statistics(
    arrays: Mapping[str, Array], channels: int, path: Path
) -> tuple[tuple[float, ...], tuple[float, ...]] | tuple[None, None]:
    """Return the optional ``mean`` and ``std``, one number a channel each, or two ``None``."""
    import numpy as np

    if "mean" not in arrays and "std" not in arrays:
        return None, None
    values: list[tuple[float, ...]] = []
    for key in ("mean", "std"):
        array = arrays.get(key, np.zeros(0))
        if array.shape != (channels,) or array.dtype.kind not in "fiu" or not np.isfinite(array.astype(float)).all():
            found = f"{array.dtype} of shape {array.shape}" if key in arrays else "missing"
            raise CorruptFileError(
                f"{path}: {key} is {found}; expected mean and std together, {channels} finite number(s) each."
            )
        values.append(tuple(float(value) for value in array))
    if min(values[1]) <= 0:
        raise CorruptFileError(f"{path}: std is {values[1]}; expected numbers above 0 (of pixels / 255).")
    return values[0], values[1]


def _npz_flag(arrays: Mapping[str, Array], key: str, default: bool, path: Path) -> bool:
    array = arrays.get(key)
    if array is None:
        return default
    if array.shape != () or array.dtype.kind != "b":
        raise CorruptFileError(f"{path}: {key} is {array.dtype} of shape {array.shape}; expected one bool.")
    return bool(array)


def _hwc(images: Pixels) -> str:
    """Write the image size of ``(N, C, H, W)`` as the archive has it."""
    return f"{images.shape[2]} x {images.shape[3]} x {images.shape[1]}"


# ------------------------------------------------------------------------------------------------- folder:PATH


def load_folder(path: Path) -> Dataset:
    """Read the data set ``folder:PATH`` from ``train/<class>/*`` and ``test/<class>/*`` (``val`` where no ``test`` is).

    PNG, JPEG, WebP and BMP, all of one square size; class names are the sorted folder names, the same in both; grey
    where every image is grey, RGB otherwise (transparency is dropped). Hidden files are passed over. Raises
    :class:`DataMissingError`, :class:`UsageError` or :class:`CorruptFileError`, which names the file.
    """
    path = path.expanduser()
    if not path.exists():
        raise DataMissingError(f"folder:{path}: no such folder; expected one with {FOLDER_LAYOUT}.")
    if not path.is_dir():
        raise UsageError(
            f"folder:{path} is a file; expected a folder with {FOLDER_LAYOUT}, or npz:PATH for an archive."
        )
    test_split = path / "test" if (path / "test").is_dir() else path / "val"
    train, test = _class_images(path / "train"), _class_images(test_split)
    differing = sorted(train.keys() ^ test.keys())
    if differing:
        here, there = ("train", test_split.name) if differing[0] in train else (test_split.name, "train")
        raise CorruptFileError(
            f"{path}: class {differing[0]!r} is in {here} but not in {there}; expected the same classes."
        )
    mode = _common_mode(image for images in (*train.values(), *test.values()) for image in images)
    x_train, y_train = _read_classes(train, mode)
    x_test, y_test = _read_classes(test, mode)
    dataset = Dataset(
        name=f"folder:{Path(os.path.abspath(path)).name}",
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
        class_names=tuple(train),
    )
    return verify(dataset, path)


def _class_images(split: Path) -> dict[str, list[Path]]:
    """Map the class folders of ``split``, sorted by name, to their images, sorted by name."""
    if not split.is_dir():
        raise DataMissingError(f"{split}: no such folder; expected {FOLDER_LAYOUT}.")
    entries = sorted(entry for entry in split.iterdir() if not entry.name.startswith("."))
    loose = [entry for entry in entries if not entry.is_dir()]
    if loose or not entries:
        found = f"{loose[0]}: a file beside the class folders" if loose else f"{split}: empty"
        raise CorruptFileError(f"{found}; expected {FOLDER_LAYOUT}.")
    return {folder.name: _images_in(folder) for folder in entries}


def _images_in(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
    other = [file for file in files if file.suffix.lower() not in IMAGE_SUFFIXES or file.is_dir()]
    if other or not files:
        found = f"{other[0]}: not an image" if other else f"{folder}: no images"
        raise CorruptFileError(f"{found}; expected files ending in {', '.join(IMAGE_SUFFIXES)}.")
    return files


def _common_mode(images: Iterable[Path]) -> str:
    """Return ``L`` where every image is grey, else ``RGB``, having checked from the headers that sizes agree."""
    from PIL import Image

    first: tuple[Path, tuple[int, int]] | None = None
    grey = True
    for path in images:
        try:
            with Image.open(path) as image:
                size, mode = image.size, image.mode
        except Exception as error:  # Pillow raises half a dozen kinds on damaged headers
            raise _unreadable(str(path), error) from error
        if mode.startswith(("I", "F")):
            raise CorruptFileError(
                f"{path}: more than 8 bits a channel (mode {mode}); convert the folder to 8 bits first."
            )
        first = first or (path, size)
        if size[0] != size[1] or size != first[1]:
            raise _wrong_size(path, size, first)
        grey = grey and mode in ("L", "1")
    return "L" if grey else "RGB"


def _wrong_size(path: Path, size: tuple[int, int], first: tuple[Path, tuple[int, int]]) -> CorruptFileError:
    found = f"{path}: {size[0]} x {size[1]} pixels"
    if path != first[0]:
        found += f", where {first[0]} has {first[1][0]} x {first[1][1]}"
    side = min(first[1])
    return CorruptFileError(
        f"{found}; expected one square size: resize the folder first (ImageMagick: mogrify -resize '{side}x{side}!')."
    )


def _read_classes(classes: Mapping[str, list[Path]], mode: str) -> tuple[Pixels, Labels]:
    """Decode the images of all classes, in their order, to ``(N, C, H, W)`` with labels ``(N,)``."""
    import numpy as np

    images = [decode_image(path.read_bytes(), str(path), mode) for paths in classes.values() for path in paths]
    labels = np.repeat(np.arange(len(classes)), [len(paths) for paths in classes.values()])
    return np.stack(images), labels.astype(np.int64)


# ------------------------------------------------------------------------------------- formats of the named sets


def decode_image(data: bytes, where: str, mode: str = "RGB", box_side: int | None = None) -> Pixels:
    """Decode an image file to uint8 ``(C, H, W)`` in Pillow's ``mode``; ``box_side`` shrinks it with a box filter.

    Raises :class:`CorruptFileError`, naming ``where``, if the image cannot be read to its end.
    """
    import numpy as np
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as opened:
            image = opened.convert(mode)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises half a dozen kinds on damaged files
        raise _unreadable(where, error) from error
    if box_side is not None:
        image = image.resize((box_side, box_side), Image.Resampling.BOX)
    pixels = np.asarray(image, dtype=np.uint8)
    return np.ascontiguousarray(pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1))


def _unreadable(where: str, error: Exception) -> CorruptFileError:
    reason = "not an image" if "cannot identify" in str(error) else str(error)
    return CorruptFileError(f"{where}: cannot be read as an image ({reason}); replace or remove it.")


def read_idx(path: Path) -> Pixels:
    """Read an IDX file of unsigned bytes (MNIST's format), gzipped if its name ends in ``.gz``, of any shape.

    Raises :class:`CorruptFileError` for a damaged file, another format, or a length the header does not promise.
    """
    import numpy as np

    remedy = "delete it and get it again"
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise CorruptFileError(f"{path}: cannot be read ({error}); {remedy}.") from error
    if raw[:3] != b"\0\0\x08" or len(raw) < 4 + 4 * raw[3]:
        raise CorruptFileError(f"{path}: not an IDX file of unsigned bytes; {remedy}.")
    start = 4 + 4 * raw[3]
    shape = [int.from_bytes(raw[i : i + 4], "big") for i in range(4, start, 4)]
    flat = np.frombuffer(raw, np.uint8, offset=start)
    if len(flat) != int(np.prod(shape)):
        raise CorruptFileError(f"{path}: {len(flat)} bytes of data, its header promises {np.prod(shape)}; {remedy}.")
    return flat.reshape(shape).copy()  # a copy, as the buffer is read-only


class _BatchUnpickler(pickle.Unpickler):
    """Builds numbers, strings, lists, dicts and numeric arrays, and nothing else a pickle may ask for."""

    def find_class(self, module: str, name: str) -> Any:
        import numpy as np

        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes in Python 2's protocol
            return _latin1_bytes
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return _numeric_dtype
        # asked of an array: numpy 2 moved them from numpy.core to numpy._core, and old files name the old place
        makers: list[Any] = [np.zeros(1).__reduce_ex__(protocol)[0] for protocol in (2, 5)]
        if module.replace("numpy._core.", "numpy.core.") in ("numpy.core.multiarray", "numpy.core.numeric"):
            for maker in makers:
                if maker.__name__ == name:
                    return maker
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no image batch needs")


def _latin1_bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding}")
    return text.encode("latin1")


def _numeric_dtype(code: str, align: bool = False, copy: bool = False) -> np.dtype[Any]:
    """Build a dtype of plain numbers: an array of objects could smuggle in pointers."""
    import numpy as np

    if not isinstance(code, str) or code[:1] not in "biuf" or not code[1:].isdigit():
        raise pickle.UnpicklingError(f"it asks for arrays of {code!r}")
    return np.dtype(code, align=bool(align), copy=bool(copy))


def read_batch(stream: IO[bytes], where: str) -> dict[str, Any]:
    """Read a pickled dict of numbers, strings, lists and numeric arrays (CIFAR's and ImageNet64's batches), safely.

    Text of Python 2 is read as Latin-1. Raises :class:`CorruptFileError`, naming ``where``, for anything else.
    """
    try:
        batch = _BatchUnpickler(stream, encoding="latin1").load()
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise CorruptFileError(f"{where}: not a batch of images, or damaged ({error}); get it again.") from error
    if not isinstance(batch, dict):
        raise CorruptFileError(f"{where}: holds a {type(batch).__name__}, expected a dict; get it again.")
    return batch


def batch_rows(batch: Mapping[str, Any], label_key: str, row_bytes: int, where: str) -> tuple[Pixels, Labels]:
    """Return a batch's ``data``, uint8 ``(N, row_bytes)``, and its labels under ``label_key``, int64 ``(N,)``.

    Raises :class:`CorruptFileError`, naming ``where``, if either is missing or of another shape.
    """
    import numpy as np

    for key in ("data", label_key):
        if key not in batch:
            raise CorruptFileError(f"{where}: no {key!r} among its keys {sorted(map(str, batch))}; get it again.")
    data, labels = batch["data"], np.asarray(batch[label_key])
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (row_bytes,):
        found = f"{data.dtype} of shape {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise CorruptFileError(f"{where}: data is {found}, expected uint8 of shape (N, {row_bytes}); get it again.")
    if labels.dtype.kind not in "iu" or labels.shape != (len(data),):
        found = f"{labels.dtype} of shape {labels.shape}"
        raise CorruptFileError(f"{where}: {label_key} is {found}, expected {len(data)} integers; get it again.")
    return data, labels.astype(np.int64)
