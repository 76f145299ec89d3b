"""Class-wise matching, which ``dm``, ``dc`` and ``dsa`` share.

The synthetic images of a class match a real batch of this class. Each iteration compares, class by class, 256 real
images with the synthetic ones under a freshly initialised network, and makes SGD steps on the synthetic images.
``class_chunk`` classes go through the network together. This setting limits the memory and changes results by rounding
only. A GPU is fast with many images per call; a CPU takes longer per image for 512 images than for 256, which fit its
caches (``tests/benchmarks``).

Shapes: N = K * IPC synthetic images, sorted by class; K classes, C channels, H = W = side, R real images of a class.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dcbench_tesla.compute.compiling import LossAndGradient
from dcbench_tesla.compute.networks import FlatNetwork, Network, seeded
from dcbench_tesla.data.augmentation import Augmentation, Draw, siamese
from dcbench_tesla.errors import UsageError, unknown_name
from dcbench_tesla.interface import Condenser, DistilledSet, Problem, Settings, Sizes
from dcbench_tesla.profilers import origin

_STARTS = ("real", "noise")
_GPU_IMAGES, _CPU_IMAGES = 4096, 256  # real images that go through the network at a time


@dataclass(frozen=True, kw_only=True)
class ClassMatchingSettings(Settings):
    """Hyper-parameters of class-wise matching.

    Args:
        iterations: number of iterations, each with a freshly initialised network.
        lr_images: learning rate of the SGD on the images.
        momentum: momentum of the SGD on the images.
        real_batch: real images of every class in a step, at most as many as the smallest class has.
        start: start from ``real`` images or from ``noise``.
        class_chunk: classes that go through the network together; 0: as many as make 4,096 real images (on a CPU 256).
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
    """Consecutive classes of a step, ``first`` and ``count``, with augmented real images ``(count, R, C, H, W)``."""

    first: int
    count: int
    real: Tensor
    draws: list[Draw]


