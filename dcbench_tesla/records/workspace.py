"""The folders under ``--out``: rows and sheets, small, to be committed; cells, experts, whitenings that are not.

Beside a workspace's own rows those that the repository ships can be read. Nothing is ever written there.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcbench_tesla.errors import CorruptFileError, UsageError
from dcbench_tesla.records.store import atomic_path, read_json, write_json

DEFAULT_OUT = "runs"
"""Where results go unless ``--out`` says otherwise; git ignores it."""

OWN, SHIPPED = "own", "shipped"
MARK = f" ({SHIPPED})"
"""Stands behind the name of what the repository ships, wherever own results can stand beside it."""

_CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Workspace:
    """The folders under ``--out``: rows to be committed, and cells, experts, whitenings and jobs that are not.

    ``shipped``: a folder whose rows, sheets and comparisons are read beside those under ``root``.
    """

    root: Path
    shipped: Path | None = None

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

    def files(self, folder: str, pattern: str) -> Iterator[tuple[Path, str]]:
        """Yield what matches ``pattern`` in a folder, by name, own files before shipped ones, each with its origin.

        Of an own and a shipped file of one name, the own one counts. The origin is empty where only own files are read.
        """
        own = {path.name: path for path in (self.root / folder).glob(pattern)}
        yield from ((own[name], OWN if self.shipped else "") for name in sorted(own))
        if self.shipped:
            others = sorted((self.shipped / folder).glob(pattern))
            yield from ((path, SHIPPED) for path in others if path.name not in own)

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


def with_shipped(out: Path) -> Workspace:
    """Return the workspace at ``out`` that reads what the repository ships too; ``out`` may be that very folder.

    Raises:
        UsageError: the package does not run from a checkout of the repository.
    """
    shipped = shipped_folder()
    if shipped is None:
        raise UsageError(
            "--shipped: the installed package has no committed results, a checkout of the repository has: "
            "clone it and run dcbench there, or leave out --shipped."
        )
    return Workspace(out) if out.resolve() == shipped else Workspace(out, shipped)


def shipped_folder() -> Path | None:
    """Return the folder of committed results of the checkout this package runs from; ``None`` where there is none."""
    folder = _CHECKOUT / "results"
    return folder if (_CHECKOUT / "pyproject.toml").is_file() and (folder / "rows").is_dir() else None
