"""The training loop of the evaluators, and the base of those that train one network per seed.

The published protocol (DC, DSA, DM, MTT, TESLA): SGD with momentum 0.9 and weight decay 5e-4, batches of 256,
cross-entropy; after half of the epochs the learning rate is multiplied by 0.1 and the momentum starts at zero again.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcbench_tesla.compute.compiling import Loss, TrainingStep, squared_error
from dcbench_tesla.compute.networks import cross_entropy, seeded
from dcbench_tesla.compute.seeds import generator
from dcbench_tesla.data.augmentation import NO_STRATEGY, Augmentation, cutmix
from dcbench_tesla.distilled import DistilledSet, Steps
from dcbench_tesla.errors import DivergedError, UsageError
from dcbench_tesla.interface import Evaluator, Teacher
from dcbench_tesla.presets.recipes import AUTHORS, AuthorsRecipe, authors_recipe

_LOSSES: dict[str, Loss] = {"cross-entropy": cross_entropy, "mse": squared_error}


def distillation_loss(temperature: float) -> Loss:
    """Return the loss ``t^2 sum_k p_k (log p_k - log softmax(z / t)_k)``, mean over images, of logits z and labels p.

    Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network" (2015), section 2.
    """

    def kl(logits: Tensor, labels: Tensor) -> Tensor:
        return temperature**2 * F.kl_div((logits / temperature).log_softmax(1), labels, reduction="batchmean")

    kl.__name__ = f"kl at temperature {temperature!r}"  # compiled code is kept by this name
    return kl


class Visit(NamedTuple):
    """One training step: its epoch, whether it is the first of it, its images, and the epoch's generator."""

    epoch: int
    first: bool
    indices: Tensor
    rng: torch.Generator


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one network is trained.

    Args:
        epochs: passes over the distilled set, where ``steps`` is 0.
        lr: learning rate at the start.
        batch_size: images per step.
        weight_decay: weight decay.
        momentum: momentum of SGD.
        optimiser: ``sgd`` or ``adam``.
        schedule: ``halves`` (a tenth of ``lr`` in the second half of the epochs, with a new optimiser), ``released``
            (the same as released code counts: E + 1 epochs, E // 2 + 2 of them at ``lr``), ``fifths`` (a fifth of
            ``lr`` after two thirds of the epochs, and a fifth of that after five sixths), ``constant``,
            ``epoch-cosine`` (``lr`` falls towards zero along a cosine, changed every epoch), ``cosine`` (a linear
            warm-up, then a cosine to ``floor`` times ``lr``, changed every step) or ``learned`` (that of ``learned``).
        least_batch: if the last batch of an epoch has fewer images, it joins the batch before. Batch norm cannot train
            on one image.
        loss: ``cross-entropy`` or ``mse``, which is of centred labels.
        steps: optimiser steps in all; 0: as many as ``epochs`` take.
        most_steps: training ends after so many steps, whatever its schedule; 0: at its end.
        warm_up: steps of linear warm-up of ``cosine``.
        floor: the last rate of ``cosine`` as a share of ``lr``.
        augmentation: whether images are augmented.
        strategy: the DSA strategy in place of the set's, if it is not empty.
        cutmix: probability of CutMix for a batch.
        learned: the batches and rates to follow, in their order.
        average: decay of a moving average of the weights, with which the network ends; 0: with its last weights.
    """

    epochs: int
    lr: float
    batch_size: int
    weight_decay: float
    momentum: float = 0.9
    optimiser: str = "sgd"
    schedule: str = "halves"
    least_batch: int = 1
    loss: str = "cross-entropy"
    steps: int = 0
    most_steps: int = 0
    warm_up: int = 0
    floor: float = 0.0
    augmentation: bool = True
    strategy: str = ""
    cutmix: float = 0.0
    learned: Steps | None = None
    average: float = 0.0

    @property
    def passes(self) -> int:
        """The number of passes over the set: ``epochs``, and one more if the schedule is ``released``."""
        return self.epochs + (self.schedule == "released")

    @property
    def _second_half(self) -> int | None:
        """The first epoch of the second half, from 0; ``None`` if the schedule has none."""
        return {"halves": self.epochs // 2, "released": self.epochs // 2 + 2}.get(self.schedule)

    def start(self, network: nn.Module, epoch: int) -> torch.optim.Optimizer | None:
        """Return a new optimiser for the epochs from ``epoch`` on, or ``None`` to continue with the present one."""
        if epoch not in (0, self._second_half):
            return None
        lr = self.lr if epoch == 0 else 0.1 * self.lr
        if self.optimiser == "adam":
            return torch.optim.Adam(network.parameters(), lr=lr, weight_decay=self.weight_decay)
        return torch.optim.SGD(network.parameters(), lr=lr, momentum=self.momentum, weight_decay=self.weight_decay)

    def rate(self, epoch: int, step: int) -> float | None:
        """Return the learning rate of a step, both counted from 0; ``None`` if it stays that of the optimiser."""
        if self.schedule == "epoch-cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
        if self.schedule == "fifths":
            return self.lr * 0.2 ** ((epoch >= 2 * self.epochs // 3) + (epoch >= 5 * self.epochs // 6))
        if self.schedule == "cosine":
            return self.lr * self._share(step)
        return None if self.learned is None else float(self.learned.rates[step])

    def _share(self, step: int) -> float:
        """The share of the rate: (k+1)/W in the W steps of warm-up, then from 1 along a cosine to the floor."""
        if step < self.warm_up:
            return (step + 1) / self.warm_up
        passed = (step - self.warm_up) / max(1, self.steps - self.warm_up)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * passed))

    def batches(self, order: Tensor) -> tuple[Tensor, ...]:
        """Split the image indices ``(N,)`` of an epoch into batches."""
        parts: tuple[Tensor, ...] = order.split(self.batch_size)
        if len(parts) > 1 and len(parts[-1]) < self.least_batch:
            return (*parts[:-2], torch.cat(parts[-2:]))
        return parts

    def total(self, images: int) -> int:
        """Return the number of optimiser steps on a set of ``images`` images to train on."""
        whole, rest = divmod(images, self.batch_size)
        an_epoch = max(1, whole + (rest >= self.least_batch))
        all_steps = self.steps or (self.passes * an_epoch if self.learned is None else len(self.learned))
        return min(all_steps, self.most_steps or all_steps)

    def visits(self, images: int, seed: int) -> Iterator[Visit]:
        """Yield all training steps on a set of ``images`` images."""
        return islice(self._visits(images, seed), self.total(images))

    def _visits(self, images: int, seed: int) -> Iterator[Visit]:
        for epoch in count():
            rng = generator(seed, "evaluation epoch", epoch)
            in_order = self.learned.batches.unbind() if self.learned is not None else None
            batches = in_order or self.batches(torch.randperm(images, generator=rng))
            for i, indices in enumerate(batches):
                yield Visit(epoch, i == 0, indices, rng)


class MovingAverage:
    """The moving average ``sum_k d^(t-k) w_k / sum_k d^(t-k)`` of a network's weights and running statistics.

    Args:
        network: the network, before its first step.
        decay: d.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._decay, self._weight = decay, 0.0
        self._live = [t for t in network.state_dict().values() if t.is_floating_point()]
        self._sums = [torch.zeros_like(t) for t in self._live]

    def add(self) -> None:
        """Take the weights after a step into the average."""
        self._weight = self._decay * self._weight + 1
        for total, value in zip(self._sums, self._live, strict=True):
            total.mul_(self._decay).add_(value)

    def apply(self) -> None:
        """Give the network the average."""
        for total, value in zip(self._sums, self._live, strict=True):
            value.copy_(total / self._weight)


