"""What ``dm``, ``dc`` and ``dsa`` share: matching a class's synthetic images with a real batch of that class.

Each iteration compares, class by class, 256 real images with the class's synthetic ones under a fresh network, and
makes SGD steps on the synthetic images. Classes go through the network together, ``class_chunk`` at a time: the setting
bounds the memory and is no part of the result beyond rounding.

Shapes: N = K * IPC synthetic images, class-major; K classes, C channels, H = W = side, R real images of a class.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dcbench_tesla.data.augmentation import Augmentation, Draw
from dcbench_tesla.errors import UsageError, unknown_name
from dcbench_tesla.interface import Condenser, DistilledSet, Problem, Settings
from dcbench_tesla.networks import ConvNet, seeded
from dcbench_tesla.profilers import origin

_STARTS = ("real", "noise")
_ALL_AT_ONCE_IMAGES = 4096


@dataclass(frozen=True, kw_only=True)
class ClassMatchingSettings(Settings):
    """Hyper-parameters of class-wise matching.

    ``iterations``: fresh networks. ``lr_images`` and ``momentum``: of the SGD on the images. ``real_batch``: real
    images of every class in a step (as many as the smallest class has, where that is fewer). ``start``: from ``real``
    images or ``noise``. ``class_chunk``: classes that go through the network together (0: as many as make 4,096 real
    images).
    """

    iterations: int = 1000
    lr_images: float = 0.1
    momentum: float = 0.5
    real_batch: int = 256
    start: str = "real"
    class_chunk: int = field(default=0, metadata={"execution": True})

    def __post_init__(self) -> None:
        for name in ("iterations", "real_batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.lr_images < 0 or not 0 <= self.momentum < 1 or self.class_chunk < 0:
            raise UsageError("lr_images and class_chunk must not be negative, and momentum must lie in [0, 1).")
        if self.start not in _STARTS:
            raise unknown_name("start", self.start, _STARTS)


@dataclass(frozen=True)
class Chunk:
    """Some classes of a step: ``first`` and ``count``, and their augmented real images, ``(count, R, C, H, W)``."""

    first: int
    count: int
    real: Tensor
    draws: list[Draw]


class ClassMatching(Condenser):
    """Class-wise matching; a subclass says what is compared."""

    Settings = ClassMatchingSettings
    settings: ClassMatchingSettings

    @property
    def augmentation(self) -> Augmentation:
        """The siamese augmentation of matching: the task's, unless a method has none."""
        return self.problem.task.augmentation

    def setup(self, problem: Problem) -> None:
        """Start from real images or noise, momentum at rest."""
        self.problem = problem
        self._ipc, self._side = problem.ipc, problem.task.side
        images = problem.train.inputs(problem.draw_real("start images")).clone()
        if self.settings.start == "noise":
            images = torch.randn(images.shape, generator=problem.generator("start noise")).to(problem.device)
        with origin("optimiser"):
            self.images, self._velocity = images, torch.zeros_like(images)
        smallest = min(len(members) for members in problem.train.members)
        self._real_count = min(self.settings.real_batch, smallest)  # the same for all, so that classes can be stacked

    def fresh_network(self, iteration: int) -> ConvNet:
        """Return the iteration's network, newly initialised, on the device."""
        with seeded(self.problem.seed_for("network", iteration)), origin("parameters"):
            return self.problem.build_network().to(self.problem.device)

    def chunks(self, *repetition: int) -> Iterator[Chunk]:
        """Draw a real batch and an augmentation for every class, and yield them ``class_chunk`` classes at a time."""
        classes = self.problem.task.classes
        size = self.settings.class_chunk or max(1, _ALL_AT_ONCE_IMAGES // self._real_count)
        for first in range(0, classes, size):
            members = range(first, min(first + size, classes))
            draws = [self._draw(*repetition, c) for c in members]
            with origin("inputs"):
                real = torch.stack(
                    [self.augmentation(self._real(*repetition, c), d) for c, d in zip(members, draws, strict=True)]
                )
            yield Chunk(first, len(members), real, draws)

    def _real(self, *repetition: int) -> Tensor:
        members = self.problem.train.members[repetition[-1]]
        order = torch.randperm(len(members), generator=self.problem.generator("real batch", *repetition))
        return self.problem.train.inputs(members[order[: self._real_count]])

    def _draw(self, *repetition: int) -> Draw:
        """One operation and one set of parameters for the whole real and the whole synthetic batch of a class."""
        rng = self.problem.generator("siamese augmentation", *repetition)
        return self.augmentation.draw(1, self._side, rng, siamese=True)

    def rows_of(self, chunk: Chunk) -> slice:
        """Return where a chunk's synthetic images stand."""
        return slice(chunk.first * self._ipc, (chunk.first + chunk.count) * self._ipc)

    def synthetic(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """Return a chunk's synthetic images, as a leaf, and augmented like the real ones, ``(count, IPC, C, H, W)``."""
        with origin("inputs"):
            leaf = self.images[self.rows_of(chunk)].clone().requires_grad_()
            by_class = leaf.split(self._ipc)
            return leaf, torch.stack([self.augmentation(x, d) for x, d in zip(by_class, chunk.draws, strict=True)])

    def step(self, gradient: Tensor) -> None:
        """Make one SGD step on the images: v <- momentum v + gradient, X <- X - lr v."""
        self._velocity.mul_(self.settings.momentum).add_(gradient)
        with origin("optimiser"):
            self.images.sub_(self.settings.lr_images * self._velocity)

    def state_dict(self) -> dict[str, Tensor]:
        """Images and their momentum."""
        return {"images": self.images, "velocity": self._velocity}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back :meth:`state_dict`."""
        self.images.copy_(state["images"])
        self._velocity.copy_(state["velocity"])

    def distilled(self) -> DistilledSet:
        """Return the images with their hard labels."""
        return self.problem.distilled(self.images, self.problem.hard_labels())
