"""The stored form of synthetic images: a stored image can hold f x f smaller ones, each a training image of its own.

This is multi-formation (Kim et al., IDC, ICML 2022): f^2 times as many training images in the same number
of pixels. Methods take it by their setting ``factor``, which is f; with 1 the stored images are the training images.
What is optimised is the stored form, through the decoder of the distilled set
(:class:`~dcbench_tesla.distilled.Decoder`), which is affine.

Shapes: N stored images, M = N f^2 training images, C channels, H = W = side, K classes.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from dcbench_tesla.distilled import LARGEST_FACTOR, Decoder, DistilledSet, grey_of
from dcbench_tesla.errors import UsageError
from dcbench_tesla.interface import Problem


def check_factor(factor: int) -> None:
    """Check the setting ``factor``.

    Raises:
        UsageError: it is not 1 to 16.
    """
    if not 1 <= factor <= LARGEST_FACTOR:
        raise UsageError(f"factor must be 1 (images as they are) to {LARGEST_FACTOR}, not {factor}.")


def with_stored_form(factor: int, distilled: DistilledSet) -> DistilledSet:
    """Return a set of real images (uint8) as one whose images hold ``factor`` x ``factor`` others; for estimates."""
    if factor == 1:
        return distilled
    return replace(distilled, images=distilled.inputs(), decoder=Decoder(factor))


class StoredForm:
    """The stored form of a problem's synthetic images.

    Args:
        factor: f.
        problem: the problem.

    Attributes:
        decoder: the decoder that a distilled set needs; ``None`` for f = 1.
        copies: training images that a stored image holds, f^2.
        per_class: training images of a class, IPC f^2.

    Raises:
        UsageError: the images have fewer than f pixels a side.
    """

    def __init__(self, factor: int, problem: Problem) -> None:
        task, train = problem.task, problem.train
        if factor > task.side:
            raise UsageError(f"factor={factor} cuts images of {task.side} pixels into {factor} x {factor}: lower it.")
        self.decoder = Decoder(factor) if factor > 1 else None
        self.copies = factor**2
        self.per_class = problem.ipc * self.copies
        shape = (task.channels, task.side, task.side)
        # without a decoder nothing is held on the device
        self._grey = None if self.decoder is None else grey_of(train.preprocessing, shape, problem.device)

    def decode(self, stored: Tensor) -> Tensor:
        """Return the training images ``(M, C, H, W)`` of ``stored`` ``(N, C, H, W)``, those of one after another."""
        return stored if self.decoder is None or self._grey is None else self.decoder(stored, self._grey)

    def encode(self, images: Tensor) -> Tensor:
        """Return stored images ``(N, C, H, W)`` whose tiles are ``images`` ``(M, C, H, W)``, downsized to the nearest.

        What a tile has beyond the side, where f does not divide it, is cut off.
        """
        if self.decoder is None:
            return images
        f, (_, channels, side, _) = self.decoder.factor, images.shape
        tile = -(-side // f)
        tiles = F.interpolate(images, size=(tile, tile), mode="nearest").view(-1, f, f, channels, tile, tile)
        grid = tiles.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, f * tile, f * tile)
        return grid[..., :side, :side].contiguous()

    def pull_back(self, gradient: Tensor) -> Tensor:
        """Return the gradient of the stored images ``(N, C, H, W)`` from that of the training images ``(M, C, H, W)``.

        The decoder is affine, so the images themselves do not matter.
        """
        if self.decoder is None:
            return gradient
        stored = gradient.new_zeros(len(gradient) // self.copies, *gradient.shape[1:]).requires_grad_()
        with torch.enable_grad():
            (found,) = torch.autograd.grad(self.decode(stored), stored, gradient)
        return found

    def repeated(self, labels: Tensor) -> Tensor:
        """Return the labels of the training images, ``(M,)`` or ``(M, K)``: those of their stored images."""
        return labels if self.decoder is None else labels.repeat_interleave(self.copies, 0)

    def summed(self, values: Tensor) -> Tensor:
        """Return the sum of ``values`` ``(M, K)`` over the training images of each stored image, ``(N, K)``."""
        return values if self.decoder is None else values.unflatten(0, (-1, self.copies)).sum(1)

    def averaged(self, values: Tensor) -> Tensor:
        """Return the mean of ``values`` ``(M, K)`` over the training images of each stored image, ``(N, K)``."""
        return values if self.decoder is None else self.summed(values) / self.copies
