"""The evaluator of the papers' tables: ConvNet, trained by the published recipe."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from dcbench_tesla.compute.networks import ConvNet
from dcbench_tesla.errors import UsageError
from dcbench_tesla.interface import DistilledSet, Settings

from .training import Recipe, TrainedNetwork


@dataclass(frozen=True, kw_only=True)
class ConvNetSettings(Settings):
    """The published recipe: 1000 epochs with DSA (300 without: set it so), SGD 0.01 or the learned rate.

    ``width`` and ``depth``: of the ConvNet (depth 0: log2(side) - 2). ``learned_lr``: train with the distilled set's
    learned learning rate where it has one, as published for MTT and TESLA.
    """

    epochs: int = 1000
    lr: float = 0.01
    learned_lr: bool = True
    batch_size: int = 256
    momentum: float = 0.9
    weight_decay: float = 5e-4
    width: int = 128
    depth: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size, self.width) < 1:
            raise UsageError("convnet.epochs, convnet.batch_size and convnet.width must be at least 1.")
        if not 0 < self.lr < math.inf:
            raise UsageError(f"convnet.lr must be positive and finite, not {self.lr:g}.")
        if not (0 <= self.momentum < 1 and 0 <= self.weight_decay < math.inf and self.depth >= 0):
            raise UsageError("convnet.momentum must lie in [0, 1), weight_decay and depth must not be negative.")


class ConvNetEvaluator(TrainedNetwork):
    """ConvNet by the published recipe: SGD with momentum, 1000 epochs with DSA, the learned lr where there is one."""

    compiles: ClassVar[bool] = True
    Settings = ConvNetSettings
    settings: ConvNetSettings

    @classmethod
    def without_effect(cls, settings: ConvNetSettings, *, learned_lr: bool) -> Mapping[str, str]:
        """``lr`` where the set's learned rate is taken, ``learned_lr`` where sets have none."""
        if not learned_lr:
            return {"learned_lr": "the method learns no learning rate"}
        return {"lr": "the learned rate is taken (convnet.learned_lr)"} if settings.learned_lr else {}

    @property
    def recipe(self) -> str:
        """``published``, or what was changed of it (the number of epochs is free: it depends on the set)."""
        published = ConvNetSettings(epochs=self.settings.epochs)
        changed = [n for n in vars(published) if getattr(published, n) != getattr(self.settings, n)]
        shown = "".join(f", {name} {getattr(self.settings, name)}" for name in changed)
        return f"published{shown}, {self.settings.epochs} epochs"

    def recipe_for(self, distilled: DistilledSet) -> Recipe:
        """Return the published recipe, at the set's learned rate where it has one."""
        s = self.settings
        return Recipe(
            epochs=s.epochs,
            lr=distilled.lr if s.learned_lr and distilled.lr is not None else s.lr,
            batch_size=s.batch_size,
            momentum=s.momentum,
            weight_decay=s.weight_decay,
        )

    def build(self, channels: int, classes: int, side: int) -> ConvNet:
        """Return a fresh ConvNet."""
        return ConvNet(channels, classes, side, self.settings.width, self.settings.depth)
