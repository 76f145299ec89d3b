"""The floating-point precision of training and matching steps: float32, or less if a setting asks for it.

===========  =============================================================  ==========================
precision    convolutions and matrix products                               available
===========  =============================================================  ==========================
``float32``  23 bits of mantissa throughout (the default)                   everywhere
``tf32``     inputs rounded to 10 bits of mantissa, sums in float32         GPUs from Ampere on
``bf16``     inputs and results with 7 bits of mantissa (torch's autocast)  everywhere, fast on few CPUs
===========  =============================================================  ==========================

The precision applies to the loss and its derivatives only. Parameters, their updates, the images and their augmentation
stay float32, and float64 stays float64. ``dcbench compare gradient --set precision=bf16`` shows its effect on a
gradient.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dcbench_tesla.errors import UsageError, unknown_name

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
PRECISIONS = ("float32", "tf32", "bf16")


def check_precision(precision: str, device: torch.device | None = None) -> None:
    """Check that the precision exists, and that ``device`` supports it if one is given.

    Raises:
        UsageError: there is no such precision, or it needs a GPU.
    """
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    if precision == "tf32" and device is not None and device.type == "cpu":
        raise UsageError("precision tf32 needs a GPU: use bf16 or float32 on a CPU.")


def lowered(loss: Loss, precision: str, device: torch.device) -> Loss:
    """Return ``loss`` computed in bf16 if ``precision`` is ``bf16``; otherwise, and on ``meta``, ``loss`` itself.

    Autocast's cache is off: it would keep a copy of every step's inputs.
    """
    if precision != "bf16" or device.type == "meta":
        return loss

    def rough(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            return loss(w, x, y)

    return rough


@contextmanager
def tf32_within(precision: str) -> Iterator[None]:
    """Compute the block, forward and backward passes, in TF32 if ``precision`` is ``tf32``."""
    if precision == "tf32":
        backends: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
        before = [backend.allow_tf32 for backend in backends]
        try:
            for backend in backends:
                backend.allow_tf32 = True
            yield
        finally:
            for backend, value in zip(backends, before, strict=True):
                backend.allow_tf32 = value
    else:
        yield
