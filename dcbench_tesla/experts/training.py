"""One epoch of an expert: SGD on the real images, plain or with GSAM, whose experts are flat (FTD, CVPR 2023)."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from dcbench_tesla.compute.compiling import TrainingStep
from dcbench_tesla.compute.seeds import generator
from dcbench_tesla.config import ExpertSettings
from dcbench_tesla.data.augmentation import Augmentation
from dcbench_tesla.data.images import LabelledImages

_NO_DIVISION_BY_ZERO = 1e-12


def train_epoch(
    network: nn.Module,
    train: LabelledImages,
    settings: ExpertSettings,
    augmentation: Augmentation,
    expert: int,
    epoch: int,
) -> float:
    """Train one epoch by SGD with DSA on the real images; return the mean loss.

    With ``settings.gsam_rho`` the steps follow the direction of :func:`gsam_direction`.

    All random numbers are derived from (expert, epoch), so training can be resumed or extended at any epoch.
    """
    optimiser = torch.optim.SGD(network.parameters(), lr=settings.lr)
    rng = generator(0, "expert epoch", expert, epoch)
    step, losses = TrainingStep(network, micro_batch=settings.micro_batch), []
    for indices in torch.randperm(len(train), generator=rng).split(settings.batch_size):
        images = train.inputs(indices)
        images = augmentation(images, augmentation.draw(len(images), images.shape[-1], rng))
        labels = train.labels[indices].to(images.device)
        if settings.gsam_rho:
            parameters = list(network.parameters())
            loss = gsam_direction(parameters, partial(step, images, labels), settings.gsam_rho, settings.gsam_alpha)
        else:
            loss = step(images, labels)
        optimiser.step()
        losses.append(loss * len(indices))
    return float(torch.stack(losses).sum() / len(train))


def gsam_direction(parameters: Sequence[nn.Parameter], step: Callable[[], Tensor], rho: float, alpha: float) -> Tensor:
    """Leave the direction of one adaptive GSAM step in ``p.grad`` of all parameters w; return the loss at w.

    The loss L is that of one batch, and norms and inner products are over all parameters together::

        g = grad L(w),    e = rho w^2 g / (|| |w| g || + 1e-12),    h = grad L(w + e)
        v = g - c ||g|| h / (||h|| + 1e-12),    c = <g, h> / (||g|| ||h|| + 1e-12)
        direction = h - alpha v

    Zhuang et al., "Surrogate Gap Minimization Improves Sharpness-Aware Training", ICLR 2022, with the adaptive
    perturbation of Kwon et al. (ASAM, ICML 2021), which is what ``alpha = 0`` leaves.

    Args:
        parameters: the network's parameters; they are the same afterwards.
        step: computes the loss of the batch at the present parameters, and leaves its gradient in ``p.grad``.
        rho: radius of the perturbation.
        alpha: weight of v, the part of g that is orthogonal to h.
    """
    loss = step()
    weights = [p.detach().clone() for p in parameters]
    g = [_gradient(p) for p in parameters]
    scale = rho / (_norm([w.abs() * own for w, own in zip(weights, g, strict=True)]) + _NO_DIVISION_BY_ZERO)
    with torch.no_grad():
        for p, w, own in zip(parameters, weights, g, strict=True):
            p.add_(scale * w.square() * own)
    step()
    h = [_gradient(p) for p in parameters]
    of_g, of_h = _norm(g), _norm(h)
    inner = torch.stack([(a * b).sum() for a, b in zip(g, h, strict=True)]).sum()
    along = inner / (of_g * of_h + _NO_DIVISION_BY_ZERO) * of_g / (of_h + _NO_DIVISION_BY_ZERO)
    with torch.no_grad():
        for p, w, own, perturbed in zip(parameters, weights, g, h, strict=True):
            p.copy_(w)
            p.grad = perturbed - alpha * (own - along * perturbed)
    return loss


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None, "a step leaves a gradient in every parameter"
    return parameter.grad


def _norm(parts: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of all parts together, a scalar."""
    return torch.stack([part.square().sum() for part in parts]).sum().sqrt()
