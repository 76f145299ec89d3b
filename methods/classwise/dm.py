"""DM: matching the mean features of real and synthetic images under randomly initialised networks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dcbench_tesla.interface import IterationRecord
from dcbench_tesla.profilers import origin

from .matching import ClassMatching, ClassMatchingSettings


@dataclass(frozen=True, kw_only=True)
class DMSettings(ClassMatchingSettings):
    """:class:`ClassMatchingSettings` with DM's published values up to IPC 50 (from IPC 100 on: ``lr_images=10``)."""

    iterations: int = 20_000
    lr_images: float = 1.0


def mean_distance(real: Tensor, synthetic: Tensor) -> Tensor:
    """Return ``sum_c || mean_i phi(real_ci) - mean_j phi(syn_cj) ||^2`` (DM eq. 4), a scalar.

    ``real`` are features ``(K, R, F)``, ``synthetic`` features ``(K, IPC, F)``.
    """
    return (real.mean(1) - synthetic.mean(1)).square().sum()


class DM(ClassMatching):
    """Distribution matching: mean features of real and synthetic images agree under random, untrained networks.

    Zhao, Bilen, "Dataset Condensation with Distribution Matching", WACV 2023.
    """

    Settings = DMSettings

    def iterate(self, iteration: int) -> IterationRecord:
        """Match the mean features of every class under one freshly initialised network, and make one step."""
        network = self.fresh_network(iteration)
        with origin("inputs"):
            gradient, total = torch.zeros_like(self.images), 0.0
        for chunk in self.chunks(iteration):
            leaf, synthetic = self.synthetic(chunk)
            with torch.no_grad():
                real_features = _features(network.features, chunk.real)
            loss = mean_distance(real_features, _features(network.features, synthetic))
            (gradient[self.rows_of(chunk)],) = torch.autograd.grad(loss, leaf)
            total += float(loss.detach())
        self.step(gradient)
        return IterationRecord(loss=total, metrics={"image_gradient_norm": float(gradient.norm())})


def _features(features: torch.nn.Module, images: Tensor) -> Tensor:
    """Return flattened features before the classifier, ``(K, n, F)``, of images ``(K, n, C, H, W)``, in one call."""
    found: Tensor = features(images.flatten(0, 1)).flatten(1).unflatten(0, images.shape[:2])
    return found
