"""The data sets known by name: where each is looked for, how it is fetched, and how it is read.

Every source looks below ``data_dir`` (``--data-dir`` or ``$DCBENCH_DATA``) in the layout torchvision uses or in the
public archive's own, and downloads where that is allowed without an account. Downloads are checked against the
published MD5 and take their name only when complete. The two sets of 64 x 64 photographs are decoded once into a
folder of ``.npy`` files and read from there by memory map. Nothing heavy is imported at the top, so that data sets can
be listed in no time. Shapes: N images, C channels, H = W = side, K classes.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import logging
import os
import re
import shutil
import tarfile
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, NamedTuple

from dcbench_tesla.data.dataset import Dataset, DatasetSource
from dcbench_tesla.data.files import batch_rows, decode_image, read_batch, read_idx, read_npz, verify
from dcbench_tesla.errors import CorruptFileError, DataMissingError, DcbenchError

if TYPE_CHECKING:
    from dcbench_tesla.data.dataset import Labels, Pixels

logger = logging.getLogger(__name__)

# Where a package manager puts a set: looked at after data_dir.
SYSTEM_FOLDERS: dict[str, tuple[Path, ...]] = {"fashion-mnist": (Path("/usr/share/datasets/fashion-mnist"),)}
NETWORK_TIMEOUT_S = 5.0  # for connecting and for every read: without a network the answer must come at once
DATA_FOLDER = "the data folder (--data-dir or $DCBENCH_DATA)"
_DIGIT_NAMES = tuple("0123456789")


# -------------------------------------------------------------------------------------- what the sources share


class _Remote(NamedTuple):
    """A file to be had from a public address."""

    name: str
    url: str
    md5: str


def _first(paths: Iterable[Path]) -> Path | None:
    """Return the first path that exists."""
    return next((path for path in paths if path.exists()), None)


def _missing(name: str, looked: Iterable[Path], remedy: str, tried: str = "") -> DataMissingError:
    places = ", ".join(map(str, looked))
    return DataMissingError(f"{name}: not found; looked for {places}{tried}. Remedy: {remedy}.")


def _write_whole(stream: IO[bytes], path: Path, md5: str | None = None) -> None:
    """Copy ``stream`` to ``path``, which gets its name only when all of it is there and matches ``md5``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # the process id keeps two cells apart; not tempfile, whose files other users of a shared folder cannot read
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with open(part, "wb") as file:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
                file.write(chunk)
        if md5 is not None and digest.hexdigest() != md5:
            raise CorruptFileError(f"its MD5 is {digest.hexdigest()}, the published one {md5}")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _fetch(name: str, remotes: Iterable[_Remote], folder: Path, looked: Iterable[Path], remedy: str) -> None:
    """Download ``remotes`` into ``folder``; raises :class:`DataMissingError` with everything a user needs to know."""
    for remote in remotes:
        logger.info("%s: downloading %s", name, remote.url)
        request = urllib.request.Request(remote.url, headers={"User-Agent": "dcbench"})
        try:
            with urllib.request.urlopen(request, timeout=NETWORK_TIMEOUT_S) as response:
                _write_whole(response, folder / remote.name, remote.md5)
        except (OSError, http.client.HTTPException, CorruptFileError) as error:
            raise _missing(name, looked, remedy, f"; downloading {remote.url} failed ({error})") from error


def _whole(dataset: Dataset, where: Path, train_images: int, test_images: int) -> Dataset:
    """Verify ``dataset`` and log a warning where it is not as large as the original."""
    found, original = (len(dataset.x_train), len(dataset.x_test)), (train_images, test_images)
    if found != original:
        logger.warning(
            "%s: %s holds %d + %d images, the original %d + %d: not comparable with published results",
            *(dataset.name, where, *found, *original),
        )
    return verify(dataset, where)


# ------------------------------------------------------------------------------------------------------ digits


def _find_digits(data_dir: Path) -> Path | None:
    spec = find_spec("sklearn")  # finds without importing
    return Path(spec.origin).parent / "datasets" / "data" if spec and spec.origin else None


