"""Kernels of infinitely wide ReLU networks, features of finite random ones, and ridge regression on kernels.

A *neural tangent kernel* (NTK) is the inner product of the gradients of a network's output at two images, in the limit
of infinite width; the *NNGP* kernel is that of the outputs themselves. Both are known in closed form, layer by layer
(Jacot et al., NeurIPS 2018). With weight variance 2, bias variance 0.01 and ReLU, as KIP has it::

    input    K = <x, x'> / D                      Theta = 0
    layer    K <- 2 K + 0.01                      Theta <- K + 2 Theta
    ReLU     K <- sqrt(k k') (sin t + (pi - t) cos t) / 2 pi      Theta <- Theta (pi - t) / 2 pi
             where cos t = K / sqrt(k k'), and k, k' are the kernel of each image with itself

Shapes: N and M images, C channels, H = W = side, D = C H W, K classes, F features.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcbench_tesla.compute.networks import ConvNet, seeded
from dcbench_tesla.errors import DivergedError, unknown_name

KERNELS = ("fc", "conv-vec", "random-conv")
"""The kernels of :func:`kernel_named`."""

WEIGHT_VARIANCE, BIAS_VARIANCE = 2.0, 0.01
"""KIP's: standard deviations sqrt(2) and 0.1."""

Kernel = Callable[[Tensor, Tensor], Tensor]
"""A kernel: ``(N, C, H, W)`` and ``(M, C, H, W)`` to ``(N, M)``, differentiable in both."""

_PARALLEL = 1e-12  # images whose cosine is so near to 1 count as parallel: there the angle has no derivative
_COLUMNS = 1024  # features that enter a Gram matrix at a time


class Covariances(NamedTuple):
    """The kernels of one layer: NNGP and NTK between two sets, and the NNGP of every image of each with itself."""

    nngp: Tensor
    ntk: Tensor
    own: Tensor
    others: Tensor

    def dense(self, mean: Callable[[Tensor], Tensor] = lambda k: k) -> "Covariances":
        """Return the kernels after a layer of weights that takes the mean of what it sees by ``mean``."""
        nngp, own, others = (WEIGHT_VARIANCE * mean(k) + BIAS_VARIANCE for k in (self.nngp, self.own, self.others))
        return Covariances(nngp, nngp + WEIGHT_VARIANCE * mean(self.ntk), own, others)

    def relu(self) -> "Covariances":
        """Return the kernels after a ReLU."""
        scale = (self.own * self.others).sqrt()
        cosine = self.nngp / scale
        parallel = cosine.abs() >= 1 - _PARALLEL
        angle = torch.where(parallel, math.pi * (cosine < 0), cosine.masked_fill(parallel, 0.0).arccos())
        share = (math.pi - angle) / (2 * math.pi)
        nngp = scale * (angle.sin() / (2 * math.pi) + share * cosine)
        return Covariances(nngp, share * self.ntk, self.own / 2, self.others / 2)


def fc_kernels(images: Tensor, others: Tensor, depth: int = 1) -> Covariances:
    """Return the kernels ``(N, M)`` of a fully connected ReLU network with ``depth`` hidden layers."""
    x, y = images.flatten(1), others.flatten(1)
    k = x @ y.T / x.shape[1]
    found = Covariances(k, torch.zeros_like(k), x.square().mean(1)[:, None], y.square().mean(1)[None])
    for _ in range(depth):
        found = found.dense().relu()
    return found.dense()


def conv_vec_kernels(images: Tensor, others: Tensor, depth: int = 3) -> Covariances:
    """Return the kernels ``(N, M)`` of ``depth`` 3x3 convolutions with ReLU, flattened, and one linear layer.

    Without pooling the kernels of equal pixels suffice, so memory is N M H W and not N M (H W)^2. A convolution takes
    the mean over the 3x3 neighbours, zeros outside, of weight variance 2 / (9 C).
    """
    x, y = images[:, None], others[None]
    k = (x * y).mean(2)
    found = Covariances(k, torch.zeros_like(k), x.square().mean(2), y.square().mean(2))
    for _ in range(depth):
        found = found.dense(_of_neighbours).relu()
    return Covariances(*(k.mean((-2, -1)) for k in found)).dense()


def _of_neighbours(maps: Tensor) -> Tensor:
    return F.avg_pool2d(maps.flatten(0, 1)[:, None], 3, stride=1, padding=1).view(maps.shape)


