"""Class-wise matching, which ``dm``, ``dc`` and ``dsa`` share.

The synthetic images of a class match a real batch of this class. Each iteration compares, class by class, 256 real
images with the synthetic ones under a freshly initialised network, and makes SGD steps on the synthetic images.
``class_chunk`` classes go through the network together, their real images in pieces of ``micro_batch``: what is
compared is a mean over real images, and so a mean over pieces. Both settings limit the memory and change results by
rounding only. A GPU is fast with many images per call, a CPU with as many as its caches hold (``tests/benchmarks``).

Shapes: N = K * IPC synthetic images, sorted by class; K classes, C channels, H = W = side, R real images of a class.
With ``factor`` f each synthetic image holds f^2 training images (:mod:`~dcbench_tesla.methods.stored`), and a class has
S = IPC * f^2 of them.
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dcbench_tesla.compute.compiling import LossAndGradient, WithoutGradient
from dcbench_tesla.compute.networks import FlatNetwork, Network, cross_entropy, seeded
from dcbench_tesla.data.augmentation import Augmentation, Draw, siamese
from dcbench_tesla.errors import UsageError, unknown_name
from dcbench_tesla.interface import Condenser, DistilledSet, Problem, Settings, Sizes
from dcbench_tesla.profilers import origin

from ..inner.batches import fitting
from ..stored import StoredForm, check_factor, with_stored_form

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
        micro_batch: real images in the network at once; 0: all, or on a CPU as many as its caches hold if those are
            fewer than a class gives.
        factor: f; each synthetic image holds f x f smaller ones, each a training image of its own (IDC).
    """

    iterations: int = 1000
    lr_images: float = 0.1
    momentum: float = 0.5
    real_batch: int = 256
    start: str = "real"
    class_chunk: int = field(default=0, metadata={"execution": True})
    micro_batch: int = field(default=0, metadata={"execution": True})
    factor: int = field(default=1, metadata={"later": True})

    def __post_init__(self) -> None:
        check_factor(self.factor)
        for name in ("iterations", "real_batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.lr_images < 0 or not 0 <= self.momentum < 1 or min(self.class_chunk, self.micro_batch) < 0:
            raise UsageError(
                "lr_images, class_chunk and micro_batch must not be negative, and momentum must lie in [0, 1)."
            )
        if self.start not in _STARTS:
            raise unknown_name("start", self.start, _STARTS)


def weighted(parts: Iterable[tuple[float, Sequence[Tensor]]]) -> tuple[Tensor, ...]:
    """Return the sums of tensors over ``parts``, each with its weight; one part of weight 1 is returned as it is."""
    total: tuple[Tensor, ...] | None = None
    for share, found in parts:
        if total is None:
            total = tuple(found) if share == 1 else tuple(share * value for value in found)
            continue
        for whole, value in zip(total, found, strict=True):
            whole.add_(value, alpha=share)
    assert total is not None, "there is at least one part"
    return total


@dataclass(frozen=True)
class Chunk:
    """Consecutive classes of a step, ``first`` and ``count``, with augmented real images ``(count, R, C, H, W)``.

    ``repetition`` tells the step from others, such as its iteration.
    """

    first: int
    count: int
    real: Tensor
    draws: list[Draw]
    repetition: tuple[int, ...] = ()


class ClassMatching(Condenser):
    """Class-wise matching; subclasses define what is compared."""

    Settings = ClassMatchingSettings
    settings: ClassMatchingSettings
    compiles = True

    @classmethod
    def for_device(cls, settings: Any, device: torch.device, sizes: Sizes) -> Any:
        """Return the settings with ``class_chunk`` and ``micro_batch`` chosen for the device."""
        images = min(settings.real_batch, sizes.smallest_class)
        fits = fitting(images, sizes, device)
        return replace(
            settings,
            class_chunk=cls._class_chunk(settings, device, sizes.smallest_class),
            micro_batch=settings.micro_batch or (fits if fits < images else 0),
        )

    @classmethod
    def stand_in(cls, settings: Any, distilled: DistilledSet) -> DistilledSet:
        """Return the set with the decoder that sets of the method have."""
        return with_stored_form(settings.factor, distilled)

    @staticmethod
    def _class_chunk(settings: ClassMatchingSettings, device: torch.device, smallest_class: int) -> int:
        images = _CPU_IMAGES if device.type == "cpu" else _GPU_IMAGES
        return settings.class_chunk or max(1, images // min(settings.real_batch, smallest_class))

    @property
    def augmentation(self) -> Augmentation:
        """The siamese augmentation of matching: that of the task, unless the method uses none."""
        return self.problem.task.augmentation

    def setup(self, problem: Problem) -> None:
        """Start from real images or noise, with zero momentum.

        Raises:
            UsageError: the images are too small for the factor.
        """
        self.problem = problem
        self._ipc, self._side = problem.ipc, problem.task.side
        self.network = FlatNetwork(problem.build_network)
        self._side_of_real = WithoutGradient(self.of_real, "what is compared of real images", compile=problem.compile)
        self._distance = LossAndGradient(self.distance, "the distance of a class", compile=problem.compile)
        self.form = StoredForm(self.settings.factor, problem)
        real = problem.train.inputs(problem.draw_real("start images", per_class=self.form.per_class))
        images = self.form.encode(real).clone()
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
            yield Chunk(first, len(members), real, draws, repetition)

    def _real(self, classes: Sequence[int], *repetition: int) -> Tensor:
        """Return the real batches of some classes, ``(K, R, C, H, W)``, in one call."""
        indices = torch.cat([self._real_indices(*repetition, c) for c in classes])
        images: Tensor = self.problem.train.inputs(indices).unflatten(0, (len(classes), self._real_count))
        return images

    def _real_indices(self, *repetition: int) -> Tensor:
        return self._order("real batch", *repetition)[: self._real_count]

    def _order(self, role: str, *repetition: int) -> Tensor:
        """Return the real images of a class, the last number of ``repetition``, in random order."""
        members = self.problem.train.members[repetition[-1]]
        return members[torch.randperm(len(members), generator=self.problem.generator(role, *repetition))]

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

    def of_real(self, real: Tensor, /, *others: Tensor) -> tuple[Tensor, ...]:
        """Return what is compared of a chunk's real images ``(K, n, C, H, W)``: means over the n images of a class."""
        raise NotImplementedError

    @abstractmethod
    def distance(self, synthetic: Tensor, /, *others: Tensor) -> Tensor:
        """Return how far a chunk's synthetic images ``(K, n, C, H, W)`` are from its real ones, a scalar.

        ``others`` are those that :meth:`of_real` was given, and then what it returned.
        """

    def averaged(self, real: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """Return :meth:`of_real` of a chunk's real images, of which ``micro_batch`` are in the network at once."""
        return weighted((share, self._side_of_real(piece, *others)) for share, piece in self.pieces(real))

    def pieces(self, real: Tensor) -> Iterator[tuple[float, Tensor]]:
        """Yield the images of a chunk that are in the network at once, ``(K, n, C, H, W)``, and their share of all."""
        count, images = real.shape[:2]
        at_once = max(1, self.settings.micro_batch // count) if self.settings.micro_batch else images
        for piece in real.split(at_once, dim=1):
            yield piece.shape[1] / images, piece

    def match(self, chunk: Chunk, gradient: Tensor, *others: Tensor) -> float:
        """Return a chunk's distance, and write its gradient into the rows of ``gradient`` ``(N, C, H, W)``."""
        return self.match_with(self.averaged(chunk.real, *others), chunk, gradient, *others)

    def match_with(self, of_real: Sequence[Tensor], chunk: Chunk, gradient: Tensor, *others: Tensor) -> float:
        """Do what :meth:`match` does, with what is compared of the real images."""
        leaf, synthetic = self.synthetic(chunk)
        value, of_synthetic = self._distance(synthetic, *others, *of_real)
        (gradient[self.rows_of(chunk)],) = torch.autograd.grad(synthetic, leaf, of_synthetic)
        return float(value)

    @property
    def compiled(self) -> bool:
        """Whether both sides of the distance are compiled; they are not if the compiler failed."""
        return self._side_of_real.compiled and self._distance.compiled

    def shown(self, stored: Tensor) -> Tensor:
        """Return the training images ``(n f^2, C, H, W)`` in network space that ``n`` stored images hold."""
        return self.form.decode(stored)

    def rows_of(self, chunk: Chunk) -> slice:
        """Return the positions of a chunk's synthetic images."""
        return slice(chunk.first * self._ipc, (chunk.first + chunk.count) * self._ipc)

    def synthetic(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """Return a chunk's stored images as a leaf ``(count * IPC, C, H, W)``, and what they hold, augmented.

        The images that they hold are augmented like the real ones, ``(count, S, C, H, W)``.
        """
        with origin("inputs"):
            leaf = self.stored(chunk).requires_grad_()
            shown = self.chosen(chunk, self.shown(leaf).unflatten(0, (chunk.count, -1)))
            return leaf, self.augmented(shown, chunk.draws)

    def stored(self, chunk: Chunk) -> Tensor:
        """Return a copy of a chunk's stored images as they are compared, ``(count * IPC, C, H, W)``."""
        return self.images[self.rows_of(chunk)].clone()

    def chosen(self, chunk: Chunk, shown: Tensor) -> Tensor:
        """Return those of a chunk's training images ``(count, S, C, H, W)`` that are compared; by default all."""
        return shown

    def step(self, gradient: Tensor, lr: float | None = None) -> None:
        """Make one SGD step on the images: v <- momentum v + gradient, X <- X - lr v; ``None``: lr of the settings."""
        self._velocity.mul_(self.settings.momentum).add_(gradient)
        with origin("optimiser"):
            self.images.sub_((self.settings.lr_images if lr is None else lr) * self._velocity)

    def train_epoch(
        self, network: Network, optimiser: torch.optim.Optimizer, batch_size: int, /, *repetition: int
    ) -> None:
        """Train the network for one epoch on the synthetic images, with the method's augmentation."""
        labels = self.form.repeated(self.problem.hard_labels()).to(self.images.device)
        shown, rng = self.shown(self.images), self.problem.generator("network training", *repetition)
        for indices in torch.randperm(len(labels), generator=rng).split(batch_size):
            images = shown[indices.to(self.images.device)]
            draw = self.augmentation.draw(len(images), self._side, rng)
            loss = cross_entropy(network(self.augmentation(images, draw)), labels[indices.to(labels.device)])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the images and their momentum."""
        return {"images": self.images, "velocity": self._velocity}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.images.copy_(state["images"])
        self._velocity.copy_(state["velocity"])

    def distilled(self) -> DistilledSet:
        """Return the images with their hard labels, and their decoder if they hold others."""
        return self.problem.distilled(self.images, self.problem.hard_labels(), decoder=self.form.decoder)