def _load_digits(data_dir: Path) -> Dataset:
    """Split scikit-learn's digits: of every class, images 5, 10, 15 ... in the original order are the test set.

    There is no official split; this one is balanced, needs no random numbers, and so never changes.
    """
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = digits.images.astype(np.uint8)[:, np.newaxis]
    y = digits.target.astype(np.int64)
    position = np.zeros_like(y)  # of each image within its class
    for digit in range(10):
        position[y == digit] = np.arange(np.count_nonzero(y == digit))
    test = position % 5 == 4
    return Dataset(
        name="digits",
        x_train=x[~test],
        y_train=y[~test],
        x_test=x[test],
        y_test=y[test],
        class_names=_DIGIT_NAMES,
        max_value=16,
        flippable=False,
        redistributable=True,
    )


DIGITS = DatasetSource(
    name="digits",
    summary="handwritten digits that come with scikit-learn, every 5th of a class for test (CC BY 4.0)",
    channels=1,
    side=8,
    classes=10,
    train_images=1442,
    test_images=355,
    find=_find_digits,
    load=_load_digits,
    remedy="pip install scikit-learn",
    redistributable=True,
)


# -------------------------------------------------------------------------------------- MNIST and Fashion-MNIST

_IDX_STEMS = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


class _IdxSet(NamedTuple):
    """A set of four IDX files, 28 x 28 grey: train and test, images and labels; ``md5s`` are of the ``.gz`` files."""

    name: str
    torchvision_folder: str
    base_url: str
    md5s: tuple[str, str, str, str]
    remedy: str
    class_names: tuple[str, ...]
    mean: float
    std: float
    flippable: bool


def _idx_folders(data: _IdxSet, data_dir: Path) -> list[Path]:
    return [data_dir / data.torchvision_folder / "raw", data_dir / data.name, *SYSTEM_FOLDERS.get(data.name, ())]


def _idx_file(folder: Path, stem: str) -> Path | None:
    """Return the ``.gz`` before the unpacked file: its checksum tells a truncated one."""
    return _first((folder / f"{stem}.gz", folder / stem))


def _find_idx(data: _IdxSet, data_dir: Path) -> Path | None:
    folders = _idx_folders(data, data_dir)
    return next((folder for folder in folders if all(_idx_file(folder, stem) for stem in _IDX_STEMS)), None)


def _load_idx(data: _IdxSet, data_dir: Path) -> Dataset:
    import numpy as np

    folder = _find_idx(data, data_dir) or _download_idx(data, data_dir)
    x_train, y_train, x_test, y_test = (_read_idx_of(folder, stem) for stem in _IDX_STEMS)
    dataset = Dataset(
        name=data.name,
        x_train=x_train[:, np.newaxis],
        y_train=y_train.astype(np.int64),
        x_test=x_test[:, np.newaxis],
        y_test=y_test.astype(np.int64),
        class_names=data.class_names,
        mean=(data.mean,),
        std=(data.std,),
        flippable=data.flippable,
        redistributable=True,
    )
    return _whole(dataset, folder, 60_000, 10_000)


def _download_idx(data: _IdxSet, data_dir: Path) -> Path:
    """Fetch the files that are not in torchvision's folder, and return it."""
    folders = _idx_folders(data, data_dir)
    names = [f"{stem}.gz" for stem in _IDX_STEMS]
    remotes = [_Remote(name, data.base_url + name, md5) for name, md5 in zip(names, data.md5s, strict=True)]
    absent = [remote for remote in remotes if not _idx_file(folders[0], remote.name.removesuffix(".gz"))]
    # one file stands for the four in the message
    _fetch(data.name, absent, folders[0], [folder / absent[0].name for folder in folders], data.remedy)
    return folders[0]


def _read_idx_of(folder: Path, stem: str) -> Pixels:
    path = _idx_file(folder, stem) or folder / f"{stem}.gz"
    array = read_idx(path)
    expected = (28, 28) if "images" in stem else ()
    if array.ndim != 1 + len(expected) or array.shape[1:] != expected:
        shape = ", ".join(["N", *map(str, expected)])
        raise CorruptFileError(f"{path}: holds an array of shape {array.shape}, expected ({shape}); get it again.")
    return array


def _idx_source(data: _IdxSet, summary: str) -> DatasetSource:
    return DatasetSource(
        name=data.name,
        summary=summary,
        channels=1,
        side=28,
        classes=10,
        train_images=60_000,
        test_images=10_000,
        find=partial(_find_idx, data),
        load=partial(_load_idx, data),
        remedy=data.remedy,
        redistributable=True,
    )


