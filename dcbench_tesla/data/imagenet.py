"""Tiny-ImageNet and ImageNet-1K at 64 x 64: where their files are looked for, and the class of each image.

Both are decoded once into a cache (:mod:`dcbench_tesla.data.cache`), which later runs read.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from dcbench_tesla.data.checks import reading
from dcbench_tesla.data.download import DATA_FOLDER, first_of, missing
from dcbench_tesla.data.files import read_npz
from dcbench_tesla.data.trees import Tree, open_tree, open_zip
from dcbench_tesla.errors import CorruptFileError
from dcbench_tesla.records.regular import regular_file

if TYPE_CHECKING:
    from dcbench_tesla.data.cache import Split
    from dcbench_tesla.data.dataset import Dataset, Labels, Pixels

logger = logging.getLogger(__name__)

TINY_REMEDY = f"put tiny-imagenet-200.zip (http://cs231n.stanford.edu/tiny-imagenet-200.zip) into {DATA_FOLDER}"
IMAGENET_REMEDY = (
    "with an account of https://image-net.org/download-images put Imagenet64_train_part1.zip, "
    f"Imagenet64_train_part2.zip and Imagenet64_val.zip into {DATA_FOLDER}, or unpack the full images there as "
    "imagenet/train/<wnid>/*.JPEG and imagenet/val/<wnid>/*.JPEG"
)
_TRAIN_BATCHES = tuple(f"train_data_batch_{number}" for number in range(1, 11))
_BATCHES = (*_TRAIN_BATCHES, "val_data")


def _check_present(where: Path, wnids: Sequence[str], train: Mapping[str, int], test: Mapping[str, int]) -> None:
    """Check, before hours of decoding, that every class has a training image and that there are test images."""
    absent = sorted(set(range(len(wnids))) - set(train.values()))
    if absent:
        found = f"no training images of {len(absent)} classes ({wnids[absent[0]]})"
        raise CorruptFileError(f"{where}: {found}; get the data again.")
    if not test:
        raise CorruptFileError(f"{where}: no validation images; get the data again.")


# ----------------------------------------------------------------------------------------------- Tiny-ImageNet


def _tiny_places(data_dir: Path) -> list[Path]:
    """Return, in order of preference: the cache, the list of classes in the unpacked folder, the zip archive."""
    folder = data_dir / "tiny-imagenet-200"
    return [data_dir / "tiny-imagenet-200-npy", folder / "wnids.txt", folder.with_suffix(".zip")]


def find_tiny(data_dir: Path) -> Path | None:
    """Return the cache of Tiny-ImageNet, else its unpacked folder, else its zip archive, else ``None``."""
    found = first_of(_tiny_places(data_dir))
    return found.parent if found and found.name == "wnids.txt" else found


def load_tiny(data_dir: Path) -> Dataset:
    """Load Tiny-ImageNet from its cache, which is made first if there is none.

    Raises:
        DataMissingError: no file was found.
        CorruptFileError: a file is damaged.
    """
    from dcbench_tesla.data import cache

    folder, found = _tiny_places(data_dir)[0], find_tiny(data_dir)
    if found is None:
        raise missing("tiny-imagenet", _tiny_places(data_dir), TINY_REMEDY)
    if found != folder:
        with open_tree(found) as tree:
            cache.make(folder, lambda: _tiny_split(tree))
    return cache.read("tiny-imagenet", folder, (100_000, 10_000))


def _tiny_split(tree: Tree) -> Split:
    """Read the lists of classes and images; classes are numbered in the order of their sorted WordNet ids."""
    from dcbench_tesla.data.cache import Split, decoded

    wnids = sorted(tree.text("wnids.txt").split())
    if len(set(wnids)) != 200:
        raise CorruptFileError(f"{tree.where}: wnids.txt names {len(set(wnids))} classes, expected 200; get it again.")
    number = {wnid: label for label, wnid in enumerate(wnids)}
    matches = (re.fullmatch(r"train/(n\d+)/images/[^/]+\.JPEG", name) for name in tree.names)
    train = {match[0]: number[match[1]] for match in matches if match and match[1] in number}
    test = dict(_tiny_annotations(tree, number))
    _check_present(tree.where, wnids, train, test)
    lines = tree.text("words.txt").splitlines() if "words.txt" in tree.names else []
    words = dict(line.split("\t", 1) for line in lines if "\t" in line)
    class_names = [words.get(wnid, wnid).split(",")[0].strip() for wnid in wnids]
    twice = {name for name, count in Counter(class_names).items() if count > 1}  # as cranes are birds and machines
    class_names = [f"{name} ({wnid})" if name in twice else name for name, wnid in zip(class_names, wnids, strict=True)]
    return Split(decoded(tree, train, 64, False), decoded(tree, test, 64, False), class_names)


def _tiny_annotations(tree: Tree, number: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Yield the file name and label of every validation image."""
    present = set(tree.names)
    for line in tree.text("val/val_annotations.txt").splitlines():
        file, wnid = (*line.split("\t"), "", "")[:2]
        if wnid not in number or f"val/images/{file}" not in present:
            problem = f"val_annotations.txt names {file!r} of class {wnid!r}, one of which is not there"
            raise CorruptFileError(f"{tree.where}: {problem}; get it again.")
        yield f"val/images/{file}", number[wnid]


