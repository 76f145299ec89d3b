"""Files below a folder or in a zip archive, by their names, without unpacking."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from dcbench_tesla.data.checks import reading
from dcbench_tesla.errors import CorruptFileError


class Tree(NamedTuple):
    """Sorted file names with ``/``, below ``where``, and how to read one of them."""

    where: Path
    names: list[str]
    read: Callable[[str], bytes]

    def text(self, name: str) -> str:
        """Return a text file's content; raises :class:`CorruptFileError` where it is missing."""
        if name not in self.names:
            raise CorruptFileError(f"{self.where}: {name} is missing; get the data again.")
        return self.read(name).decode("utf-8", errors="replace")


@contextmanager
def open_tree(path: Path) -> Iterator[Tree]:
    """List a folder, or a zip archive without the first folder of its names; raises :class:`CorruptFileError`."""
    if path.suffix == ".zip":
        with open_zip(path) as archive:
            members = _members(path, archive)

            def read(name: str) -> bytes:
                with reading(f"{path}/{members[name]}: cannot be read", "get the archive again"):
                    return archive.read(members[name])

            yield Tree(path, sorted(members), read)
    else:
        yield Tree(path, sorted(_walk(path)), lambda name: (path / name).read_bytes())


def _walk(root: Path) -> Iterator[str]:
    for folder, _, files in os.walk(root, followlinks=True):  # Path.rglob would hold a million Path objects
        below = Path(folder).relative_to(root)
        yield from ((below / name).as_posix() for name in files)


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, str]:
    """Map names without their first folder to names; refuses those that point outside the archive."""
    members = {}
    for info in archive.infolist():
        parts = PurePosixPath(info.filename).parts
        if info.filename.startswith("/") or ".." in parts or "\\" in info.filename or ":" in info.filename:
            raise CorruptFileError(f"{path}: refused, its member {info.filename!r} points outside the archive.")
        if not info.is_dir():
            members["/".join(parts[1:])] = info.filename
    return members


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip archive; raises :class:`CorruptFileError` if it is none."""
    with reading(f"{path}: not a zip archive, or cut short"):
        return zipfile.ZipFile(path)
