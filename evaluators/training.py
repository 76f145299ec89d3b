"""The training loop the evaluators share: a fresh network, SGD, and a distilled set.

The published protocol (DC, DSA, DM, MTT, TESLA): SGD with momentum 0.9 and weight decay 5e-4, batches of 256,
cross-entropy, the learning rate times 0.1 once after half of the epochs, momentum at rest there again.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dcbench_tesla.data.augmentation import Augmentation
from dcbench_tesla.distilled import DistilledSet
from dcbench_tesla.errors import DivergedError
from dcbench_tesla.networks import cross_entropy
from dcbench_tesla.seeds import generator


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one network is trained: ``epochs`` passes of SGD at ``lr``, a tenth of it in the second half."""

    epochs: int
    lr: float
    batch_size: int
    momentum: float
    weight_decay: float

    def optimiser(self, network: nn.Module, lr: float) -> torch.optim.SGD:
        """Return a new optimiser, its momentum at rest."""
        return torch.optim.SGD(network.parameters(), lr=lr, momentum=self.momentum, weight_decay=self.weight_decay)


class TrainingSet:
    """A distilled set as augmented batches: images kept on the device, or made batch by batch from real pixels."""

    def __init__(self, distilled: DistilledSet, device: torch.device) -> None:
        self._real = distilled.as_labelled(device) if distilled.images.dtype == torch.uint8 else None
        self._images = None if self._real else distilled.images.to(device)
        self._labels = distilled.labels.to(device)
        self._augmentation = Augmentation(distilled.augmentation)
        self._side = distilled.images.shape[-1]
        self._device = device

    def __len__(self) -> int:
        return len(self._labels)

    def batch(self, indices: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return augmented images and labels: one operation for the batch, parameters for every image."""
        on_device = indices.to(self._device)
        images = self._real.inputs(indices) if self._real else self._tensor[on_device]
        images = self._augmentation(images, self._augmentation.draw(len(images), self._side, rng))
        return images, self._labels[on_device]

    @property
    def _tensor(self) -> Tensor:
        assert self._images is not None
        return self._images


def train(network: nn.Module, data: TrainingSet, recipe: Recipe, seed: int) -> nn.Module:
    """Train ``network`` on ``data`` by ``recipe``; return it in evaluation mode.

    Raises:
        DivergedError: the loss became NaN or infinite.
    """
    network.train()
    optimiser = recipe.optimiser(network, recipe.lr)
    loss = torch.zeros(())
    for epoch in range(recipe.epochs):
        if epoch == recipe.epochs // 2 and epoch > 0:
            optimiser = recipe.optimiser(network, 0.1 * recipe.lr)
        rng = generator(seed, "evaluation epoch", epoch)
        for indices in torch.randperm(len(data), generator=rng).split(recipe.batch_size):
            images, labels = data.batch(indices, rng)
            loss = cross_entropy(network(images), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    if not torch.isfinite(loss):
        raise DivergedError(
            f"a network trained on the distilled set diverged (loss {loss.item()}, lr {recipe.lr:g}): "
            "lower the evaluator's learning rate, or the student's where it is learned."
        )
    return network.eval()