_FASHION_MNIST = _IdxSet(
    name="fashion-mnist",
    torchvision_folder="FashionMNIST",
    base_url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    md5s=(
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    ),
    remedy="apt-get install dataset-fashion-mnist (Debian, Ubuntu), or put the four *-ubyte.gz files of "
    f"https://github.com/zalandoresearch/fashion-mnist into fashion-mnist/ in {DATA_FOLDER}",
    class_names=(
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    mean=0.2861,
    std=0.3530,
    flippable=True,
)

FASHION_MNIST = _idx_source(_FASHION_MNIST, "articles of clothing, 28x28 grey (MIT)")

_MNIST = _IdxSet(
    name="mnist",
    torchvision_folder="MNIST",
    base_url="https://ossci-datasets.s3.amazonaws.com/mnist/",
    md5s=(
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
    remedy="put the four *-ubyte.gz files (https://ossci-datasets.s3.amazonaws.com/mnist/train-images-idx3-ubyte.gz "
    f"and the like) into mnist/ in {DATA_FOLDER}",
    class_names=_DIGIT_NAMES,
    mean=0.1307,
    std=0.3081,
    flippable=False,
)

MNIST = _idx_source(_MNIST, "handwritten digits, 28x28 grey (CC BY-SA 3.0)")


# ------------------------------------------------------------------------------------------ CIFAR-10, CIFAR-100


class _CifarSet(NamedTuple):
    """A CIFAR archive of pickled batches: 3 x 32 x 32 colour images as rows of 3072 bytes."""

    name: str
    folder: str
    archive: _Remote
    train: tuple[str, ...]
    test: str
    meta: str
    label_key: str
    names_key: str
    classes: int

    @property
    def remedy(self) -> str:
        return f"put {self.archive.name} ({self.archive.url}) into {DATA_FOLDER}"

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.train, self.test, self.meta)


def _find_cifar(data: _CifarSet, data_dir: Path) -> Path | None:
    folder, archive = data_dir / data.folder, data_dir / data.archive.name
    return folder if all((folder / file).is_file() for file in data.files) else _first([archive])


def _load_cifar(data: _CifarSet, data_dir: Path) -> Dataset:
    import numpy as np

    folder, archive = data_dir / data.folder, data_dir / data.archive.name
    found = _find_cifar(data, data_dir)
    if found is None:
        _fetch(data.name, [data.archive], data_dir, [folder, archive], data.remedy)
    if found != folder:
        _unpack_cifar(data, archive, folder)
    names = _cifar_names(data, folder / data.meta)
    train = [_cifar_batch(folder / file, data.label_key) for file in data.train]
    x_test, y_test = _cifar_batch(folder / data.test, data.label_key)
    dataset = Dataset(
        name=data.name,
        x_train=np.concatenate([x for x, _ in train]),
        y_train=np.concatenate([y for _, y in train]),
        x_test=x_test,
        y_test=y_test,
        class_names=names,
        # CIFAR-10's numbers for CIFAR-100 as well: the released code of the field does so, and results depend on it
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
    )
    return _whole(dataset, folder, 50_000, 10_000)


def _unpack_cifar(data: _CifarSet, archive: Path, folder: Path) -> None:
    """Copy the files that are read, and no others, out of the ``.tar.gz``: no member can name a place of its own."""
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for file in data.files:
                member = tar.extractfile(f"{data.folder}/{file}")
                if member is None:
                    raise KeyError(f"{data.folder}/{file} is not a file")
                with member:
                    _write_whole(member, folder / file)
    except (tarfile.TarError, KeyError, EOFError, zlib.error, OSError) as error:
        problem = f"{archive}: cannot be unpacked into {folder} ({str(error).strip(chr(34))})"
        raise CorruptFileError(f"{problem}; if it is damaged, delete it and get {data.archive.url} again.") from error


def _cifar_names(data: _CifarSet, path: Path) -> tuple[str, ...]:
    with open(path, "rb") as file:
        names = read_batch(file, str(path)).get(data.names_key)
    if not isinstance(names, list) or len(names) != data.classes:
        raise CorruptFileError(f"{path}: no list {data.names_key!r} of {data.classes} names; get it again.")
    return tuple(str(name) for name in names)


def _cifar_batch(path: Path, label_key: str) -> tuple[Pixels, Labels]:
    with open(path, "rb") as file:
        rows, labels = batch_rows(read_batch(file, str(path)), label_key, 3 * 32 * 32, str(path))
    return rows.reshape(-1, 3, 32, 32), labels


def _cifar_source(data: _CifarSet, summary: str) -> DatasetSource:
    return DatasetSource(
        name=data.name,
        summary=summary,
        channels=3,
        side=32,
        classes=data.classes,
        train_images=50_000,
        test_images=10_000,
        find=partial(_find_cifar, data),
        load=partial(_load_cifar, data),
        remedy=data.remedy,
    )


_CIFAR10 = _CifarSet(
    name="cifar10",
    folder="cifar-10-batches-py",
    archive=_Remote(
        "cifar-10-python.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "c58f30108f718f92721af3b95e74349a",
    ),
    train=("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"),
    test="test_batch",
    meta="batches.meta",
    label_key="labels",
    names_key="label_names",
    classes=10,
)

CIFAR10 = _cifar_source(_CIFAR10, "photographs of 10 kinds of things, 32x32 (no licence stated)")

_CIFAR100 = _CifarSet(
    name="cifar100",
    folder="cifar-100-python",
    archive=_Remote(
        "cifar-100-python.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        "eb9058c3a382ffc7106e4002c42a8d85",
    ),
    train=("train",),
    test="test",
    meta="meta",
    label_key="fine_labels",
    names_key="fine_label_names",
    classes=100,
)

CIFAR100 = _cifar_source(_CIFAR100, "photographs of 100 kinds of things, 32x32 (no licence stated)")


# -------------------------------------------------------------------------------------------------------- SVHN

_SVHN_FILES = tuple(
    _Remote(name, f"http://ufldl.stanford.edu/housenumbers/{name}", md5)
    for name, md5 in (
        ("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
        ("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),
    )
)
_SVHN_REMEDY = f"put train_32x32.mat and test_32x32.mat (http://ufldl.stanford.edu/housenumbers/) into {DATA_FOLDER}"


def _find_svhn(data_dir: Path) -> Path | None:
    folders = (data_dir, data_dir / "svhn")
    return next((folder for folder in folders if all((folder / file.name).is_file() for file in _SVHN_FILES)), None)


def _load_svhn(data_dir: Path) -> Dataset:
    folder = _find_svhn(data_dir)
    if folder is None:
        folder = data_dir
        absent = [file for file in _SVHN_FILES if not (folder / file.name).is_file()]
        looked = [place / absent[0].name for place in (data_dir, data_dir / "svhn")]
        _fetch("svhn", absent, folder, looked, _SVHN_REMEDY)
    (x_train, y_train), (x_test, y_test) = (_read_mat(folder / file.name) for file in _SVHN_FILES)
    dataset = Dataset(
        name="svhn",
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
        class_names=_DIGIT_NAMES,
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
        flippable=False,
    )
    return _whole(dataset, folder, 73_257, 26_032)


def _read_mat(path: Path) -> tuple[Pixels, Labels]:
    """Read ``X`` uint8 ``(32, 32, 3, N)`` and ``y`` ``(N, 1)``, where class 10 is the digit 0."""
    import numpy as np
    from scipy.io import loadmat  # type: ignore[import-untyped]

    try:
        content = loadmat(path, variable_names=["X", "y"])
        x, y = content["X"], content["y"]
    except MemoryError:
        raise
    except Exception as error:  # a damaged .mat file can raise nearly anything
        raise CorruptFileError(f"{path}: not SVHN's .mat file, or damaged ({error}); get it again.") from error
    if x.dtype != np.uint8 or x.shape[:3] != (32, 32, 3) or y.shape != (x.shape[-1], 1):
        found = f"X {x.dtype} {x.shape} and y {y.shape}"
        raise CorruptFileError(f"{path}: holds {found}, expected X uint8 (32, 32, 3, N) and y (N, 1); get it again.")
    labels = y[:, 0].astype(np.int64)
    return np.ascontiguousarray(x.transpose(3, 2, 0, 1)), np.where(labels == 10, 0, labels)


SVHN = DatasetSource(
    name="svhn",
    summary="house numbers cut from street views, 32x32 (non-commercial use only)",
    channels=3,
    side=32,
    classes=10,
    train_images=73_257,
    test_images=26_032,
    find=_find_svhn,
    load=_load_svhn,
    remedy=_SVHN_REMEDY,
)


# --------------------------------------------------------------- decoding once, and reading by memory map after

_CHUNK = 4096  # images decoded, or copied, at a time: 50 MB at 64 x 64
_NPY_HEADER_BYTES = 128  # numpy pads the header to this, whatever the number of images

Chunks = Iterable[tuple["Pixels", "Labels"]]


class _Split(NamedTuple):
    """What a cache is made from: images and labels in chunks, for train and test, and the names."""

    train: Chunks
    test: Chunks
    class_names: Sequence[str]


def _make_cache(cache: Path, build: Callable[[], _Split]) -> None:
    """Write the folder ``cache`` unless it is there; a second process waits and finds it done.

    Files: ``x_train.npy``, ``x_test.npy`` uint8 ``(N, C, H, W)``, ``y_train.npy``, ``y_test.npy`` int64,
    ``class_names.json``. The folder gets its name when complete. Raises :class:`DcbenchError` if it cannot be written.
    """
    from filelock import FileLock

    part = cache.with_name(f"{cache.name}.part")
    try:
        with FileLock(f"{cache}.lock"):
            if cache.is_dir():
                return
            shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
            part.mkdir()
            try:
                split = build()
                _write_split(part, "train", split.train)
                _write_split(part, "test", split.test)
                (part / "class_names.json").write_text(json.dumps(list(split.class_names)), encoding="utf-8")
                part.rename(cache)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        remedy = "check the disk's room and permissions, or choose another place with --data-dir"
        raise DcbenchError(f"{cache}: decoding into this folder failed ({error}); {remedy}.") from error


def _write_split(folder: Path, split: str, chunks: Chunks) -> None:
    """Append the chunks to one ``.npy`` file whose header is written last, when their number is known."""
    import numpy as np

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


def _read_cache(name: str, cache: Path, train_images: int, test_images: int) -> Dataset:
    """Load a cache folder; the images stay on disk (``np.memmap``, read-only)."""
    import numpy as np

    try:
        x_train, x_test = (np.load(cache / f"x_{split}.npy", mmap_mode="r") for split in ("train", "test"))
        y_train, y_test = (np.load(cache / f"y_{split}.npy") for split in ("train", "test"))
        class_names = json.loads((cache / "class_names.json").read_text(encoding="utf-8"))
    except (OSError, EOFError, ValueError) as error:
        raise CorruptFileError(f"{cache}: damaged ({error}); delete this folder, it will be made anew.") from error
    dataset = Dataset(
        name=name,
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
        class_names=tuple(class_names),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    return _whole(dataset, cache, train_images, test_images)


class _Tree(NamedTuple):
    """Files below a folder or in a zip archive: sorted names with ``/``, and how to read one of them."""

    where: Path
    names: list[str]
    read: Callable[[str], bytes]

    def text(self, name: str) -> str:
        if name not in self.names:
            raise CorruptFileError(f"{self.where}: {name} is missing; get the data again.")
        return self.read(name).decode("utf-8", errors="replace")


def _folder_tree(root: Path) -> _Tree:
    names = []
    for folder, _, files in os.walk(root, followlinks=True):  # Path.rglob would hold a million Path objects
        below = Path(folder).relative_to(root).as_posix()
        names += [name if below == "." else f"{below}/{name}" for name in files]
    return _Tree(root, sorted(names), lambda name: (root / name).read_bytes())


def _zip_tree(path: Path, archive: zipfile.ZipFile) -> _Tree:
    """List a zip archive by its names without their first folder; refuses names that point outside it."""
    members = {}
    for info in archive.infolist():
        parts = PurePosixPath(info.filename).parts
        if info.filename.startswith("/") or ".." in parts or "\\" in info.filename or ":" in info.filename:
            raise CorruptFileError(f"{path}: refused, its member {info.filename!r} points outside the archive.")
        if not info.is_dir():
            members["/".join(parts[1:])] = info.filename

    def read(name: str) -> bytes:
        with archive.open(members[name]) as member:
            return _inner(member, f"{path}/{members[name]}")

    return _Tree(path, sorted(members), read)


def _inner(member: IO[bytes], where: str) -> bytes:
    """Read a member of a zip archive to its end, where its checksum is compared."""
    try:
        return member.read()
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise CorruptFileError(f"{where}: cannot be read ({error}); get the archive again.") from error


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise CorruptFileError(f"{path}: not a zip archive, or cut short ({error}); get it again.") from error


def _decoded(tree: _Tree, labels: Mapping[str, int], side: int, box: bool) -> Chunks:
    """Decode the images named by ``labels``, in that order; ``box`` shrinks them, otherwise they must have ``side``."""
    import numpy as np

    def decode(name: str) -> Pixels:
        where = f"{tree.where}/{name}"
        pixels = decode_image(tree.read(name), where, box_side=side if box else None)
        if pixels.shape != (3, side, side):
            raise CorruptFileError(f"{where}: {pixels.shape[2]} x {pixels.shape[1]} pixels, expected {side} x {side}.")
        return pixels

    names, y = list(labels), np.array(list(labels.values()), dtype=np.int64)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow lets other threads run while it decodes
        for start in range(0, len(names), _CHUNK):
            logger.info("decoding %s ... %d/%d", tree.where, start, len(names))
            images = pool.map(decode, names[start : start + _CHUNK])
            yield np.stack(list(images)), y[start : start + _CHUNK]


# ----------------------------------------------------------------------------------------------- Tiny-ImageNet

_TINY_REMEDY = f"put tiny-imagenet-200.zip (http://cs231n.stanford.edu/tiny-imagenet-200.zip) into {DATA_FOLDER}"


def _tiny_places(data_dir: Path) -> list[Path]:
    """Name the cache, the unpacked folder's list of classes, and the zip archive, in order of preference."""
    folder = data_dir / "tiny-imagenet-200"
    return [data_dir / "tiny-imagenet-200-npy", folder / "wnids.txt", folder.with_suffix(".zip")]


def _find_tiny(data_dir: Path) -> Path | None:
    found = _first(_tiny_places(data_dir))
    return found.parent if found and found.name == "wnids.txt" else found


def _load_tiny(data_dir: Path) -> Dataset:
    cache, found = _tiny_places(data_dir)[0], _find_tiny(data_dir)
    if found is None:
        raise _missing("tiny-imagenet", _tiny_places(data_dir), _TINY_REMEDY)
    if found.suffix == ".zip":
        with _open_zip(found) as archive:
            tree = _zip_tree(found, archive)
            _make_cache(cache, lambda: _tiny_split(tree))
    elif found != cache:
        _make_cache(cache, lambda: _tiny_split(_folder_tree(found)))
    return _read_cache("tiny-imagenet", cache, 100_000, 10_000)


def _tiny_split(tree: _Tree) -> _Split:
    """Read lists and annotations; classes are numbered in the order of their sorted WordNet ids."""
    wnids = sorted(tree.text("wnids.txt").split())
    if len(set(wnids)) != 200:
        raise CorruptFileError(f"{tree.where}: wnids.txt names {len(set(wnids))} classes, expected 200; get it again.")
    number = {wnid: label for label, wnid in enumerate(wnids)}
    train, test = {}, {}
    for name in tree.names:
        match = re.fullmatch(r"train/(n\d+)/images/[^/]+\.JPEG", name)
        if match and match[1] in number:
            train[name] = number[match[1]]
    present = set(tree.names)
    for line in tree.text("val/val_annotations.txt").splitlines():
        file, wnid = (*line.split("\t"), "", "")[:2]
        if wnid not in number or f"val/images/{file}" not in present:
            problem = f"val_annotations.txt names {file!r} of class {wnid!r}, one of which is not there"
            raise CorruptFileError(f"{tree.where}: {problem}; get it again.")
        test[f"val/images/{file}"] = number[wnid]
    _all_present(tree.where, wnids, train, test)
    words = tree.text("words.txt").splitlines() if "words.txt" in present else []
    names = dict(line.split("\t", 1) for line in words if "\t" in line)
    class_names = [names.get(wnid, wnid).split(",")[0].strip() for wnid in wnids]
    return _Split(_decoded(tree, train, 64, False), _decoded(tree, test, 64, False), class_names)


def _all_present(where: Path, wnids: Sequence[str], train: Mapping[str, int], test: Mapping[str, int]) -> None:
    """Raise before hours of decoding where a class has no training image, or the test set no image."""
    absent = sorted(set(range(len(wnids))) - set(train.values()))
    if absent or not test:
        found = (
            f"no training images of {len(absent)} classes ({wnids[absent[0]]})" if absent else "no validation images"
        )
        raise CorruptFileError(f"{where}: {found}; get the data again.")


TINY_IMAGENET = DatasetSource(
    name="tiny-imagenet",
    summary="photographs of 200 ImageNet classes, 64x64 (ImageNet's terms: non-commercial research)",
    channels=3,
    side=64,
    classes=200,
    train_images=100_000,
    test_images=10_000,
    find=_find_tiny,
    load=_load_tiny,
    remedy=_TINY_REMEDY,
)


# ----------------------------------------------------------------------------------------- ImageNet-1K at 64 x 64

_IMAGENET_TRAIN = tuple(f"train_data_batch_{number}" for number in range(1, 11))
_IMAGENET_VAL = "val_data"
_IMAGENET_REMEDY = (
    "with an account of https://image-net.org/download-images put Imagenet64_train_part1.zip, "
    f"Imagenet64_train_part2.zip and Imagenet64_val.zip into {DATA_FOLDER}, or unpack the full images there as "
    "imagenet/train/<wnid>/*.JPEG and imagenet/val/<wnid>/*.JPEG"
)


class _BatchFile(NamedTuple):
    """A batch of the 64 x 64 release: a file, or ``member`` of a zip archive; pickled, or ``.npz`` by its name."""

    path: Path
    member: str | None = None

    @property
    def where(self) -> str:
        return f"{self.path}/{self.member}" if self.member else str(self.path)


def _batch_folders(data_dir: Path) -> list[Path]:
    """List the folders that may hold batches or archives: unpacking the archives makes one of their name each."""
    places = (data_dir / "imagenet64", data_dir)
    return [*places, *(path for place in places for path in sorted(place.glob("Imagenet64_*")) if path.is_dir())]


def _imagenet_cache(data_dir: Path) -> Path:
    return data_dir / "imagenet1k-64-npy"


def _find_imagenet(data_dir: Path) -> Path | None:
    """Prefer the cache, then the public 64 x 64 batches, then full images: the release is what others used."""
    names = [f"train_data_batch_1{suffix}" for suffix in ("", ".npz")]
    names += [f"Imagenet64_train_part1{suffix}.zip" for suffix in ("", "_npz")]
    batches = [folder / name for folder in _batch_folders(data_dir) for name in names]
    return _first([_imagenet_cache(data_dir), *batches, data_dir / "imagenet" / "train"])


def _load_imagenet(data_dir: Path) -> Dataset:
    cache, found = _imagenet_cache(data_dir), _find_imagenet(data_dir)
    if found is None:
        looked = [cache, data_dir / "imagenet64", data_dir / "Imagenet64_train_part1.zip", data_dir / "imagenet/train"]
        raise _missing("imagenet1k-64", looked, _IMAGENET_REMEDY)
    if found == data_dir / "imagenet" / "train":
        _make_cache(cache, lambda: _imagenet_folder(found.parent))
    elif found != cache:
        _make_cache(cache, lambda: _imagenet_batches(data_dir))
    return _read_cache("imagenet1k-64", cache, 1_281_167, 50_000)


def _imagenet_folder(root: Path) -> _Split:
    """List full-size images; they are shrunk with a box filter, as the public 64 x 64 release was."""
    train, val = _folder_tree(root / "train"), _folder_tree(root / "val")
    wnids = sorted({name.split("/")[0] for name in train.names if "/" in name})
    if len(wnids) != 1000:
        problem = f"{len(wnids)} class folders with images, expected 1000"
        raise CorruptFileError(f"{root / 'train'}: {problem}; for a part of ImageNet use folder:PATH.")
    number = {wnid: label for label, wnid in enumerate(wnids)}
    labels = []
    for tree in (train, val):
        images = [name for name in tree.names if name.endswith(".JPEG")]
        stray = [name for name in images if name.split("/")[0] not in number or name.count("/") != 1]
        if stray:
            raise CorruptFileError(
                f"{tree.where}/{stray[0]}: not in a folder of one of train's classes; move it there."
            )
        labels.append({name: number[name.split("/")[0]] for name in images})
    _all_present(root, wnids, *labels)
    return _Split(_decoded(train, labels[0], 64, True), _decoded(val, labels[1], 64, True), wnids)


def _imagenet_batches(data_dir: Path) -> _Split:
    files = _batch_files(data_dir)
    missing = [name for name in (*_IMAGENET_TRAIN, _IMAGENET_VAL) if name not in files]
    if missing:
        places = [folder / missing[0] for folder in _batch_folders(data_dir)]
        raise _missing(f"imagenet1k-64: {', '.join(missing)}", places, _IMAGENET_REMEDY)
    train, val = [files[name] for name in _IMAGENET_TRAIN], [files[_IMAGENET_VAL]]
    return _Split(_batch_chunks(train), _batch_chunks(val), _imagenet_names(data_dir))


def _batch_files(data_dir: Path) -> dict[str, _BatchFile]:
    """Map the names of the batches to where they are: unpacked before zipped, pickled before ``.npz``."""
    files: dict[str, _BatchFile] = {}
    wanted = [name + suffix for suffix in ("", ".npz") for name in (*_IMAGENET_TRAIN, _IMAGENET_VAL)]
    for folder in _batch_folders(data_dir):
        for name in wanted:
            if (folder / name).is_file():
                files.setdefault(name.removesuffix(".npz"), _BatchFile(folder / name))
    for path in (path for folder in _batch_folders(data_dir) for path in sorted(folder.glob("Imagenet64_*.zip"))):
        with _open_zip(path) as archive:
            for member in archive.namelist():
                name = PurePosixPath(member).name
                if name in wanted:  # read as a stream and never unpacked, so that its folder does not matter
                    files.setdefault(name.removesuffix(".npz"), _BatchFile(path, member))
    return files


def _imagenet_rows(file: _BatchFile) -> tuple[Pixels, Labels]:
    """Read a batch (1.6 GB, held in memory, and for a moment twice): rows ``(N, 12288)`` and labels 0..999."""
    logger.info("decoding %s", file.where)
    if file.member is None:
        with open(file.path, "rb") as stream:
            rows, labels = _read_rows(stream, file)
    else:
        with _open_zip(file.path) as archive, archive.open(file.member) as member:
            rows, labels = _read_rows(member, file)
    if not len(labels) or labels.min() < 1 or labels.max() > 1000:
        found = f"labels from {labels.min()} to {labels.max()}" if len(labels) else "no images"
        raise CorruptFileError(f"{file.where}: {found}, expected labels 1..1000; get it again.")
    return rows, labels - 1


def _read_rows(stream: IO[bytes], file: _BatchFile) -> tuple[Pixels, Labels]:
    if not (file.member or file.path.name).endswith(".npz"):
        return batch_rows(read_batch(stream, file.where), "labels", 3 * 64 * 64, file.where)
    # an archive is read from its end, which a stream out of another archive could only reach again and again
    seekable = stream if file.member is None else io.BytesIO(_inner(stream, file.where))
    return batch_rows(read_npz(seekable, file.where, ("data", "labels")), "labels", 3 * 64 * 64, file.where)


def _batch_chunks(files: Iterable[_BatchFile]) -> Iterator[tuple[Pixels, Labels]]:
    for file in files:
        rows, labels = _imagenet_rows(file)
        for start in range(0, len(rows), _CHUNK):
            yield rows[start : start + _CHUNK].reshape(-1, 3, 64, 64), labels[start : start + _CHUNK]
        del rows  # before the next batch is read


def _imagenet_names(data_dir: Path) -> list[str]:
    """Return WordNet ids by ``map_clsloc.txt`` (lines ``wnid number name``) where it is at hand, else label numbers.

    The release numbers classes in an order of its own, so that sorted WordNet ids would be wrong.
    """
    path = _first(folder / "map_clsloc.txt" for folder in _batch_folders(data_dir))
    names = {str(label): str(label) for label in range(1, 1001)}
    for line in path.read_text(errors="replace").splitlines() if path else []:
        wnid, number = (*line.split(), "", "")[:2]
        if number in names:
            names[number] = wnid
    return list(names.values())


IMAGENET1K_64 = DatasetSource(
    name="imagenet1k-64",
    summary="ImageNet-1K shrunk to 64x64 with a box filter (ImageNet's terms: non-commercial research)",
    channels=3,
    side=64,
    classes=1000,
    train_images=1_281_167,
    test_images=50_000,
    find=_find_imagenet,
    load=_load_imagenet,
    remedy=_IMAGENET_REMEDY,
)
