"""Cross-architecture evaluation: image sizes for all networks, and one recipe per network for all rows of a table."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from dcbench_tesla.errors import UsageError, unknown_name
from dcbench_tesla.interface import DistilledSet, Settings
from dcbench_tesla.presets.recipes import AUTHORS

from .training import Recipe, TrainedNetwork

RECIPES = ("adam-cosine", "learned-lr", AUTHORS)
_SMALLEST = 28
_PUBLISHED = 32


@dataclass(frozen=True, kw_only=True)
class CrossSettings(Settings):
    """The recipe for a network other than the one used for condensation.

    Args:
        recipe: ``adam-cosine`` (Adam with a cosine schedule, the same for every distilled set), ``learned-lr`` (as
            for the ConvNet: SGD with momentum 0.9 at the set's learned learning rate, or at ``lr`` if it has none) or
            ``authors`` (the recipe that the distilled set names, with this network).
        epochs: passes over the distilled set.
        lr: learning rate.
        batch_size: images per step.
        weight_decay: weight decay.
        networks: number of networks to train; 0: as ``evaluation.networks`` says.
        most_steps: end a training by the authors' recipe after so many steps; 0: at its end.
        micro_batch: images in a network at once, for less memory; 0: all. It changes results by rounding only.
    """

    recipe: str = "adam-cosine"
    epochs: int = 300
    lr: float = 1e-3
    batch_size: int = 256
    weight_decay: float = 5e-4
    networks: int = field(default=0, metadata={"execution": True})  # part of the schedule, which the key contains
    most_steps: int = field(default=0, metadata={"later": True})
    micro_batch: int = field(default=0, metadata={"execution": True})

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise unknown_name("recipe", self.recipe, RECIPES)
        if min(self.epochs, self.batch_size) < 1 or not self.lr > 0 or self.weight_decay < 0:
            raise UsageError("epochs and batch_size must be at least 1, lr positive, weight_decay not negative.")
        if self.networks < 0:
            raise UsageError(f"networks must be 0 (as evaluation.networks) or more, not {self.networks}.")
        if self.micro_batch < 0:
            raise UsageError(f"micro_batch must be 0 (all) or more, not {self.micro_batch}.")
        if self.most_steps < 0:
            raise UsageError(f"most_steps must be 0 (all) or more, not {self.most_steps}.")


def network_side(side: int) -> int:
    """Return the side a network sees for images of ``side`` pixels: at least 32, and a multiple of 4."""
    return _PUBLISHED if side < _PUBLISHED else -(-side // 4) * 4


def default_initialisation(network: nn.Module) -> nn.Module:
    """Give every layer PyTorch's default initialisation, like the papers' networks and unlike timm's."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.GroupNorm, nn.LayerNorm)):
            module.reset_parameters()
    return network


class Fitted(nn.Module):
    """A network with its images made to fit: images below 28 pixels are upsampled to 32, others zero-padded.

    Instance norm over a single pixel makes a network's output constant, so small images are enlarged here.
    """

    def __init__(self, network: nn.Module, side: int) -> None:
        super().__init__()
        self.network, self._side = network, side

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(N, K)`` of ``images`` ``(N, C, side, side)``."""
        target = network_side(self._side)
        if self._side < _SMALLEST:
            images = F.interpolate(images, size=(target, target), mode="bilinear", align_corners=False)
        elif self._side < target:
            before = (target - self._side) // 2
            after = target - self._side - before
            images = F.pad(images, (before, after, before, after))
        logits: Tensor = self.network(images)
        return logits


class CrossArchitecture(TrainedNetwork):
    """An evaluator with one recipe for all rows; subclasses build the network for images of 32 pixels or more.

    Only the final distilled set is tested: the networks are large, and no paper tests earlier sets with them.
    """

    on_the_way: ClassVar[bool] = False
    Settings = CrossSettings
    settings: CrossSettings

    @property
    def recipe(self) -> str:
        """The recipe's name with epochs and learning rate."""
        if self.settings.recipe == AUTHORS:
            return AUTHORS
        return f"{self.settings.recipe}, {self.settings.epochs} epochs, lr {self.settings.lr:g}"

    @classmethod
    def without_effect(cls, settings: CrossSettings, *, learned_lr: bool) -> Mapping[str, str]:
        """Return ``lr`` if a learned learning rate takes its place, and what another recipe uses, with the reasons."""
        if settings.recipe == AUTHORS:
            return dict.fromkeys(("epochs", "batch_size", "weight_decay"), "recipe authors brings its own")
        taken = settings.recipe == "learned-lr" and learned_lr
        unused = {"most_steps": "it is for recipe authors"}
        return {**unused, **({"lr": "recipe learned-lr uses the learned rate"} if taken else {})}

    def own_recipe(self, distilled: DistilledSet) -> Recipe:
        """Return the recipe; only ``learned-lr`` depends on the distilled set."""
        s = self.settings
        if s.recipe == "learned-lr":
            lr = s.lr if distilled.lr is None else distilled.lr
            return Recipe(epochs=s.epochs, lr=lr, batch_size=s.batch_size, weight_decay=s.weight_decay)
        return Recipe(
            epochs=s.epochs,
            lr=s.lr,
            batch_size=s.batch_size,
            weight_decay=s.weight_decay,
            optimiser="adam",
            schedule="epoch-cosine",
        )

    def build(self, channels: int, classes: int, side: int) -> nn.Module:
        """Return a freshly initialised network for images of any size from 8 pixels on."""
        return Fitted(self.build_for(channels, classes, network_side(side)), side)

    @abstractmethod
    def build_for(self, channels: int, classes: int, side: int) -> nn.Module:
        """Return a freshly initialised network for images of ``side`` >= 32 pixels, a multiple of 4."""