# ----------------------------------------------------------------------------------------- ImageNet-1K at 64 x 64


def _imagenet_cache(data_dir: Path) -> Path:
    return data_dir / "imagenet1k-64-npy"


def find_imagenet(data_dir: Path) -> Path | None:
    """Return the cache, else the public 64 x 64 release, which others used, else the full images, else ``None``."""
    names = ["train_data_batch_1", "train_data_batch_1.npz"]
    names += ["Imagenet64_train_part1.zip", "Imagenet64_train_part1_npz.zip"]
    batches = [folder / name for folder in _batch_folders(data_dir) for name in names]
    return first_of([_imagenet_cache(data_dir), *batches, data_dir / "imagenet" / "train"])


def load_imagenet(data_dir: Path) -> Dataset:
    """Load ImageNet-1K at 64 x 64 from its cache, which is made first if there is none.

    Raises:
        DataMissingError: files are missing.
        CorruptFileError: a file is damaged.
    """
    from dcbench_tesla.data import cache

    folder, found = _imagenet_cache(data_dir), find_imagenet(data_dir)
    if found is None:
        looked = [folder, data_dir / "imagenet64", data_dir / "Imagenet64_train_part1.zip", data_dir / "imagenet/train"]
        raise missing("imagenet1k-64", looked, IMAGENET_REMEDY)
    if found == data_dir / "imagenet" / "train":
        with open_tree(found) as train, open_tree(data_dir / "imagenet" / "val") as val:
            cache.make(folder, lambda: _full_split(train, val))
    elif found != folder:
        cache.make(folder, lambda: _batch_split(data_dir))
    return cache.read("imagenet1k-64", folder, (1_281_167, 50_000))


def _full_split(train: Tree, val: Tree) -> Split:
    """Return the full-size images, one folder per class, shrunk by a box filter like the public 64 x 64 release."""
    from dcbench_tesla.data.cache import Split, decoded

    wnids = sorted({name.split("/")[0] for name in train.names if "/" in name})
    if len(wnids) != 1000:
        problem = f"{len(wnids)} class folders with images, expected 1000"
        raise CorruptFileError(f"{train.where}: {problem}; for a part of ImageNet use folder:PATH.")
    train_labels, val_labels = _labels_by_folder(train, wnids), _labels_by_folder(val, wnids)
    _check_present(train.where.parent, wnids, train_labels, val_labels)
    return Split(decoded(train, train_labels, 64, True), decoded(val, val_labels, 64, True), wnids)


def _labels_by_folder(tree: Tree, wnids: Sequence[str]) -> dict[str, int]:
    number = {wnid: label for label, wnid in enumerate(wnids)}
    labels = {}
    for name in (name for name in tree.names if name.endswith(".JPEG")):
        wnid, *below = name.split("/")
        if wnid not in number or len(below) != 1:
            problem = "not in a folder of one of train's classes; move it there"
            raise CorruptFileError(f"{tree.where}/{name}: {problem}.")
        labels[name] = number[wnid]
    return labels


