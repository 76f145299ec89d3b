"""Presets: hyper-parameters as data, one TOML file per preset.

A preset is a list of rules; where several rules give the same setting, the last one wins. A rule names the cells it is
for (``methods``, ``datasets``, ``ipcs``; an absent list means all), the methods whose authors ``published`` these
settings, whose settings they are for the other methods (``settings_of``), where they are published (``source``), and
over how many condensed ``sets`` the published accuracy is taken. All other keys are sections of settings; section
``settings`` holds those of the method.
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
    """One rule of a preset: the cells it is for, the origin of its settings, and the settings.

    ``published`` holds the methods whose authors published these settings for these cells; ``settings_of`` says whose
    settings they are when another method uses them. The published accuracy is over ``sets`` condensations. ``values``
    are the settings by section and name.
    """

    methods: tuple[str, ...]
    datasets: tuple[str, ...]
    ipcs: tuple[int, ...]
    published: tuple[str, ...]
    settings_of: str
    source: str
    sets: int
    values: Mapping[str, Mapping[str, Any]]

    def fits(self, method: str, dataset: str, ipc: int) -> bool:
        """Return whether the rule is for this cell; an empty list matches everything."""
        return (
            (not self.methods or method in self.methods)
            and (not self.datasets or dataset in self.datasets)
            and (not self.ipcs or ipc in self.ipcs)
        )


def rules_of(preset: str) -> list[Rule]:
    """Return the rules of a preset in the order of its file.

    Raises:
        UsageError: there is no such preset.
    """
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    return rules_in(resources.files("dcbench_tesla.presets").joinpath(f"{preset}.toml").read_text(encoding="utf-8"))


def rules_in(text: str) -> list[Rule]:
    """Return the rules in the text of a TOML file."""
    head = {"methods", "datasets", "ipcs", "published", "settings_of", "source", "sets"}
    return [
        Rule(
            methods=tuple(rule.get("methods", ())),
            datasets=tuple(rule.get("datasets", ())),
            ipcs=tuple(rule.get("ipcs", ())),
            published=tuple(rule.get("published", ())),
            settings_of=rule.get("settings_of", ""),
            source=rule.get("source", ""),
            sets=rule.get("sets", 1),
            values={section: values for section, values in rule.items() if section not in head},
        )
        for rule in tomllib.loads(text)["rule"]
    ]
