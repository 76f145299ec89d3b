"""What defines a cell's result: its identity, and the keys that are made of it. No files and no images.

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
from dcbench_tesla.cells.evaluation import network_count
from dcbench_tesla.compute.networks import convnet_depth
from dcbench_tesla.config import CellConfig, NetworkSettings
from dcbench_tesla.data.augmentation import Augmentation
from dcbench_tesla.data.settings import DataSettings
from dcbench_tesla.interface import Condenser, Settings
from dcbench_tesla.records.store import content_key


class DataFacts(Protocol):
    """What an identity asks of a data set; a :class:`~dcbench_tesla.data.dataset.Dataset` answers it."""

    @property
    def name(self) -> str:
        """The name that the cell's folder has."""
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
        """The published mean of every channel, if there is one."""
        ...

    @property
    def std(self) -> tuple[float, ...] | None:
        """The published standard deviation of every channel, if there is one."""
        ...

    @property
    def flippable(self) -> bool:
        """Whether a mirrored image is still one of its class."""
        ...


@dataclass(frozen=True)
class ExpertsRead:
    """Which experts a method reads: the key of their recipe, and how many of them."""

    key: str
    count: int


class CellIdentity:
    """What defines one cell: its configuration, what the images are, and which experts are read (``None``: none)."""

    def __init__(self, config: CellConfig, data: DataFacts, experts: ExpertsRead | None) -> None:
        self.config, self.data, self.experts = config, data, experts
        self.method: type[Condenser] = registry.load_method(config.method)

    @cached_property
    def content(self) -> dict[str, Any]:
        """Everything that defines the distilled set, as plain JSON."""
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
        """The name of the cell's folder: readable, and unique by the key behind it."""
        ipc = f"ipc{self.config.ipc}" if self.method.uses_ipc else "all"
        name = f"{self.config.method}-{self.data.name}-{ipc}-seed{self.config.seed}-{self.key[:10]}"
        return re.sub(r"[^A-Za-z0-9._-]+", "-", name)

    def evaluation_key(self, evaluator: str) -> str:
        """Return the key of one evaluator's stage."""
        settings, kind = self.config.evaluators[evaluator], registry.load_evaluator(evaluator)
        inert = kind.without_effect(settings, learned_lr=self.method.learns_lr)
        return content_key(
            {
                "condense": self.key,
                "evaluator": evaluator,
                "version": kind.version,
                "settings": hashed_settings(settings, inert),
                "schedule": self.schedule(evaluator),
            }
        )

    def schedule(self, evaluator: str) -> list[tuple[int, int]]:
        """Return which iterations' sets an evaluator tests, each with how many networks; the last one is last."""
        networks_on_the_way = self.config.evaluation.networks_on_the_way
        on_the_way = self.snapshots if registry.load_evaluator(evaluator).on_the_way else ()
        at_the_end = network_count(self.config.evaluators[evaluator], self.config.evaluation)
        return [(i, networks_on_the_way) for i in on_the_way] + [(self.iterations, at_the_end)]

    @property
    def snapshots(self) -> range:
        """The iterations on the way whose distilled sets are kept."""
        every = self.config.evaluation.every
        return range(every, self.iterations, every) if every else range(0)

    @cached_property
    def iterations(self) -> int:
        """Number of iterations of the condensation."""
        return self.method(self.config.settings).iterations


def describe_data(data: DataFacts, settings: DataSettings) -> dict[str, Any]:
    """Return what the images of a cell or of experts are: contents, how they are cut and preprocessed; plain JSON."""
    facts = {
        "fingerprint": data.fingerprint,
        "train_images": settings.train_images,
        "validation": settings.validation,
    }
    if settings.zca:
        return {**facts, "preprocessing": "zca"}
    # not said by the fingerprint: a named set has published statistics, the same pixels as npz: have computed ones
    return {**facts, "preprocessing": "standardise", "mean": data.mean, "std": data.std}


def describe_network(data: DataFacts, settings: NetworkSettings) -> dict[str, Any]:
    """Return what the network of experts and matching is, its depth as it is; plain JSON."""
    return {"name": "convnet", "width": settings.width, "depth": settings.depth or convnet_depth(data.side)}


def augmentation_of(data: DataFacts, settings: DataSettings) -> Augmentation:
    """Return the DSA strategy of experts, matching and evaluation."""
    named = settings.augmentation
    return Augmentation.for_dataset(data.flippable) if named == "auto" else Augmentation(named)


def hashed_settings(settings: Settings, without_effect: Collection[str]) -> dict[str, Any]:
    """Return the settings that define a result: not those marked ``execution``, not those without effect.

    Those marked ``later`` came when there were results already: they count where they are not as they were before.
    """
    found = {}
    for field in dataclasses.fields(settings):
        value, about = getattr(settings, field.name), field.metadata
        as_before = about.get("later") and value == field.default
        if not about.get("execution") and not as_before and field.name not in without_effect:
            found[field.name] = value
    return found
