"""Pickled image batches, as CIFAR and the 64 x 64 ImageNet are published, read without running what they ask for.

Nothing of numpy's is handed to the pickle: its arrays could be made to point anywhere. What stands in for them holds
bytes, a type and a shape, from which a plain array is made when all is read.
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
    """Stands in for a ``numpy.dtype``: ``code`` as in ``u1``, and the byte order."""

    def __init__(self, code: str, *_: object) -> None:
        self.code, self.byte_order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.byte_order = state[1]

    def numeric(self) -> np.dtype[Any]:
        if not re.fullmatch(r"[<>|=][biuf]\d+", f"{self.byte_order}{self.code}"):
            raise pickle.UnpicklingError(f"it asks for arrays of {self.code!r}")
        return np.dtype(f"{self.byte_order}{self.code}")


class _Array:
    """Stands in for a ``numpy.ndarray``: ``array`` is read-only and shares the pickle's bytes."""

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
    ("_codecs", "encode"): _latin1_bytes,  # how Python 3 writes bytes in Python 2's protocol
    ("numpy", "ndarray"): "ndarray",  # is only named, never called
    ("numpy", "dtype"): _Type,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
}


class _BatchUnpickler(pickle.Unpickler):
    """Builds numbers, strings, lists, dicts and numeric arrays, and nothing else a pickle may ask for."""

    def find_class(self, module: str, name: str) -> Any:
        # numpy 2 moved its makers from numpy.core, which old files name, to numpy._core
        known = (module.replace("numpy._core.", "numpy.core."), name)
        if known not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no image batch needs")
        return _ALLOWED[known]


def read_batch(stream: IO[bytes], where: str) -> dict[str, Any]:
    """Read a pickled dict of numbers, strings, lists and numeric arrays; text of Python 2 is read as Latin-1.

    Raises :class:`CorruptFileError`, naming ``where``, for anything else. Arrays are read-only.
    """
    with reading(f"{where}: not a batch of images, or damaged"):
        batch = _BatchUnpickler(stream, encoding="latin1").load()
        if isinstance(batch, dict):
            return {key: value.array if isinstance(value, _Array) else value for key, value in batch.items()}
    raise CorruptFileError(f"{where}: holds a {type(batch).__name__}, expected a dict; get it again.")


def batch_rows(batch: Mapping[str, Any], label_key: str, row_bytes: int, where: str) -> tuple[Pixels, Labels]:
    """Return a batch's ``data``, uint8 ``(N, row_bytes)``, and its labels under ``label_key``, int64 ``(N,)``.

    Raises :class:`CorruptFileError`, naming ``where``, if either is missing or of another shape.
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
