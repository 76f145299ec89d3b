"""The registry of verified sets, ``verified.toml``: claimed accuracies, and what `dcbench verify` measured."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from dcbench_tesla.exchange.verify import Claim, Measured


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A set whose claim was verified.

    Attributes:
        name: what the set is called.
        source: who claims the accuracy, and where.
        claim: the claim.
        measured: what was measured here.
        closing: the one change with which the claim holds; empty where there is none, or none was tried.
        command: the command that makes the entry.
    """

    name: str
    source: str
    claim: Claim
    measured: Measured
    closing: str
    command: str

    @property
    def verdict(self) -> str:
        """The outcome in words, with the change that closes the gap."""
        outcome = self.measured.outcome(self.claim)
        if outcome in ("consistent", "undecided"):
            return outcome
        return f"{outcome}; {self.closing or 'no change tried closes the gap'}"


@cache
def verified() -> Sequence[Entry]:
    """Return the entries of the registry, in its order."""
    text = resources.files("dcbench_tesla.reports.reference").joinpath("verified.toml").read_text(encoding="utf-8")
    return [
        Entry(
            name=entry["name"],
            source=entry["source"],
            claim=Claim(printed=entry["claim"], std=entry.get("std"), networks=entry["claim_networks"]),
            measured=Measured(values=[value / 100 for value in entry["measured"]], recipe=entry["recipe"]),
            closing=entry["closing"],
            command=entry["command"],
        )
        for entry in tomllib.loads(text)["set"]
    ]
