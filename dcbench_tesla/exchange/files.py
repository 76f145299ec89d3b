"""Reads files of ``torch.save`` without running any code in them.

``torch.load(weights_only=True)`` builds tensors, numbers, strings, lists and dicts, and refuses every other name in a
pickle. DC, DSA and DM store numpy scalars beside their images. These are read as empty stand-ins, because a crafted
file can make numpy's own types point anywhere in memory.
"""

import hashlib
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcbench_tesla.errors import CorruptFileError, UsageError
from dcbench_tesla.records.regular import regular_file

_CHUNK = 1 << 22


class _Ignored:
    """A stand-in for a numpy scalar or type, whose value is never used."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


# numpy 2 moved its constructors from numpy.core to numpy._core; the type of a scalar is always stored as a numpy.dtype
_STAND_INS = ("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")


def load_torch(path: Path, *, mapped: bool = False) -> Any:
    """Return the content of a file of ``torch.save`` on the CPU: tensors, numbers, strings, lists, dicts.

    Args:
        path: the file.
        mapped: map the file into memory, so that numbers are read when they are used; for files of gigabytes.

    Raises:
        UsageError: there is no such file.
        CorruptFileError: the file is damaged, no regular file or not one of ``torch.save``, or contains any other
            object.
    """
    allowed: list[Any] = [(_Ignored, name) for name in _STAND_INS]
    try:
        zipped = _check_zip(named(path))
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about the storages of old files
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and zipped)
    except (CorruptFileError, UsageError):
        raise
    except Exception as error:  # a damaged file can make its reader raise nearly anything
        raise CorruptFileError(_refusal(path, error)) from error


def named(path: Path) -> Path:
    """Return a file that the user named; it is not opened.

    Raises:
        UsageError: there is no such file.
        CorruptFileError: it is no regular file.
    """
    try:
        return regular_file(path)
    except FileNotFoundError as error:
        raise UsageError(f"there is no file {path}.") from error


def _check_zip(path: Path) -> bool:
    """Return whether the file is a zip archive, as written by torch.save since 2020.

    Raises:
        CorruptFileError: the archive is compressed, or a part of it is not what its checksum says.
    """
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise CorruptFileError(f"{path} is a packed archive, which torch.save never writes: refused. Get it again.")
        if part := archive.testzip():  # PyTorch itself does not look
            raise CorruptFileError(f"{path} is damaged: {part} is not what its checksum says. Get it again.")
    return True


def _refusal(path: Path, error: Exception) -> str:
    asked = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
    if asked:
        return (
            f"{path} asks for {asked[1]}, which a file of tensors does not need: refused, and nothing of it was run. "
            "Ask its author to save plain tensors (torch.save of tensors, lists and dicts)."
        )
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
    return f"{path} is damaged, incomplete, or not a file of torch.save ({reason}). Get it again."


def plain_tensor(value: object, path: Path, what: str) -> Tensor:
    """Return ``value``, detached, if it is a dense tensor whose numbers are all in the file.

    Args:
        value: part of the content of the file.
        path: the file.
        what: the name of the part in error messages.

    Raises:
        CorruptFileError: ``value`` is anything else.
    """
    if not isinstance(value, Tensor):
        raise CorruptFileError(f"{path}: {what} is a {type(value).__name__}, expected a tensor.")
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
        raise CorruptFileError(f"{path}: {what} is not a dense tensor with values; save plain tensors.")
    if value.numel() * value.element_size() > path.stat().st_size:  # a view can repeat a few numbers endlessly
        raise CorruptFileError(f"{path}: {what} claims {tuple(value.shape)} numbers, more than the file holds.")
    return value.detach()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def tensor_digest(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's type, shape and values, in hex."""
    values = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{values.dtype} {tuple(values.shape)}".encode())
    digest.update(values.numpy().data)
    return digest.hexdigest()


def natural(path: Path) -> list[tuple[int, str]]:
    """Return a key that sorts replay_buffer_10 behind replay_buffer_9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]
