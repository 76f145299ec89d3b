"""One update of the images by FrePo, to predict its memory; the method itself is not implemented.

FrePo (Zhou, Nezhadarya, Ba, NeurIPS 2022) predicts the labels of real images by ridge regression on the features of the
synthetic images. Every update therefore holds the graph of all N synthetic images, not only of a batch.

Shapes: N synthetic and M real images, K classes, F features.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from dcbench_tesla.cells.workload import Shape
from dcbench_tesla.compute.networks import ConvNet
from dcbench_tesla.profilers import origin
from dcbench_tesla.profilers.memory import Prepare

_RIDGE = 1e-6
_REAL_BATCH = 1024


def frepo_loss(features: Tensor, labels: Tensor, real_features: Tensor, real_labels: Tensor) -> Tensor:
    """Return the mean of ``|phi_t phi_s^T (K_ss + r tr(K_ss)/N I)^-1 y_s - y_t|^2 / 2`` over the M real images.

    ``features`` phi_s ``(N, F)``, ``labels`` y_s ``(N, K)``, ``real_features`` phi_t ``(M, F)``, ``real_labels`` y_t
    ``(M, K)``; K_ss = phi_s phi_s^T, r = 1e-6.
    """
    kernel = features @ features.T
    ridge = _RIDGE * kernel.trace() / len(kernel) * torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    weights = torch.linalg.solve(kernel + ridge, labels)
    predicted = real_features @ (features.T @ weights)
    loss: Tensor = (predicted - real_labels).square().sum(1).mean() / 2
    return loss


def frepo_workload(shape: Shape, *, ipc: int, width: int, depth: int = 0, device: torch.device) -> Prepare:
    """Return a function that makes FrePo's images, labels and network on ``device`` and returns the update to measure.

    The network is the ConvNet of the other methods, so that memory can be compared; FrePo's own network is wider.
    """

    def noise(count: int) -> Tensor:
        return torch.rand(count, shape.channels, shape.side, shape.side, device=device)

    def prepare() -> Callable[[], object]:
        count = ipc * shape.classes
        with origin("parameters"), torch.device(device):
            features = ConvNet(shape.channels, shape.classes, shape.side, width, depth).features
        with origin("inputs"):
            images, labels = noise(count).requires_grad_(), torch.rand(count, shape.classes, device=device)
            real, real_labels = noise(_REAL_BATCH), torch.rand(_REAL_BATCH, shape.classes, device=device)
        labels.requires_grad_()

        def run() -> object:
            with torch.no_grad():
                target = features(real)
            with origin("graph"):
                loss = frepo_loss(features(images), labels, target, real_labels)
                return torch.autograd.grad(loss, [images, labels])

        return run

    return prepare
