"""The settings that commands changed: which of them act on a result, which all results share, and in which they differ.

A setting *acts* on a result if the result would differ with another value. ``steps`` acts on ``tesla`` and not on
``dm``, so that a sweep of both with ``--set steps=3`` is one protocol.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Any

from dcbench_tesla.config import as_text, settings_given, settled

RATES = ("lr", "learned_lr")
"""The settings of networks of which one takes the place of the other."""

ROUNDING = ("class_chunk", "keep_graphs", "micro_batch", "weights")
"""The settings that change a result by rounding only, which therefore make no other protocol."""

_ON_THE_WAY = ("evaluation.every", "evaluation.networks_on_the_way")
_LONGEST_TOLD = 30  # characters of settings beside a name; more of them are told below the table


@dataclass(frozen=True)
class Changes:
    """The settings that a command changed and that act on a result, by name; ``acts`` says whether another one does."""

    given: Mapping[str, str]
    acts: Callable[[str], bool]


def changes_of(row: Mapping[str, Any], made: Mapping[str, Any] | None) -> Changes:
    """Return the changes of an evaluation, with resolved values, however the user wrote them.

    Args:
        row: the row of the evaluation.
        made: the row of the condensation; ``None`` for a set that came as a file.
    """

    def acts(label: str) -> bool:
        section, _, name = label.rpartition(".")
        if name in ROUNDING:
            return False
        if section == row["evaluator"]:
            return name not in without_effect(row, made)
        return made is not None and _acts_on_the_set(label, made)

    own = made is None or is_own_command(row)
    named = settings_given(row["command"])
    others = (label for label in named if _is_of(label, row))
    given = {label: _resolved(label, named[label], row, made) for label in others if own or acts(label)}
    return Changes(given, lambda label: label in given or acts(label))


def changes_of_failure(row: Mapping[str, Any]) -> Changes:
    """Return the changes of a cell that failed. Of a setting that it was not given, it is not known whether it acts."""
    named = settings_given(row["command"])
    given = {n: settled(n, text) for n, text in named.items() if n.rpartition(".")[2] not in ROUNDING}
    return Changes(given, given.__contains__)


_SECTIONS = ("data", "network", "experts", "evaluation")


def _is_of(label: str, row: Mapping[str, Any]) -> bool:
    """Return whether a setting can belong to an evaluation's protocol: not one of another network, nor of rounding."""
    section, _, name = label.rpartition(".")
    return section in ("", *_SECTIONS, row["evaluator"]) and name not in ROUNDING


def is_own_command(row: Mapping[str, Any]) -> bool:
    """Return whether a row's command names its method: that of a baseline can be of the method it is compared with."""
    return f"--method {row['method']} " in f"{row['command']} "


def without_effect(row: Mapping[str, Any], made: Mapping[str, Any] | None) -> Collection[str]:
    """Return the settings of an evaluation's network without effect, as ``lr`` where a learned rate is used."""
    settings = row["settings"]
    if (made or {}).get("learned_lr") is None:
        return (*ROUNDING, *RATES[1:])
    replaced = settings.get("learned_lr") or settings.get("recipe") == "learned-lr"
    return (*ROUNDING, *RATES[:1]) if replaced else ROUNDING


def _acts_on_the_set(label: str, made: Mapping[str, Any]) -> bool:
    section, _, name = label.rpartition(".")
    identity = made["identity"]
    if section == "network":
        return identity.get("network") is not None and name in {"name", "norm", *identity["network"]}
    if section == "experts":
        return identity.get("experts") is not None
    if label in _ON_THE_WAY:
        return bool(made.get("iterations", made["settings"].get("iterations")))
    return name in made["settings"] if not section else section in ("data", "evaluation")


def _resolved(label: str, text: str, row: Mapping[str, Any], made: Mapping[str, Any] | None) -> str:
    section, _, name = label.rpartition(".")
    stored = {"": made["settings"] if made else {}, row["evaluator"]: row["settings"]}.get(section, {})
    return as_text(stored[name]) if name in stored else settled(label, text)


def shared(results: Sequence[Changes]) -> dict[str, str]:
    """Return the settings with one value in all results on which they act, by name."""
    labels = sorted({label for result in results for label in result.given})
    found = {}
    for label in labels:
        values = {result.given.get(label) for result in results if result.acts(label)}
        if len(values) == 1:
            found[label] = str(values.pop())
    return found


def differing(results: Sequence[Changes]) -> list[str]:
    """Return the settings in which each result differs from the others, as text: ``steps=3 lr_images=10.0``."""
    same = shared(results)
    return [in_words({name: v for name, v in result.given.items() if name not in same}) for result in results]


def in_words(settings: Mapping[str, str]) -> str:
    """Return settings as words without spaces: ``steps=3 network.width=8``."""
    return " ".join(f"{label}={value}".replace(" ", "_") for label, value in sorted(settings.items()))


def own_protocol(protocol: str) -> str:
    """Return the name of a protocol without what was changed of it, and without what a baseline has from others."""
    return re.split(r", (?:changed: |data as |data and evaluation as )", protocol, maxsplit=1)[0]


def by_holders(given: Iterable[tuple[str, Iterable[str]]]) -> list[str]:
    """Return what the results of several names have changed, each setting once: ``dm, tesla: iterations=8``.

    Args:
        given: a name and its settings as words, for every result.
    """
    holders: dict[str, dict[str, None]] = {}
    names: dict[str, None] = {}
    for name, words in given:
        names[name] = None
        for word in words:
            holders.setdefault(word, {})[name] = None
    together: dict[tuple[str, ...], list[str]] = {}
    for word, having in holders.items():
        together.setdefault(tuple(having), []).append(word)
    ordered = sorted(together.items(), key=lambda found: -len(found[0]))
    return [" ".join(words) if len(names) == 1 else f"{', '.join(h)}: {' '.join(words)}" for h, words in ordered]


def with_letters(told: Sequence[str]) -> dict[str, str]:
    """Return for every text its few words beside a name: itself if it is short, else a letter in brackets.

    Equal texts have one letter. The caller tells below what the letters stand for.
    """
    letters = letters_in_order()
    found: dict[str, str] = {}
    for text in told:
        if text not in found:
            found[text] = text if len(text) <= _LONGEST_TOLD else f"({next(letters)})"
    return found


def letters_in_order() -> Iterator[str]:
    """Yield ``a`` to ``z``, then ``aa``, ``ab`` and so on."""
    yield from ascii_lowercase
    for first in letters_in_order():
        yield from (first + second for second in ascii_lowercase)
