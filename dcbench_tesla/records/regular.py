"""Files are looked at before they are opened: a pipe makes a reader wait, a device never ends."""

import os
import stat
from pathlib import Path

from dcbench_tesla.errors import CorruptFileError


def regular_file(path: Path, *, most_bytes: int | None = None, remedy: str = "Get it again.") -> Path:
    """Return ``path`` if it is a regular file, or a link to one, of at most ``most_bytes`` bytes; it is not opened.

    Raises:
        FileNotFoundError: nothing has this name.
        CorruptFileError: it is a folder, a pipe, a socket, a device or a link that leads nowhere, or it is larger.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError as error:
        if path.is_symlink():
            raise CorruptFileError(f"{path} is a link that leads nowhere. {remedy}") from error
        raise
    except (OSError, ValueError) as error:  # a circle of links, a folder that is a file, a name that cannot be
        raise CorruptFileError(f"{path} cannot be read ({getattr(error, 'strerror', error)}). {remedy}") from error
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe, a socket or a device"
        raise CorruptFileError(f"{path} is {kind}, not a regular file. {remedy}")
    if most_bytes is not None and found.st_size > most_bytes:
        raise CorruptFileError(f"{path} has {found.st_size} bytes, expected at most {most_bytes}. {remedy}")
    return path
