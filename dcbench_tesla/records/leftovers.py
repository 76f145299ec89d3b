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

_NAME = re.compile(r"\..+\.(?P<pid>\d+)\.(?P<place>[0-9a-f]{8})(?:[0-9a-f]{8})?")  # eight digits: of earlier versions
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
