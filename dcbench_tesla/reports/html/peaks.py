"""Why a peak of memory is empty: what the row of the condensation says about it."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from dcbench_tesla.compare.accuracy import Wanted, condensation_key, costed, evaluations
from dcbench_tesla.records.workspace import Workspace

_COMPILED, _NO_ITERATIONS, _NO_ROW, _NOT_MEASURED = "compiled", "no iterations", "no row", "not measured"
_TOLD = {
    _COMPILED: "the meter cannot see into compiled code; `--compile off` measures it, and `dcbench compare memory` "
    "predicts it",
    _NO_ITERATIONS: "the method updates no images, so that there is no iteration to measure",
    _NO_ROW: "how the set was condensed is not on record, because it was evaluated from a file or its row is missing",
    _NOT_MEASURED: "the row of the condensation is of an older version, and does not say why it has no peak",
}


def why_empty(made: Mapping[str, Any] | None) -> str:
    """Return in a word or two why the row of a condensation has no peak; empty if it has one. ``None``: no row."""
    if made is None:
        return _NO_ROW
    if made.get("peak_bytes") is not None:
        return ""
    if made.get("iterations") == 0:
        return _NO_ITERATIONS
    return _COMPILED if made.get("compiled") else _NOT_MEASURED


def explained(reason: str) -> str:
    """Return a reason of :func:`why_empty` with its explanation."""
    return f"{reason}: {_TOLD[reason]}"


class Peaks:
    """The reasons of the empty peaks among the evaluations of a workspace."""

    def __init__(self, workspace: Workspace | None) -> None:
        groups = evaluations(workspace, Wanted()) if workspace else []
        found = ((condensation_key(rows[0]), why_empty(next(iter(costed(rows)), None))) for rows in groups)
        self._reasons = {condensation: reason for condensation, reason in found if reason}

    def by_line(self, rows: pd.DataFrame) -> dict[str, str]:
        """Return the reasons by ``line``, of those tidy rows of ``compare.accuracy`` whose peak is empty."""
        empty = rows[rows["peak_bytes"].isna()]
        return {line: self._reasons[key] for line, key in zip(empty["line"], empty["condensation"], strict=True)}

    @staticmethod
    def notes(reasons: Mapping[str, str]) -> Iterable[str]:
        """Return a note for each of the different ``reasons``."""
        return [f"peak: {explained(reason)}" for reason in sorted({*reasons.values()})]
