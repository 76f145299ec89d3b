"""Three lines of Python that convert arrays of another type, layout or numbering into those of a data set.

They stand at the end of the message that refuses such arrays. Shapes: N images, C channels, H = W = side, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

IMAGES = ("x_train", "x_test")
LABELS = ("y_train", "y_test")


def for_images(arrays: Mapping[str, Any], where: Path | None) -> str:
    """Return the lines that make 8-bit pixels ``(N, H, W, C)`` of the images; empty where the values cannot be.

    Args:
        arrays: the arrays by key.
        where: the archive they were read from; ``None`` for arrays in memory, called ``data``.
    """
    import numpy as np

    images = [np.asarray(arrays[key]) for key in IMAGES]
    layout = ".transpose(0, 2, 3, 1)" if channels_first(images[0]) else ""
    if any(x.dtype.kind != images[0].dtype.kind or x.dtype.kind not in "fiub" or not x.size for x in images):
        return ""
    if all(x.dtype == "uint8" for x in images):
        return _lines([f"a |= {{k: a[k]{layout} for k in ('x_train', 'x_test')}}"], where) if layout else ""
    if not all(np.isfinite(x).all() for x in images):
        return ""
    least, most = (float(f(*(g(x) for x in images))) for f, g in ((min, np.min), (max, np.max)))
    if least == most:
        return ""
    whole = all(bool((x == np.round(x)).all()) for x in images if x.dtype.kind == "f")
    return _lines([f"a |= {{k: {_scaled(least, most, whole, layout)} for k in ('x_train', 'x_test')}}"], where)


def channels_first(images: Array) -> bool:
    """Return whether ``images`` have PyTorch's layout ``(N, C, H, W)``."""
    return images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] not in (1, 3)


def _scaled(least: float, most: float, whole: bool, layout: str) -> str:
    """Return the expression for 8-bit pixels of ``a[k]``, whose values lie in ``least`` .. ``most``."""
    pixels = f"a[k]{layout}"
    if least >= -1 and most <= 1:
        pixels = f"{pixels} * 255.0" if least >= 0 else f"({pixels} + 1) * 127.5"
    elif least < 0 or most > 255 or not whole:
        pixels = f"({pixels} - {least!r}) * {255 / (most - least)!r}"
    return f"np.round({pixels}).astype('uint8')"


def for_labels(arrays: Mapping[str, Any], where: Path | None) -> str:
    """Return the lines that number the classes from 0 and keep their names; one-hot labels become classes."""
    import numpy as np

    labels = [np.asarray(arrays[key]) for key in LABELS]
    if any(y.dtype.kind not in "fiubUS" or not y.size or y.ndim not in (1, 2) for y in labels):
        return ""
    wide = labels[0].ndim == 2 and labels[0].shape[1] > 1
    if wide:
        return _lines(["a |= {k: a[k].argmax(1) for k in ('y_train', 'y_test')}"], where)
    if "class_names" in arrays and labels[0].dtype.kind in "iu" and labels[0].ndim == 1:  # the names stay
        from_one = {int(c) for y in labels for c in y} == set(range(1, len(arrays["class_names"]) + 1))
        return _lines(["a |= {k: a[k] - 1 for k in ('y_train', 'y_test')}"], where) if from_one else ""
    flat = ".ravel()" if labels[0].ndim == 2 else ""
    n = len(labels[0])
    numbered = f"names, y = np.unique([*a['y_train']{flat}, *a['y_test']{flat}], return_inverse=True)"
    return _lines(
        [numbered, f"a |= {{'class_names': names.astype(str), 'y_train': y[:{n}], 'y_test': y[{n}:]}}"], where
    )


def _lines(middle: list[str], where: Path | None) -> str:
    if where is None:
        lines = ["import numpy as np; a = dict(data)", *middle, "# then give a in place of data"]
    else:
        target = where.with_name(f"{where.stem}-converted.npz")
        first = f"import numpy as np; a = dict(np.load({str(where)!r}))"
        lines = [first, *middle, f"np.savez({str(target)!r}, **a)"]
    return "\nThese lines of Python convert them:\n" + "\n".join(f"    {line}" for line in lines)
