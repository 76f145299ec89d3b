"""The batches of an inner loop on synthetic images: chosen, augmented, and their gradients added up on the images.

Shapes: N synthetic images, C channels, H = W = side, K classes.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from dcbench_tesla.interface import Problem
from dcbench_tesla.profilers import origin


class SyntheticBatches(ABC):
    """The T batches of one inner loop, made on demand; none is kept.

    Subclasses say which images a step shows and how they are augmented. Both must give the same when asked again.

    Args:
        images: the synthetic images ``(N, C, H, W)``.
        labels: their labels; if they require a gradient, they get one.
        steps: T.

    Attributes:
        image_gradient: dJ/dX ``(N, C, H, W)``.
        label_gradient: dJ/dY, in the shape of the labels; zero unless they require a gradient.
    """

    def __init__(self, images: Tensor, labels: Tensor, steps: int) -> None:
        self.images, self.labels = images, labels
        self._steps = steps
        with origin("inputs"):
            self.image_gradient = torch.zeros_like(images)
            self.label_gradient = torch.zeros_like(labels)

    @abstractmethod
    def indices(self, k: int) -> Tensor:
        """Return which images step k shows, int64 on the CPU."""

    def augmented(self, k: int, rows: slice, images: Tensor) -> Tensor:
        """Return the images ``rows`` of step k's batch, augmented; what is drawn is drawn for the whole batch."""
        return images

    def __len__(self) -> int:
        """Return T."""
        return self._steps

    def size(self, k: int) -> int:
        """Return the number of images in the batch of step k."""
        return len(self.indices(k))

    def _rows(self, k: int, rows: slice) -> Tensor:
        return self.indices(k)[rows].to(self.images.device)

    def batch(self, k: int, rows: slice) -> tuple[Tensor, Tensor]:
        """Return the augmented images ``rows`` of step k's batch, and their labels."""
        with origin("inputs"), torch.no_grad():
            indices = self._rows(k, rows)
            images = self.augmented(k, rows, self.images[indices])
        with origin("inputs"):
            return images, self.labels[indices]

    def accumulate(self, k: int, rows: slice, input_gradient: Tensor, label_gradient: Tensor | None) -> None:
        """Differentiate through step k's augmentation, and add up the gradients of the images and the labels."""
        indices = self._rows(k, rows)
        images = self.images[indices].requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self.augmented(k, rows, images), images, input_gradient)
        self.image_gradient.index_add_(0, indices, gradient)
        if label_gradient is not None:
            self.label_gradient.index_add_(0, indices, label_gradient)


class ShuffledBatches(SyntheticBatches):
    """Batches that are chunks of a random permutation, with a new permutation when one is used up.

    A permutation comes from a generator of ``repetition`` and its number, so a batch can be made again. If the size of
    a batch does not divide N, one batch of each permutation is shorter: the last, or the first.

    Args:
        problem: has the generators.
        images: the synthetic images ``(N, C, H, W)``.
        labels: their labels.
        steps: T.
        batch_size: images in a batch; 0: all.
        repetition: numbers that tell this inner loop from others, such as the iteration.
        short_first: whether the shorter batch comes first.
    """

    def __init__(
        self,
        problem: Problem,
        images: Tensor,
        labels: Tensor,
        *,
        steps: int,
        batch_size: int,
        repetition: tuple[int, ...],
        short_first: bool = False,
    ) -> None:
        super().__init__(images, labels, steps)
        self._problem, self._repetition = problem, repetition
        self._most = min(batch_size or len(images), len(images))
        self._before = self._most - len(images) % self._most if short_first and len(images) % self._most else 0

    def _place(self, k: int) -> tuple[int, int, int]:
        """Return the number of step k's permutation, and where in it the batch begins and ends."""
        permutation, chunk = divmod(k, math.ceil(len(self.images) / self._most))
        begin = chunk * self._most - self._before  # below 0 for a first batch that is the short one
        return permutation, max(begin, 0), min(begin + self._most, len(self.images))

    def size(self, k: int) -> int:
        """See :meth:`SyntheticBatches.size`; nothing is drawn."""
        begin, end = self._place(k)[1:]
        return end - begin

    def indices(self, k: int) -> Tensor:
        """See :meth:`SyntheticBatches.indices`."""
        permutation, begin, end = self._place(k)
        rng = self._problem.generator("inner batches", *self._repetition, permutation)
        return torch.randperm(len(self.images), generator=rng)[begin:end]