class ClassMatching(Condenser):
    """Class-wise matching; subclasses define what is compared."""

    Settings = ClassMatchingSettings
    settings: ClassMatchingSettings
    compiles = True

    @classmethod
    def for_device(cls, settings: Any, device: torch.device, sizes: Sizes) -> Any:
        """Return the settings with ``class_chunk`` chosen for the device."""
        return replace(settings, class_chunk=cls._class_chunk(settings, device, sizes.smallest_class))

    @staticmethod
    def _class_chunk(settings: ClassMatchingSettings, device: torch.device, smallest_class: int) -> int:
        images = _CPU_IMAGES if device.type == "cpu" else _GPU_IMAGES
        return settings.class_chunk or max(1, images // min(settings.real_batch, smallest_class))

    @property
    def augmentation(self) -> Augmentation:
        """The siamese augmentation of matching: that of the task, unless the method uses none."""
        return self.problem.task.augmentation

    def setup(self, problem: Problem) -> None:
        """Start from real images or noise, with zero momentum."""
        self.problem = problem
        self._ipc, self._side = problem.ipc, problem.task.side
        self.network = FlatNetwork(problem.build_network)
        self._distance = LossAndGradient(self.distance, "the distance of a class", compile=problem.compile)
        images = problem.train.inputs(problem.draw_real("start images")).clone()
        if self.settings.start == "noise":
            images = torch.randn(images.shape, generator=problem.generator("start noise")).to(problem.device)
        with origin("optimiser"):
            self.images, self._velocity = images, torch.zeros_like(images)
        smallest = min(len(members) for members in problem.train.members)
        self._real_count = min(self.settings.real_batch, smallest)  # equal for all classes, so that they can be stacked
        self._at_once = self._class_chunk(self.settings, problem.device, smallest)

    def fresh_network(self, iteration: int) -> Network:
        """Return the iteration's freshly initialised network, on the device."""
        with seeded(self.problem.seed_for("network", iteration)), origin("parameters"):
            return self.problem.build_network().to(self.problem.device)

    def chunks(self, *repetition: int) -> Iterator[Chunk]:
        """Draw a real batch and an augmentation for every class; yield ``class_chunk`` classes at a time."""
        classes = range(self.problem.task.classes)
        for first in classes[:: self._at_once]:
            members = classes[first : first + self._at_once]
            draws = [self._draw(*repetition, c) for c in members]
            with origin("inputs"):
                real = self.augmented(self._real(members, *repetition), draws)
            yield Chunk(first, len(members), real, draws)

    def _real(self, classes: Sequence[int], *repetition: int) -> Tensor:
        """Return the real batches of some classes, ``(K, R, C, H, W)``, in one call."""
        indices = torch.cat([self._real_indices(*repetition, c) for c in classes])
        images: Tensor = self.problem.train.inputs(indices).unflatten(0, (len(classes), self._real_count))
        return images

    def _real_indices(self, *repetition: int) -> Tensor:
        members = self.problem.train.members[repetition[-1]]
        order = torch.randperm(len(members), generator=self.problem.generator("real batch", *repetition))
        return members[order[: self._real_count]]

    def _draw(self, *repetition: int) -> Draw:
        """Draw one operation and one set of parameters for the real and the synthetic batch of a class."""
        rng = self.problem.generator("siamese augmentation", *repetition)
        return self.augmentation.draw(1, self._side, rng, siamese=True)

    def augmented(self, images: Tensor, draws: Sequence[Draw]) -> Tensor:
        """Augment each class's images ``(K, n, C, H, W)`` by its own draw, with one call per operation for speed."""
        by_operation: dict[str, list[int]] = {}
        for position, draw in enumerate(draws):
            by_operation.setdefault(draw.operation, []).append(position)
        count = images.shape[1]
        parts: list[Tensor] = []
        for positions in by_operation.values():
            draw = siamese([draws[i] for i in positions], count)
            alike = images if len(by_operation) == 1 else images[positions]
            parts.append(self.augmentation(alike.flatten(0, 1), draw).unflatten(0, (len(positions), count)))
        if len(parts) == 1:
            return parts[0]
        order = torch.tensor([i for positions in by_operation.values() for i in positions])
        return torch.cat(parts)[order.argsort().to(images.device)]

    @abstractmethod
    def distance(self, synthetic: Tensor, real: Tensor, /, *others: Any) -> Tensor:
        """Return how far a chunk's synthetic images are from its real ones, both ``(K, n, C, H, W)``; a scalar."""

    def match(self, chunk: Chunk, gradient: Tensor, *others: Tensor) -> float:
        """Return a chunk's distance, and write its gradient into the rows of ``gradient`` ``(N, C, H, W)``."""
        leaf, synthetic = self.synthetic(chunk)
        value, of_synthetic = self._distance(synthetic, chunk.real, *others)
        (gradient[self.rows_of(chunk)],) = torch.autograd.grad(synthetic, leaf, of_synthetic)
        return float(value)

    @property
    def compiled(self) -> bool:
        """Whether distances are compiled; they are not if the compiler failed."""
        return self._distance.compiled

    def rows_of(self, chunk: Chunk) -> slice:
        """Return the positions of a chunk's synthetic images."""
        return slice(chunk.first * self._ipc, (chunk.first + chunk.count) * self._ipc)

    def synthetic(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """Return a chunk's synthetic images as a leaf ``(count * IPC, C, H, W)``, and augmented like the real ones.

        The augmented images have shape ``(count, IPC, C, H, W)``.
        """
        with origin("inputs"):
            leaf = self.images[self.rows_of(chunk)].clone().requires_grad_()
            return leaf, self.augmented(leaf.unflatten(0, (chunk.count, self._ipc)), chunk.draws)

    def step(self, gradient: Tensor) -> None:
        """Make one SGD step on the images: v <- momentum v + gradient, X <- X - lr v."""
        self._velocity.mul_(self.settings.momentum).add_(gradient)
        with origin("optimiser"):
            self.images.sub_(self.settings.lr_images * self._velocity)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the images and their momentum."""
        return {"images": self.images, "velocity": self._velocity}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.images.copy_(state["images"])
        self._velocity.copy_(state["velocity"])

    def distilled(self) -> DistilledSet:
        """Return the images with their hard labels."""
        return self.problem.distilled(self.images, self.problem.hard_labels())
