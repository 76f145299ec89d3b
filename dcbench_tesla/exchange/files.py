"""Reading what ``torch.save`` wrote, without running anything it asks for.

``torch.load(weights_only=True)`` builds tensors, numbers, strings, lists and dicts, and refuses every other name a
pickle may ask for. The numpy scalars that DC, DSA and DM leave beside their images are let through, but as stand-ins
that hold nothing: numpy's own types can be made to point anywhere by a crafted file.
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

_CHUNK = 1 << 22


class _Ignored:
    """Stands in for a numpy scalar or type, which nothing here reads."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


# numpy 2 moved its makers from numpy.core to numpy._core; a scalar's type is always written as a numpy.dtype
_STAND_INS = ("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")


def load_torch(path: Path, *, mapped: bool = False) -> Any:
    """Return the contents of a file of ``torch.save`` on the CPU: tensors, numbers, strings, lists, dicts.

    ``mapped``: leave the numbers in the file until they are read, for files of gigabytes.

    Raises:
        UsageError: there is no such file.
        CorruptFileError: it is damaged, no file of ``torch.save``, or asks for anything but tensors.
    """
    if not path.is_file():
        raise UsageError(f"there is no file {path}.")
    allowed: list[Any] = [(_Ignored, name) for name in _STAND_INS]
    try:
        zipped = _check_zip(path)
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old files' storages
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and zipped)
    except (CorruptFileError, MemoryError):
        raise
    except Exception as error:  # a damaged file can make its reader raise nearly anything
        raise CorruptFileError(_refusal(path, error)) from error


def _check_zip(path: Path) -> bool:
    """Whether the file is a zip archive, as torch.save has written since 2020; refuse one that unpacks to more."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise CorruptFileError(f"{path} is a packed archive, which torch.save never writes: refused. Get it again.")
    return True


def _refusal(path: Path, error: Exception) -> str:
    asked = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
    if asked:
        return (
            f"{path} asks for {asked[1]}, which a file of tensors does not need: refused, and nothing of it was run. "
            "Let whoever made it save plain tensors (torch.save of tensors, lists and dicts)."
        )
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
    return f"{path} is damaged, not whole, or no file of torch.save ({reason}). Get it again."


def plain_tensor(value: object, path: Path, what: str) -> Tensor:
    """Return ``value`` if it is a dense tensor whose numbers are really in the file, without its gradient.

    Raises:
        CorruptFileError: it is something else; ``what`` names it.
    """
    if not isinstance(value, Tensor):
        raise CorruptFileError(f"{path}: {what} is a {type(value).__name__}, expected a tensor.")
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
        raise CorruptFileError(f"{path}: {what} is no dense tensor with values; save plain tensors.")
    if value.numel() * value.element_size() > path.stat().st_size:  # views that repeat a few numbers without end
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
