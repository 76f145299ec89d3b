"""The gradient of trajectory matching: the inner loop's engine with the distance to an expert's weights at its end.

A student starts at an expert's weights ``w_0`` and is compared, after its T steps, with the weights ``w*`` that the
expert arrived at some epochs later (TESLA eq. 1, MTT eq. 2)::

    L = ||w_T - w*||^2 / ||w_0 - w*||^2

:mod:`~dcbench_tesla.methods.inner.engine` has the three modes, and what can be kept for pass 2.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dcbench_tesla.errors import UsageError

from .batches import Steps
from .engine import Collected, InnerGradient, Mode, StreamedGradient, stream_inner_gradient
from .step import InnerStep, Loss


class NormalisedDistance:
    """The objective of trajectory matching: ``||w - target||^2 / ||start - target||^2`` (MTT eq. 2).

    Args:
        start: the student's first weights ``(P,)``.
        target: the expert's weights ``(P,)``.

    Raises:
        UsageError: the two differ in shape, are no vectors, or are equal, so that the distance is undefined.
    """

    def __init__(self, start: Tensor, target: Tensor) -> None:
        if start.ndim != 1 or start.shape != target.shape:
            shapes = f"{tuple(start.shape)} and {tuple(target.shape)}"
            raise UsageError(f"start and target must be vectors of one length, not {shapes}.")
        start, target = start.detach(), target.detach()
        has_values = type(start) is Tensor and not start.is_meta  # fake tensors, which predict memory, have none
        if has_values and torch.equal(start, target):
            raise UsageError(
                "start and target are equal, so the matching loss, divided by their distance, is undefined."
            )
        self._target = target
        self._scale = (start - target).square().sum()

    def __call__(self, weights: Tensor) -> Tensor:
        """Return the distance of ``weights`` ``(P,)``, a scalar."""
        return (weights - self._target).square().sum() / self._scale


def matching_gradient(
    loss: Loss | InnerStep,
    start: Tensor,
    target: Tensor,
    inputs: Sequence[Tensor],
    labels: Sequence[Tensor],
    lr: Tensor | float,
    mode: Mode = "exact",
    **options: Any,
) -> InnerGradient:
    """Return the matching loss and its gradients with respect to all inputs, labels and the learning rate.

    A student takes T SGD steps from ``start`` and is compared with ``target`` (TESLA eq. 1, MTT eq. 2)::

        w_0 = start,    w_{k+1} = w_k - b grad_w l(w_k; x_k, y_k),    k = 0 .. T-1
        L = ||w_T - target||^2 / ||start - target||^2

    Args:
        loss: l, as for :func:`~dcbench_tesla.methods.inner.inner_gradient`.
        start: the student's first weights w_0, ``(P,)``. The result has their type and device.
        target: the expert's weights, ``(P,)``.
        inputs: T tensors x_k, in any shape that the loss takes.
        labels: T tensors y_k, likewise; those that require a gradient get one.
        lr: the student's learning rate b, a scalar, or a rate for each step, ``(T,)``.
        mode: ``exact``; ``unrolled``, the same gradient by back-propagation through all steps; or ``frozen``, TESLA's
            approximation.
        options: ``optimiser``, ``micro_batch``, ``window``, ``weights`` and ``keep`` of
            :func:`~dcbench_tesla.methods.inner.inner_gradient`.

    Raises:
        UsageError: as :func:`~dcbench_tesla.methods.inner.inner_gradient` and :class:`NormalisedDistance`.

    Example:
        >>> import torch
        >>> loss = lambda theta, x, y: ((x @ theta - y) ** 2).mean()
        >>> start, target = torch.zeros(2), torch.ones(2)
        >>> x, y = [torch.eye(2)] * 3, [torch.ones(2)] * 3
        >>> result = matching_gradient(loss, start, target, x, y, lr=0.5, mode="exact")
        >>> round(result.loss.item(), 4), len(result.inputs), result.labels[0] is None
        (0.0156, 3, True)
    """
    steps = Collected(inputs, labels)
    return steps.result(stream_matching_gradient(loss, start, target, steps, lr, mode, **options))


def stream_matching_gradient(
    loss: Loss | InnerStep,
    start: Tensor,
    target: Tensor,
    steps: Steps,
    lr: Tensor | float,
    mode: Mode = "exact",
    **options: Any,
) -> StreamedGradient:
    """Compute what :func:`matching_gradient` computes, with the tensors of one step, or micro-batch, at a time.

    The gradients of a step go to ``steps.accumulate`` as soon as they are known and are not kept.

    Args:
        loss: as for :func:`matching_gradient`.
        start: w_0, ``(P,)``.
        target: the expert's weights, ``(P,)``.
        steps: the T steps, in place of ``inputs`` and ``labels``.
        lr: b, ``()`` or ``(T,)``.
        mode: as for :func:`matching_gradient`.
        options: as for :func:`matching_gradient`.

    Raises:
        UsageError: as :func:`matching_gradient`; there are no steps.
    """
    objective = NormalisedDistance(start, target)
    return stream_inner_gradient(loss, start, steps, lr, objective=objective, mode=mode, **options)
