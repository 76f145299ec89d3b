"""The finished evaluations that tables show, grouped by protocol."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from dcbench_tesla import registry
from dcbench_tesla.compare.accuracy import Wanted, evaluations, summary
from dcbench_tesla.config import as_text, settings_given, settled
from dcbench_tesla.presets import PRESETS
from dcbench_tesla.records.rows import mark
from dcbench_tesla.records.workspace import Workspace
from dcbench_tesla.reports.declarations import preset_of

_SECTIONS = ("", "data", "network", "experts", "evaluation")


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The evaluations of one method and settings by one evaluator, over all seeds that were run.

    Args:
        rows: the evaluation's row of every seed, which holds the row of the condensation under ``made``.
    """

    rows: Sequence[Mapping[str, Any]] = field(repr=False)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The columns of :func:`dcbench_tesla.compare.accuracy.accuracies`."""
        return summary(self.rows)

    @property
    def made(self) -> Mapping[str, Any]:
        """The row of the condensation."""
        made: Mapping[str, Any] = self.rows[0]["made"]
        return made

    @property
    def settings(self) -> Mapping[str, Any]:
        """The method's resolved settings."""
        settings: Mapping[str, Any] = self.made["settings"]
        return settings

    @property
    def dataset(self) -> str:
        """The name of the data set in rows."""
        return str(self.rows[0]["dataset"])

    @property
    def ipc(self) -> int | None:
        """Images per class, or ``None`` for a method without IPC."""
        ipc: int | None = self.rows[0]["ipc"]
        return ipc

    @property
    def method(self) -> str:
        """The method."""
        return str(self.rows[0]["method"])

    @property
    def evaluator(self) -> str:
        """The network that was trained."""
        return str(self.rows[0]["evaluator"])

    @property
    def preset(self) -> str:
        """The preset of the cells."""
        return str(self.rows[0]["preset"])

    @property
    def is_shipped(self) -> bool:
        """Whether this is a committed result of the repository, read together with own results."""
        return bool(mark(self.rows[0]))

    @property
    def protocol(self) -> str:
        """The protocol's name without the changed settings, such as ``paper, settings of MTT``."""
        return str(self.rows[0]["protocol"]).partition(", changed: ")[0]

    @cached_property
    def changes(self) -> dict[str, str]:
        """The settings that the command changed, as ``{"steps": "20"}``, without those of other evaluators.

        Values are the resolved ones, however the user wrote them.
        """
        given, own = settings_given(self.rows[0]["command"]), (*_SECTIONS, self.evaluator)
        return {label: self._resolved(label, text) for label, text in given.items() if label.rpartition(".")[0] in own}

    def _resolved(self, label: str, text: str) -> str:
        section, _, name = label.rpartition(".")
        stored = {"": self.settings, self.evaluator: self.rows[0]["settings"]}.get(section, {})
        return as_text(stored[name]) if name in stored else settled(label, text)

    @property
    def is_baseline(self) -> bool:
        """Whether the method has no settings that a protocol could change (``random``, ``whole``)."""
        return not self.settings

    @property
    def shared_changes(self) -> dict[str, str]:
        """The changes of data and evaluator, which a baseline shares."""
        return {label: value for label, value in self.changes.items() if self._is_shared(label)}

    def _is_shared(self, label: str) -> bool:
        return label.rpartition(".")[0] in ("data", self.evaluator) or label == "evaluation.networks"

    def name(self, varied: Collection[str] = ()) -> str:
        """Return the name of the protocol in tables: the preset, and the changed settings without those in ``varied``.

        For committed results the preset is followed by ``(shipped)``, so that no line of a table mixes them with own
        results.
        """
        changes = self.shared_changes if self.is_baseline else self.changes
        told = " ".join(f"{label}={value}" for label, value in sorted(changes.items()) if label not in varied)
        preset = f"{self.preset}{mark(self.rows[0])}"
        return f"{preset}, changed: {told}" if told else preset

    @property
    def training_images(self) -> int | None:
        """The number of images it was condensed from; ``None`` if it is not known.

        Where all images of a registered data set were used, the held-out ones are included.
        """
        asked = int(self.made["identity"]["data"]["train_images"])
        used = self.made.get("train_images", asked)  # rows of earlier versions have only what was asked for
        if asked:
            return min(asked, int(used))
        return training_images(self.dataset) or int(used) or None


def training_images(dataset: str) -> int | None:
    """Return how many training images a registered data set has, or ``None`` for any other data set."""
    return registry.load_source(dataset).train_images if registry.has("datasets", dataset) else None


def finished(workspace: Workspace, methods: Collection[str], evaluators: Collection[str]) -> list[Finished]:
    """Return the finished evaluations of ``methods`` by ``evaluators``, except those of sets that came as files."""
    groups = evaluations(workspace, Wanted(methods=methods, evaluators=evaluators))
    return [Finished(rows=rows) for rows in groups if rows[0]["made"] is not None]


def by_protocol(ran: Iterable[Finished], varied: Collection[str] = ()) -> dict[str, list[Finished]]:
    """Return finished evaluations by the name of their protocol, with ``paper`` first.

    Protocols are never mixed. If cells differ although their protocols have the same name, because a method or a preset
    has changed, the name is followed by the first digits of the key of the condensation. A baseline has no settings to
    change, and is listed under every protocol with the same changes of data and evaluation.
    """
    ran = list(ran)
    named: dict[str, list[Finished]] = defaultdict(list)
    for cell in (c for c in ran if not c.is_baseline):
        named[cell.name(varied) + _told_apart(cell, ran, varied)].append(cell)
    homes = {name: cells[0] for name, cells in named.items()}
    for baseline in (c for c in ran if c.is_baseline):
        fitting = [name for name, cell in homes.items() if _is_beside(baseline, cell)]
        for name in fitting or [baseline.name(varied)]:
            named[name].append(baseline)
    return {name: named[name] for name in sorted(named, key=_order)}


def _is_beside(baseline: Finished, cell: Finished) -> bool:
    own, others = ((c.preset, c.is_shipped, c.shared_changes) for c in (baseline, cell))
    return own == others


def _told_apart(cell: Finished, ran: Iterable[Finished], varied: Collection[str]) -> str:
    def what(c: Finished) -> list[Any]:
        return [c.name(varied), c.dataset, c.ipc, c.method, *(c.settings.get(name) for name in sorted(varied))]

    made = {c.summary["condensation"] for c in ran if what(c) == what(cell)}
    return f" ({cell.summary['condensation'][:6]})" if len(made) > 1 else ""


def _order(protocol: str) -> tuple[int, str]:
    preset = preset_of(protocol)
    return PRESETS.index(preset) if preset in PRESETS else len(PRESETS), protocol


def chosen(cells: Sequence[Finished]) -> Finished | None:
    """Return the evaluation to show, of several evaluations of one cell, or ``None`` if there are none.

    Preferred are baselines with their own protocol, then the evaluation of most sets, then that with most networks.
    """

    def rank(cell: Finished) -> tuple[Any, ...]:
        s = cell.summary
        own = cell.protocol == cell.preset
        return own, s["evaluated_sets"], s["networks"], s["evaluator_settings"], s["condensation"]

    return max(cells, key=rank, default=None)
