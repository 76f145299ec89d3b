"""Pickled image batches (CIFAR, the 64 x 64 ImageNet release), read without running code from the pickle.

The pickle never gets a numpy object, because an array could be made to point anywhere in memory. Stand-ins hold bytes,
type and shape in its place; they become plain arrays when everything has been read.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from dcbench_tesla.data.checks import reading
from dcbench_tesla.errors import CorruptFileError

if TYPE_CHECKING:
    from dcbench_tesla.data.dataset import Labels, Pixels


class _Type:
    """Stands in for a ``numpy.dtype``: ``code`` is a type such as ``u1``, and ``byte_order`` its byte order."""

    def __init__(self, code: str, *_: object) -> None:
        self.code, self.byte_order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.byte_order = state[1]

    def numeric(self) -> np.dtype[Any]:
        if not re.fullmatch(r"[<>|=][biuf]\d+", f"{self.byte_order}{self.code}"):
            raise pickle.UnpicklingError(f"it asks for arrays of {self.code!r}")
        return np.dtype(f"{self.byte_order}{self.code}")


class _Array:
    """Stands in for a ``numpy.ndarray``: ``array`` is read-only and shares memory with the pickle's bytes."""

    array: np.ndarray[Any, Any]

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: tuple[Any, tuple[int, ...], _Type, bool, bytes | str]) -> None:
        _, shape, kind, fortran, data = state
        raw = data.encode("latin1") if isinstance(data, str) else data
        self.array = np.frombuffer(raw, kind.numeric()).reshape(shape, order="F" if fortran else "C")


def _from_buffer(data: bytes, kind: _Type, shape: tuple[int, ...], order: str) -> _Array:
    array = _Array()
    array.__setstate__((None, shape, kind, order == "F", data))
    return array


def _latin1_bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding}")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], object] = {
    ("_codecs", "encode"): _latin1_bytes,  # how Python 3 writes bytes in a protocol of Python 2
    ("numpy", "ndarray"): "ndarray",  # only named, never called
    ("numpy", "dtype"): _Type,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
}


class _BatchUnpickler(pickle.Unpickler):
    """Unpickles numbers, strings, lists, dicts and numeric arrays, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        # numpy 2 moved its constructors from numpy.core, which old files name, to numpy._core
        known = (module.replace("numpy._core.", "numpy.core."), name)
        if known not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no image batch needs")
        return _ALLOWED[known]


def read_batch(stream: IO[bytes], where: str) -> dict[str, Any]:
    """Read a pickled dict of numbers, strings, lists and numeric arrays. Text of Python 2 is read as Latin-1.

    The arrays are read-only.

    Raises:
        CorruptFileError: the file holds anything else; the message names ``where``.
    """
    with reading(f"{where}: not a batch of images, or damaged"):
        batch = _BatchUnpickler(stream, encoding="latin1").load()
        if isinstance(batch, dict):
            return {key: value.array if isinstance(value, _Array) else value for key, value in batch.items()}
    raise CorruptFileError(f"{where}: holds a {type(batch).__name__}, expected a dict; get it again.")


def batch_rows(batch: Mapping[str, Any], label_key: str, row_bytes: int, where: str) -> tuple[Pixels, Labels]:
    """Return a batch's ``data``, uint8 ``(N, row_bytes)``, and its labels under ``label_key``, int64 ``(N,)``.

    Raises:
        CorruptFileError: either is missing or has another shape; the message names ``where``.
    """
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
