"""The identity of a set of experts: data, preprocessing, augmentation, network and training recipe.

The number of epochs is no part of it, so experts can be trained further; nor is a cell's seed, so all cells share them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from dcbench_tesla.config import ExpertSettings
from dcbench_tesla.data.augmentation import Augmentation
from dcbench_tesla.records.store import content_key

_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ExpertRecipe:
    """The identity of a set of experts, which is hashed into ``key``.

    Args:
        facts: those of data, preprocessing and network, as values that JSON can hold.
        settings: the training recipe.
        augmentation: augmentation of the real images.
        build_network: makes a freshly initialised network.
        imported: digest of the files that imported experts were read from; empty for others.
    """

    facts: Mapping[str, Any]
    settings: ExpertSettings
    augmentation: Augmentation
    build_network: Callable[[], nn.Module]
    imported: str = ""

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that defines an expert, except its number."""
        if self.imported:  # nobody knows how they were trained; the digest of their files stands for it
            return {"version": _VERSION, "imported": self.imported, **self.facts}
        recipe: dict[str, Any] = {"lr": self.settings.lr, "batch_size": self.settings.batch_size}
        if self.settings.gsam_rho:  # plain experts keep the key that they had before there was a choice
            recipe |= {"gsam_rho": self.settings.gsam_rho, "gsam_alpha": self.settings.gsam_alpha}
        return {
            "version": _VERSION,
            "recipe": recipe,
            "augmentation": self.augmentation.strategy,
            **self.facts,
        }

    @property
    def key(self) -> str:
        """The content key of :attr:`identity`."""
        return content_key(self.identity)
