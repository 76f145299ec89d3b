"""How much memory is left on a device."""

import psutil
import torch

from dcbench_tesla.compute.malloc import kept_bytes

# A CPU's kernels also work in memory that no tensor holds, and where main memory ends processes are killed: some were
# seen to need 1.2 to 1.4 times their tensors. Where a GPU's memory ends there is an error, which can be caught.
_SHARE_OF_TENSORS = 0.7


def free_bytes(device: torch.device) -> int:
    """Return the bytes that further tensors of this process can take on ``device``.

    On a GPU: what is free there, and what PyTorch's allocator holds without using it. Else seven tenths of the main
    memory that can be had without swapping, or is held without being used; the rest is for what tensors come with.
    """
    if device.type != "cuda":
        return int(_SHARE_OF_TENSORS * (psutil.virtual_memory().available + kept_bytes()))
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
