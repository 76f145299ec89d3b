"""Reports as files under ``--out``: one that has what a new one lacks is not replaced unasked."""

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
from dcbench_tesla.reports.tables import RUN, runs, table
from dcbench_tesla.reports.text import lacking, protocol_names, sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_KEY = ("dataset", "ipc", "method", "evaluator", "labels", "strategy", "last_epoch", "iteration")


def lost_runs(old: pd.DataFrame, new: pd.DataFrame) -> list[str]:
    """Return what was run by the rows of ``old`` and not by those of ``new``.

    A row is known by its command too: its protocol has another name where a second version was run beside it, and a
    baseline moves to the protocol it stands beside. What the repository ships is not lost.
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
    """A table or figure, ready to be shown and written.

    ``text``: what is shown, the part that was asked for. ``rows``, ``texts`` and ``figures``: what is written, always
    the whole, by path; a figure's has no suffix. ``column``: by which a table of its kind is known. ``lost``: names
    what an old table holds of what was run and a new one does not.
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
            DcbenchError: a file that is there holds something that was run and is not on record any more, and not
                ``force``; or it cannot be written.
            CorruptFileError: a file that is there is another table; ``force`` does not replace it either.
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
            raise CorruptFileError(f"{path} is no CSV ({error}). Move it away.") from error
        if self.column not in old:
            raise CorruptFileError(f"{path} is another table: it has no column {self.column}. Move it away.")
        if not force and (lost := self.lost(old, rows)):
            raise DcbenchError(
                f"{path} stays as it is: {len(lost)} of its rows were run, and what is on record under "
                f"{path.parent.parent} has not got them, for instance {lost[0]}. --force replaces it."
            )


def report(declaration: Declaration, workspace: Workspace, part: Part | None = None) -> Report:
    """Return a declared table or figure from the rows under ``workspace``; ``part`` is what is shown of it.

    Raises:
        UsageError: an unknown preset, data set or method in ``part``.
    """
    make = _figure2_report if declaration.alone else _table_report
    return make(declaration, workspace, part or Part())


def _table_report(declaration: Declaration, workspace: Workspace, part: Part) -> Report:
    ran, failed = runs(declaration, workspace), failures(workspace, declaration.methods)
    found = table(declaration, ran, failed)
    whole = sheet(declaration, found, lacking(declaration, Part(), ran, failed), Part())
    stem = workspace.tables / declaration.name
    return Report(
        text=sheet(declaration, found, lacking(declaration, part, ran, failed), part).markdown(),
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
