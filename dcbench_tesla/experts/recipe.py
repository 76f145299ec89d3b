"""What identifies a set of experts: data, preprocessing, augmentation, network and recipe of training.

Not how many epochs they were trained, so whoever needs more extends them; and not a cell's seed, so all cells share
them.
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
    """What identifies a set of experts, besides their number: hashed into ``key``.

    ``facts`` are those of data, preprocessing and network, as plain JSON. ``imported``: the digest of the files they
    were read from, for experts of others.
    """

    facts: Mapping[str, Any]
    settings: ExpertSettings
    augmentation: Augmentation
    build_network: Callable[[], nn.Module]
    imported: str = ""

    @property
    def identity(self) -> dict[str, Any]:
        """Return everything that defines expert i, but i."""
        if self.imported:  # how they were trained is not known here; their contents stand for it
            return {"version": _VERSION, "imported": self.imported, **self.facts}
        recipe = {"lr": self.settings.lr, "batch_size": self.settings.batch_size}
        return {
            "version": _VERSION,
            "recipe": recipe,
            "augmentation": self.augmentation.strategy,
            **self.facts,
        }

    @property
    def key(self) -> str:
        """Return the content key of :attr:`identity`."""
        return content_key(self.identity)
