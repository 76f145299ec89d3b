"""One epoch of an expert: plain SGD on the real images."""

import torch
from torch import nn

from dcbench_tesla.compute.compiling import TrainingStep
from dcbench_tesla.compute.seeds import generator
from dcbench_tesla.config import ExpertSettings
from dcbench_tesla.data.augmentation import Augmentation
from dcbench_tesla.data.images import LabelledImages


def train_epoch(
    network: nn.Module,
    train: LabelledImages,
    settings: ExpertSettings,
    augmentation: Augmentation,
    expert: int,
    epoch: int,
) -> float:
    """Train one epoch by plain SGD with DSA on the real images; return the mean loss.

    All random numbers are derived from (expert, epoch), so training can be resumed or extended at any epoch.
    """
    optimiser = torch.optim.SGD(network.parameters(), lr=settings.lr)
    rng = generator(0, "expert epoch", expert, epoch)
    step, losses = TrainingStep(network), []
    for indices in torch.randperm(len(train), generator=rng).split(settings.batch_size):
        images = train.inputs(indices)
        images = augmentation(images, augmentation.draw(len(images), images.shape[-1], rng))
        loss = step(images, train.labels[indices].to(images.device))
        optimiser.step()
        losses.append(loss * len(indices))
    return float(torch.stack(losses).sum() / len(train))
