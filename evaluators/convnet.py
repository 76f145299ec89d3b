"""The evaluator of the papers' tables: a ConvNet trained by the published recipe."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from dcbench_tesla.compute.named_networks import FrePoNet
from dcbench_tesla.compute.networks import ConvNet
from dcbench_tesla.data.augmentation import Augmentation
from dcbench_tesla.errors import UsageError, unknown_name
from dcbench_tesla.interface import DistilledSet, Settings
from dcbench_tesla.presets.recipes import AUTHORS, PUBLISHED

from .training import Recipe, TrainedNetwork

OF_THE_SET = "set"
_SCHEDULES = ("halves", "released")


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
        recipe: ``published``, or ``authors`` for the recipe that the distilled set names, which brings settings of its
            own; of those above only ``width``, ``depth`` and, for recipes without a rate, ``lr`` count then.
        most_steps: end a training by the authors' recipe after so many steps; 0: at its end.
        micro_batch: images in a network at once, for less memory; 0: all. It changes results by rounding only.
        schedule: ``halves``, or ``released`` for the count of released code, which makes one epoch more and lowers the
            rate two epochs later.
        augmentation: ``set`` for the distilled set's DSA, or a strategy in its place; ``each`` is that of DC on digits.
    """

    epochs: int = 1000
    lr: float = 0.01
    learned_lr: bool = True
    batch_size: int = 256
    momentum: float = 0.9
    weight_decay: float = 5e-4
    width: int = 128
    depth: int = 0
    recipe: str = field(default=PUBLISHED, metadata={"later": True})
    most_steps: int = field(default=0, metadata={"later": True})
    micro_batch: int = field(default=0, metadata={"execution": True})
    schedule: str = field(default="halves", metadata={"later": True})
    augmentation: str = field(default=OF_THE_SET, metadata={"later": True})

    def __post_init__(self) -> None:
        if self.recipe not in (PUBLISHED, AUTHORS):
            raise unknown_name("recipe", self.recipe, (PUBLISHED, AUTHORS))
        if self.schedule not in _SCHEDULES:
            raise unknown_name("schedule", self.schedule, _SCHEDULES)
        if self.augmentation != OF_THE_SET:
            Augmentation(self.augmentation)
        if self.most_steps < 0:
            raise UsageError(f"convnet.most_steps must be 0 (all) or more, not {self.most_steps}.")
        if self.micro_batch < 0:
            raise UsageError(f"convnet.micro_batch must be 0 (all) or more, not {self.micro_batch}.")
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
        """Return ``lr`` or ``learned_lr``, whichever the other takes the place of, and what another recipe uses."""
        if settings.recipe == AUTHORS:
            own = ("epochs", "learned_lr", "batch_size", "momentum", "weight_decay", "schedule", "augmentation")
            return dict.fromkeys(own, "recipe authors brings its own")
        unused = {"most_steps": "it is for recipe authors"}
        if not learned_lr:
            return {**unused, "learned_lr": "the method learns no learning rate"}
        return {**unused, **({"lr": "the learned rate is used (convnet.learned_lr)"} if settings.learned_lr else {})}

    @property
    def recipe(self) -> str:
        """``published`` with its changed settings; the number of epochs is shown, but depends on the set."""
        if self.settings.recipe == AUTHORS:
            return AUTHORS
        published = ConvNetSettings(epochs=self.settings.epochs, micro_batch=self.settings.micro_batch)
        changed = [n for n in vars(published) if getattr(published, n) != getattr(self.settings, n)]
        shown = "".join(f", {name} {getattr(self.settings, name)}" for name in changed)
        return f"published{shown}, {self.settings.epochs} epochs"

    def own_recipe(self, distilled: DistilledSet) -> Recipe:
        """Return the published recipe, with the set's learned learning rate if there is one."""
        s = self.settings
        return Recipe(
            epochs=s.epochs,
            lr=distilled.lr if s.learned_lr and distilled.lr is not None else s.lr,
            batch_size=s.batch_size,
            momentum=s.momentum,
            weight_decay=s.weight_decay,
            schedule=s.schedule,
            strategy="" if s.augmentation == OF_THE_SET else s.augmentation,
        )

    def build(self, channels: int, classes: int, side: int) -> ConvNet:
        """Return a freshly initialised ConvNet."""
        return ConvNet(channels, classes, side, self.settings.width, self.settings.depth)

    def network_for(self, distilled: DistilledSet) -> nn.Module:
        """Return a freshly initialised ConvNet, or the network, width and norm that the authors' recipe asks for."""
        authors, (_, channels, side, _) = self.authors(distilled), distilled.images.shape
        shape = (channels, len(distilled.class_names), side)
        if authors is None:
            return self.build(*shape)
        width, depth = authors.width or self.settings.width, self.settings.depth
        if authors.network == "frepo":
            return FrePoNet(*shape, width, depth, authors.norm or "batch")
        return ConvNet(*shape, width, depth, authors.norm or "instance")
