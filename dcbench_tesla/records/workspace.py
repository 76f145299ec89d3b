"""The folders of results under ``--out``.

A workspace can also read the results that the repository ships, but never writes to them.
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
"""The mark after the names of results that the repository ships, wherever they can stand beside own results."""

_REMEDY = "Delete it: the same command makes it again."
_CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Workspace:
    """The folders under ``--out``.

    Rows, sheets, tables and figures are small and may be committed. Cells, experts, preprocessing, jobs and data sets
    are large or of passing interest, and are not. ``shipped`` is a folder whose rows, sheets and comparisons are read
    beside those under ``root``.
    """

    root: Path
    shipped: Path | None = None

    @property
    def home(self) -> "Workspace":
        """The results folder with the experts and their rows, without what is shipped."""
        return Workspace(self.root)

    @property
    def rows(self) -> Path:
        """Rows: one small JSON file per finished stage, and one per failed cell."""
        return self.root / "rows"

    @property
    def cells(self) -> Path:
        """One folder per cell with its tensors, checkpoints and logs."""
        return self.root / "cells"

    @property
    def experts(self) -> Path:
        """Expert trajectories, shared by all cells that read them."""
        return self.root / "experts"

    @property
    def preprocessing(self) -> Path:
        """Fitted ZCA whitenings, each stored once."""
        return self.root / "preprocessing"

    @property
    def jobs(self) -> Path:
        """Task files of the processes that run cells, and the logs of these processes."""
        return self.root / "jobs"

    @property
    def tuning(self) -> Path:
        """Trials of searches while they run."""
        return self.root / "tuning"

    @property
    def sheets(self) -> Path:
        """PNG sheets of the distilled sets whose images may be passed on."""
        return self.root / "sheets"

    @property
    def datasets(self) -> Path:
        """Data sets that were given in memory, as archives."""
        return self.root / "datasets"

    @property
    def tables(self) -> Path:
        """Tables made from the rows, as CSV and Markdown."""
        return self.root / "tables"

    @property
    def figures(self) -> Path:
        """Figures made from the rows, and their data as tidy CSV."""
        return self.root / "figures"

    def files(self, folder: str, pattern: str) -> Iterator[tuple[Path, str]]:
        """Yield the files in a folder that match ``pattern``, own before shipped ones, by name, each with its origin.

        Where an own and a shipped file have the same name, only the own one is yielded. The origin is empty if only own
        files are read.
        """
        own = {path.name: path for path in (self.root / folder).glob(pattern)}
        yield from ((own[name], OWN if self.shipped else "") for name in sorted(own))
        if self.shipped:
            others = sorted((self.shipped / folder).glob(pattern))
            yield from ((path, SHIPPED) for path in others if path.name not in own)

    def check_writable(self) -> None:
        """Check now, and not after hours, that results can be written.

        Raises:
            DcbenchError: they cannot.
        """
        with atomic_path(self.root / ".writable") as probe:
            probe.write_text("")
        (self.root / ".writable").unlink(missing_ok=True)

    def row(self, stage: str, key: str) -> dict[str, Any] | None:
        """Return the row of a finished stage, or ``None`` if the stage is not finished.

        Raises:
            CorruptFileError: the file does not hold this row.
        """
        path = self.rows / f"{stage}-{key}.json"
        if not path.exists():
            return None
        row: dict[str, Any] = read_json(path, f"{stage} row", remedy=_REMEDY)
        if (row.get("stage"), row.get("key")) != (stage, key):
            raise CorruptFileError(f"{path} holds another row of dcbench. {_REMEDY}")
        return row

    def write_row(self, stage: str, key: str, content: Mapping[str, Any]) -> None:
        """Write the row of a finished stage."""
        write_json(self.rows / f"{stage}-{key}.json", {"stage": stage, "key": key, **content})

    def drop_row(self, stage: str, key: str) -> None:
        """Delete the row of a stage, so that the stage counts as not finished."""
        (self.rows / f"{stage}-{key}.json").unlink(missing_ok=True)


@dataclass(frozen=True)
class TrialWorkspace(Workspace):
    """The folder of a search's trials; experts, their rows and whitenings are those of the folder ``results``."""

    results: Path = Path()

    @property
    def home(self) -> Workspace:
        """The results folder."""
        return Workspace(self.results)

    @property
    def experts(self) -> Path:
        """The experts of the results folder."""
        return self.home.experts

    @property
    def preprocessing(self) -> Path:
        """The whitenings of the results folder."""
        return self.home.preprocessing

    def row(self, stage: str, key: str) -> dict[str, Any] | None:
        """Return a row of a trial, or the row of experts that all cells share."""
        return self.home.row(stage, key) if stage == "experts" else super().row(stage, key)

    def write_row(self, stage: str, key: str, content: Mapping[str, Any]) -> None:
        """Write a row of a trial, or the row of experts that all cells share."""
        if stage == "experts":
            self.home.write_row(stage, key, content)
        else:
            super().write_row(stage, key, content)


def with_shipped(out: Path) -> Workspace:
    """Return the workspace at ``out`` that also reads the results the repository ships, which ``out`` may be itself.

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
    """Return the folder of committed results in the checkout that this package runs from, or ``None``."""
    folder = _CHECKOUT / "results"
    return folder if (_CHECKOUT / "pyproject.toml").is_file() and (folder / "rows").is_dir() else None
