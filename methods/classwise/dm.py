"""DM: matching the mean features of real and synthetic images under randomly initialised networks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dcbench_tesla.compute.networks import flatten_parameters
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

    ``real`` and ``synthetic`` are the mean features of the classes, ``(K, F)``.
    """
    return (real - synthetic).square().sum()


class DM(ClassMatching):
    """Distribution matching: mean features of real and synthetic images agree under random, untrained networks.

    Zhao, Bilen, "Dataset Condensation with Distribution Matching", WACV 2023.
    """

    Settings = DMSettings

    def iterate(self, iteration: int) -> IterationRecord:
        """Match the mean features of every class under one freshly initialised network, and make one step."""
        theta = flatten_parameters(self.fresh_network(iteration))
        with origin("inputs"):
            gradient, total = torch.zeros_like(self.images), 0.0
        for chunk in self.chunks(iteration):
            total += self.match(chunk, gradient, theta)
        self.step(gradient)
        return IterationRecord(loss=total, metrics={"image_gradient_norm": float(gradient.norm())})

    def of_real(self, real: Tensor, /, *others: Tensor) -> tuple[Tensor, ...]:
        """Return the mean features ``(K, F)`` of real images ``(K, n, C, H, W)`` at parameters ``(P,)``."""
        (theta,) = others
        return (self._mean_features(theta, real),)

    def distance(self, synthetic: Tensor, /, *others: Tensor) -> Tensor:
        """Return the distance of synthetic images ``(K, n, C, H, W)`` from the real mean features ``(K, F)``."""
        theta, real = others
        return mean_distance(real, self._mean_features(theta, synthetic))

    def _mean_features(self, theta: Tensor, images: Tensor) -> Tensor:
        found: Tensor = self.network.features(theta, images.flatten(0, 1)).unflatten(0, images.shape[:2])
        return found.mean(1)
