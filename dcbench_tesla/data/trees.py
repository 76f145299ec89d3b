"""Read files by name from a folder or from a zip archive, without unpacking it."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from dcbench_tesla.data.checks import reading
from dcbench_tesla.errors import CorruptFileError
from dcbench_tesla.records.regular import regular_file

_MOST_BYTES = 1 << 28  # of one image or one list of names


class Tree(NamedTuple):
    """The files below ``where``: their sorted names with ``/``, and a function that reads one of them."""

    where: Path
    names: list[str]
    read: Callable[[str], bytes]

    def text(self, name: str) -> str:
        """Return the content of a text file.

        Raises:
            CorruptFileError: there is no such file.
        """
        if name not in self.names:
            raise CorruptFileError(f"{self.where}: {name} is missing; get the data again.")
        return self.read(name).decode("utf-8", errors="replace")


@contextmanager
def open_tree(path: Path) -> Iterator[Tree]:
    """Open a folder, or a zip archive, whose names are listed without their first folder.

    Raises:
        CorruptFileError: the file is not a zip archive, or a member points outside of it.
    """
    if path.suffix == ".zip":
        with open_zip(path) as archive:
            members = _members(path, archive)

            def read(name: str) -> bytes:
                with reading(f"{path}/{members[name]}: cannot be read", "get the archive again"):
                    if archive.getinfo(members[name]).file_size > _MOST_BYTES:
                        raise ValueError("it unpacks to more than any image or list")
                    return archive.read(members[name])

            yield Tree(path, sorted(members), read)
    else:
        yield Tree(
            path, sorted(_walk(path)), lambda name: regular_file(path / name, most_bytes=_MOST_BYTES).read_bytes()
        )


def _walk(root: Path) -> Iterator[str]:
    for folder, _, files in os.walk(root, followlinks=True):  # Path.rglob would hold a million Path objects
        below = Path(folder).relative_to(root)
        yield from ((below / name).as_posix() for name in files)


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, str]:
    """Map names without their first folder to the names in the archive; refuse names that point outside of it."""
    members = {}
    for info in archive.infolist():
        parts = PurePosixPath(info.filename).parts
        if info.filename.startswith("/") or ".." in parts or "\\" in info.filename or ":" in info.filename:
            raise CorruptFileError(f"{path}: refused, its member {info.filename!r} points outside the archive.")
        if not info.is_dir():
            members["/".join(parts[1:])] = info.filename
    return members


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip archive.

    Raises:
        CorruptFileError: the file is not a zip archive.
    """
    with reading(f"{path}: not a zip archive, or cut short"):
        regular_file(path)
        return zipfile.ZipFile(path)
