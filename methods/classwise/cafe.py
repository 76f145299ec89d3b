"""CAFE: the features of all layers agree in their means, and those of synthetic images tell the real ones apart."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from dcbench_tesla.compute.networks import Network, flatten_parameters
from dcbench_tesla.data.augmentation import NO_STRATEGY, Augmentation, Draw
from dcbench_tesla.errors import UsageError
from dcbench_tesla.interface import DistilledSet, IterationRecord, Problem
from dcbench_tesla.profilers import origin

from .matching import Chunk, ClassMatching, ClassMatchingSettings, weighted

_EARLY_LAYERS = 0.1  # weight of every ReLU but the last one, whose weight is 1, like that of the pooled features
_HALVED = (0.6, 0.8, 0.9)  # shares of the iterations after which the learning rate is halved
_JUDGED_AT_ONCE = 512


@dataclass(frozen=True, kw_only=True)
class CAFESettings(ClassMatchingSettings):
    """:class:`ClassMatchingSettings` with CAFE's values, and those of its losses and loops.

    Args:
        lr_images: learning rate of the images; halved after 60, 80 and 90 % of the iterations.
        dsa: match with differentiable siamese augmentation (CAFE+DSA).
        discrimination: weight of the loss of discrimination.
        window: accuracies that a loop looks back on.
        outer_spread: the outer loop ends when the last ``window`` accuracies differ by less.
        inner_spread: the inner loop ends when the last ``window`` accuracies differ by more.
        most_outer: most steps on the images per iteration.
        most_inner: most epochs of training the network between two of these steps.
        judged: real images of every class that an accuracy is measured on.
        lr_network: learning rate of the network's training on the synthetic images.
        network_batch: training images per step of that training.
    """

    iterations: int = 2000
    start: str = "noise"
    dsa: bool = False
    discrimination: float = 0.01
    window: int = 10
    outer_spread: float = 0.04
    inner_spread: float = 0.03
    most_outer: int = 50
    most_inner: int = 50
    judged: int = 128
    lr_network: float = 0.01
    network_batch: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("window", "most_outer", "judged", "network_batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if min(self.discrimination, self.outer_spread, self.inner_spread, self.most_inner) < 0:
            raise UsageError("discrimination, outer_spread, inner_spread and most_inner must not be negative.")
        if not self.lr_network > 0:
            raise UsageError(f"lr_network must be positive, not {self.lr_network:g}.")


def alignment(real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
    """Return ``sum_l a_l sum_c || mean phi_l(real_c) - mean phi_l(syn_c) ||^2``, a scalar.

    ``real`` and ``synthetic`` are means by layer, ``(K, ...)``, those of the ReLUs and then the pooled features. The
    weights a_l are 0.1, but 1 for the last ReLU and the pooled features.
    """
    weights = [_EARLY_LAYERS] * (len(real) - 2) + [1.0, 1.0]
    pairs = zip(weights[-len(real) :], real, synthetic, strict=True)
    return torch.stack([weight * (a - b).square().sum() for weight, a, b in pairs]).sum()


def discrimination(real: Tensor, centres: Tensor) -> Tensor:
    """Return the cross-entropy of real features with the classes' centres as a classifier, summed.

    The logits of a feature f are ``<f, centre_c>``; ``real`` is ``(K, R, F)``, ``centres`` ``(K, F)``.
    """
    logits = real.flatten(0, 1) @ centres.T
    labels = torch.arange(len(real), device=real.device).repeat_interleave(real.shape[1])
    return F.cross_entropy(logits, labels, reduction="sum")


def centre_distance(real: Tensor, centres: Tensor) -> Tensor:
    """Return ``sum_c || mean_i real_ci - centre_c ||^2`` of features ``(K, R, F)`` and centres ``(K, F)``, a scalar."""
    return (real.mean(1) - centres).square().sum()


def real_cross_entropy(real: Tensor, classifier: nn.Module) -> Tensor:
    """Return the mean cross-entropy of the network on real images with features ``(K, R, F)``, a scalar.

    It has no gradient in the synthetic images, and only shows in the loss that is reported.
    """
    labels = torch.arange(len(real), device=real.device).repeat_interleave(real.shape[1])
    return F.cross_entropy(classifier(real.flatten(0, 1)), labels)


def spread(accuracies: Sequence[float], window: int) -> float | None:
    """Return how far the last ``window`` accuracies differ; ``None`` if there are fewer."""
    last = accuracies[-window:]
    return max(last) - min(last) if len(last) == window else None


class _Layers(nn.Module):
    """The outputs of a network's ReLUs, and its features ``(N, F)``; the features alone if it is no plain sequence."""

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        if not isinstance(self.features, nn.Sequential):
            return (self.features(images).flatten(1),)
        found: list[Tensor] = []
        for layer in self.features:
            images = layer(images)
            if isinstance(layer, nn.ReLU):
                found.append(images)
        return (*found, images.flatten(1))


