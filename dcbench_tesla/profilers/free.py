"""The free memory of a device."""

import psutil
import torch

from dcbench_tesla.compute.malloc import kept_bytes

# Kernels on a CPU also use memory that no tensor holds: processes were seen to need 1.2 to 1.4 times their tensors.
# When main memory ends, the system kills processes; when a GPU's memory ends, PyTorch raises an error to catch.
_SHARE_OF_TENSORS = 0.7


def free_bytes(device: torch.device) -> int:
    """Return the bytes that further tensors of this process can take on ``device``.

    On a GPU this is its free memory, and what PyTorch's allocator holds without using it. On a CPU it is seven tenths
    of the main memory that is available without swapping or that this process holds without using it; the rest is left
    for the memory that kernels need besides tensors.
    """
    if device.type != "cuda":
        return int(_SHARE_OF_TENSORS * (psutil.virtual_memory().available + kept_bytes()))
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
