"""Files that are either complete or absent: atomic writes, tensors with a digest, and JSON."""

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcbench_tesla.errors import CorruptFileError, DcbenchError

if TYPE_CHECKING:
    from torch import Tensor

_META = "dcbench"
_REMEDY = "Delete it: dcbench run makes its own files again, with --force if the cell is finished."


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, which replaces ``path`` if the block succeeds.

    Raises:
        DcbenchError: the folder cannot be written or the disk is full; ``path`` is then unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.touch(exist_ok=False)
            mode = temporary.stat().st_mode
            yield temporary
            temporary.chmod(mode)  # as the umask wants it: some writers replace the file by one for the owner only
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's errors while ``path`` is written into one message with a remedy.

    Raises:
        DcbenchError: the folder cannot be written or is a file, or the disk is full.
    """
    try:
        yield
    except (FileExistsError, NotADirectoryError) as error:
        file = next((folder for folder in path.parents if folder.is_file()), path)
        reason = f"{file} is a file, not a folder"
        raise DcbenchError(f"cannot write {path}: {reason}. Choose another folder by --out.") from error
    except OSError as error:
        reason = error.strerror or str(error)
        remedy = "Free space there, or choose another folder by --out."
        raise DcbenchError(f"cannot write {path}: {reason}. {remedy}") from error


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON with sorted keys, atomically."""
    write_text(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        CorruptFileError: the file does not hold JSON, or is a folder.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise CorruptFileError(f"{path} is not valid JSON ({error}). {_REMEDY}") from error
    except IsADirectoryError as error:
        raise CorruptFileError(f"{path} is a folder, not a file. Move it away.") from error


def content_key(content: Any) -> str:
    """Return 16 hex digits of the SHA-256 of ``content``'s canonical JSON."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _digest(tensors: Mapping[str, "Tensor"], meta: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for name in sorted(tensors):
        array = tensors[name].detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, "Tensor"], meta: Mapping[str, Any]) -> None:
    """Write named tensors and JSON metadata as one safetensors file, atomically, with a digest of the contents."""
    from safetensors.torch import save_file

    # cloned: safetensors refuses tensors that share storage, and a view would be stored with its whole storage
    whole = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
    head = json.dumps({**meta, "digest": _digest(whole, meta)}, sort_keys=True)
    with atomic_path(path) as temporary:
        try:
            save_file(whole, temporary, metadata={_META: head})
        except Exception as error:  # safetensors reports a full disk as its own error type
            if "SafetensorError" in type(error).__name__:
                raise OSError(None, str(error)) from error
            raise


def load_tensors(path: Path) -> tuple[dict[str, "Tensor"], dict[str, Any]]:
    """Read a file of :func:`save_tensors`; return its tensors, on the CPU, and its metadata.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptFileError: the file is damaged or was not written by dcbench.
    """
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        meta = _meta(path, file)
    claimed = meta.pop("digest", None)
    try:
        digest = _digest(tensors, meta)
    except TypeError as error:  # of a type that numpy lacks, bfloat16 for instance, and that save_tensors refuses
        raise CorruptFileError(
            f"{path} holds numbers of a type that dcbench never writes ({error}). {_REMEDY}"
        ) from error
    if claimed != digest:
        raise CorruptFileError(f"{path} is damaged: its contents do not match their digest. {_REMEDY}")
    return tensors, meta


def read_meta(path: Path) -> dict[str, Any]:
    """Read only the metadata of a file of :func:`save_tensors`; raises the errors of :func:`load_tensors`."""
    with _opened(path) as file:
        return _meta(path, file)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CorruptFileError(f"{path} is damaged or not a safetensors file ({error}). {_REMEDY}") from error


def _meta(path: Path, file: Any) -> dict[str, Any]:
    head = (file.metadata() or {}).get(_META)
    if head is None:
        raise CorruptFileError(f"{path} was not written by dcbench. {_REMEDY}")
    try:
        meta: dict[str, Any] = json.loads(head)
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{path} is damaged: its metadata is not JSON ({error}). {_REMEDY}") from error
    if not isinstance(meta, dict):
        raise CorruptFileError(f"{path} was not written by dcbench: its metadata is no object. {_REMEDY}")
    return meta