class CAFE(ClassMatching):
    """Aligned features of all layers, which tell real images apart, under networks trained on the synthetic images.

    Wang, Zhao, Peng, Zhu, Yang, Wang, Huang, Bilen, Wang, You, "CAFE: Learning to Condense Dataset by Aligning
    FEatures", CVPR 2022. Both loops of an iteration end by the accuracy on real images, and have a bound. With ``dsa``
    it is the paper's CAFE+DSA.
    """

    Settings = CAFESettings
    evaluation_recipe = "cafe"
    settings: CAFESettings

    @classmethod
    def probe(cls, settings: Any) -> tuple[Any, float]:
        """Return settings with two turns of each loop, for loops that end when their window is full.

        A step on the images and an epoch of the network's training are taken to last equally long.
        """
        few = replace(settings, most_outer=min(2, settings.most_outer), most_inner=min(2, settings.most_inner))
        return few, _turns(settings) / _turns(few)

    @classmethod
    def memory_probe(cls, settings: Any, ipc: int) -> Any:
        """Return settings with two steps on the images and one epoch between them; more need no more memory."""
        return replace(settings, most_outer=min(2, settings.most_outer), most_inner=min(1, settings.most_inner))

    @property
    def augmentation(self) -> Augmentation:
        """The siamese augmentation: that of the task with ``dsa``, else none."""
        return super().augmentation if self.settings.dsa else Augmentation(NO_STRATEGY)

    def setup(self, problem: Problem) -> None:
        """See :meth:`ClassMatching.setup`."""
        super().setup(problem)
        self._layers = _Layers(self.network.skeleton.get_submodule("features"))

    def learning_rate(self, iteration: int) -> float:
        """Return the learning rate of the images in an iteration."""
        passed = sum(iteration >= round(share * self.settings.iterations) for share in _HALVED)
        return self.settings.lr_images * 0.5**passed

    def iterate(self, iteration: int) -> IterationRecord:
        """Take a fresh network; make steps on the images, between which it is trained on them, until it settles."""
        s, network = self.settings, self.fresh_network(iteration)
        judged = self._judged(iteration)
        losses: list[float] = []
        accuracies: list[float] = []
        epochs = 0
        while True:
            losses.append(self._match(network, iteration, len(losses)))
            accuracies.append(self._accuracy(network, judged))
            found = spread(accuracies, s.window)
            if len(losses) == s.most_outer or (found is not None and found < s.outer_spread):
                break
            epochs += self._train(network, judged, iteration, len(losses) - 1)
        loops = {"outer_steps": len(losses), "inner_epochs": epochs, "accuracy": accuracies[-1]}
        return IterationRecord(loss=sum(losses) / len(losses), metrics=loops)

    # ---- one step on the images ------------------------------------------------------------------------------------

    def _match(self, network: Network, iteration: int, outer: int) -> float:
        theta = flatten_parameters(network)
        with origin("inputs"):
            gradient = torch.zeros_like(self.images)
        chunk, means = self._of_real(theta, iteration, outer)
        total = self.match_with([*means, chunk.real], chunk, gradient, theta)
        self.step(gradient, self.learning_rate(iteration))
        with torch.no_grad():
            return total + float(real_cross_entropy(chunk.real, network.classifier))

    def _of_real(self, theta: Tensor, *repetition: int) -> tuple[Chunk, list[Tensor]]:
        """Return all classes as one chunk with real features ``(K, R, F)``, and the real means of every layer."""
        features: list[Tensor] = []
        means: list[tuple[Tensor, ...]] = []
        draws: list[Draw] = []
        for chunk in self.chunks(*repetition):
            parts: list[tuple[float, list[Tensor]]] = []
            own: list[Tensor] = []
            for share, piece in self.pieces(chunk.real):
                with torch.no_grad():
                    layers = self._by_class(theta, piece)
                parts.append((share, [layer.mean(1) for layer in layers]))
                own.append(layers[-1])
            features.append(torch.cat(own, 1))
            means.append(weighted(parts))
            draws += chunk.draws
        joined = [torch.cat(of_layer) for of_layer in zip(*means, strict=True)]
        return Chunk(0, self.problem.task.classes, torch.cat(features), draws, repetition), joined

    def _by_class(self, theta: Tensor, images: Tensor) -> list[Tensor]:
        """Return the outputs of every layer, ``(K, n, ...)``, for images ``(K, n, C, H, W)``."""
        own = {name: p for name, p in self.network.unflatten(theta).items() if name.startswith("features.")}
        layers: tuple[Tensor, ...] = functional_call(self._layers, own, (images.flatten(0, 1),))
        return [layer.unflatten(0, images.shape[:2]) for layer in layers]

    def distance(self, synthetic: Tensor, /, *others: Tensor) -> Tensor:
        """Return the losses that have a gradient in the synthetic images ``(K, S, C, H, W)``, a scalar.

        Args:
            synthetic: the synthetic images.
            others: the network's parameters ``(P,)``; of real images the mean outputs of every layer, ``(K, ...)``, and
                the features ``(K, R, F)``.
        """
        theta, *means, real = others
        of_synthetic = [layer.mean(1) for layer in self._by_class(theta, synthetic)]
        centres = of_synthetic[-1]
        discriminated = self.settings.discrimination * discrimination(real, centres)
        return alignment(means, of_synthetic) + discriminated + centre_distance(real, centres)

    # ---- the loops -------------------------------------------------------------------------------------------------

    def _judged(self, iteration: int) -> Tensor:
        """Draw the real images that accuracies of an iteration are measured on: their indices."""
        orders = (self._order("judged images", iteration, c) for c in range(self.problem.task.classes))
        return torch.cat([order[: self.settings.judged] for order in orders])

    def _accuracy(self, network: Network, judged: Tensor) -> float:
        """Return the share of real images that the network classifies rightly."""
        train, right = self.problem.train, 0
        for indices in judged.split(_JUDGED_AT_ONCE):
            with torch.no_grad():
                found = network(train.inputs(indices)).argmax(1).cpu()
            right += int((found == train.labels[indices]).sum())
        return right / len(judged)

    def _train(self, network: Network, judged: Tensor, *repetition: int) -> int:
        """Train the network on the synthetic images until its accuracy has changed; return the number of epochs."""
        s, optimiser = self.settings, torch.optim.SGD(network.parameters(), lr=self.settings.lr_network)
        accuracies: list[float] = []
        while len(accuracies) < s.most_inner:
            self.train_epoch(network, optimiser, s.network_batch, *repetition, len(accuracies))
            accuracies.append(self._accuracy(network, judged))
            found = spread(accuracies, s.window)
            if found is not None and found > s.inner_spread:
                break
        return len(accuracies)

    def distilled(self) -> DistilledSet:
        """Return the images with their hard labels; without ``dsa`` for training without augmentation."""
        found = super().distilled()
        return found if self.settings.dsa else replace(found, augmentation=NO_STRATEGY)


def _turns(settings: CAFESettings) -> int:
    """Return the turns of both loops that an iteration makes if each ends when its window is full."""
    outer, inner = min(settings.most_outer, settings.window), min(settings.most_inner, settings.window)
    return outer + (outer - 1) * inner
