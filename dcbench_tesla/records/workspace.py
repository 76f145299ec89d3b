"""The folders under ``--out``: rows and sheets, small, to be committed; cells, experts, whitenings that are not."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcbench_tesla.errors import CorruptFileError
from dcbench_tesla.records.store import atomic_path, read_json, write_json


@dataclass(frozen=True)
class Workspace:
    """The folders under ``--out``: rows to be committed, and cells, experts, whitenings and jobs that are not."""

    root: Path

    @property
    def rows(self) -> Path:
        """One small file a finished stage, and one a cell that failed."""
        return self.root / "rows"

    @property
    def cells(self) -> Path:
        """One folder a cell: tensors, checkpoints, logs."""
        return self.root / "cells"

    @property
    def experts(self) -> Path:
        """Expert trajectories, shared by all cells."""
        return self.root / "experts"

    @property
    def preprocessing(self) -> Path:
        """ZCA whitenings, once each."""
        return self.root / "preprocessing"

    @property
    def jobs(self) -> Path:
        """Frozen cells and the logs of the processes that run them."""
        return self.root / "jobs"

    @property
    def sheets(self) -> Path:
        """PNG sheets of the distilled sets whose images may be passed on, to be committed with the rows."""
        return self.root / "sheets"

    @property
    def tables(self) -> Path:
        """Tables made from the rows: CSV and Markdown, to be committed with them."""
        return self.root / "tables"

    @property
    def figures(self) -> Path:
        """Tidy CSV of comparisons and their plots, to be committed."""
        return self.root / "figures"

    def check_writable(self) -> None:
        """Find out now, not after hours, whether results can be written.

        Raises:
            DcbenchError: they cannot.
        """
        with atomic_path(self.root / ".writable") as probe:
            probe.write_text("")
        (self.root / ".writable").unlink(missing_ok=True)

    def row(self, stage: str, key: str) -> dict[str, Any] | None:
        """Return a finished stage's row, ``None`` where it is not finished.

        Raises:
            CorruptFileError: the file there is no such row.
        """
        path = self.rows / f"{stage}-{key}.json"
        if not path.exists():
            return None
        row = read_json(path)
        if not isinstance(row, dict) or (row.get("stage"), row.get("key")) != (stage, key):
            raise CorruptFileError(f"{path} is no row of dcbench. Delete it: the same command makes it again.")
        return row

    def write_row(self, stage: str, key: str, content: Mapping[str, Any]) -> None:
        """Write a finished stage's row."""
        write_json(self.rows / f"{stage}-{key}.json", {"stage": stage, "key": key, **content})

    def drop_row(self, stage: str, key: str) -> None:
        """Forget that a stage was finished."""
        (self.rows / f"{stage}-{key}.json").unlink(missing_ok=True)
