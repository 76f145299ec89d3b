"""Data sets of PyTorch as arrays: every item an image with its class.

Shapes: N images, C channels, H = W = side.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from dcbench_tesla.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_EXACT = 1e-3  # of a pixel: float32 of k/255, times 255


def arrays_of(train: "TorchDataset[Any]", test: "TorchDataset[Any]") -> dict[str, "NDArray[Any]"]:
    """Return the arrays by key of a training and a test set, as an archive has them.

    Items are ``(image, class)``. An image is a PIL image, a uint8 tensor or array, or floats k/255 as torchvision's
    ``ToTensor`` makes them; tensors are ``(C, H, W)`` or ``(H, W)``. The names of the classes are those of ``classes``,
    where the training set has them.

    Raises:
        UsageError: an item is something else, or its values are no 8-bit pixels; the message says which.
    """
    x_train, y_train = _items("the training set", train)
    x_test, y_test = _items("the test set", test)
    found: dict[str, Any] = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    names = getattr(train, "classes", None)
    if isinstance(names, (list, tuple)) and len(names) > max(y_train.max(), y_test.max()):
        found["class_names"] = np.array([str(name) for name in names])
    return found


def _items(which: str, dataset: "TorchDataset[Any]") -> "tuple[NDArray[np.uint8], NDArray[np.int64]]":
    if not hasattr(dataset, "__len__"):
        raise UsageError(f"{which} has no length: give a data set whose items can be counted.")
    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    for i in range(len(dataset)):
        item = dataset[i]
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise UsageError(f"item {i} of {which} is {_kind(item)}; expected (image, class).")
        images.append(_pixels(item[0], f"the image of item {i} of {which}"))
        labels.append(_label(item[1], f"the class of item {i} of {which}"))
    if not images:
        raise UsageError(f"{which} is empty.")
    if len({image.shape for image in images}) > 1:
        sizes = sorted({" x ".join(map(str, image.shape)) for image in images})
        raise UsageError(f"{which} has images of {' and of '.join(sizes[:2])}; expected one size.")
    return np.stack(images), np.array(labels, np.int64)


def _pixels(image: Any, what: str) -> "NDArray[np.uint8]":
    """Return an image as uint8 ``(H, W, C)`` or ``(H, W)``."""
    tensor = isinstance(image, Tensor)
    array = np.asarray(image.detach().cpu() if tensor else image)
    if tensor and array.ndim == 3:
        array = array.transpose(1, 2, 0)
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f" or not np.isfinite(array).all():
        raise UsageError(f"{what} is {_kind(image)}; expected 8-bit pixels, or floats as ToTensor makes them.")
    whole = np.round(array * 255.0)
    if np.abs(array * 255.0 - whole).max() > _EXACT or whole.min() < 0 or whole.max() > 255:
        told = f"has values from {array.min():.3g} to {array.max():.3g}, which are no 8-bit pixels / 255"
        raise UsageError(f"{what} {told}: leave Normalize and random transforms out, as runs have their own.")
    return whole.astype(np.uint8)


def _label(value: Any, what: str) -> int:
    number = np.asarray(value.cpu() if isinstance(value, Tensor) else value)
    if number.shape != () or number.dtype.kind not in "iu":
        raise UsageError(f"{what} is {_kind(value)}; expected an integer from 0.")
    return int(number)


def _kind(thing: Any) -> str:
    shape = getattr(thing, "shape", None)
    return type(thing).__name__ + (f" of shape {tuple(shape)}" if shape is not None else "")


def as_arrays(given: Mapping[str, Any]) -> dict[str, "NDArray[Any]"]:
    """Return arrays of any kind, by key, as NumPy's: tensors ``(N, C, H, W)`` become ``(N, H, W, C)``."""
    return {key: _as_array(value) for key, value in given.items()}


def _as_array(value: Any) -> "NDArray[Any]":
    if not isinstance(value, Tensor):
        return np.asarray(value)
    array = value.detach().cpu().numpy()
    return np.moveaxis(array, 1, -1) if array.ndim == 4 else array


def is_torch_set(given: object) -> bool:
    """Return whether ``given`` is a data set of PyTorch."""
    return isinstance(given, TorchDataset)


def named(given: Iterable[Any]) -> str:
    """Return a name for data sets: that of the first one's class, ``arrays`` for arrays."""
    first = next(iter(given), None)
    return type(first).__name__ if is_torch_set(first) else "arrays"
