"""The evaluator of the papers' tables: a ConvNet trained by the published recipe."""

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
    """The published recipe: SGD with learning rate 0.01 or the learned one, 1000 epochs with DSA (set 300 without DSA).

    Args:
        epochs: passes over the distilled set.
        lr: learning rate.
        learned_lr: use the learned learning rate of the distilled set if it has one, as published for MTT and TESLA.
        batch_size: images per step.
        momentum: momentum of SGD.
        weight_decay: weight decay of SGD.
        width: filters of the ConvNet.
        depth: blocks of the ConvNet; 0: log2(side) - 2.
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
    """ConvNet by the published recipe: SGD with momentum, 1000 epochs with DSA, the set's learned lr if it has one."""

    compiles: ClassVar[bool] = True
    Settings = ConvNetSettings
    settings: ConvNetSettings

    @classmethod
    def without_effect(cls, settings: ConvNetSettings, *, learned_lr: bool) -> Mapping[str, str]:
        """Return ``lr`` if the learned learning rate is used, and ``learned_lr`` if sets have none, with the reason."""
        if not learned_lr:
            return {"learned_lr": "the method learns no learning rate"}
        return {"lr": "the learned rate is used (convnet.learned_lr)"} if settings.learned_lr else {}

    @property
    def recipe(self) -> str:
        """``published`` with its changed settings; the number of epochs is shown, but depends on the set."""
        published = ConvNetSettings(epochs=self.settings.epochs)
        changed = [n for n in vars(published) if getattr(published, n) != getattr(self.settings, n)]
        shown = "".join(f", {name} {getattr(self.settings, name)}" for name in changed)
        return f"published{shown}, {self.settings.epochs} epochs"

    def recipe_for(self, distilled: DistilledSet) -> Recipe:
        """Return the published recipe, with the set's learned learning rate if there is one."""
        s = self.settings
        return Recipe(
            epochs=s.epochs,
            lr=distilled.lr if s.learned_lr and distilled.lr is not None else s.lr,
            batch_size=s.batch_size,
            momentum=s.momentum,
            weight_decay=s.weight_decay,
        )

    def build(self, channels: int, classes: int, side: int) -> ConvNet:
        """Return a freshly initialised ConvNet."""
        return ConvNet(channels, classes, side, self.settings.width, self.settings.depth)
