"""Reports as files under ``--out``: a fuller one is never replaced by an emptier one unasked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from dcbench_tesla.compare.files import save_figure
from dcbench_tesla.errors import CorruptFileError, DcbenchError
from dcbench_tesla.reports import figure2
from dcbench_tesla.reports.declarations import Declaration, Part
from dcbench_tesla.reports.plots import curves_figure, epochs_figure, table_figure
from dcbench_tesla.reports.tables import RUN, runs, table
from dcbench_tesla.reports.text import lacking, sheet
from dcbench_tesla.store import write_text
from dcbench_tesla.workspace import Workspace

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Report:
    """A table or figure, ready to be shown and written.

    ``text``: what is shown, the part that was asked for. ``rows``, ``texts`` and ``figures``: what is written, always
    the whole, by path; a figure's has no suffix.
    """

    text: str
    rows: Mapping[Path, pd.DataFrame]
    texts: Mapping[Path, str]
    figures: Mapping[Path, "Figure"] = field(default_factory=dict)

    def write(self, *, force: bool = False) -> list[Path]:
        """Write the files and return their paths.

        Raises:
            DcbenchError: a file that is there holds more of what was run, and not ``force``; or it cannot be written.
            CorruptFileError: a file that is there is another table.
        """
        for path, rows in self.rows.items():
            if path.exists() and not force:
                _check_fuller(path, rows)
        for path, rows in self.rows.items():
            write_text(path, rows.to_csv(index=False))
        for path, text in self.texts.items():
            write_text(path, text)
        drawn = [path for stem, figure in self.figures.items() for path in save_figure(figure, stem)]
        return [*self.rows, *self.texts, *drawn]


def _check_fuller(path: Path, rows: pd.DataFrame) -> None:
    """Raise unless ``rows`` hold at least as much of what was run as the file at ``path``."""
    try:
        old = pd.read_csv(path)
    except (ValueError, UnicodeDecodeError) as error:
        raise CorruptFileError(f"{path} is no CSV ({error}). Move it away.") from error
    if "status" not in old:
        raise CorruptFileError(f"{path} is another table: it has no column status. Move it away.")
    before, now = ((filled["status"] == RUN).sum() for filled in (old, rows))
    if now < before:
        raise DcbenchError(
            f"{path} stays as it is: {before} of its rows were run, and what is on record under {path.parent.parent} "
            f"makes {now}. --force replaces it."
        )


def report(declaration: Declaration, workspace: Workspace, part: Part | None = None) -> Report:
    """Return a declared table or figure from the rows under ``workspace``; ``part`` is what is shown of it.

    Raises:
        UsageError: an unknown preset, data set or method in ``part``.
    """
    make = _figure2_report if declaration.alone else _table_report
    return make(declaration, workspace, part or Part())


def _table_report(declaration: Declaration, workspace: Workspace, part: Part) -> Report:
    ran = runs(declaration, workspace)
    found = table(declaration, ran)
    whole = sheet(declaration, found, lacking(declaration, Part(), ran), Part())
    stem = workspace.tables / declaration.name
    return Report(
        text=sheet(declaration, found, lacking(declaration, part, ran), part).markdown(),
        rows={stem.with_suffix(".csv"): found},
        texts={stem.with_suffix(".md"): whole.markdown(), stem.with_suffix(".tex"): whole.latex()},
        figures={stem: table_figure(declaration, found)},
    )


def _figure2_report(declaration: Declaration, workspace: Workspace, part: Part) -> Report:
    ran = runs(declaration, workspace)
    a, b = figure2.on_the_way(declaration, ran), figure2.labels_alone(declaration, ran)
    stem_a, stem_b = (workspace.figures / f"{declaration.name}{letter}" for letter in "ab")
    whole = figure2.markdown(declaration, a, b, lacking(declaration, Part(), ran))
    return Report(
        text=figure2.markdown(declaration, _within(a, part), _within(b, part), lacking(declaration, part, ran)),
        rows={stem_a.with_suffix(".csv"): figure2.rows_a(a), stem_b.with_suffix(".csv"): figure2.rows_b(b)},
        texts={workspace.tables / f"{declaration.name}.md": whole},
        figures=({stem_a: curves_figure(a)} if a else {}) | ({stem_b: epochs_figure(b, a)} if b else {}),
    )


def _within(lines: Sequence[figure2.Line], part: Part) -> list[figure2.Line]:
    return [n for n in lines if part.has(n.cell.dataset, n.cell.ipc, n.cell.method) and part.shows(n.protocol)]
