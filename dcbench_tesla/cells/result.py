"""The results of a finished cell: rows, accuracies, the distilled set, and how they are shown."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcbench_tesla.cells.cell import Cell
from dcbench_tesla.cells.evaluation import Accuracy
from dcbench_tesla.distilled import DistilledSet
from dcbench_tesla.errors import DcbenchError, unknown_name
from dcbench_tesla.records import pictures
from dcbench_tesla.records.notebook import Area, in_notebook
from dcbench_tesla.records.rows import STATISTICS

if TYPE_CHECKING:
    import pandas as pd


@dataclass(repr=False)
class CellResult:
    """The results of a finished cell: its rows, its accuracies by evaluator, its folder and its distilled set.

    Attributes:
        own: the accuracies of the caller's own networks, by name; there are no rows of them.
    """

    cell: Cell
    own: Mapping[str, Accuracy] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The cell's folder; without tensors if only the rows came with the checkout."""
        return self.cell.place.folder

    @cached_property
    def rows(self) -> dict[str, dict[str, Any]]:
        """The rows of the evaluations, by evaluator."""
        workspace, identity = self.cell.workspace, self.cell.identity
        rows = {n: workspace.row("evaluate", identity.evaluation_key(n)) for n in self.cell.config.evaluators}
        return {name: row for name, row in rows.items() if row is not None}

    @property
    def evaluators(self) -> tuple[str, ...]:
        """The names of the networks that were trained on the set."""
        return (*self.rows, *self.own)

    def accuracy(self, evaluator: str | None = None, name: str = "last") -> Accuracy | None:
        """Return an evaluator's test accuracy as a fraction: ``last``, ``best_on_validation`` or ``best_on_test``.

        Args:
            evaluator: the name of the evaluator; by default the first one.
            name: the rule by which the set is chosen. ``None`` is returned where there was nothing to choose by.

        Raises:
            UsageError: the result has no such evaluator, or there is no such rule.
        """
        if evaluator is None and self.evaluators:
            evaluator = self.evaluators[0]
        if evaluator not in self.evaluators:
            raise unknown_name("evaluator of this result", str(evaluator), self.evaluators)
        if name not in STATISTICS:
            raise unknown_name("accuracy", name, STATISTICS)
        if evaluator in self.own:
            return self.own[evaluator] if name == "last" else None
        content = self.rows[evaluator]["accuracy"][name]
        return Accuracy(**{**content, "values": tuple(content["values"])}) if content else None

    @property
    def distilled(self) -> DistilledSet:
        """The final distilled set.

        Raises:
            DcbenchError: its file is not on this machine; running with ``force`` makes it again.
        """
        if not self.cell.place.distilled.exists():
            raise DcbenchError(
                f"{self.cell.name} was run elsewhere and its set is not on this machine: --force makes it again."
            )
        return self.cell.distilled_set(self.cell.identity.iterations)

    # ---- how it is shown -------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        tested = ", ".join(f"{name} {self.accuracy(name)}" for name in self.evaluators)
        return f"CellResult({self._what}: {tested or 'not evaluated'}; {self.folder})"

    @property
    def _what(self) -> str:
        c = self.cell.config
        ipc = f", IPC {c.ipc}" if self.cell.method.uses_ipc else ""
        return f"{c.method} on {self.cell.dataset.name}{ipc}, seed {c.seed}"

    def to_frame(self) -> "pd.DataFrame":
        """Return a table of pandas with a row an evaluator: what was run, accuracies (fractions), time and memory.

        ``last``, ``best_on_validation`` and ``best_on_test`` are means over ``networks`` networks, ``..._std`` their
        standard deviations; ``condense_seconds`` and ``peak_bytes`` are those of the condensation.
        """
        import pandas as pd

        return pd.DataFrame([self._columns(name) for name in self.evaluators])

    def _columns(self, evaluator: str) -> dict[str, Any]:
        c, row = self.cell.config, self.rows.get(evaluator, {})
        found = {name: self.accuracy(evaluator, name) for name in STATISTICS}
        condensed = self.cell.workspace.row("condense", self.cell.key) or {}
        last = found["last"]
        columns: dict[str, Any] = {
            "method": c.method,
            "dataset": self.cell.dataset.name,
            "ipc": c.ipc if self.cell.method.uses_ipc else None,
            "seed": c.seed,
            "evaluator": evaluator,
            "networks": len(last.values) if last else 0,
        }
        for name, accuracy in found.items():
            columns |= {name: accuracy.mean if accuracy else None, f"{name}_std": accuracy.std if accuracy else None}
        columns |= {name: condensed.get(name) for name in ("condense_seconds", "peak_bytes")}
        changed = " ".join(f"{label}={value}" for label, value in c.changes.items())
        told = {"recipe": row.get("recipe"), "protocol": c.protocol, "changed": changed}
        return {**columns, **told, "cell": self.cell.name}

    def show(self) -> None:
        """Show accuracies and images: in a notebook's output; else the accuracies as text, the images on the screen."""
        if in_notebook():
            Area().show(self._repr_html_())
            return
        print(repr(self))
        pictures.show(self.distilled.picture())

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in ("evaluator", *STATISTICS))
        body = "".join(self._html_row(name) for name in self.evaluators)
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        here = self.cell.place.distilled.exists()
        picture = pictures.as_html(self.distilled.picture(), str(self.folder)) if here else ""
        return f"<div><p>{escape(self._what)} ({escape(self.cell.config.protocol)})</p>{table}{picture}</div>"

    def _html_row(self, evaluator: str) -> str:
        cells = (evaluator, *(str(self.accuracy(evaluator, name) or "") for name in STATISTICS))
        return f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in cells)}</tr>"
