"""The mean loss on a batch of held-out images as an objective: what the bilevel methods put at the loop's end."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dcbench_tesla.compute.compiling import LossAndGradient


class MeanLoss:
    """``J(w) = mean over a batch of l(w; x, y)``, its gradient some images at a time.

    Args:
        loss: ``loss(w, x, y)``, a mean over images that do not depend on each other, and its gradient in w.
        batch: returns the inputs and labels of a slice of the batch.
        count: number of images in the batch.
        at_once: images whose graph exists at a time.
    """

    def __init__(
        self, loss: LossAndGradient, batch: Callable[[slice], tuple[Tensor, Tensor]], count: int, at_once: int
    ) -> None:
        self._loss, self._batch = loss, batch
        self._count, self._at_once = count, min(at_once, count)

    def _pieces(self) -> Iterator[tuple[float, tuple[Tensor, Tensor]]]:
        for begin in range(0, self._count, self._at_once):
            end = min(begin + self._at_once, self._count)
            yield (end - begin) / self._count, self._batch(slice(begin, end))

    def __call__(self, weights: Tensor) -> Tensor:
        """Return ``J(weights)`` with its graph, a scalar; ``weights`` is ``(P,)``."""
        total: Tensor = sum(share * self._loss.loss(weights, x, y) for share, (x, y) in self._pieces())  # type: ignore[assignment]
        return total

    def value_and_gradient(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``J(weights)`` and its gradient ``(P,)``, both detached."""
        value, gradient = weights.new_zeros(()), torch.zeros_like(weights)
        for share, (x, y) in self._pieces():
            part, of_part = self._loss(weights, x, y)
            value += share * part
            gradient.add_(of_part, alpha=share)
        return value, gradient
