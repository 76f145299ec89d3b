"""Labelled images on a device: integer pixels, from which network inputs are made."""

from functools import cached_property

import torch
from torch import Tensor

from dcbench_tesla.data.preprocessing import Preprocessing

_PREPARE_AT_ONCE_BYTES = 6 * 2**30
_CHUNK = 1024


def prepared_bytes(pixels: int) -> int:
    """Return the bytes that ``pixels`` preprocessed float32 values take on the device.

    The result is 0 for more than 6 GiB: such images are preprocessed batch by batch.
    """
    needed = 4 * pixels
    return needed if needed <= _PREPARE_AT_ONCE_BYTES else 0


class LabelledImages:
    """N images with labels, served as preprocessed float32 batches.

    All preprocessed images are kept on ``device`` if they take at most 6 GiB; otherwise each batch is preprocessed when
    it is asked for.

    Args:
        pixels: uint8 ``(N, C, H, W)`` in ``0..max_value``, on the CPU.
        labels: int64 ``(N,)`` in ``0..classes-1``, on the CPU.
        classes: number of classes K.
        max_value: the largest pixel value.
        preprocessing: maps ``pixels / max_value`` to network inputs.
        device: where the inputs are wanted.
    """

    def __init__(
        self,
        pixels: Tensor,
        labels: Tensor,
        *,
        classes: int,
        max_value: int,
        preprocessing: Preprocessing,
        device: torch.device,
    ) -> None:
        self.pixels, self.labels = pixels, labels
        self.classes, self.max_value = classes, max_value
        self.preprocessing = preprocessing.to(device)
        self.device = device
        self._prepared: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def members(self) -> tuple[Tensor, ...]:
        """The indices of the images of each class, in the data set's order."""
        return tuple((self.labels == c).nonzero().flatten() for c in range(self.classes))

    def inputs(self, indices: Tensor) -> Tensor:
        """Return the network inputs of some images: float32 ``(len(indices), C, H, W)`` on the device."""
        if self._prepared is None and prepared_bytes(self.pixels.numel()):
            self._prepared = torch.empty(self.pixels.shape, device=self.device)
            for i in range(0, len(self), _CHUNK):
                self._prepared[i : i + _CHUNK] = self._prepare(self.pixels[i : i + _CHUNK])
        if self._prepared is None:
            return self._prepare(self.pixels[indices])
        return self._prepared[indices.to(self.device)]

    def _prepare(self, pixels: Tensor) -> Tensor:
        return self.preprocessing.forward(pixels.to(self.device).float() / self.max_value)