class RandomFeatures:
    """Features of random ConvNets without norm, an approximation of the NNGP kernel of ConvNets with pooling.

    The networks are drawn by KIP's variances. The kernel is ``2 <phi, phi'> + 0.01``, with phi the features of all
    networks over the root of their number. Loo et al., "Efficient Dataset Distillation using Random Feature
    Approximation" (RFAD, NeurIPS 2022).

    Args:
        channels: image channels C.
        side: height and width of the images in pixels.
        count: number of networks.
        width: filters of each convolution.
        depth: blocks of convolution, ReLU and pooling; 0: by image size.
        seed: determines all of them.
        device: where they compute.
    """

    def __init__(
        self, channels: int, side: int, *, count: int, width: int, depth: int, seed: int, device: torch.device
    ) -> None:
        with seeded(seed):
            built = [_random_network(channels, side, width, depth) for _ in range(count)]
        self._networks = nn.ModuleList(built).to(device).requires_grad_(False)

    def __call__(self, images: Tensor) -> Tensor:
        """Return phi ``(N, F)`` of ``images``, in their precision."""
        found = [network.to(images.dtype)(images) for network in self._networks]
        return torch.cat(found, 1) / math.sqrt(sum(part.shape[1] for part in found))

    def kernel(self, images: Tensor, others: Tensor) -> Tensor:
        """Return the kernel ``(N, M)``."""
        return WEIGHT_VARIANCE * self(images) @ self(others).T + BIAS_VARIANCE


def _random_network(channels: int, side: int, width: int, depth: int) -> nn.Module:
    features = ConvNet(channels, 1, side, width, depth, norm="none").features
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            assert layer.bias is not None, "convolutions of a ConvNet have a bias"
            nn.init.normal_(layer.weight, std=math.sqrt(WEIGHT_VARIANCE / layer.weight[0].numel()))
            nn.init.normal_(layer.bias, std=math.sqrt(BIAS_VARIANCE))
    return features


def kernel_named(name: str, depth: int, random_features: Callable[[], RandomFeatures]) -> Kernel:
    """Return a kernel of :data:`KERNELS`.

    Args:
        name: ``fc`` or ``conv-vec`` (NTKs in closed form), or ``random-conv`` (features of random networks).
        depth: hidden layers; 0: one of ``fc``, three of ``conv-vec``.
        random_features: makes the networks of ``random-conv``.

    Raises:
        UsageError: there is no such kernel.
    """
    if name == "fc":
        return lambda x, y: fc_kernels(x, y, depth or 1).ntk
    if name == "conv-vec":
        return lambda x, y: conv_vec_kernels(x, y, depth or 3).ntk
    if name == "random-conv":
        return random_features().kernel
    raise unknown_name("kernel", name, KERNELS)


def default_ridge(kernel: str) -> float:
    """Return the ridge that a kernel is published with, as a share of its mean diagonal: KIP's, or RFAD's."""
    return 5e-3 if kernel == "random-conv" else 1e-6


def images_at_once(support: int, pixels: int) -> int:
    """Return how many images' kernels with ``support`` images of ``pixels`` covariances each fit 8 MiB a map."""
    return max(1, 2**20 // (support * pixels))


def gram(features: Tensor) -> Tensor:
    """Return ``phi phi^T`` ``(N, N)`` of ``features`` ``(N, F)``, in float64: rounded sums may not be positive."""
    found = torch.zeros(len(features), len(features), dtype=torch.float64, device=features.device)
    for part in features.split(_COLUMNS, 1):
        found.addmm_(part.double(), part.double().T)
    return found


class Ridge:
    """Ridge regression on a kernel: ``A = (K + r tr(K)/N I)^-1 y``, and what gradients need of it, in float64.

    Predictions are ``K(t, s) A``. For a loss with ``dL/dA`` given::

        B = dL/dy = (K + r tr(K)/N I)^-1 dL/dA        dL/dK = -B A^T - (r/N) <A, B> I

    Args:
        kernel: K ``(N, N)`` of the support with itself, float64; it becomes the matrix with its ridge.
        labels: y ``(N, K)``, centred.
        ridge: r, the ridge as a share of the mean diagonal.

    Raises:
        DivergedError: the matrix is not positive definite.
    """

    def __init__(self, kernel: Tensor, labels: Tensor, ridge: float) -> None:
        self._share = ridge / len(kernel)
        kernel.diagonal().add_(self._share * kernel.trace())
        try:
            self._factor = torch.linalg.cholesky(kernel)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise DivergedError(
                f"the kernel of the synthetic images with a ridge of {ridge:g} is not positive definite: images have "
                "become equal or are no numbers. Raise ridge or lower the learning rates."
            ) from error
        self.weights = self.solve(labels)

    def solve(self, right: Tensor) -> Tensor:
        """Return ``(K + r tr(K)/N I)^-1 right``, float64 ``(N, K)``."""
        return torch.cholesky_solve(right.double(), self._factor)

    def kernel_gradient(self, labels: Tensor) -> Tensor:
        """Return ``dL/dK`` ``(N, N)`` from ``B = dL/dy``."""
        found = -labels @ self.weights.T
        found.diagonal().sub_(self._share * (self.weights * labels).sum())
        return found

    def feature_gradient(self, labels: Tensor, features: Tensor) -> Tensor:
        """Return ``dL/dphi`` ``(N, F)`` through ``K = phi phi^T``, from ``B = dL/dy``, without a matrix ``(N, N)``."""
        a, b = self.weights.to(features), labels.to(features)
        return -(b @ (a.T @ features) + a @ (b.T @ features) + 2 * self._share * (a * b).sum() * features)
