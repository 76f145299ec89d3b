"""Files of public data sets: where they are looked for, and how they are downloaded.

A downloaded file gets its name only when it is complete and its MD5 is the published one.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import tarfile
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dcbench_tesla.data.checks import reading
from dcbench_tesla.errors import CorruptFileError, DataMissingError
from dcbench_tesla.records.leftovers import sweep, temporary_path
from dcbench_tesla.records.regular import regular_file

logger = logging.getLogger(__name__)

# Folders where a package manager installs a data set; searched after the data folder.
SYSTEM_FOLDERS: dict[str, tuple[Path, ...]] = {"fashion-mnist": (Path("/usr/share/datasets/fashion-mnist"),)}
_MOST_BYTES = 1 << 30  # of a member of an archive
NETWORK_TIMEOUT_S = 5.0  # for connecting and for every read, so that the error comes soon if there is no network
DATA_FOLDER = "the data folder (--data-dir or $DCBENCH_DATA)"


@dataclass(frozen=True, kw_only=True)
class Files:
    """The files of a data set, named in ``md5s``.

    All files lie in the same one of ``folders``, which are relative to the data folder and sorted by preference.
    """

    name: str
    folders: tuple[str, ...]
    base_url: str
    md5s: Mapping[str, str]
    remedy: str

    def find(self, data_dir: Path) -> Path | None:
        """Return the first folder that holds every file, or ``None``."""
        return next((folder for folder in self._folders(data_dir) if not self._absent(folder)), None)

    def get(self, data_dir: Path) -> Path:
        """Return the first folder that holds every file; if there is none, download what the first folder lacks.

        Raises:
            DataMissingError: a download failed.
        """
        folders = self._folders(data_dir)
        found = self.find(data_dir)
        for file in self._absent(folders[0]) if found is None else ():
            download(self, self.base_url + file, self.md5s[file], folders[0], [folder / file for folder in folders])
        return found or folders[0]

    def _folders(self, data_dir: Path) -> list[Path]:
        return [*(data_dir / folder for folder in self.folders), *SYSTEM_FOLDERS.get(self.name, ())]

    def _absent(self, folder: Path) -> list[str]:
        return [file for file in self.md5s if not packed_or_not(folder / file).exists()]


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A data set in one ``.tar.gz`` file. Only ``members`` are unpacked, into ``folder`` of the data folder."""

    name: str
    url: str
    md5: str
    folder: str
    members: tuple[str, ...]

    @property
    def remedy(self) -> str:
        """What a user can do if the download fails."""
        return f"put {Path(self.url).name} ({self.url}) into {DATA_FOLDER}"

    def find(self, data_dir: Path) -> Path | None:
        """Return the folder if it holds every member, else the archive if it exists, else ``None``."""
        folder = data_dir / self.folder
        whole = all((folder / member).exists() for member in self.members)
        return folder if whole else first_of([data_dir / Path(self.url).name])

    def get(self, data_dir: Path) -> Path:
        """Return the folder with the members; download and unpack the archive if they are missing.

        Raises:
            DataMissingError: the download failed.
            CorruptFileError: the archive cannot be unpacked.
        """
        folder, archive = data_dir / self.folder, data_dir / Path(self.url).name
        found = self.find(data_dir)
        if found is None:
            download(self, self.url, self.md5, data_dir, [folder, archive])
        if found != folder:
            self._unpack(archive, folder)
        return folder

    def _unpack(self, archive: Path, folder: Path) -> None:
        """Unpack the expected members by name, so that an archive cannot write anywhere else."""
        remedy = f"if it is damaged, delete it and get {self.url} again"
        cannot = reading(f"{archive}: cannot be unpacked into {folder}", remedy)
        with cannot, tarfile.open(regular_file(archive), "r:gz") as tar:
            for member in self.members:
                stream = tar.extractfile(found := tar.getmember(f"{self.folder}/{member}"))
                if stream is None or found.size > _MOST_BYTES:
                    raise ValueError(f"its {member} is no file of at most {_MOST_BYTES} bytes")
                write_whole(stream, folder / member)


def packed_or_not(path: Path) -> Path:
    """Return ``path``, or its unpacked form if only that exists. A ``.gz`` comes first: its checksum shows damage."""
    plain = path.with_name(path.name.removesuffix(".gz"))
    return plain if plain.exists() and not path.exists() else path


def first_of(paths: Iterable[Path]) -> Path | None:
    """Return the first path that exists, or ``None``."""
    return next((path for path in paths if path.exists()), None)


def missing(name: str, looked: Iterable[Path], remedy: str, tried: str = "") -> DataMissingError:
    """Build the error for missing files from the places searched, what was tried, and the remedy."""
    places = ", ".join(map(str, looked))
    return DataMissingError(f"{name}: not found; looked for {places}{tried}. Remedy: {remedy}.")


def download(data: Files | Archive, url: str, md5: str, folder: Path, looked: Iterable[Path]) -> None:
    """Download ``url`` into ``folder``.

    Raises:
        DataMissingError: the download failed; the message lists the places in ``looked`` and the remedy of ``data``.
    """
    logger.info("%s: downloading %s", data.name, url)
    request = urllib.request.Request(url, headers={"User-Agent": "dcbench"})
    try:
        with urllib.request.urlopen(request, timeout=NETWORK_TIMEOUT_S) as response:
            write_whole(response, folder / Path(url).name, md5)
    except (OSError, http.client.HTTPException, CorruptFileError) as error:
        raise missing(data.name, looked, data.remedy, f"; downloading {url} failed ({error})") from error


def write_whole(stream: IO[bytes], path: Path, md5: str | None = None) -> None:
    """Copy ``stream`` to ``path``, which gets its name only when the copy is complete and matches ``md5``.

    Raises:
        CorruptFileError: the MD5 is another one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # the process id separates processes; tempfile would make files that other users of a shared folder cannot read
    part = temporary_path(path)
    sweep(path.parent)
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with open(part, "wb") as file:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
                file.write(chunk)
        if md5 is not None and digest.hexdigest() != md5:
            raise CorruptFileError(f"its MD5 is {digest.hexdigest()}, the published one {md5}")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
