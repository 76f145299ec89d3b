"""The training loop of the evaluators, and the base of those that train one network per seed.

The published protocol (DC, DSA, DM, MTT, TESLA): SGD with momentum 0.9 and weight decay 5e-4, batches of 256,
cross-entropy; after half of the epochs the learning rate is multiplied by 0.1 and the momentum starts at zero again.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dcbench_tesla.compute.compiling import TrainingStep
from dcbench_tesla.compute.networks import seeded
from dcbench_tesla.compute.seeds import generator
from dcbench_tesla.data.augmentation import Augmentation
from dcbench_tesla.distilled import DistilledSet
from dcbench_tesla.errors import DivergedError
from dcbench_tesla.interface import Evaluator


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one network is trained.

    Args:
        epochs: passes over the distilled set.
        lr: learning rate at the start.
        batch_size: images per step.
        weight_decay: weight decay.
        momentum: momentum of SGD.
        optimiser: ``sgd`` (a tenth of ``lr`` in the second half) or ``adam`` (``lr`` falls towards zero along a cosine,
            changed every epoch).
        least_batch: if the last batch of an epoch has fewer images, it joins the batch before. Batch norm cannot train
            on one image.
    """

    epochs: int
    lr: float
    batch_size: int
    weight_decay: float
    momentum: float = 0.9
    optimiser: str = "sgd"
    least_batch: int = 1

    def start(self, network: nn.Module, epoch: int) -> torch.optim.Optimizer | None:
        """Return a new optimiser for the epochs from ``epoch`` on, or ``None`` to continue with the present one."""
        if self.optimiser == "adam":
            if epoch:
                return None
            return torch.optim.Adam(network.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        if epoch not in (0, self.epochs // 2):
            return None
        lr = self.lr if epoch == 0 else 0.1 * self.lr
        return torch.optim.SGD(network.parameters(), lr=lr, momentum=self.momentum, weight_decay=self.weight_decay)

    def adjust(self, optimiser: torch.optim.Optimizer, epoch: int) -> None:
        """Set the learning rate of an epoch, if the schedule changes it every epoch."""
        if self.optimiser == "adam":
            for group in optimiser.param_groups:
                group["lr"] = self.lr * 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))

    def batches(self, order: Tensor) -> tuple[Tensor, ...]:
        """Split the image indices ``(N,)`` of an epoch into batches."""
        parts: tuple[Tensor, ...] = order.split(self.batch_size)
        if len(parts) > 1 and len(parts[-1]) < self.least_batch:
            return (*parts[:-2], torch.cat(parts[-2:]))
        return parts


class TrainingSet:
    """A distilled set as augmented batches. Synthetic images are on the device; real pixels are made into inputs."""

    def __init__(self, distilled: DistilledSet, device: torch.device) -> None:
        self._real = distilled.as_labelled(device) if distilled.images.dtype == torch.uint8 else None
        self._images = distilled.images.to(device) if self._real is None else distilled.images
        self._labels = distilled.labels.to(device)
        self._augmentation = Augmentation(distilled.augmentation)
        self._side = distilled.images.shape[-1]
        self._device = device

    def __len__(self) -> int:
        return len(self._labels)

    def batch(self, indices: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return augmented images and labels: one operation for the batch, with parameters for every image."""
        on_device = indices.to(self._device)
        images = self._images[on_device] if self._real is None else self._real.inputs(indices)
        images = self._augmentation(images, self._augmentation.draw(len(images), self._side, rng))
        return images, self._labels[on_device]


def train(network: nn.Module, data: TrainingSet, recipe: Recipe, seed: int) -> nn.Module:
    """Train ``network`` on ``data`` by ``recipe``; return it in evaluation mode.

    Raises:
        DivergedError: the loss became NaN or infinite.
    """
    network.train()
    optimiser = recipe.start(network, 0)
    assert optimiser is not None, "a recipe starts with an optimiser"
    step, loss = TrainingStep(network), torch.zeros(())
    for epoch in range(recipe.epochs):
        optimiser = recipe.start(network, epoch) or optimiser
        recipe.adjust(optimiser, epoch)
        rng = generator(seed, "evaluation epoch", epoch)
        for indices in recipe.batches(torch.randperm(len(data), generator=rng)):
            images, labels = data.batch(indices, rng)
            loss = step(images, labels)
            optimiser.step()
    if not torch.isfinite(loss):
        raise DivergedError(
            f"a network trained on the distilled set diverged (loss {loss.item()}, lr {recipe.lr:g}): "
            "lower the evaluator's learning rate, or that of the student if it is learned."
        )
    return network.eval()


class TrainedNetwork(Evaluator):
    """An evaluator that trains one network per seed; subclasses build the network and choose the recipe."""

    @abstractmethod
    def build(self, channels: int, classes: int, side: int) -> nn.Module:
        """Return a freshly initialised network for ``side`` x ``side`` images."""

    @abstractmethod
    def recipe_for(self, distilled: DistilledSet) -> Recipe:
        """Return the recipe to train on ``distilled``."""

    def cost(self, distilled: DistilledSet) -> int:
        """Return the number of training steps of one network."""
        return int(self.settings.epochs) * -(-len(distilled) // int(self.settings.batch_size))

    @classmethod
    def probe(cls, settings: Any) -> Any:
        """Return the settings with at most two epochs."""
        return replace(settings, epochs=min(2, settings.epochs))

    def train(self, distilled: DistilledSet, seeds: Sequence[int], device: torch.device) -> list[nn.Module]:
        """Train one network per seed; the seed determines initialisation, batches, augmentation and dropout."""
        _, channels, side, _ = distilled.images.shape
        data, recipe = TrainingSet(distilled, device), self.recipe_for(distilled)
        networks = []
        for seed in seeds:
            with seeded(seed):
                network = self.build(channels, len(distilled.class_names), side).to(device)
                networks.append(train(network, data, recipe, seed))
        return networks
