"""Reading the rows of finished and failed stages: the valid rows, and messages about the damaged ones."""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from dcbench_tesla.errors import CorruptFileError
from dcbench_tesla.records.progress import say_once
from dcbench_tesla.records.store import read_json
from dcbench_tesla.records.workspace import MARK, SHIPPED, Workspace

STAGES = ("experts", "condense", "evaluate", "failed", "trial")
STATISTICS = ("last", "best_on_validation", "best_on_test")
"""The three names of an accuracy, as rows and tables have them."""

_SHARED = ("method", "seed", "ipc", "dataset_fingerprint")  # of an evaluation's row and its condensation's row
_REMEDY = "Delete it: the command that made it, dcbench run or dcbench evaluate, makes it again."


def stage_rows(workspace: Workspace, stage: str) -> list[dict[str, Any]]:
    """Return the valid rows of a stage (one of :data:`STAGES`), sorted by file name.

    If shipped rows are read as well, ``origin`` says which kind a row is. Where an own and a shipped row have the same
    key, the own one counts; a shipped failure does not count if the cell has been finished. Damaged rows are left out;
    :func:`damaged_rows` reports them.
    """
    rows = [row for row in _read(workspace, stage) if not isinstance(row, CorruptFileError)]
    return [row for row in rows if not (stage == "failed" and mark(row) and _is_done(workspace, row))]


def tell_contents_apart(workspace: Workspace, rows: Sequence[dict[str, Any]]) -> None:
    """Give data sets of one name and several contents different names in ``rows``, and say so in one line.

    A content is known by its fingerprint: ``npz:data`` becomes ``npz:data (3f2a91c0)``.
    """
    contents: dict[str, set[str]] = {}
    for row in rows:
        contents.setdefault(row["dataset"], set()).add(row.get("dataset_fingerprint", ""))
    several = {name: found for name, found in contents.items() if len(found - {""}) > 1}
    for row in rows:
        if row["dataset"] in several and row.get("dataset_fingerprint"):
            row["dataset"] = f"{row['dataset']} ({row['dataset_fingerprint'][:8]})"
    for name, found in sorted(several.items()):
        named = ", ".join(f"{name} ({content[:8]})" for content in sorted(found - {""}))
        say_once(
            f"{workspace.root}: {name} is the name of {len(found - {''})} data sets of different contents: {named}"
        )


def mark(row: Mapping[str, Any]) -> str:
    """Return the mark after the name of a row's cell: :data:`~workspace.MARK` for a shipped row, else nothing."""
    return MARK if row.get("origin") == SHIPPED else ""


def damaged_rows(workspace: Workspace, stages: Sequence[str] = STAGES) -> list[str]:
    """Return a message for every damaged row of some stages: what is wrong with the file, and what to do."""
    return [str(row) for stage in stages for row in _read(workspace, stage) if isinstance(row, CorruptFileError)]


def is_settled(workspace: Workspace, failure: Mapping[str, Any]) -> bool:
    """Return whether all evaluations that a failure's row names have been finished under ``workspace``."""
    return all((workspace.rows / f"evaluate-{key}.json").exists() for key in failure.get("evaluations", ()))


def _is_done(workspace: Workspace, failure: Mapping[str, Any]) -> bool:
    """Return whether the cell of a shipped failure has been finished under ``workspace``."""
    return (workspace.rows / f"condense-{failure.get('key')}.json").exists() and is_settled(workspace, failure)


def drop_settled_failure(workspace: Workspace, key: str) -> None:
    """Remove the row of a failed condensation, unless it names an evaluation that is not finished."""
    found = [row for row in stage_rows(workspace, "failed") if row.get("key") == key]
    if all(is_settled(workspace, row) for row in found):
        workspace.drop_row("failed", key)


def _read(workspace: Workspace, stage: str) -> Iterator[dict[str, Any] | CorruptFileError]:
    condensed = _condensations(workspace) if stage == "evaluate" else {}
    for path, origin in workspace.files("rows", f"{stage}-*.json"):
        try:
            row = dict(_read_once(path, stage, _state(path)))
            _check_condensation(path, row, condensed)
            row.pop("origin", None)  # said by where the file lies, and by nothing in it
            yield row | ({"origin": origin} if origin else {})
        except CorruptFileError as error:
            yield error


def _state(path: Path) -> tuple[int, ...]:
    """Return what differs once a file is another one: rows are written to new files, which then get their name."""
    try:
        found = path.stat()
    except OSError:  # read_row tells it
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


@lru_cache(maxsize=10_000)
def _read_once(path: Path, stage: str, state: tuple[int, ...]) -> Mapping[str, Any]:
    """Return the row of a stage; a command asks for its rows several times, and checks each once."""
    return read_row(path, stage)


def read_row(path: Path, stage: str, *, remedy: str = _REMEDY) -> dict[str, Any]:
    """Return the row of a stage in the file at ``path``, checked against its schema.

    Raises:
        CorruptFileError: the file holds no row of the stage, contradicts itself, or holds another row than its name
            says.
    """
    row: dict[str, Any] = read_json(path, f"{stage} row", remedy=remedy)
    if path.name != f"{row.get('stage')}-{row.get('key')}.json":
        raise CorruptFileError(f"{path} holds the row of another {row.get('stage')} stage. {remedy}")
    return row


def _condensations(workspace: Workspace) -> dict[str, dict[str, Any]]:
    """Return the row of every condensation on record, by its key."""
    found = (row for row in _read(workspace, "condense") if not isinstance(row, CorruptFileError))
    return {row["key"]: row for row in found}


def _check_condensation(path: Path, row: Mapping[str, Any], condensed: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ``CorruptFileError`` if a cell's evaluation contradicts the row of its condensation."""
    made = condensed.get(row.get("condense_key", ""))
    if made is None or "set" in row:
        return
    for name in _SHARED:
        if name in made and row[name] != made[name]:
            told = f"its {name} is {row[name]}, that of its condensation is {made[name]}"
            raise CorruptFileError(f"{path} is not a row of dcbench: {told}. {_REMEDY}")
    last, end = row["evaluated"][-1]["iteration"], made.get("iterations")
    if end is not None and last != end:
        told = f"its last iteration is {last}, that of its condensation is {end}"
        raise CorruptFileError(f"{path} is not a row of dcbench: {told}. {_REMEDY}")
