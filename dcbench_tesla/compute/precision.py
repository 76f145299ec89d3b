"""The precision that steps are computed in: float32, or less of it where somebody asks for that.

===========  ==========================================================  ==========================
precision    what convolutions and matrix products do                    where
===========  ==========================================================  ==========================
``float32``  23 bits of mantissa throughout (the default)                everywhere
``tf32``     read their inputs with 10 bits, add up in float32           GPUs from Ampere on
``bf16``     inputs and results of 7 bits (PyTorch's autocast)           everywhere, fast on few CPUs
===========  ==========================================================  ==========================

Only the loss is computed so, and its derivatives: parameters, their updates, the images and their augmentation stay
float32. float64 stays float64 under all three. What it does to a gradient
is seen by ``dcbench compare gradient --set precision=bf16``.
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
    """Check that there is such a precision, and that ``device``, where it is given, has it.

    Raises:
        UsageError: there is none, or it is one of GPUs.
    """
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    if precision == "tf32" and device is not None and device.type == "cpu":
        raise UsageError("precision tf32 is one of GPUs: take bf16 or float32 on a CPU.")


def lowered(loss: Loss, precision: str, device: torch.device) -> Loss:
    """Return ``loss`` computed in bf16, if that is the precision; as it is otherwise, and on ``meta``.

    Nothing is cached from one call to the next: autocast would keep a copy of every step's inputs.
    """
    if precision != "bf16" or device.type == "meta":
        return loss

    def rough(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            return loss(w, x, y)

    return rough


@contextmanager
def tf32_within(precision: str) -> Iterator[None]:
    """Compute the block in TF32, forward and backward passes, if that is the precision."""
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
