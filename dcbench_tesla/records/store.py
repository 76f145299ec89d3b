"""Files that are either complete or absent: atomic writes, tensors with a digest, and JSON."""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcbench_tesla.errors import CorruptFileError, DcbenchError
from dcbench_tesla.records.leftovers import sweep, temporary_path
from dcbench_tesla.records.regular import regular_file

if TYPE_CHECKING:
    from torch import Tensor

_META = "dcbench"
LARGEST = 64 * 2**20  # bytes of a JSON file or a table: those of a run are far smaller
_DEEPEST, _LONGEST_INTEGER = 64, 100
_REMEDY = "Delete it: dcbench run makes its own files again, with --force if the cell is finished."


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, which replaces ``path`` if the block succeeds.

    What killed processes left in the folder is removed.

    Raises:
        DcbenchError: the folder cannot be written or the disk is full; ``path`` is then unchanged.
    """
    temporary = temporary_path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
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


@contextmanager
def locked(path: Path, waiting: Callable[[], object]) -> Iterator[None]:
    """Hold the lock ``path``; ``waiting`` is called if another process holds it, before this one waits.

    Raises:
        DcbenchError: its folder cannot be written.
    """
    from filelock import FileLock, Timeout

    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waiting()
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON with sorted keys, atomically."""
    write_text(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def read_bytes(path: Path, *, limit: int = LARGEST, remedy: str = _REMEDY) -> bytes:
    """Return the content of a regular file of at most ``limit`` bytes. Nothing else is waited for: a pipe, a device.

    Raises:
        FileNotFoundError: nothing has this name.
        CorruptFileError: it is no regular file, cannot be read, or is larger.
    """
    try:
        return regular_file(path, most_bytes=limit, remedy=remedy).read_bytes()
    except PermissionError as error:
        raise CorruptFileError(f"{path} cannot be read ({error.strerror}). {remedy}") from error


def read_json(path: Path, kind: str | type | None = None, *, remedy: str = _REMEDY) -> Any:
    """Read JSON: a regular file of at most 64 MiB and 64 levels, UTF-8, without NaN and infinity.

    Args:
        path: the file.
        kind: what it must hold, one of :data:`dcbench_tesla.records.schema.KINDS` or a dataclass; ``None``: any JSON.
        remedy: the sentence that ends a message.

    Raises:
        FileNotFoundError: nothing has this name.
        CorruptFileError: the file holds something else; the message names the field and says what to do.
    """
    raw = read_bytes(path, remedy=remedy)
    try:
        content = parse_json(raw)
    except ValueError as error:
        raise CorruptFileError(f"{path} is not valid JSON ({error}). {remedy}") from error
    if kind is not None:
        from dcbench_tesla.records import schema  # pydantic is needed by what reads results, and by nothing else

        if (fault := schema.fault(kind, raw)) is not None:
            told = f": {fault}" if fault else ""
            raise CorruptFileError(f"{path} is not {schema.title(kind)} of dcbench{told}. {remedy}")
    return content


def parse_json(raw: bytes | str) -> Any:
    """Return the content of JSON text.

    Raises:
        ValueError: it is not JSON or not UTF-8, holds NaN, infinity or half a surrogate pair, or is nested too deep.
    """
    text = raw.decode("utf-8") if isinstance(raw, bytes) else raw
    try:
        content = json.loads(text, parse_float=_finite, parse_int=_integer, parse_constant=_finite)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if not _is_flat(content):
        raise ValueError(f"it is nested more than {_DEEPEST} levels deep")
    if "\\u" in text:
        json.dumps(content, ensure_ascii=False).encode()  # raises UnicodeEncodeError, a ValueError
    return content


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is no finite number")
    return value


def _integer(text: str) -> int:
    if len(text) > _LONGEST_INTEGER:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)


def _is_flat(content: Any) -> bool:
    """Return whether a content has at most :data:`_DEEPEST` levels."""
    level = [content]
    for _ in range(_DEEPEST + 1):
        level = [part for value in level for part in _parts(value)]
        if not level:
            return True
    return False


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


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
    with atomic_path(path) as temporary, _folder_beside(path) as folder:
        try:
            save_file(whole, folder / path.name, metadata={_META: head})
            (folder / path.name).replace(temporary)
        except Exception as error:  # safetensors reports a full disk as its own error type
            if "SafetensorError" in type(error).__name__:
                raise OSError(None, str(error)) from error
            raise


@contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``: safetensors writes to names of its own, which tell of no writer."""
    folder = temporary_path(path)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def load_tensors(path: Path) -> tuple[dict[str, "Tensor"], dict[str, Any]]:
    """Read a file of :func:`save_tensors`; return its tensors, on the CPU, and its metadata.

    Raises:
        FileNotFoundError: nothing has this name.
        CorruptFileError: the file is damaged or was not written by dcbench.
    """
    with _opened(path) as file:
        meta = _meta(path, file)
        try:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            stored, digest = meta.pop("digest", None), _digest(tensors, meta)
        except (TypeError, AttributeError) as error:  # numbers that NumPy has not: of 8 bits, or bfloat16
            raise CorruptFileError(f"{path} holds tensors that dcbench never writes ({error}). {_REMEDY}") from error
    if stored != digest:
        raise CorruptFileError(f"{path} is damaged: its contents do not match their digest. {_REMEDY}")
    return tensors, meta


def read_meta(path: Path) -> dict[str, Any]:
    """Read only the metadata of a file of :func:`save_tensors`; raises the errors of :func:`load_tensors`."""
    with _opened(path) as file:
        return _meta(path, file)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(regular_file(path, remedy=_REMEDY), framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError) as error:
        raise CorruptFileError(f"{path} is damaged or not a safetensors file ({error}). {_REMEDY}") from error


def _meta(path: Path, file: Any) -> dict[str, Any]:
    head = (file.metadata() or {}).get(_META)
    if head is None:
        raise CorruptFileError(f"{path} was not written by dcbench. {_REMEDY}")
    try:
        meta: dict[str, Any] = parse_json(head)
        if not isinstance(meta, dict):
            raise ValueError("it is a list or a number")
    except ValueError as error:
        raise CorruptFileError(f"{path} is damaged: its metadata is not JSON ({error}). {_REMEDY}") from error
    return meta