def _batch_folders(data_dir: Path) -> list[Path]:
    """Return the folders that may hold batches or archives; unpacking an archive makes a folder of its name."""
    places = (data_dir / "imagenet64", data_dir)
    return [*places, *(path for place in places for path in sorted(place.glob("Imagenet64_*")) if path.is_dir())]


def _batch_split(data_dir: Path) -> Split:
    from dcbench_tesla.data.cache import Split

    batches = _batches(data_dir)
    absent = [name for name in _BATCHES if name not in batches]
    if absent:
        looked = [folder / absent[0] for folder in _batch_folders(data_dir)]
        raise missing(f"imagenet1k-64: {', '.join(absent)}", looked, IMAGENET_REMEDY)
    train = _chunks(batches[name] for name in _TRAIN_BATCHES)
    return Split(train, _chunks([batches["val_data"]]), _release_names(data_dir))


def _batches(data_dir: Path) -> dict[str, tuple[Path, str]]:
    """Map the name of each batch to its file, and to its member if the file is a zip archive.

    Unpacked files take precedence over archives, and pickled batches over ``.npz`` files.
    """
    wanted = [name + suffix for suffix in ("", ".npz") for name in _BATCHES]
    folders = _batch_folders(data_dir)
    found = [(folder / name, "") for folder in folders for name in wanted if (folder / name).is_file()]
    for path in (path for folder in folders for path in sorted(folder.glob("Imagenet64_*.zip"))):
        with open_zip(path) as archive:  # members are read as streams, never unpacked, so their paths are harmless
            members = archive.namelist()
        found += [(path, member) for member in members if PurePosixPath(member).name in wanted]
    return {Path(member or path).name.removesuffix(".npz"): (path, member) for path, member in reversed(found)}


def _chunks(batches: Iterable[tuple[Path, str]]) -> Iterator[tuple[Pixels, Labels]]:
    from dcbench_tesla.data.cache import CHUNK

    for path, member in batches:
        rows, labels = _read(path, member)
        for start in range(0, len(rows), CHUNK):
            yield rows[start : start + CHUNK].reshape(-1, 3, 64, 64), labels[start : start + CHUNK]
        del rows  # frees 1.6 GB before the next batch is read


def _read(path: Path, member: str) -> tuple[Pixels, Labels]:
    """Read a batch: rows ``(N, 12288)`` and labels 0..999. It takes 1.6 GB of memory, and twice that for a moment."""
    from dcbench_tesla.data.pickles import batch_rows, read_batch

    where = f"{path}/{member}" if member else str(path)
    logger.info("decoding %s", where)
    with ExitStack() as opened, reading(f"{where}: cannot be read"):
        stream: IO[bytes] = opened.enter_context(open(regular_file(path), "rb"))
        if member:
            stream = opened.enter_context(opened.enter_context(open_zip(path)).open(member))
        if not where.endswith(".npz"):
            content = read_batch(stream, where)
        else:  # numpy reads an archive from its end; inside another archive, every seek would decompress it again
            content = read_npz(BytesIO(stream.read()) if member else stream, where, ("data", "labels"))
    rows, labels = batch_rows(content, "labels", 3 * 64 * 64, where)
    if not len(labels) or labels.min() < 1 or labels.max() > 1000:
        found = f"labels from {labels.min()} to {labels.max()}" if len(labels) else "no images"
        raise CorruptFileError(f"{where}: {found}, expected labels 1..1000; get it again.")
    return rows, labels - 1


def _release_names(data_dir: Path) -> list[str]:
    """Return WordNet ids from ``map_clsloc.txt`` (lines ``wnid number name``) if it exists, else the label numbers.

    The release numbers its classes in its own order, so sorted WordNet ids would be wrong.
    """
    path = first_of(folder / "map_clsloc.txt" for folder in _batch_folders(data_dir))
    names = {str(label): str(label) for label in range(1, 1001)}
    for line in regular_file(path, most_bytes=1 << 20).read_text(errors="replace").splitlines() if path else []:
        wnid, number = (*line.split(), "", "")[:2]
        if number in names:
            names[number] = wnid
    return list(names.values())
