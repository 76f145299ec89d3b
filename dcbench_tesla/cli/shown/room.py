"""What takes room on the disk beside results, and its removal: experts, snapshots, checkpoints, compiled code."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from dcbench_tesla.errors import CorruptFileError, DcbenchError, unknown_name
from dcbench_tesla.records.rows import stage_rows
from dcbench_tesla.records.store import content_key, read_json, writing
from dcbench_tesla.records.workspace import Workspace

RESULTS = "results"
"""What is never removed: rows, distilled sets, sheets, tables and figures."""

_LOCK = ".lock"


@dataclass(frozen=True)
class Room:
    """Something that takes room.

    Args:
        what: its kind, one of :data:`KINDS`, or :data:`RESULTS`.
        name: the key of experts or the name of a cell; empty for what is one whole.
        paths: its files and folders.
        about: what it is, in words.
    """

    what: str
    name: str
    paths: Sequence[Path]
    about: str

    @property
    def label(self) -> str:
        """The name on the command line."""
        return f"{self.what}:{self.name}" if self.name else self.what

    @property
    def bytes(self) -> int:
        """The bytes of its files."""
        return sum(_bytes(path) for path in self.paths)


def _bytes(path: Path) -> int:
    found = 0
    for file in path.rglob("*") if path.is_dir() else (path,):
        with suppress(OSError):
            found += file.lstat().st_size if not file.is_dir() else 0
    return found


def _experts(workspace: Workspace) -> Iterator[Room]:
    trained = {content_key(row.get("identity")): row for row in stage_rows(workspace, "experts")}
    for folder in sorted(path for path in workspace.experts.glob("*") if path.is_dir()):
        row = trained.get(folder.name, {})
        count = len(list(folder.glob("expert_*")))
        about = f"{count} experts of {row['dataset']}" if row else f"{count} experts"
        with suppress(CorruptFileError, FileNotFoundError):
            about = f"imported as {read_json(folder / 'imported.json', 'imported experts')['name']}"
        yield Room("experts", folder.name, [folder], about)


def _snapshots(workspace: Workspace) -> Iterator[Room]:
    for folder in sorted(workspace.cells.glob("*/snapshots")):
        yield Room(
            "snapshots", folder.parent.name, [folder], f"sets on the way of {folder.parent.name.partition('-')[0]}"
        )


def _checkpoints(workspace: Workspace) -> Iterator[Room]:
    """Yield the checkpoints of condensations that are finished: nothing goes on from them."""
    finished = {row["cell"] for row in stage_rows(workspace, "condense")}
    for path in sorted(workspace.cells.glob("*/checkpoint.safetensors")):
        if path.parent.name in finished and (path.parent / "distilled.safetensors").exists():
            yield Room("checkpoints", path.parent.name, [path], "of a finished condensation")


def _whole(what: str, folder: Path, about: str) -> Iterator[Room]:
    if folder.is_dir() and any(folder.iterdir()):
        yield Room(what, "", [folder], about)


def _compiled(workspace: Workspace) -> Iterator[Room]:
    from dcbench_tesla.compute.folders import compiled_folder

    named = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    yield from _whole("compiled", Path(named) if named else compiled_folder(), "code of compiled steps, of all results")


KINDS: Mapping[str, Callable[[Workspace], Iterator[Room]]] = {
    "experts": _experts,
    "snapshots": _snapshots,
    "checkpoints": _checkpoints,
    "compiled": _compiled,
    "preprocessing": lambda w: _whole("preprocessing", w.preprocessing, "whitenings"),
    "jobs": lambda w: _whole("jobs", w.jobs, "jobs and logs of worker processes"),
    "tuning": lambda w: _whole("tuning", w.tuning, "trials of searches that were not finished"),
}


def taken(workspace: Workspace) -> list[Room]:
    """Return everything that takes room and can be made again, by kind, and the results, which stay."""
    found = [room for kind in KINDS.values() for room in kind(workspace)]
    counted = {path for room in found for path in room.paths}
    others = [
        path for path in workspace.root.glob("*") if path.name not in ("experts", "preprocessing", "jobs", "tuning")
    ]
    files = [p for other in others for p in (other.rglob("*") if other.is_dir() else (other,)) if not p.is_dir()]
    kept = [file for file in files if not counted & {file, *file.parents}]
    about = "rows, distilled images, records, tables: never removed"
    return [*found, Room(RESULTS, "", kept, about)] if kept else found


def named(rooms: Sequence[Room], wanted: Sequence[str]) -> list[Room]:
    """Return what is named: a kind, or one of a kind such as ``experts:KEY``, by the beginning of its name.

    Raises:
        UsageError: nothing has this name.
    """
    found: dict[str, Room] = {}
    for name in wanted:
        kind, _, part = name.partition(":")
        if kind not in KINDS:
            raise unknown_name("thing to remove", kind, KINDS)
        fitting = [room for room in rooms if room.what == kind and room.name.startswith(part)]
        if part and not fitting:
            raise unknown_name(kind, part, [room.name for room in rooms if room.what == kind])
        found |= {room.label: room for room in fitting}
    return list(found.values())


def remove(room: Room) -> None:
    """Remove it.

    Raises:
        DcbenchError: a process uses it, or it cannot be written.
    """
    for path in room.paths:
        locks = [FileLock(file, timeout=0) for file in _locks(room, path)]
        try:
            for lock in locks:
                lock.acquire()
        except Timeout as error:
            raise DcbenchError(f"{room.label} is used by a process: wait until it has ended.") from error
        finally:
            for lock in locks:
                lock.release()
        with writing(path):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _locks(room: Room, path: Path) -> list[Path]:
    if room.what == "experts":
        return list(path.glob(f"*/{_LOCK}"))
    return [file for file in [path.parent / _LOCK] if room.what in ("snapshots", "checkpoints") and file.exists()]
