"""The mean loss on a batch of held-out images as an objective: what the bilevel methods put at the loop's end."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.autograd import grad

from .step import Loss


class MeanLoss:
    """``J(w) = mean over a batch of l(w; x, y)``, its gradient some images at a time.

    Args:
        loss: ``loss(w, x, y)``, a mean over images that do not depend on each other.
        batch: returns the inputs and labels of a slice of the batch.
        count: number of images in the batch.
        at_once: images whose graph exists at a time.
    """

    def __init__(self, loss: Loss, batch: Callable[[slice], tuple[Tensor, Tensor]], count: int, at_once: int) -> None:
        self._loss, self._batch = loss, batch
        self._count, self._at_once = count, min(at_once, count)

    def _pieces(self) -> Iterator[tuple[float, tuple[Tensor, Tensor]]]:
        for begin in range(0, self._count, self._at_once):
            end = min(begin + self._at_once, self._count)
            yield (end - begin) / self._count, self._batch(slice(begin, end))

    def __call__(self, weights: Tensor) -> Tensor:
        """Return ``J(weights)`` with its graph, a scalar; ``weights`` is ``(P,)``."""
        total: Tensor = sum(share * self._loss(weights, x, y) for share, (x, y) in self._pieces())  # type: ignore[assignment]
        return total

    def value_and_gradient(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``J(weights)`` and its gradient ``(P,)``, both detached."""
        leaf = weights.detach().requires_grad_()
        value, gradient = torch.zeros((), dtype=leaf.dtype, device=leaf.device), torch.zeros_like(weights)
        for share, (x, y) in self._pieces():
            with torch.enable_grad():
                part = self._loss(leaf, x, y)
            (of_part,) = grad(part, leaf)
            value += share * part.detach()
            gradient.add_(of_part, alpha=share)
        return value, gradient
