"""Kernel ridge regression as an evaluator: the distilled set is the support, and nothing is trained."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from dcbench_tesla.compute.kernels import (
    KERNELS,
    Kernel,
    RandomFeatures,
    Ridge,
    default_ridge,
    images_at_once,
    kernel_named,
)
from dcbench_tesla.errors import UsageError, unknown_name
from dcbench_tesla.interface import DistilledSet, Evaluator, Settings


@dataclass(frozen=True, kw_only=True)
class KernelRidgeSettings(Settings):
    """The kernel and its ridge, as in the settings of method ``kip``.

    Args:
        kernel: ``fc``, ``conv-vec`` or ``random-conv``.
        depth: hidden layers; 0: 1 of ``fc``, 3 of ``conv-vec``, by image size of ``random-conv``.
        ridge: ridge as a share of the kernel's mean diagonal; 0: 1e-6, for ``random-conv`` 5e-3.
        random_networks: networks of ``random-conv``.
        width: filters of their convolutions.
    """

    kernel: str = "fc"
    depth: int = 0
    ridge: float = 0.0
    random_networks: int = 8
    width: int = 256

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS:
            raise unknown_name("kernel", self.kernel, KERNELS)
        if min(self.random_networks, self.width) < 1 or self.depth < 0 or not 0 <= self.ridge < math.inf:
            raise UsageError("random_networks and width must be at least 1, depth and ridge not negative.")

    def inert(self) -> Mapping[str, str]:
        """Return the networks where the kernel has none."""
        names = () if self.kernel == "random-conv" else ("random_networks", "width")
        return dict.fromkeys(names, f"kernel-ridge.kernel is {self.kernel}")


class KernelRidge(Evaluator):
    """Ridge regression with an NTK on the distilled images and their labels minus 1/K; no network is trained.

    It is what KIP's loss is of, so its accuracy is that of the kernel's own predictions.
    """

    whole_sets: ClassVar[bool] = True
    Settings = KernelRidgeSettings
    settings: KernelRidgeSettings

    @classmethod
    def uses_seed(cls, settings: KernelRidgeSettings) -> bool:
        """Return whether the kernel is one of random networks."""
        return settings.kernel == "random-conv"

    @property
    def recipe(self) -> str:
        """The kernel with its depth and ridge."""
        depth = f"depth {self.settings.depth}" if self.settings.depth else "default depth"
        return f"kernel {self.settings.kernel}, {depth}, ridge {self._ridge:g}"

    @property
    def _ridge(self) -> float:
        return self.settings.ridge or default_ridge(self.settings.kernel)

    def cost(self, distilled: DistilledSet) -> int:
        """Return 1: the one solution of a linear system."""
        return 1

    def train(self, distilled: DistilledSet, seeds: Sequence[int], device: torch.device) -> list[nn.Module]:
        """Solve the ridge regression, with a kernel for every seed where kernels are random."""
        whole = distilled.decoded()
        return [Regression(whole, self._kernel(whole, seed, device), self._ridge, device) for seed in seeds]

    def _kernel(self, distilled: DistilledSet, seed: int, device: torch.device) -> tuple[Kernel, int]:
        _, channels, side, _ = distilled.images.shape
        s = self.settings

        def features() -> RandomFeatures:
            shape = {"count": s.random_networks, "width": s.width, "depth": s.depth}
            return RandomFeatures(channels, side, **shape, seed=seed, device=device)

        return kernel_named(s.kernel, s.depth, features), side**2 if s.kernel == "conv-vec" else 1


class Regression(nn.Module):
    """Predictions ``K(x, s) A`` of a ridge regression on a set s; they are logits.

    Args:
        distilled: the set, decoded.
        kernel: the kernel, and how many numbers a pair of images takes.
        ridge: the ridge as a share of the kernel's mean diagonal.
        device: where it computes.
    """

    support: Tensor
    weights: Tensor

    def __init__(self, distilled: DistilledSet, kernel: tuple[Kernel, int], ridge: float, device: torch.device) -> None:
        super().__init__()
        self._kernel: Callable[[Tensor, Tensor], Tensor] = kernel[0]
        self.register_buffer("support", distilled.inputs(device).double())
        self._at_once = images_at_once(len(self.support), kernel[1])
        with torch.no_grad():
            own = self._against_support(self.support).T.contiguous()
            self.register_buffer("weights", Ridge(own, distilled.centred_labels().to(device), ridge).weights)
        self.eval()

    def _against_support(self, images: Tensor) -> Tensor:
        return torch.cat([self._kernel(self.support, part) for part in images.split(self._at_once)], 1).T

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return the predictions ``(N, K)``, float32, of network inputs ``(N, C, H, W)``."""
        return (self._against_support(images.double()) @ self.weights).float()
