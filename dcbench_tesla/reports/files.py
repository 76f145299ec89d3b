"""Reports as files under ``--out``. A file with results that the new one lacks is replaced only by ``--force``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from dcbench_tesla.compare.files import csv_text, keys, save_figure, table_of
from dcbench_tesla.errors import CorruptFileError, DcbenchError
from dcbench_tesla.records.store import write_text
from dcbench_tesla.records.workspace import MARK, Workspace
from dcbench_tesla.reports import figure2
from dcbench_tesla.reports.declarations import Declaration, Part
from dcbench_tesla.reports.failed import failures
from dcbench_tesla.reports.plots import curves_figure, epochs_figure, table_figure
from dcbench_tesla.reports.related import related_sheet
from dcbench_tesla.reports.tables import RUN, runs, table
from dcbench_tesla.reports.text import lacking, protocol_names, sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_KEY = ("dataset", "ipc", "method", "evaluator", "labels", "strategy", "last_epoch", "iteration")


def lost_runs(old: pd.DataFrame, new: pd.DataFrame) -> list[str]:
    """Return the runs in the table ``old`` that ``new`` lacks, as texts. Committed results do not count.

    A run is in ``new`` if a row has the same protocol or the same command. The protocol alone does not suffice, because
    its name changes if a second version is run, and a baseline moves to the protocol that it is compared with.
    """
    before, now = (_own_runs(table) for table in (old, new))
    known = [name for name in (*_KEY, "protocol", "command") if name in before and name in now]
    named, commanded = ([name for name in known if name != other] for other in ("command", "protocol"))
    kept, made = set(keys(now, named)), set(keys(now, commanded))
    rows = zip(keys(before, named), keys(before, commanded), strict=True)
    return [", ".join(filter(None, name)) for name, command in rows if name not in kept and command not in made]


def _own_runs(table: pd.DataFrame) -> pd.DataFrame:
    return table[(table["status"] == RUN) & ~table["protocol"].astype(str).str.contains(MARK, regex=False)]


@dataclass(frozen=True, kw_only=True)
class Report:
    """A table or figure, ready to be printed and written.

    Args:
        text: the requested part, to be printed.
        rows: the whole tables, by path.
        texts: the whole texts, by path.
        figures: the whole plots, by path without suffix.
        column: a column that every table of this kind has.
        lost: returns the runs that an old table has and a new one lacks.
    """

    text: str
    rows: Mapping[Path, pd.DataFrame]
    texts: Mapping[Path, str]
    figures: Mapping[Path, "Figure"] = field(default_factory=dict)
    column: str = "status"
    lost: Callable[[pd.DataFrame, pd.DataFrame], Sequence[str]] = lost_runs

    def write(self, *, force: bool = False) -> list[Path]:
        """Write the files and return their paths.

        Raises:
            DcbenchError: a file has runs that are no longer on record, without ``force``; or a file cannot be written.
            CorruptFileError: an existing file is another table, which ``force`` does not replace either.
        """
        for path, rows in self.rows.items():
            if path.exists():
                self._check(path, rows, force=force)
        for path, rows in self.rows.items():
            write_text(path, csv_text(rows))
        for path, text in self.texts.items():
            write_text(path, text)
        drawn = [path for stem, figure in self.figures.items() for path in save_figure(figure, stem)]
        return [*self.rows, *self.texts, *drawn]

    def _check(self, path: Path, rows: pd.DataFrame, *, force: bool) -> None:
        """Raise unless ``rows`` may replace the file at ``path``."""
        try:
            old = table_of(path)
        except ValueError as error:
            raise CorruptFileError(f"{path} is not a CSV file ({error}). Move it away.") from error
        if self.column not in old:
            raise CorruptFileError(f"{path} is another table: it has no column {self.column}. Move it away.")
        if not force and (lost := self.lost(old, rows)):
            raise DcbenchError(
                f"{path} stays as it is: {len(lost)} of its rows were run, but are not on record under "
                f"{path.parent.parent}, for instance {lost[0]}. --force replaces it."
            )


def report(declaration: Declaration, workspace: Workspace, part: Part | None = None) -> Report:
    """Return a declared table or figure from the rows of ``workspace``; its text shows ``part`` of it.

    Raises:
        UsageError: ``part`` has an unknown preset, data set or method.
    """
    make = _figure2_report if declaration.alone else _table_report
    return make(declaration, workspace, part or Part())


def _table_report(declaration: Declaration, workspace: Workspace, part: Part) -> Report:
    ran, failed = runs(declaration, workspace), failures(workspace, declaration.methods)
    found = table(declaration, ran, failed)
    as_text = related_sheet if declaration.families else sheet
    whole = as_text(declaration, found, lacking(declaration, Part(), ran, failed), Part())
    stem = workspace.tables / declaration.name
    return Report(
        text=as_text(declaration, found, lacking(declaration, part, ran, failed), part).markdown(),
        rows={stem.with_suffix(".csv"): found},
        texts={stem.with_suffix(".md"): whole.markdown(), stem.with_suffix(".tex"): whole.latex()},
        figures={stem: table_figure(declaration, found)},
    )


def _figure2_report(declaration: Declaration, workspace: Workspace, part: Part) -> Report:
    ran, failed = runs(declaration, workspace), failures(workspace, declaration.methods)
    a, b = figure2.on_the_way(declaration, ran), figure2.labels_alone(declaration, ran)
    names = protocol_names(line.protocol for line in (*a, *b))
    stem_a, stem_b = (workspace.figures / f"{declaration.name}{letter}" for letter in "ab")
    whole = figure2.markdown(declaration, a, b, lacking(declaration, Part(), ran, failed), names)
    return Report(
        text=figure2.markdown(
            declaration, _within(a, part), _within(b, part), lacking(declaration, part, ran, failed), names
        ),
        rows={stem_a.with_suffix(".csv"): figure2.rows_a(a), stem_b.with_suffix(".csv"): figure2.rows_b(b)},
        texts={workspace.tables / f"{declaration.name}.md": whole},
        figures=({stem_a: curves_figure(a, names)} if a else {}) | ({stem_b: epochs_figure(b, a, names)} if b else {}),
    )


def _within(lines: Sequence[figure2.Line], part: Part) -> list[figure2.Line]:
    return [n for n in lines if part.has(n.cell.dataset, n.cell.ipc, n.cell.method) and part.shows(n.protocol)]
