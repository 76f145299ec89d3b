"""A search, what identifies it, and the rows of its trials (``rows/trial-<key>.json``).

Keys are made from the training images alone: other test images make no other search.
"""

import dataclasses
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any

from dcbench_tesla import registry
from dcbench_tesla.cells.evaluation import authors_content, network_count
from dcbench_tesla.cells.identity import CellIdentity, ExpertsRead, hashed_settings
from dcbench_tesla.config import CellConfig
from dcbench_tesla.data.dataset import Dataset
from dcbench_tesla.errors import CorruptFileError
from dcbench_tesla.records.rows import stage_rows
from dcbench_tesla.records.store import content_key
from dcbench_tesla.records.workspace import Workspace
from dcbench_tesla.tuning.space import Choices, Space

STAGE = "trial"
Row = Mapping[str, Any]

_VERSION = 1  # of how trials are drawn and judged; to be raised when the same search makes other trials
SAMPLER = "tpe"


def base_key(config: CellConfig, dataset: Dataset) -> str:
    """Return the key of a cell without its seed: a search that begins with it is for all its seeds and evaluators."""
    training = dataclasses.replace(dataset, known_fingerprint=dataset.train_fingerprint)
    request = registry.load_method(config.method).expert_request(config.settings)
    # the key of experts that exist is made from all images; what they are trained by says as much
    trained = content_key(hashed_settings(config.experts, ()))
    experts = ExpertsRead(trained, request.count or config.experts.count) if request else None
    content = CellIdentity(config, training, experts).content
    return content_key({name: value for name, value in content.items() if name != "seed"})


@dataclass(frozen=True, kw_only=True)
class Search:
    """A search for the settings of one cell.

    Args:
        config: the cell with the settings that are not searched, and those of the preset for the others. It has one
            evaluator, and evaluates the last set only.
        dataset: its data set.
        space: what is searched.
        batch: trials that are drawn before any of them is known.
        command: the command, for rows.
    """

    config: CellConfig
    dataset: Dataset
    space: Space
    batch: int
    command: str = ""

    @property
    def evaluator(self) -> str:
        """The network that trials are judged by."""
        return next(iter(self.config.evaluators))

    @property
    def networks(self) -> int:
        """How many of them are trained in a trial."""
        return network_count(self.evaluator, self.config.evaluators[self.evaluator], self.config.evaluation)

    @cached_property
    def base(self) -> str:
        """The key of the cell without its seed."""
        return base_key(self.config, self.dataset)

    @cached_property
    def key(self) -> str:
        """The key of the search. The number of its trials is no part of it: it may be raised."""
        settings, kind = self.config.evaluators[self.evaluator], registry.load_evaluator(self.evaluator)
        recipe = registry.load_method(self.config.method).evaluation_recipe
        inert = kind.without_effect(settings, learned_lr=registry.load_method(self.config.method).learns_lr)
        return content_key(
            {
                "base": self.base,
                "seed": self.config.seed,
                "space": self.described,
                "batch": self.batch,
                "sampler": [SAMPLER, _VERSION],
                "evaluator": [self.evaluator, kind.version, hashed_settings(settings, inert), self.networks],
                **authors_content(settings, recipe),
            }
        )

    @property
    def described(self) -> dict[str, Any]:
        """The space as values that JSON can hold."""
        return {
            label: {"choices": list(found.values)} if isinstance(found, Choices) else dataclasses.asdict(found)
            for label, found in self.space.items()
        }

    @property
    def preset_values(self) -> dict[str, Any] | None:
        """The preset's values of what is searched, if the space holds them."""
        values = {label: self.config.value(label) for label in self.space}
        return values if all(self.space[label].holds(value) for label, value in values.items()) else None

    def trial_key(self, number: int) -> str:
        """Return the key of a trial's row."""
        return content_key({"search": self.key, "trial": number})

    def recorded(self, workspace: Workspace, number: int) -> dict[str, Any] | None:
        """Return the row of a trial, or ``None`` if it is not finished.

        Raises:
            CorruptFileError: the row is damaged, or has other settings than are searched.
        """
        row = workspace.row(STAGE, self.trial_key(number))
        if row is not None and (row["search"], row["number"], set(row["values"])) != (self.key, number, {*self.space}):
            path = workspace.rows / f"{STAGE}-{self.trial_key(number)}.json"
            raise CorruptFileError(f"{path} holds the trial of another search. Delete it: the same command goes on.")
        return row

    def facts(self, number: int, budget: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the columns that a trial's row has whatever came out."""
        c = self.config
        return {
            "search": self.key,
            "base": self.base,
            "number": number,
            "budget": budget,
            "batch": self.batch,
            "sampler": f"{SAMPLER} of optuna {version('optuna')}",
            "space": self.described,
            "values": dict(values),
            "method": c.method,
            "dataset": self.dataset.name,
            "train_fingerprint": self.dataset.train_fingerprint,
            "ipc": c.ipc if registry.load_method(c.method).uses_ipc else None,
            "preset": c.preset,
            "protocol": c.protocol,
            "seed": c.seed,
            "evaluator": self.evaluator,
            "networks": self.networks,
            "command": self.command,
        }


def score(row: Row) -> float:
    """Return the mean validation accuracy of a trial; one that failed has that of chance."""
    return statistics.fmean(row["validation"]) if row["validation"] else float(row["chance"])


def best_first(rows: Sequence[Row]) -> list[Row]:
    """Return trials by their mean validation accuracy; of equally good ones the earlier comes first."""
    return sorted(rows, key=lambda row: (-score(row), row["number"]))


def searches(workspace: Workspace) -> Iterator[list[Row]]:
    """Yield the trials of every search on record, by number, up to the first that is missing."""
    found: dict[str, dict[int, Row]] = {}
    for row in stage_rows(workspace, STAGE):
        found.setdefault(row["search"], {})[row["number"]] = row
    for rows in found.values():
        whole = next((n for n in range(len(rows)) if n not in rows), len(rows))
        yield [rows[n] for n in range(whole)]
