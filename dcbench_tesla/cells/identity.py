"""The identity of a cell, which defines its result, and the keys made from it. No files and no images.

A *key* hashes what defines a result and nothing else: the method and its version, the settings, the data set's
fingerprint, IPC, seed, network, and the key of the experts. Device, threads and paths are recorded, not hashed.
"""

import dataclasses
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from dcbench_tesla import registry
from dcbench_tesla.cells.evaluation import authors_content, labels_content, network_count
from dcbench_tesla.config import CellConfig, ExpertSettings, NetworkSettings
from dcbench_tesla.data.augmentation import Augmentation
from dcbench_tesla.data.settings import DataSettings
from dcbench_tesla.interface import Condenser, Settings
from dcbench_tesla.records.store import content_key


class DataFacts(Protocol):
    """The facts about a data set that an identity needs; a :class:`~dcbench_tesla.data.dataset.Dataset` has them."""

    @property
    def name(self) -> str:
        """The data set's name, which is part of the folder's name."""
        ...

    @property
    def fingerprint(self) -> str:
        """The digest of pixels, labels and class names."""
        ...

    @property
    def side(self) -> int:
        """Height and width of the images, in pixels."""
        ...

    @property
    def mean(self) -> tuple[float, ...] | None:
        """The published mean per channel, or ``None``."""
        ...

    @property
    def std(self) -> tuple[float, ...] | None:
        """The published standard deviation per channel, or ``None``."""
        ...

    @property
    def flippable(self) -> bool:
        """Whether a mirrored image still shows its class."""
        ...


@dataclass(frozen=True)
class ExpertsRead:
    """The experts that a method reads: the key of their recipe, and their number."""

    key: str
    count: int


class CellIdentity:
    """The identity of one cell, made of its configuration, its data, and the experts it reads (or ``None``).

    ``teacher`` is the key of the recipe of the teacher that labels its evaluations, or empty.
    """

    def __init__(self, config: CellConfig, data: DataFacts, experts: ExpertsRead | None, teacher: str = "") -> None:
        self.config, self.data, self.experts, self._teacher = config, data, experts, teacher
        self.method: type[Condenser] = registry.load_method(config.method)

    @cached_property
    def content(self) -> dict[str, Any]:
        """Everything that defines the distilled set, as values that JSON can hold."""
        c = self.config
        return {
            "method": c.method,
            "version": self.method.version,
            "settings": hashed_settings(c.settings, c.settings.inert()),
            "data": describe_data(self.data, c.data),
            "augmentation": augmentation_of(self.data, c.data).strategy,
            "ipc": c.ipc if self.method.uses_ipc else None,
            "seed": c.seed,
            "network": describe_network(self.data, c.network) if self.method.uses_network else None,
            "experts": dataclasses.asdict(self.experts) if self.experts else None,
        }

    @cached_property
    def key(self) -> str:
        """The key of the condensation."""
        return content_key(self.content)

    @property
    def name(self) -> str:
        """The name of the cell's folder: readable, and unique because it ends with a part of the key."""
        ipc = f"ipc{self.config.ipc}" if self.method.uses_ipc else "all"
        name = f"{self.config.method}-{self.data.name}-{ipc}-seed{self.config.seed}-{self.key[:10]}"
        return re.sub(r"[^A-Za-z0-9._-]+", "-", name)

    def evaluation_key(self, evaluator: str) -> str:
        """Return the key of an evaluation."""
        settings, kind = self.config.evaluators[evaluator], registry.load_evaluator(evaluator)
        inert = kind.without_effect(settings, learned_lr=self.method.learns_lr)
        return content_key(
            {
                "condense": self.key,
                "evaluator": evaluator,
                "version": kind.version,
                "settings": hashed_settings(settings, inert),
                "schedule": self.schedule(evaluator),
                **authors_content(settings, self.method.evaluation_recipe),
                **({"labels": self.labels} if self.labels else {}),
            }
        )

    @property
    def labels(self) -> dict[str, Any]:
        """What of the labels of its evaluations defines them; empty if they are the set's own."""
        return labels_content(self.config.evaluation, self._teacher)

    def schedule(self, evaluator: str) -> list[tuple[int, int]]:
        """Return the iterations whose sets an evaluator tests, each with its number of networks; the final one last."""
        networks_on_the_way = self.config.evaluation.networks_on_the_way
        kind, settings = registry.load_evaluator(evaluator), self.config.evaluators[evaluator]
        if not kind.uses_seed(settings):
            networks_on_the_way = 1
        on_the_way = self.snapshots if kind.on_the_way else ()
        at_the_end = network_count(evaluator, settings, self.config.evaluation)
        return [(i, networks_on_the_way) for i in on_the_way] + [(self.iterations, at_the_end)]

    @property
    def snapshots(self) -> range:
        """The iterations before the last whose distilled sets are kept."""
        every = self.config.evaluation.every
        return range(every, self.iterations, every) if every else range(0)

    @cached_property
    def iterations(self) -> int:
        """Number of iterations of the condensation."""
        return self.method(self.config.settings).iterations


def describe_data(data: DataFacts, settings: DataSettings) -> dict[str, Any]:
    """Return the facts that define the images of a cell or of experts: content, split and preprocessing."""
    facts = {
        "fingerprint": data.fingerprint,
        "train_images": settings.train_images,
        "validation": settings.validation,
    }
    if settings.zca:
        named = {} if settings.whitening == "mtt" else {"whitening": settings.whitening}
        return {**facts, "preprocessing": "zca", **named}
    # the fingerprint does not cover this: a registered set has published statistics, the same pixels as npz: computed
    mean, std = settings.moments(data.name, data.mean, data.std)
    return {**facts, "preprocessing": "standardise", "mean": mean, "std": std}


def describe_network(data: DataFacts, settings: NetworkSettings) -> dict[str, Any]:
    """Return the facts that define the network of experts and matching, with its actual depth."""
    return settings.facts(data.side)


def augmentation_of(data: DataFacts, settings: DataSettings) -> Augmentation:
    """Return the DSA strategy for experts, matching and evaluation."""
    named = settings.augmentation
    return Augmentation.for_dataset(data.flippable) if named == "auto" else Augmentation(named)


def execution_settings(settings: Settings) -> dict[str, Any]:
    """Return the settings marked ``execution``: they change a result by rounding only, and are part of no key."""
    marked = [field.name for field in dataclasses.fields(settings) if field.metadata.get("execution")]
    return {name: getattr(settings, name) for name in marked}


def hashed_settings(settings: Settings | ExpertSettings, without_effect: Collection[str]) -> dict[str, Any]:
    """Return the settings that define a result: without those marked ``execution`` and those without effect.

    Settings marked ``later`` were added when results already existed. They count only if they differ from their
    default, which is what those results were made with.
    """
    found = {}
    for field in dataclasses.fields(settings):
        value, about = getattr(settings, field.name), field.metadata
        as_before = about.get("later") and value == field.default
        if not about.get("execution") and not as_before and field.name not in without_effect:
            found[field.name] = value
    return found