class TrainingSet:
    """A distilled set as augmented batches. Synthetic images are on the device; real pixels are made into inputs.

    Stored images are decoded. The labels are centred for the loss ``mse``, and classes or probabilities otherwise; for
    CutMix, which mixes them, probabilities. A teacher labels the augmented and mixed images instead.

    Args:
        distilled: the set.
        device: where its batches are.
        recipe: its augmentation and loss.
        teacher: the teacher, or ``None``.

    Attributes:
        loss: the loss of the labels.

    Raises:
        UsageError: there is a teacher, and the recipe's loss is of centred labels.
    """

    def __init__(
        self, distilled: DistilledSet, device: torch.device, recipe: Recipe, teacher: Teacher | None = None
    ) -> None:
        if teacher is not None and recipe.loss == "mse":
            raise UsageError("a loss of centred labels takes no labels by a teacher: leave recipe=authors out.")
        self._teacher = teacher
        self.loss = _LOSSES[recipe.loss] if teacher is None else distillation_loss(teacher.temperature)
        loss, strategy = (
            recipe.loss,
            (recipe.strategy or distilled.augmentation) if recipe.augmentation else NO_STRATEGY,
        )
        distilled = distilled.decoded() if loss == "mse" else distilled.plain()
        self._real = distilled.as_labelled(device) if distilled.images.dtype == torch.uint8 else None
        self._images = distilled.images.to(device) if self._real is None else distilled.images
        self._labels = (distilled.centred_labels() if loss == "mse" else distilled.labels).to(device)
        if recipe.cutmix and self._labels.ndim == 1:
            self._labels = F.one_hot(self._labels, len(distilled.class_names)).float()
        self._augmentation = Augmentation(strategy)
        self._cutmix = recipe.cutmix
        self._side = distilled.images.shape[-1]
        self._device = device

    def __len__(self) -> int:
        return len(self._labels)

    def batch(self, indices: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return augmented images and labels: one operation for the batch, parameters for every image; CutMix."""
        on_device = indices.to(self._device)
        images = self._images[on_device] if self._real is None else self._real.inputs(indices)
        images = self._augmentation(images, self._augmentation.draw(len(images), self._side, rng))
        labels = self._labels[on_device]
        if self._cutmix:
            images, labels = cutmix(images, labels, rng, self._cutmix)
        return images, labels if self._teacher is None else self._teacher.labels(images)


def train(network: nn.Module, data: TrainingSet, recipe: Recipe, seed: int, micro_batch: int = 0) -> nn.Module:
    """Train ``network`` on ``data`` by ``recipe``, ``micro_batch`` images at once; return it in evaluation mode.

    Raises:
        DivergedError: the loss became NaN or infinite.
        UsageError: there are micro-batches, and the network has batch norm.
    """
    network.train()
    optimiser = recipe.start(network, 0)
    assert optimiser is not None, "a recipe starts with an optimiser"
    step, loss = TrainingStep(network, data.loss, micro_batch=micro_batch), torch.zeros(())
    average = MovingAverage(network, recipe.average) if recipe.average else None
    for number, visit in enumerate(recipe.visits(len(data), seed)):
        if visit.first:
            optimiser = recipe.start(network, visit.epoch) or optimiser
        _set_rate(optimiser, recipe.rate(visit.epoch, number))
        loss = step(*data.batch(visit.indices, visit.rng))
        optimiser.step()
        if average is not None:
            average.add()
    if average is not None:
        average.apply()
    if not torch.isfinite(loss):
        raise DivergedError(
            f"a network trained on the distilled set diverged (loss {loss.item()}, lr {recipe.lr:g}): "
            "lower the evaluator's learning rate, or that of the student if it is learned."
        )
    return network.eval()


def _set_rate(optimiser: torch.optim.Optimizer, lr: float | None) -> None:
    for group in optimiser.param_groups if lr is not None else ():
        group["lr"] = lr


class TrainedNetwork(Evaluator):
    """An evaluator that trains one network per seed; subclasses build the network and choose the recipe.

    With the setting ``recipe=authors`` the recipe is the one that the set names.
    """

    whole_sets: ClassVar[bool] = True
    learns_from_teacher: ClassVar[bool] = True

    @classmethod
    def for_networks(cls, name: str, build: Callable[[int, int, int], nn.Module]) -> type[Evaluator]:
        """Return an evaluator of the networks of ``build``, whose batches have two images or more, for batch norm."""

        def recipe_for(self: TrainedNetwork, distilled: DistilledSet) -> Recipe:
            return replace(cls.recipe_for(self, distilled), least_batch=2)

        own = {"network_for": TrainedNetwork.network_for, "recipe_for": recipe_for}
        return type(
            name, (cls,), {**own, "build": lambda _, *sizes: build(*sizes), "__doc__": f"{name}, not registered."}
        )

    @abstractmethod
    def build(self, channels: int, classes: int, side: int) -> nn.Module:
        """Return a freshly initialised network for ``side`` x ``side`` images."""

    def network_for(self, distilled: DistilledSet) -> nn.Module:
        """Return a freshly initialised network to train on ``distilled``.

        Raises:
            UsageError: the authors' recipe asks for a width, which only a ConvNet has.
        """
        authors = self.authors(distilled)
        if authors is not None and authors.width:
            raise UsageError(
                f"the recipe {authors.name} trains a ConvNet of width {authors.width}, and this evaluator another "
                "network: use the evaluator convnet, or leave recipe=authors out."
            )
        _, channels, side, _ = distilled.images.shape
        return self.build(channels, len(distilled.class_names), side)

    def authors(self, distilled: DistilledSet) -> AuthorsRecipe | None:
        """Return the recipe of the set's authors if the settings ask for it, else ``None``.

        Raises:
            UsageError: the set names no recipe, or one that is unknown or that no evaluator can follow.
        """
        if self.settings.recipe != AUTHORS:
            return None
        if not distilled.evaluation_recipe:
            raise UsageError("the set names no recipe of its authors: leave recipe=authors out.")
        found = authors_recipe(distilled.evaluation_recipe)
        if found.lacking:
            raise UsageError(f"recipe=authors cannot be followed for {found.name}: {found.lacking}. Leave it out.")
        if found.schedule == "learned" and distilled.steps is None:
            raise UsageError(f"the recipe {found.name} follows learned steps, and the set has none: leave it out.")
        return found

    def recipe_for(self, distilled: DistilledSet) -> Recipe:
        """Return the recipe to train on ``distilled``: that of its authors, or that of this evaluator."""
        authors = self.authors(distilled)
        return self.own_recipe(distilled) if authors is None else self._of_authors(authors, distilled)

    def _of_authors(self, authors: AuthorsRecipe, distilled: DistilledSet) -> Recipe:
        learned = distilled.lr if authors.learned_lr else None
        own = Augmentation(distilled.augmentation)
        return Recipe(
            epochs=(authors.augmented_epochs if distilled.augmentation != NO_STRATEGY else 0) or authors.epochs,
            lr=learned or authors.lr or self.settings.lr,
            batch_size=min(authors.batch_size, distilled.training_images),
            weight_decay=authors.weight_decay,
            momentum=authors.momentum,
            optimiser=authors.optimiser,
            schedule=authors.schedule,
            loss=authors.loss,
            steps=authors.steps_for(distilled.training_images, distilled.training_steps),
            most_steps=self.settings.most_steps,
            warm_up=authors.warm_up,
            floor=authors.floor,
            augmentation=authors.augmentation,
            strategy=authors.strategy and Augmentation(authors.strategy).within(own).strategy,
            cutmix=authors.cutmix,
            average=authors.average,
            learned=distilled.steps if authors.schedule == "learned" else None,
        )

    @abstractmethod
    def own_recipe(self, distilled: DistilledSet) -> Recipe:
        """Return this evaluator's own recipe to train on ``distilled``."""

    def recipe_of(self, evaluation_recipe: str) -> str:
        """Return the recipe's name in rows, with the authors' recipe if it is followed."""
        if self.settings.recipe != AUTHORS:
            return self.recipe
        cut = f", at most {self.settings.most_steps} steps" if self.settings.most_steps else ""
        return f"authors, {authors_recipe(evaluation_recipe)}{cut}"

    def cost(self, distilled: DistilledSet) -> int:
        """Return the number of training steps of one network."""
        return self.recipe_for(distilled).total(distilled.training_images)

    @classmethod
    def probe(cls, settings: Any) -> Any:
        """Return the settings with at most two epochs, or two steps of the authors' recipe."""
        if settings.recipe == AUTHORS:
            return replace(settings, most_steps=min(2, settings.most_steps or 2))
        return replace(settings, epochs=min(2, settings.epochs))

    def train(self, distilled: DistilledSet, seeds: Sequence[int], device: torch.device) -> list[nn.Module]:
        """Train one network per seed; the seed determines initialisation, batches, augmentation and dropout."""
        recipe = self.recipe_for(distilled)
        data = TrainingSet(distilled, device, recipe, self.teacher)
        networks = []
        for seed in seeds:
            with seeded(seed):
                network = self.network_for(distilled).to(device)
                networks.append(train(network, data, recipe, seed, self.settings.micro_batch))
        return networks
