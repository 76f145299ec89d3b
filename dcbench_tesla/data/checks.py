"""Checks that all loaders share. Their messages say where the problem is, what was found, and what to do."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dcbench_tesla.errors import CorruptFileError, DcbenchError

if TYPE_CHECKING:
    from dcbench_tesla.data.dataset import Dataset, Labels, Pixels

logger = logging.getLogger(__name__)


@contextmanager
def reading(problem: str, remedy: str = "get it again") -> Iterator[None]:
    """Turn any error of reading a damaged file into :class:`CorruptFileError`; readers can raise nearly anything."""
    try:
        yield
    except DcbenchError:
        raise
    except MemoryError as error:
        raise CorruptFileError(f"{problem} (it asks for more memory than there is); {remedy}.") from error
    except Exception as error:
        raise CorruptFileError(f"{problem} ({error}); {remedy}.") from error


def check_memory(where: Path | str, needed: int) -> None:
    """Check that ``needed`` bytes fit into this machine's memory, before they are asked for.

    Raises:
        DcbenchError: they do not.
    """
    import psutil

    if needed > (total := psutil.virtual_memory().total):
        sizes = f"{needed / 1e9:,.0f} GB decoded, and this machine has {total / 1e9:,.0f} GB of memory"
        raise DcbenchError(f"{where}: its images take {sizes}. Use fewer or smaller images, or a larger machine.")


def verify(dataset: Dataset, where: Path, original: tuple[int, int] | None = None) -> Dataset:
    """Return ``dataset`` if its images and labels are consistent.

    There must be two classes or more with distinct names. Both splits must hold images with one label each in
    ``0..K-1``, and every class must have a training image and a test image. If ``original`` gives other numbers of
    training and test images, a warning is logged, and classes without test images are only warned of.

    Raises:
        CorruptFileError: the data set is inconsistent; the message names ``where``.
    """
    _verify_names(dataset.class_names, where)
    for split, x, y in (("train", dataset.x_train, dataset.y_train), ("test", dataset.x_test, dataset.y_test)):
        _verify_split(split, x, y, dataset.classes, where)
    _verify_present(dataset, "train", dataset.y_train, where)
    if original is None:
        _verify_present(dataset, "test", dataset.y_test, where)
    sizes = (len(dataset.x_train), len(dataset.x_test))
    if original and sizes != original:
        problem = "%s: %s holds %d + %d images, the original %d + %d: not comparable with published results"
        logger.warning(problem, dataset.name, where, *sizes, *original)
        if absent := _absent(dataset, dataset.y_test):
            logger.warning("%s: %d of its classes have no test image and are not tested", where, len(absent))
    return dataset


def _verify_names(names: Sequence[str], where: Path) -> None:
    if not all(isinstance(name, str) for name in names):
        raise CorruptFileError(f"{where}: a class name is no string; expected strings.")
    if len(names) < 2:
        found = f"holds one class ({names[0]})" if names else "holds no class"
        raise CorruptFileError(f"{where}: {found}; expected two or more, which condensing and testing tell apart.")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise CorruptFileError(f"{where}: {count} classes are called {name!r}; expected distinct names.")


def _verify_split(split: str, x: Pixels, y: Labels, classes: int, where: Path) -> None:
    if x.ndim != 4 or x.dtype != "uint8" or y.ndim != 1 or y.dtype != "int64":
        found = f"{split} images {x.dtype} {x.shape} and labels {y.dtype} {y.shape}"
        raise CorruptFileError(f"{where}: {found}; expected images uint8 (N, C, H, W) and labels int64 (N,).")
    if not len(x):
        raise CorruptFileError(f"{where}: holds no {split} images; expected at least one.")
    if len(x) != len(y):
        raise CorruptFileError(f"{where}: {len(x)} {split} images but {len(y)} {split} labels; expected as many.")
    if y.min() < 0 or y.max() >= classes:
        found = f"{split} labels from {y.min()} to {y.max()}"
        raise CorruptFileError(f"{where}: {found}; expected 0..{classes - 1} for {classes} classes{_from_one(y)}.")


def _verify_present(dataset: Dataset, split: str, y: Labels, where: Path) -> None:
    absent = _absent(dataset, y)
    if absent:
        called = "training" if split == "train" else split
        first = f"{absent[0]} ({dataset.class_names[absent[0]]})"
        found = f"{len(absent)} of {dataset.classes} classes have no {called} image, the first is {first}"
        remedy = _from_one(y) or (", or leave these classes out of both splits" if split == "test" else "")
        raise CorruptFileError(f"{where}: {found}; expected some of every class{remedy}.")


def _absent(dataset: Dataset, y: Labels) -> list[int]:
    """The classes without an image."""
    return sorted(set(range(dataset.classes)) - set(y.tolist()))


def _from_one(y: Labels) -> str:
    """What to do about labels that are counted from 1."""
    return " (labels seem to start at 1: subtract 1 from all of them)" if y.min() == 1 else ""
