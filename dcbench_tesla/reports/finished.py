"""What was run, as the paper's tables want it: by protocol, with the settings that tell one from another."""

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
    """One evaluator on the sets of one method and settings, over all seeds that were run.

    ``rows``: the evaluation's row of every seed, with the condensation's under ``made``.
    """

    rows: Sequence[Mapping[str, Any]] = field(repr=False)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The columns of :func:`dcbench_tesla.compare.accuracy.accuracies`."""
        return summary(self.rows)

    @property
    def made(self) -> Mapping[str, Any]:
        """The condensation's row."""
        made: Mapping[str, Any] = self.rows[0]["made"]
        return made

    @property
    def settings(self) -> Mapping[str, Any]:
        """The method's settings, resolved."""
        settings: Mapping[str, Any] = self.made["settings"]
        return settings

    @property
    def dataset(self) -> str:
        """The data set, as rows name it."""
        return str(self.rows[0]["dataset"])

    @property
    def ipc(self) -> int | None:
        """Images per class; ``None`` for a method that has none."""
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
        """The preset it was made with."""
        return str(self.rows[0]["preset"])

    @property
    def is_shipped(self) -> bool:
        """Whether it is one of the repository's results, read beside own ones."""
        return bool(mark(self.rows[0]))

    @property
    def protocol(self) -> str:
        """The protocol's name without what was changed: ``paper, settings of MTT``."""
        return str(self.rows[0]["protocol"]).partition(", changed: ")[0]

    @cached_property
    def changes(self) -> dict[str, str]:
        """What the command changed of the preset, as ``{"steps": "20"}``, but for other evaluators' settings.

        However a value was written, it is the one that was resolved.
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
        """The changes that reach a baseline too: of the data and of the evaluator."""
        return {label: value for label, value in self.changes.items() if self._is_shared(label)}

    def _is_shared(self, label: str) -> bool:
        return label.rpartition(".")[0] in ("data", self.evaluator) or label == "evaluation.networks"

    def name(self, varied: Collection[str] = ()) -> str:
        """Return the protocol as tables name it: the preset, and what was changed but the ``varied`` settings.

        That of shipped results has ``(shipped)`` behind the preset: a line of a table is own or shipped, never both.
        """
        changes = self.shared_changes if self.is_baseline else self.changes
        told = " ".join(f"{label}={value}" for label, value in sorted(changes.items()) if label not in varied)
        preset = f"{self.preset}{mark(self.rows[0])}"
        return f"{preset}, changed: {told}" if told else preset

    @property
    def training_images(self) -> int | None:
        """How many images it was condensed from, the held-out ones counted in; ``None`` where that is not on record."""
        used = int(self.made["identity"]["data"]["train_images"])
        return used or training_images(self.dataset)


def training_images(dataset: str) -> int | None:
    """Return how many training images a registered data set has; ``None`` for any other."""
    return registry.load_source(dataset).train_images if registry.has("datasets", dataset) else None


def finished(workspace: Workspace, methods: Collection[str], evaluators: Collection[str]) -> list[Finished]:
    """Return what was run of some methods and evaluators; sets that came as files are not among it."""
    groups = evaluations(workspace, Wanted(methods=methods, evaluators=evaluators))
    return [Finished(rows=rows) for rows in groups if rows[0]["made"] is not None]


def by_protocol(ran: Iterable[Finished], varied: Collection[str] = ()) -> dict[str, list[Finished]]:
    """Return what was run by the protocol's name; ``paper`` first. No two protocols are ever mixed.

    A baseline has no settings to change and stands under every protocol of its data and its evaluation. Cells that
    differ though their protocols have one name (another version of a method, or of a preset) get the first digits of
    what tells them apart behind it.
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
    """Return the one of several evaluations of a cell that is shown; ``None`` of none.

    The one that tested most sets on the way, then with most networks; of several baselines the one by its own protocol.
    """

    def rank(cell: Finished) -> tuple[Any, ...]:
        s = cell.summary
        own = cell.protocol == cell.preset
        return own, s["evaluated_sets"], s["networks"], s["evaluator_settings"], s["condensation"]

    return max(cells, key=rank, default=None)
