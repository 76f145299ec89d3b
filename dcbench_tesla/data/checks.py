"""Checks that all loaders share. Their messages say where the problem is, what was found, and what to do."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dcbench_tesla.errors import CorruptFileError, DcbenchError

if TYPE_CHECKING:
    from dcbench_tesla.data.dataset import Dataset

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

    Both splits must hold images with one label each in ``0..K-1``, and every class must have a training image. If
    ``original`` gives other numbers of training and test images, a warning is logged.

    Raises:
        CorruptFileError: the data set is inconsistent; the message names ``where``.
    """
    classes = dataset.classes
    for split, x, y in (("train", dataset.x_train, dataset.y_train), ("test", dataset.x_test, dataset.y_test)):
        if not len(x):
            raise CorruptFileError(f"{where}: holds no {split} images; expected at least one.")
        if len(x) != len(y):
            raise CorruptFileError(f"{where}: {len(x)} {split} images but {len(y)} {split} labels; expected as many.")
        if y.min() < 0 or y.max() >= classes:
            found = f"{split} labels from {y.min()} to {y.max()}"
            raise CorruptFileError(f"{where}: {found}; expected 0..{classes - 1} for {classes} classes.")
    absent = sorted(set(range(classes)) - set(dataset.y_train.tolist()))
    if absent:
        first = f"{absent[0]} ({dataset.class_names[absent[0]]})"
        found = f"{len(absent)} of {classes} classes have no training image, the first is {first}"
        raise CorruptFileError(f"{where}: {found}; expected some of every class.")
    sizes = (len(dataset.x_train), len(dataset.x_test))
    if original and sizes != original:
        problem = "%s: %s holds %d + %d images, the original %d + %d: not comparable with published results"
        logger.warning(problem, dataset.name, where, *sizes, *original)
    return dataset
