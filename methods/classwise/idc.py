"""IDC: gradient matching with several training images in each stored one, along networks trained on real images."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dcbench_tesla.compute.compiling import TrainingStep
from dcbench_tesla.compute.networks import Network, flatten_parameters
from dcbench_tesla.data.augmentation import Augmentation, cutmix
from dcbench_tesla.errors import UsageError, unknown_name
from dcbench_tesla.interface import DistilledSet, IterationRecord, Problem
from dcbench_tesla.profilers import origin

from .gradient_matching import ClassGradients
from .matching import Chunk, ClassMatchingSettings

_DISTANCES = ("squared", "absolute")
_SIAMESE, _WITHOUT_CUTOUT = Augmentation("color+crop+cutout"), Augmentation("color+crop")
_OF_CONVOLUTIONS = 5  # dimensions of their gradients, with that of the classes
_MOMENTUM, _WEIGHT_DECAY = 0.9, 5e-4  # of the network's training


@dataclass(frozen=True, kw_only=True)
class IDCSettings(ClassMatchingSettings):
    """:class:`ClassMatchingSettings` with IDC's values for CIFAR-10 at IPC 10, and the settings of its rounds.

    Args:
        lr_images: learning rate of the images as pixels in [0, 1]. The authors take 0.005 (0.0001 on MNIST and
            Fashion-MNIST), times IPC / 10, times (side / 32)^2.
        rounds: in each, a step on the images of every class, and training of the network.
        synthetic_batch: training images of a class in a step; from more, so many are drawn.
        distance: of the gradients: the sum of ``squared`` or of ``absolute`` differences.
        cutout: whether cutout belongs to the siamese augmentation.
        network_images: real images that the network is trained on in a round.
        network_batch: real images per step of that training.
        lr_network: learning rate of that training.
        cutmix: probability of CutMix in that training.
    """

    iterations: int = 2000
    lr_images: float = 0.005
    real_batch: int = 64
    factor: int = 2
    rounds: int = 100
    synthetic_batch: int = 128
    distance: str = "squared"
    cutout: bool = True
    network_images: int = 2000
    network_batch: int = 64
    lr_network: float = 0.01
    cutmix: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rounds", "synthetic_batch", "network_images", "network_batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.distance not in _DISTANCES:
            raise unknown_name("distance", self.distance, _DISTANCES)
        if not self.lr_network > 0 or not 0 <= self.cutmix <= 1:
            raise UsageError("lr_network must be positive, and cutmix a probability, from 0 to 1.")


def weight_distance(real: Mapping[str, Tensor], synthetic: Mapping[str, Tensor], *, squared: bool) -> Tensor:
    """Return the sum of ``(g_r - g_s)^2``, or of ``|g_r - g_s|``, over the weights of convolutions, a scalar.

    Each tensor is a gradient by class, ``(K, ...)``. Biases, norms and Linear layers do not count.
    """
    kept = [name for name, g in real.items() if g.ndim == _OF_CONVOLUTIONS]
    differences = [real[name] - synthetic[name] for name in kept]
    return torch.stack([d.square().sum() if squared else d.abs().sum() for d in differences]).sum()


class IDC(ClassGradients):
    """Gradient matching with f x f training images in each stored one, along networks trained on real images.

    Kim, Kim, Oh, Yun, Song, Jeong, Ha, Song, "Dataset Condensation via Efficient Synthetic-Data Parameterization", ICML
    2022. With ``factor=1`` it is the paper's IDC-I. The images are optimised as pixels in [0, 1], to which every
    iteration clamps them; :attr:`images` are these pixels, and sets hold them preprocessed.
    """

    Settings = IDCSettings
    evaluation_recipe = "idc"
    settings: IDCSettings

    @classmethod
    def probe(cls, settings: Any) -> tuple[Any, float]:
        """Return settings with two rounds. A round's steps and the training after it are taken to last equally long."""
        few = replace(settings, rounds=min(2, settings.rounds))
        return few, (2 * settings.rounds - 1) / (2 * few.rounds - 1)

    @classmethod
    def memory_probe(cls, settings: Any, ipc: int) -> Any:
        """Return settings with two rounds and two steps of training between them; more need no more memory."""
        images = min(settings.network_images, 2 * settings.network_batch)
        return replace(settings, rounds=min(2, settings.rounds), network_images=images)

    @property
    def augmentation(self) -> Augmentation:
        """The siamese augmentation: color, crop and cutout, each in every step, as far as the task has them."""
        own = _SIAMESE if self.settings.cutout else _WITHOUT_CUTOUT
        return own.within(self.problem.task.augmentation)

    def setup(self, problem: Problem) -> None:
        """Start from real images or noise as pixels in [0, 1], with zero momentum.

        Raises:
            UsageError: the images are too small for the factor; or the network has no convolution.
        """
        super().setup(problem)
        if not any(p.ndim == _OF_CONVOLUTIONS - 1 for p in self.network.skeleton.parameters()):
            raise UsageError("idc compares the weights of convolutions, and this network has none: choose another.")
        self.images.copy_(problem.train.preprocessing.inverse(self.images).clamp(0, 1))

    def shown(self, stored: Tensor) -> Tensor:
        """Return the training images in network space that stored pixels hold."""
        return super().shown(self.problem.train.preprocessing.forward(stored))

    def iterate(self, iteration: int) -> IterationRecord:
        """Train one fresh network on real images; in every round, match gradients and make a step for every class."""
        self.images.clamp_(0, 1)
        network, rounds = self.fresh_network(iteration), self.settings.rounds
        rate, step, total = self.settings.lr_network, TrainingStep(network), 0.0
        optimiser = torch.optim.SGD(network.parameters(), lr=rate, momentum=_MOMENTUM, weight_decay=_WEIGHT_DECAY)
        for round_ in range(rounds):
            total += self._match(network, iteration, round_)
            if round_ < rounds - 1:
                self._train(step, optimiser, iteration, round_)
        return IterationRecord(loss=total / (rounds * self.problem.task.classes))

    def compare(self, real: Mapping[str, Tensor], synthetic: Mapping[str, Tensor]) -> Tensor:
        """See :meth:`ClassGradients.compare`: :func:`weight_distance`."""
        return weight_distance(real, synthetic, squared=self.settings.distance == "squared")

    def chosen(self, chunk: Chunk, shown: Tensor) -> Tensor:
        """Return ``synthetic_batch`` of each class's training images, drawn at random where there are more."""
        count, most = shown.shape[1], self.settings.synthetic_batch
        if count <= most:
            return shown
        rows: list[Tensor] = []
        for position in range(chunk.count):
            rng = self.problem.generator("decoded images", *chunk.repetition, chunk.first + position)
            rows.append(shown[position, torch.randperm(count, generator=rng)[:most].to(shown.device)])
        return torch.stack(rows)

    def _match(self, network: Network, *repetition: int) -> float:
        with origin("inputs"):
            gradient, total = torch.zeros_like(self.images), 0.0
        theta = flatten_parameters(network)
        for chunk in self.chunks(*repetition):
            total += self.match(chunk, gradient, theta, self.labels_of(chunk))
            self._step_by_class(chunk, gradient)
        return total

    def stored(self, chunk: Chunk) -> Tensor:
        """Return a chunk's images as each class's step will find them.

        The steps of the classes before it move them by their momentum: after j of them by ``-lr v (m + ... + m^j)``.
        """
        s, rows = self.settings, self.rows_of(chunk)
        moved = torch.tensor([sum(s.momentum**i for i in range(1, j + 1)) for j in range(chunk.count)])
        lag = moved.repeat_interleave(self._ipc).to(self.images).view(-1, 1, 1, 1)
        return self.images[rows] - s.lr_images * lag * self._velocity[rows]

    def _step_by_class(self, chunk: Chunk, gradient: Tensor) -> None:
        """Make a step of SGD on all images for each class of a chunk, with a gradient for its images only."""
        for c in range(chunk.first, chunk.first + chunk.count):
            own = slice(c * self._ipc, (c + 1) * self._ipc)
            self._velocity.mul_(self.settings.momentum)
            self._velocity[own] += gradient[own]
            with origin("optimiser"):
                self.images.sub_(self.settings.lr_images * self._velocity)

    def _train(self, step: TrainingStep, optimiser: torch.optim.Optimizer, *repetition: int) -> None:
        """Train the network on ``network_images`` real images, each augmented by itself, without cutout; CutMix."""
        s, train, classes = self.settings, self.problem.train, self.problem.task.classes
        augmentation = _WITHOUT_CUTOUT.within(self.problem.task.augmentation)
        rng = self.problem.generator("network training", *repetition)
        for indices in torch.randperm(len(train), generator=rng)[: s.network_images].split(s.network_batch):
            with origin("inputs"):
                images = train.inputs(indices)
                images = augmentation(images, augmentation.draw(len(images), self._side, rng))
                labels = F.one_hot(train.labels[indices], classes).to(images)
                images, labels = cutmix(images, labels, rng, s.cutmix)
            step(images, labels)
            optimiser.step()

    def distilled(self) -> DistilledSet:
        """Return the images, clamped and preprocessed, with their hard labels and their decoder."""
        inputs = self.problem.train.preprocessing.forward(self.images.clamp(0, 1))
        return self.problem.distilled(inputs, self.problem.hard_labels(), decoder=self.form.decoder)
