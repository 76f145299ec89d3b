"""The space of a search: for every searched setting a range or some choices.

They come from ``presets/search.toml``, from the settings of a plugin (``field(metadata={"search": {"low": 1.0, "high":
100.0, "log": True}})``, or ``{"choices": [...]}``), and from ``--search``, in this order: what comes later wins.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from dcbench_tesla import registry
from dcbench_tesla.config import (
    CellConfig,
    Override,
    as_text,
    family,
    overrides_from,
    resolved_again,
    setting_names,
    setting_value,
)
from dcbench_tesla.errors import UsageError, require, unknown_name
from dcbench_tesla.presets import Rule, rules_in

_SECTIONS = ("", "network")  # a search is for what defines the distilled set, given data and experts
_EXAMPLES = "lr_images=10:1000:log, steps=5:40 or labels=hard,learned"


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included, whole ones if both are; ``log``: uniform in the logarithm."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        told = f"the range {self.low:g} to {self.high:g}"
        require(math.isfinite(self.low) and math.isfinite(self.high), f"{told} of a search is not finite.")
        require(self.low < self.high, f"{told} of a search is empty: its lower end comes first.")
        require(self.low > 0 or not self.log, f"{told} of a search has no logarithm: leave out log, or begin above 0.")

    def holds(self, value: Any) -> bool:
        """Return whether a value lies in the range."""
        return isinstance(value, (int, float)) and self.low <= value <= self.high

    def nearest(self, value: Any) -> Any:
        """Return a drawn value with three digits, within the range."""
        if isinstance(self.low, int):
            return int(value)
        return min(max(float(f"{value:.3g}"), self.low), self.high)

    def __str__(self) -> str:
        return f"{self.low}:{self.high}" + (":log" if self.log else "")


@dataclass(frozen=True)
class Choices:
    """Some values, of which a trial takes one."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        require(len(set(self.values)) > 1, "a search needs at least two values to choose from.")

    def holds(self, value: Any) -> bool:
        """Return whether a value is one of the choices."""
        return value in self.values

    def nearest(self, value: Any) -> Any:
        """Return the value."""
        return value

    def __str__(self) -> str:
        return ",".join(as_text(value) for value in self.values)


Space = Mapping[str, Range | Choices]
"""What is searched, by the names of the settings."""


@cache
def _rules() -> Sequence[Rule]:
    text = resources.files("dcbench_tesla.presets").joinpath("search.toml").read_text(encoding="utf-8")
    return rules_in(text)


def _of_data(config: CellConfig) -> dict[str, Mapping[str, Any]]:
    """Return the entries that the rules and the method's own fields have for a cell, by setting."""
    method = registry.load_method(config.method)
    fields = dataclasses.fields(method.Settings)
    found = {f.name: f.metadata["search"] for f in fields if "search" in f.metadata}
    for rule in _rules():
        if rule.fits(config.method, family(config.dataset), config.ipc):
            found |= {o.label: o.value for section, v in rule.values.items() for o in _entries(section, v)}
    return found


def _entries(section: str, values: Mapping[str, Any]) -> Iterable[Override]:
    return (Override(section, name, value) for name, value in values.items())


def _made(config: CellConfig, label: str, entry: Mapping[str, Any]) -> Range | Choices:
    """Return what an entry ``{low, high, log}`` or ``{choices}`` says, in the type of its setting."""
    if "choices" in entry:
        return Choices(tuple(setting_value(config, label, value) for value in entry["choices"]))
    if type(config.value(label)) not in (int, float):
        raise UsageError(f"{label} is no number: name the values to choose from, {label}=A,B.")
    low, high = (setting_value(config, label, entry.get(end)) for end in ("low", "high"))
    return Range(low, high, bool(entry.get("log", False)))


def parse_search(text: str) -> tuple[str, dict[str, Any]]:
    """Return the setting and the entry that ``--search`` names, with values as text.

    Raises:
        UsageError: it is neither ``NAME=LOW:HIGH``, ``NAME=LOW:HIGH:log`` nor ``NAME=A,B``.
    """
    label, equals, told = (part.strip() for part in text.partition("="))
    ends = told.split(":")
    if label and equals and len(ends) in (2, 3) and ends[2:] in ([], ["log"]):
        return label, {"low": ends[0], "high": ends[1], "log": len(ends) == 3}
    values = [value.strip() for value in told.split(",")]
    if label and equals and len(values) > 1 and all(values):
        return label, {"choices": values}
    raise UsageError(f"--search takes a range or choices, for instance {_EXAMPLES}, not {text!r}.")


def space_of(config: CellConfig, asked: Mapping[str, Mapping[str, Any]]) -> dict[str, Range | Choices]:
    """Return what is searched of a cell: settings that have an effect on it, and that its command does not fix.

    Args:
        config: the cell with the preset's settings and those of the command.
        asked: the entries of ``--search`` that the cell's method has.

    Raises:
        UsageError: nothing is left to search; or an entry is of a setting that cannot be searched, has no effect or is
            fixed by ``--set``, or of values that the setting does not take.
    """
    for label in asked:
        _check_label(config, label)
    entries = {**_of_data(config), **asked}
    free = {label: entry for label, entry in sorted(entries.items()) if label not in config.changed}
    space = {label: _made(config, label, entry) for label, entry in free.items() if _acts(config, label)}
    for label in asked:
        _check_values(config, label, space[label])
    if not space:
        raise UsageError(
            f"nothing is searched of {config.method}: name a range by --search, for instance {_EXAMPLES} (dcbench info "
            f"{config.method} lists its settings)."
        )
    return space


def has(config: CellConfig, label: str) -> bool:
    """Return whether a cell's method has a setting that acts on it."""
    return label in setting_names(config.method, config.evaluators) and _acts(config, label)


def _check_label(config: CellConfig, label: str) -> None:
    section = label.rpartition(".")[0]
    if label not in (known := setting_names(config.method, config.evaluators)):
        raise unknown_name("setting", label, known)
    if section not in _SECTIONS:
        raise UsageError(f"{label} is not searched: a search is for settings of the method and of its network.")
    if label in config.changed:
        raise UsageError(f"{label} is given by --set and searched by --search: leave out one of them.")


def _acts(config: CellConfig, label: str) -> bool:
    section, _, name = label.rpartition(".")
    return label in resolved_again(config, [Override(section or "settings", name, config.value(label))]).changed


def _check_values(config: CellConfig, label: str, found: Range | Choices) -> None:
    """Try the ends of a range, or all choices; raises what the method says of a value that it does not take."""
    for value in found.values if isinstance(found, Choices) else (found.low, found.high):
        resolved_again(config, overrides_from({label: value}))


def shared_out(configs: Sequence[CellConfig], texts: Iterable[str]) -> list[dict[str, dict[str, Any]]]:
    """Return the entries of ``--search`` for every cell: those of settings that its method has.

    Raises:
        UsageError: a text is no entry, or no method has its setting.
    """
    entries = dict(parse_search(text) for text in texts)
    found = [{label: entry for label, entry in entries.items() if has(c, label)} for c in configs]
    for label in entries:
        if not any(label in own for own in found):
            _check_label(configs[0], label)
            raise UsageError(f"--search {label} has no effect on {configs[0].method}: leave it out.")
    return found
