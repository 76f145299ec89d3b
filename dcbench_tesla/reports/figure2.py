"""Figure 2: label strategies. Best accuracy so far against iteration (a), and labels alone by the teacher's epoch (b).

All lines of a panel share the data set and its settings, IPC, network, and the evaluator with its recipe. Other changes
of the preset are given for each line. ``best_so_far`` is the running maximum of the mean test accuracy over the
evaluated snapshots, which the test images choose, as in the paper.
"""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from dcbench_tesla.compare.accuracy import network_settings
from dcbench_tesla.compare.table import aligned, bullet
from dcbench_tesla.records.progress import say_once
from dcbench_tesla.records.store import content_key
from dcbench_tesla.reports.declarations import Declaration
from dcbench_tesla.reports.finished import Finished, by_protocol, chosen
from dcbench_tesla.reports.tables import RUN
from dcbench_tesla.reports.text import about_protocols, paragraphs

_STRATEGY = frozenset({"labels", "last_epoch", "label_space", "lr_labels"})
_OF_STRATEGY = {"last": ("last_epoch",), "learned": ("label_space", "lr_labels")}  # what tells its lines apart
_WHERE = ["panel", "dataset", "ipc", "evaluator", "recipe", "protocol", "labels", "last_epoch", "status"]
_MEASURED = ["accuracy", "std_networks", "networks"]
_ABOUT = ["seeds", "hardware", "commit", "command"]
COLUMNS_A = [*_WHERE, "strategy", "iteration", *_MEASURED, "best_so_far", *_ABOUT]
COLUMNS_B = [*_WHERE, *_MEASURED, *_ABOUT]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One evaluated set of a line: accuracies as fractions, means over networks and then over seeds."""

    iteration: int
    accuracy: float
    std_networks: float
    networks: int
    best_so_far: float

    def __str__(self) -> str:
        spread = f" ± {100 * self.std_networks:.1f}" if self.networks > 1 else ""
        return f"{100 * self.accuracy:.1f}{spread}"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One cell of the figure, with the name of its protocol in tables."""

    cell: Finished
    protocol: str

    @cached_property
    def panel(self) -> str:
        """A short key of everything that the lines of a panel share."""
        identity, s = self.cell.made["identity"], self.cell.summary
        shared = [*(s[name] for name in ("dataset", "ipc", "evaluator")), network_settings(self.cell.rows[0])]
        return content_key([*shared, identity["data"], identity["network"]])[:6]

    @property
    def title(self) -> str:
        """The title of the panel."""
        c = self.cell
        return f"{c.dataset}, IPC {c.ipc}, {c.evaluator}: {c.summary['recipe']}"

    @property
    def labels(self) -> str:
        """The label strategy."""
        return str(self.cell.settings["labels"])

    @property
    def last_epoch(self) -> int:
        """The teacher's epoch that labels of the strategy ``last`` come from; 0 for other strategies."""
        return int(self.cell.settings["last_epoch"]) if self.labels == "last" else 0

    @property
    def strategy(self) -> str:
        """The label strategy with its own settings."""
        s = self.cell.settings
        if self.labels == "learned":
            return f"learned ({s['label_space']}, rate {s['lr_labels']:g})"
        return self.labels + (f" (epoch {self.last_epoch})" if self.labels == "last" else "")

    @cached_property
    def points(self) -> list[Point]:
        """The evaluated sets, in order of iteration."""
        return list(_points(self.cell))

    @property
    def best(self) -> Point:
        """The set with the best mean test accuracy."""
        return max(self.points, key=lambda point: point.accuracy)

    def row(self, point: Point) -> dict[str, Any]:
        """Return the tidy row of one of the line's points."""
        s = self.cell.summary
        own = {name: getattr(self, name) for name in ("panel", "protocol", "labels", "strategy")}
        epoch = {"last_epoch": self.last_epoch} if self.labels == "last" else {}
        shared = {name: s[name] for name in ("dataset", "ipc", "evaluator", "recipe", *_ABOUT)}
        return {**shared, **own, **epoch, **vars(point)}


def _points(cell: Finished) -> Iterator[Point]:
    best = 0.0
    for tested in zip(*(row["evaluated"] for row in cell.rows), strict=True):
        accuracy = statistics.fmean(statistics.fmean(of_seed["test"]) for of_seed in tested)
        best = max(best, accuracy)
        yield Point(
            iteration=tested[0]["iteration"],
            accuracy=accuracy,
            std_networks=statistics.fmean(statistics.pvariance(of_seed["test"]) for of_seed in tested) ** 0.5,
            networks=min(len(of_seed["test"]) for of_seed in tested),
            best_so_far=best,
        )


def on_the_way(declaration: Declaration, ran: Iterable[Finished]) -> list[Line]:
    """Return the lines of Figure 2a.

    A data set outside the paper is included if several strategies were run on it.
    """
    found = _lines(declaration, (c for c in ran if not declaration.is_alone(c.settings)), _STRATEGY)
    strategies: dict[str, set[str]] = {}
    for line in found:
        strategies.setdefault(line.panel, set()).add(line.strategy)
    return [n for n in found if len(strategies[n.panel]) > 1 or n.cell.dataset in declaration.datasets]


def labels_alone(declaration: Declaration, ran: Iterable[Finished]) -> list[Line]:
    """Return the lines of Figure 2b, one per epoch of the teacher."""
    alone = (cell for cell in ran if declaration.is_alone(cell.settings))
    return _lines(declaration, alone, _STRATEGY | set(declaration.alone))


