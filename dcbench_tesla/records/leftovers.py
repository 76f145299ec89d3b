"""Names of temporary files that tell who writes them, and the removal of those whose writer was killed.

A temporary file is called ``.<name>.<pid>.<place><random>``. The place is a digest of the machine since it was started
and of the process's container: a process of another place cannot be seen from here.
"""

import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

_ASIDE = ".old"
_EIGHT = "[0-9a-f]{8}"
_NAME = re.compile(rf"\.(?P<name>.+)\.(?P<pid>\d+)\.(?P<place>{_EIGHT})(?:{_EIGHT})?")  # only eight: an earlier version
_ABANDONED_AFTER_S = 24 * 3600.0  # where the writer cannot be seen: nothing takes a day to write
_swept: set[Path] = set()


@cache
def _place() -> str:
    """Return eight hex digits for where this process runs: the machine, since its last start, and the container."""
    known = [socket.gethostname()]
    with suppress(OSError):
        known.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        known.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:8]


def temporary_path(path: Path) -> Path:
    """Return a new name for a temporary file or folder beside ``path``."""
    return path.with_name(f".{path.name}.{os.getpid()}.{_place()}{secrets.token_hex(4)}")


def exchange(made: Path, path: Path) -> None:
    """Put the folder ``made`` in the place of the folder ``path``, which stays if that fails.

    Of a process killed in the middle, :func:`bring_back` puts the old folder back.
    """
    old = path.with_name(f"{temporary_path(path).name}{_ASIDE}")
    try:
        if path.exists():
            with suppress(OSError):
                os.utime(path)  # later than the start of this process, so that the folder is known to be its own
            path.rename(old)
        made.rename(path)
    finally:
        _settle(path, [old] if old.exists() else [])


def bring_back(path: Path) -> None:
    """Put back the folder ``path`` that a killed process had moved aside, or remove it if there is a new one."""
    aside = []
    with suppress(OSError):
        for entry in list(os.scandir(path.parent)):
            found = _NAME.fullmatch(entry.name.removesuffix(_ASIDE))
            own = found and found["name"] == path.name and entry.name.endswith(_ASIDE)
            if found and own and _is_abandoned(entry, int(found["pid"]), found["place"]):
                aside.append(Path(entry))
        _settle(path, sorted(aside, key=lambda old: old.stat().st_mtime))


def _settle(path: Path, aside: list[Path]) -> None:
    """Put the last of the folders that were moved ``aside`` in its place, if that is empty; remove the others."""
    if aside and not path.exists():
        aside.pop().rename(path)
    for old in aside:
        shutil.rmtree(old, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove the temporary files and folders in ``folder`` whose writers are gone; once a process for every folder."""
    folder = folder.absolute()
    if folder in _swept:
        return
    _swept.add(folder)
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            if (found := _NAME.fullmatch(entry.name)) and _is_abandoned(entry, int(found["pid"]), found["place"]):
                _remove(entry)


def _is_abandoned(entry: "os.DirEntry[str]", pid: int, place: str) -> bool:
    """Return whether nobody writes a temporary file any more."""
    try:
        written = entry.stat(follow_symlinks=False).st_mtime
    except FileNotFoundError:
        return False  # its writer was faster
    if place != _place():
        return time.time() - written > _ABANDONED_AFTER_S
    return not _was_there(pid, written)


def _was_there(pid: int, then: float) -> bool:
    """Return whether process ``pid`` is running, and was already at the time ``then``: numbers are given again."""
    import psutil

    try:
        process = psutil.Process(pid)
        return bool(process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= then + 1)
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True  # it is there, and shows nothing of itself


def _remove(entry: "os.DirEntry[str]") -> None:
    if entry.is_dir(follow_symlinks=False):
        shutil.rmtree(entry, ignore_errors=True)
    else:
        with suppress(OSError):
            os.unlink(entry)
