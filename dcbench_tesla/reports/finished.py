"""The finished evaluations that tables show, grouped by protocol."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from dcbench_tesla import registry
from dcbench_tesla.compare.accuracy import Wanted, evaluations, summary
from dcbench_tesla.compare.changes import Changes, changes_of
from dcbench_tesla.config import tuned_in
from dcbench_tesla.presets import PRESETS
from dcbench_tesla.records.rows import mark
from dcbench_tesla.records.workspace import Workspace
from dcbench_tesla.reports.declarations import preset_of


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
    def changed(self) -> Changes:
        """The settings that the command changed and that act on this result, and which others would."""
        return changes_of(self.rows[0], self.made)

    @property
    def changes(self) -> Mapping[str, str]:
        """The settings that the command changed and that act on this result, as ``{"steps": "20"}``."""
        return self.changed.given

    @property
    def is_baseline(self) -> bool:
        """Whether the method has no settings that a protocol could change (``random``, ``whole``)."""
        return not self.settings

    def name(self, varied: Collection[str] = ()) -> str:
        """Return the name of its own protocol: the preset, and the changed settings without those in ``varied``.

        For committed results the preset is followed by ``(shipped)``, so that no line of a table mixes them with own
        results.
        """
        return protocol_name(self.home, {n: value for n, value in self.changes.items() if n not in varied})

    @property
    def home(self) -> str:
        """The preset, the search that chose settings, if one did, and where results come from."""
        return f"{self.preset}{tuned_in(self.rows[0]['protocol'])}{mark(self.rows[0])}"

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
    """Return the finished evaluations of ``methods`` by ``evaluators`` with the sets' own labels.

    Those of sets that came as files are left out.
    """
    groups = evaluations(workspace, Wanted(methods=methods, evaluators=evaluators))
    return [Finished(rows=rows) for rows in groups if rows[0]["made"] is not None and "labels" not in rows[0]]


def protocol_name(home: str, changes: Mapping[str, str]) -> str:
    """Return the name of a protocol in tables: ``quick, changed: steps=20``."""
    told = " ".join(f"{label}={value}" for label, value in sorted(changes.items()))
    return f"{home}, changed: {told}" if told else home


def parts_of(protocol: str) -> tuple[str, dict[str, str]]:
    """Return what :func:`protocol_name` was given; digits of a key at the end are left out."""
    home, _, told = re.sub(r" \([0-9a-f]{6}\)$", "", protocol).partition(", changed: ")
    words = re.split(r" (?=[\w.]+=)", told) if told else []
    return home, dict(word.split("=", 1) for word in words)


@dataclass
class _Protocol:
    """Results that can stand in one line: no setting that acts on two of them has two values."""

    home: str
    suffix: str
    changes: dict[str, str]
    own: list["_Kind"] = field(default_factory=list)

    @property
    def name(self) -> str:
        return protocol_name(self.home, self.changes) + self.suffix

    def holds(self, kind: "_Kind") -> bool:
        """Return whether it changes what ``kind`` changes, and beyond that nothing that acts on it."""
        return (
            kind.home in (self.home, *([self.home.replace(tuned_in(self.home), "")] if kind.is_baseline else []))
            and not kind.suffix
            and kind.changes.items() <= self.changes.items()
            and not any(kind.acts(label) for label in self.changes if label not in kind.changes)
        )

    def takes(self, kind: "_Kind") -> bool:
        """Return whether it holds ``kind`` if it also changes what that does: nothing of it acts on what it has."""
        both = {**kind.changes, **self.changes}
        return (
            not self.suffix
            and kind.changes.items() <= both.items()
            and _Protocol(self.home, "", both).holds(kind)
            and not any(other.acts(label) for other in self.own for label in both if label not in other.changes)
        )


@dataclass
class _Kind:
    """Results of one method with the same changes."""

    home: str
    suffix: str
    changes: Mapping[str, str]
    cells: list[Finished] = field(default_factory=list)

    @property
    def is_baseline(self) -> bool:
        return self.cells[0].is_baseline

    def acts(self, label: str) -> bool:
        return any(cell.changed.acts(label) for cell in self.cells)


def by_protocol(ran: Iterable[Finished], varied: Collection[str] = ()) -> dict[str, list[Finished]]:
    """Return finished evaluations by the name of their protocol, with ``paper`` first.

    Protocols are never mixed, but a setting that has no effect on a method makes no other protocol: the cells of one
    sweep have one, and a result stands under every protocol that differs only in settings of no effect on it. A
    baseline, which has no settings, therefore stands under all with its changes of data and evaluation. If cells differ
    although their protocols have the same name, because a method or a preset has changed, the name is followed by the
    first digits of the key of the condensation.
    """
    kinds = _kinds(list(ran), varied)
    protocols: list[_Protocol] = []
    for kind in sorted((k for k in kinds if not k.is_baseline), key=lambda k: (-len(k.changes), _own(k))):
        _house(kind, protocols)
    named: dict[str, list[Finished]] = defaultdict(list)
    for kind in kinds:
        own = [p for p in protocols if kind in p.own and p.changes == kind.changes]
        homes = own or [p for p in protocols if kind in p.own or p.holds(kind)]
        for name in [p.name for p in homes] or [_own(kind)]:
            named[name] += kind.cells
    return {name: named[name] for name in sorted(named, key=_order)}


def _house(kind: _Kind, protocols: list[_Protocol]) -> None:
    """Give a kind of results a protocol: one that holds it, else one that it can join, else one of its own."""
    home = next((p for p in protocols if p.holds(kind)), None) or next((p for p in protocols if p.takes(kind)), None)
    if home is None:
        home = _Protocol(kind.home, kind.suffix, {})
        protocols.append(home)
    home.changes |= kind.changes
    home.own.append(kind)


def _own(kind: _Kind) -> str:
    return protocol_name(kind.home, kind.changes) + kind.suffix


def _kinds(ran: Sequence[Finished], varied: Collection[str]) -> list[_Kind]:
    kinds: dict[tuple[str, str], _Kind] = {}
    for cell in ran:
        changes = {label: value for label, value in cell.changes.items() if label not in varied}
        suffix = "" if cell.is_baseline else _told_apart(cell, ran, varied)
        kind = _Kind(cell.home, suffix, changes)
        kinds.setdefault((cell.method, _own(kind)), kind).cells.append(cell)
    return list(kinds.values())


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
