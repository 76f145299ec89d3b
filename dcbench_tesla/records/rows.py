"""Reading the rows of finished and failed stages: the valid rows, and messages about the damaged ones."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dcbench_tesla.errors import CorruptFileError
from dcbench_tesla.records.workspace import MARK, SHIPPED, Workspace

_SHARED = ("dataset", "hardware", "environment.commit")
_OF_A_CELL = ("cell", "method", "ipc", "seed", "preset", "protocol", "command", *_SHARED)
_ACCURACIES = tuple(f"accuracy.last.{name}" for name in ("mean", "std", "values"))
_NEEDED: Mapping[str, Sequence[str]] = {
    "experts": ("key", *_SHARED),
    "condense": (
        *("key", "settings", "distilled_images", "identity.network", "identity.data.train_images"),
        *_OF_A_CELL,
    ),
    "evaluate": (
        *("condense_key", "evaluator", "recipe", "settings", "networks", "diverged_networks", "evaluate_seconds"),
        *("dataset_fingerprint", "evaluated.iteration", "evaluated.test"),
        *("accuracy.best_on_validation", "accuracy.best_on_test", *_ACCURACIES, *_OF_A_CELL),
    ),
    "failed": ("status", "reason", *_OF_A_CELL),
}
"""The columns that readers of a row rely on. A dot leads into a part of the row, or into every entry of a list."""

STAGES = tuple(_NEEDED)


def stage_rows(workspace: Workspace, stage: str) -> list[dict[str, Any]]:
    """Return the valid rows of a stage (one of :data:`STAGES`), sorted by file name.

    If shipped rows are read as well, ``origin`` says which kind a row is. Where an own and a shipped row have the same
    key, the own one counts; a shipped failure does not count if the cell has been finished. Damaged rows are left out;
    :func:`damaged_rows` reports them.
    """
    rows = [row for row in _read(workspace, stage) if not isinstance(row, CorruptFileError)]
    return [row for row in rows if not (stage == "failed" and mark(row) and _is_done(workspace, row))]


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
    for path, origin in workspace.files("rows", f"{stage}-*.json"):
        try:
            yield _row(path, _NEEDED[stage]) | ({"origin": origin} if origin else {})
        except CorruptFileError as error:
            yield error


def _row(path: Path, needed: Sequence[str]) -> dict[str, Any]:
    """Read a row; raise ``CorruptFileError`` if the file does not hold one."""
    if path.is_dir():
        raise CorruptFileError(f"{path} is a folder, not a row of dcbench. Move it away.")
    remedy = "Delete it: the command that made it, dcbench run or dcbench evaluate, makes it again."
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also raised for text that is not UTF-8
        raise CorruptFileError(f"{path} is not valid JSON ({error}). {remedy}") from error
    if not isinstance(row, dict):
        raise CorruptFileError(f"{path} is not a row of dcbench. {remedy}")
    lacking = next((name for name in needed if not _has(row, name.split("."))), None)
    if lacking:
        raise CorruptFileError(f"{path} is not a row of dcbench: it has no {lacking}. {remedy}")
    return row


def _has(value: Any, names: Sequence[str]) -> bool:
    if not names:
        return True
    if isinstance(value, list):
        return bool(value) and all(_has(part, names) for part in value)
    return isinstance(value, dict) and names[0] in value and _has(value[names[0]], names[1:])
