"""The cells that failed and have not succeeded since, from their rows, for tables to show."""

import textwrap
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from dcbench_tesla import registry
from dcbench_tesla.config import CellConfig, as_text, flags_given, resolve, settings_given, settled, tuned_in
from dcbench_tesla.errors import DcbenchError, UsageError
from dcbench_tesla.records.rows import mark, stage_rows, tell_contents_apart
from dcbench_tesla.records.workspace import Workspace
from dcbench_tesla.reports.declarations import row_name
from dcbench_tesla.reports.finished import parts_of, protocol_name

FAILED = "failed"
_LONGEST_STATUS, _LONGEST_REASON = 60, 160


@dataclass(frozen=True)
class Failed:
    """A cell that failed, with its ``row``."""

    row: Mapping[str, Any] = field(repr=False)

    @property
    def status(self) -> str:
        """The text in a table, such as ``failed: out of memory``, or the first words of the reason."""
        told = self.row["status"] if self.row["status"] != FAILED else self._reason(_LONGEST_STATUS)
        return f"{FAILED}: {told}"

    @property
    def reason(self) -> str:
        """The reason of the failure in more detail."""
        own = [] if self.row["status"] == FAILED else [self.row["status"]]
        return ": ".join([FAILED, *own, self._reason(_LONGEST_REASON)])

    def _reason(self, width: int) -> str:
        return textwrap.shorten(str(self.row["reason"]), width, placeholder=" ...")

    @cached_property
    def changes(self) -> dict[str, str]:
        """The settings that its command changed, by name."""
        return {name: settled(name, text) for name, text in settings_given(self.row["command"]).items()}

    @cached_property
    def evaluators(self) -> Collection[str]:
        """The evaluators that its command named, or the default."""
        return flags_given(self.row["command"], "--evaluator") or ("convnet",)

    def name(self, varied: Collection[str]) -> str:
        """Return the name of its own protocol; see :meth:`dcbench_tesla.reports.finished.Finished.name`."""
        return protocol_name(self._home, self._own_changes(varied))

    def is_under(self, protocol: str, varied: Collection[str]) -> bool:
        """Return whether it belongs to a protocol: this changes what it changed, and nothing else that acts on it."""
        home, changes = parts_of(protocol)
        own = self._own_changes(varied)
        beyond = (label for label in changes if label not in own)
        return home == self._home and own.items() <= changes.items() and not any(map(self._acts, beyond))

    @property
    def _home(self) -> str:
        return f"{self.row['preset']}{tuned_in(self.row['protocol'])}{mark(self.row)}"

    def _own_changes(self, varied: Collection[str]) -> dict[str, str]:
        return {label: value for label, value in self.changes.items() if label not in varied}

    def _acts(self, label: str) -> bool:
        section, _, name = label.rpartition(".")
        try:
            method = registry.load_method(self.row["method"])
        except (UsageError, DcbenchError):
            return True
        known = {
            "": any(setting.name == name for setting in fields(method.Settings)),
            "network": method.uses_network,
            "experts": method.expert_request(method.Settings()) is not None,
            "data": True,
            "evaluation": True,
        }
        return known.get(section, section in self.evaluators)

    def is_in(self, dataset: str, ipc: int, method: str, evaluator: str) -> bool:
        """Return whether it belongs to a place in a table, whatever its protocol."""
        where = (self.row["dataset"], self.row["method"]) == (dataset, method)
        return where and self.row["ipc"] in (ipc, None) and evaluator in self.evaluators

    def has_labels(self, labels: str) -> bool:
        """Return whether its label strategy, by default that of the preset, is ``labels``."""
        if "labels" in self.changes:
            return self.changes["labels"] == labels
        try:
            plain = resolve(self.row["method"], self.row["dataset"], self.row["ipc"] or 1, preset=self.row["preset"])
        except (UsageError, DcbenchError):
            return False
        return getattr(plain.settings, "labels", None) == labels

    def is_cell(self, config: CellConfig, evaluator: str) -> bool:
        """Return whether it is the cell of ``config``, whatever the seed."""
        changes = {name: as_text(getattr(config.settings, name, "")) for name in config.changed}
        place = self.is_in(row_name(config.dataset), config.ipc, config.method, evaluator)
        return place and self.row["preset"] == config.preset and self.changes == changes


def failures(workspace: Workspace, methods: Collection[str]) -> list[Failed]:
    """Return the failed cells of ``methods``.

    Raises:
        CorruptFileError: a row file is damaged.
    """
    rows = stage_rows(workspace, FAILED)
    others = [row for stage in ("condense", "evaluate") for row in stage_rows(workspace, stage)]
    tell_contents_apart(workspace, [*rows, *others])
    return [Failed(row) for row in rows if row["method"] in methods]
