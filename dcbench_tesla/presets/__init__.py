"""Hyper-parameters as data: one TOML file a preset, a list of rules; later rules win.

A rule names the ``methods``, ``datasets`` and ``ipcs`` it is for (none: all), the methods whose authors ``published``
its settings, whose they are for the others (``settings_of``) and the ``source``, and gives settings by section
(``settings``: the method's).
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from dcbench_tesla.errors import unknown_name

PRESETS = ("paper", "quick", "smoke")


@dataclass(frozen=True)
class Rule:
    """One rule of a preset: which cells it is for, whose settings these are, and the settings it gives.

    ``published``: the methods whose authors published these settings for these cells. ``settings_of``: whose they are,
    for the other methods.
    """

    methods: tuple[str, ...]
    datasets: tuple[str, ...]
    ipcs: tuple[int, ...]
    published: tuple[str, ...]
    settings_of: str
    source: str
    values: Mapping[str, Mapping[str, Any]]

    def fits(self, method: str, dataset: str, ipc: int) -> bool:
        """Whether the rule is for this cell; an empty list is for all."""
        return (
            (not self.methods or method in self.methods)
            and (not self.datasets or dataset in self.datasets)
            and (not self.ipcs or ipc in self.ipcs)
        )


def rules_of(preset: str) -> list[Rule]:
    """Return the rules of a preset in their order.

    Raises:
        UsageError: there is no such preset.
    """
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    text = resources.files("dcbench_tesla.presets").joinpath(f"{preset}.toml").read_text(encoding="utf-8")
    head = {"methods", "datasets", "ipcs", "published", "settings_of", "source"}
    return [
        Rule(
            methods=tuple(rule.get("methods", ())),
            datasets=tuple(rule.get("datasets", ())),
            ipcs=tuple(rule.get("ipcs", ())),
            published=tuple(rule.get("published", ())),
            settings_of=rule.get("settings_of", ""),
            source=rule.get("source", ""),
            values={section: values for section, values in rule.items() if section not in head},
        )
        for rule in tomllib.loads(text)["rule"]
    ]
