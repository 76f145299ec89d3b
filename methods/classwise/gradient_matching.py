"""Gradient matching, which ``dc`` and ``dsa`` share: real and synthetic gradients agree while a network is trained.

The gradients of every class are those of ``idc`` too, which compares them otherwise, and trains on real images.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from dcbench_tesla.compute.networks import Network, cross_entropy, flatten_parameters
from dcbench_tesla.errors import UsageError
from dcbench_tesla.interface import IterationRecord
from dcbench_tesla.profilers import origin

from .matching import Chunk, ClassMatching, ClassMatchingSettings

_EPS = 1e-6
_PUBLISHED_LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}


@dataclass(frozen=True, kw_only=True)
class GradientMatchingSettings(ClassMatchingSettings):
    """:class:`ClassMatchingSettings`, and settings of the two loops of an iteration.

    Args:
        outer: steps on the images per iteration; 0: as DC publishes for the nearest IPC.
        inner: epochs of training the network on the synthetic images between two of these steps; 0: likewise.
        lr_network: learning rate of that training.
        network_batch: training images per step of that training.
    """

    outer: int = 0
    inner: int = 0
    lr_network: float = 0.01
    network_batch: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.outer < 0 or self.inner < 0 or self.network_batch < 1 or not self.lr_network > 0:
            raise UsageError("outer and inner must not be negative, lr_network and network_batch must be positive.")


def published_loops(ipc: int) -> tuple[int, int]:
    """Return DC's published (outer, inner) loops for the nearest IPC for which DC publishes them."""
    return _PUBLISHED_LOOPS[min(_PUBLISHED_LOOPS, key=lambda known: (abs(known - ipc), known))]


def _loops(settings: GradientMatchingSettings, ipc: int) -> tuple[int, int]:
    """Return the (outer, inner) loops of an iteration."""
    outer, inner = published_loops(ipc)
    return settings.outer or outer, settings.inner or inner


def gradient_distance(real: Mapping[str, Tensor], synthetic: Mapping[str, Tensor]) -> Tensor:
    """Return ``sum over classes, layers and outputs of 1 - <g_r, g_s> / (|g_r| |g_s| + 1e-6)`` (DC eq. 10), a scalar.

    Each tensor is ``(K, out, ...)``, one gradient per class. A layer is flattened to (out, rest). Tensors with only one
    dimension besides K (biases, norms) do not count.
    """
    terms: list[Tensor] = []
    for name, g_real in real.items():
        if g_real.ndim <= 2:
            continue
        a, b = g_real.flatten(2), synthetic[name].flatten(2)
        cosine = (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1) + _EPS)
        terms.append((1 - cosine).sum())
    return torch.stack(terms).sum()


class ClassGradients(ClassMatching):
    """Class-wise matching of gradients; subclasses define how they are compared, and the loops around that."""

    @abstractmethod
    def compare(self, real: Mapping[str, Tensor], synthetic: Mapping[str, Tensor]) -> Tensor:
        """Return the distance of the classes' gradients by parameter, each ``(K, ...)``, a scalar."""

    def of_real(self, real: Tensor, /, *others: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of classes ``labels`` ``(K,)`` at parameters ``(P,)``, each ``(K, ...)``."""
        theta, labels = others
        return tuple(self._class_gradients(self.network.unflatten(theta), real, labels).values())

    def distance(self, synthetic: Tensor, /, *others: Tensor) -> Tensor:
        """Return the distance of the gradients of classes ``labels`` ``(K,)`` from the ``real`` ones, a scalar."""
        theta, labels, *real = others
        of_synthetic = self._class_gradients(self.network.unflatten(theta), synthetic, labels)
        return self.compare(dict(zip(of_synthetic, real, strict=True)), of_synthetic)

    def _class_gradients(self, parameters: dict[str, Tensor], images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the gradient of each class's mean loss by parameter, ``(K, ...)``, for images ``(K, n, C, H, W)``."""

        def loss(values: dict[str, Tensor], x: Tensor, label: Tensor) -> Tensor:
            return cross_entropy(functional_call(self.network.skeleton, values, (x,)), label.expand(len(x)))

        gradients: dict[str, Tensor] = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, images, labels)
        return gradients

    def labels_of(self, chunk: Chunk) -> Tensor:
        """Return the classes of a chunk, ``(count,)``."""
        return torch.arange(chunk.first, chunk.first + chunk.count, device=self.images.device)


class GradientMatching(ClassGradients):
    """Gradient matching; subclasses choose the augmentation and the initial images."""

    Settings = GradientMatchingSettings
    settings: GradientMatchingSettings

    def compare(self, real: Mapping[str, Tensor], synthetic: Mapping[str, Tensor]) -> Tensor:
        """See :meth:`ClassGradients.compare`: :func:`gradient_distance`."""
        return gradient_distance(real, synthetic)

    @classmethod
    def memory_probe(cls, settings: Any, ipc: int) -> Any:
        """Return settings with two rounds and one epoch of training between them; more rounds need no more memory."""
        outer, inner = _loops(settings, ipc)
        return replace(settings, outer=min(2, outer), inner=min(1, inner))

    def iterate(self, iteration: int) -> IterationRecord:
        """Train one fresh network on the synthetic images; in every round, match gradients and make one step."""
        network = self.fresh_network(iteration)
        outer, inner = _loops(self.settings, self.problem.ipc)
        total = 0.0
        for round_ in range(outer):
            total += self._match(network, iteration, round_)
            if round_ < outer - 1:
                self._train(network, iteration, round_, inner)
        return IterationRecord(loss=total / (outer * self.problem.task.classes))

    def _match(self, network: Network, *repetition: int) -> float:
        with origin("inputs"):
            gradient, total = torch.zeros_like(self.images), 0.0
        theta = flatten_parameters(network)
        for chunk in self.chunks(*repetition):
            total += self.match(chunk, gradient, theta, self.labels_of(chunk))
        self.step(gradient)
        return total

    def _train(self, network: Network, iteration: int, round_: int, epochs: int) -> None:
        """Train the network on the synthetic images by plain SGD, with the method's augmentation."""
        optimiser = torch.optim.SGD(network.parameters(), lr=self.settings.lr_network)
        for epoch in range(epochs):
            self.train_epoch(network, optimiser, self.settings.network_batch, iteration, round_, epoch)