def _lines(declaration: Declaration, ran: Iterable[Finished], varied: frozenset[str]) -> list[Line]:
    """Return a line for every panel, protocol and strategy; of several evaluations of a cell the fullest one.

    Cells whose rows do not say all about their strategy are left out, which is said once.
    """
    ran = [cell for cell in ran if _tells_its_strategy(cell)]
    same: dict[tuple[str, str, str], list[Line]] = {}
    for protocol, cells in by_protocol(ran, varied).items():
        for line in (Line(cell=cell, protocol=protocol) for cell in cells):
            same.setdefault((line.panel, protocol, line.strategy), []).append(line)
    found = [(chosen([line.cell for line in lines]), lines[0].protocol) for lines in same.values()]
    order = list(declaration.labels)
    shown = [Line(cell=cell, protocol=protocol) for cell, protocol in found if cell is not None]
    return sorted(shown, key=lambda n: (n.cell.dataset, n.panel, order.index(n.labels), n.protocol, n.last_epoch))


def _tells_its_strategy(cell: Finished) -> bool:
    needed = ("labels", *_OF_STRATEGY.get(str(cell.settings.get("labels")), ()))
    lacking = [name for name in needed if cell.settings.get(name) is None]
    if lacking:
        told = f"the settings in rows/condense-{cell.made['key']}.json have no {lacking[0]}"
        say_once(f"Figure 2 leaves out {cell.rows[0]['cell']}: {told}. Delete that file and run the cell again.")
    return not lacking


def rows_a(lines: Iterable[Line]) -> pd.DataFrame:
    """Return Figure 2a as tidy rows with the columns ``COLUMNS_A``, one for every evaluated set."""
    rows = [line.row(point) for line in lines for point in line.points]
    return pd.DataFrame(rows, columns=COLUMNS_A).assign(status=RUN).astype({"last_epoch": "Int64"})


def rows_b(lines: Iterable[Line]) -> pd.DataFrame:
    """Return Figure 2b as tidy rows with the columns ``COLUMNS_B``, one for every epoch of the teacher."""
    return pd.DataFrame([line.row(line.points[-1]) for line in lines], columns=COLUMNS_B).assign(status=RUN)


# --------------------------------------------------------------------------------------------------------- Markdown


def markdown(
    declaration: Declaration, a: Sequence[Line], b: Sequence[Line], lacking: Sequence[str], names: Mapping[str, str]
) -> str:
    """Return the figure's numbers as Markdown, with how they were made.

    Args:
        declaration: the declaration of the figure.
        a: the lines of Figure 2a.
        b: the lines of Figure 2b.
        lacking: lines of text about the cells that were not run.
        names: the short names of the protocols, which the plots use as well.
    """
    text = [f"### {declaration.paper}a: best test accuracy so far by label strategy, %", ""]
    for panel in panels(a):
        text += [panel[0].title, "", *_table_a(panel, names), ""]
    text += [f"### {declaration.paper}b: test accuracy of labels alone, on real images that stay as they are, %", ""]
    for panel in panels(b):
        text += [panel[0].title, "", *_table_b(panel, names), ""]
    notes = [
        declaration.note,
        "`best so far`: the running maximum of the mean test accuracy over networks, over the sets that were tested "
        "on the way; the test images choose it, as in the paper.",
        *protocols((*a, *b), names),
    ]
    text += [line for note in notes for line in bullet(note)]
    return "\n".join([*text, *(["", *paragraphs(lacking)] if lacking else []), ""])


def panels(lines: Iterable[Line]) -> list[list[Line]]:
    """Return the lines by panel, in order."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        found.setdefault(line.panel, []).append(line)
    return list(found.values())


def labelled(panel: Sequence[Line], names: Mapping[str, str]) -> Iterator[tuple[Line, str]]:
    """Yield the lines of a panel with their names, which include the protocol if there are several."""
    several = len({line.protocol for line in panel}) > 1
    for line in panel:
        yield line, f"{line.strategy}, {names[line.protocol]}" if several else line.strategy


def protocols(lines: Iterable[Line], names: Mapping[str, str]) -> list[str]:
    """Return a text for every protocol: what it changed, and how its cells were run."""
    cells: dict[str, list[Finished]] = {}
    for line in lines:
        cells.setdefault(line.protocol, []).append(line.cell)
    about = {"status": RUN}
    facts = {name: [{**c.summary, "cell_protocol": c.protocol, **about} for c in own] for name, own in cells.items()}
    return about_protocols(facts, names)


def _table_a(lines: Iterable[Line], names: Mapping[str, str]) -> list[str]:
    body = []
    for line in lines:
        best, last = line.best, line.points[-1]
        told = [str(best), str(best.iteration), str(last), str(last.iteration), str(len(line.points))]
        body.append([f"`{line.strategy}`", names[line.protocol], *told])
    head = ["labels", "protocol", "best so far", "at iteration", "last", "iterations", "sets tested"]
    return aligned(head, body, left=2)


def _table_b(lines: Iterable[Line], names: Mapping[str, str]) -> list[str]:
    body = [[str(line.last_epoch), names[line.protocol], str(line.points[-1])] for line in lines]
    return aligned(["epoch of the teacher", "protocol", "last"], body, left=2)
