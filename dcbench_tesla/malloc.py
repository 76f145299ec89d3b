"""Keeping memory between tensors on a CPU, as PyTorch's caching allocator does on a GPU."""

import ctypes
import sys
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's <malloc.h>
_NEVER = 2**31 - 1


@cache
def keep_freed_memory() -> bool:
    """Let this process keep what tensors give back, for the next ones; return whether that could be arranged.

    A matching step takes and frees the same tens of megabytes again and again. glibc hands such blocks back to the
    system each time, and gets them again page by page, zeroed: more than half of a step's time. Other C libraries and
    systems are left as they are. No result depends on it.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))
