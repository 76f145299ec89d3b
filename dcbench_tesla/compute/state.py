"""PyTorch's state in the calling program, which must change no result: gradients, default dtype and device ..."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from dcbench_tesla.errors import UsageError

_DEVICES = ("cpu", "cuda")


@contextmanager
def plain_torch() -> Iterator[None]:
    """Compute the block as a fresh process would, and give the caller's state back.

    Gradients are on, outside of inference mode and autocast; the default dtype is float32 and the default device the
    CPU; products of float32 matrices have full precision.

    Raises:
        UsageError: the caller has set ``fp32_precision``, which PyTorch lets nobody mix with its older settings.
    """
    dtype, precision = torch.get_default_dtype(), _matmul_precision()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in filter(torch.is_autocast_enabled, _DEVICES):
            stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device() != torch.device("cpu"):
            stack.enter_context(torch.device("cpu"))
        torch.set_default_dtype(torch.float32)
        stack.callback(torch.set_default_dtype, dtype)
        if precision != "highest":
            torch.set_float32_matmul_precision("highest")
            stack.callback(torch.set_float32_matmul_precision, precision)
        yield


def _matmul_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError as error:
        raise UsageError(
            "torch.backends.*.fp32_precision is set in this process: leave it as it was, dcbench sets the precision "
            "of its products itself (--set precision=tf32)."
        ) from error
