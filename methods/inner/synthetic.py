"""The batches of an inner loop on synthetic images: chosen, augmented, and their gradients added up on the images.

Shapes: N synthetic images, C channels, H = W = side, K classes.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

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
