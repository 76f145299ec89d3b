"""Keeping memory between tensors on a CPU, as PyTorch's caching allocator does on a GPU."""

import ctypes
import sys
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's <malloc.h>
_NEVER = 2**31 - 1


_MALLINFO2 = (
    *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
    *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
)


class _Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in _MALLINFO2]


def kept_bytes() -> int:
    """Return the bytes that this process holds for tensors to come; 0 where the C library does not tell."""
    if not sys.platform.startswith("linux"):
        return 0
    try:
        mallinfo = ctypes.CDLL("libc.so.6").mallinfo2
    except (OSError, AttributeError):
        return 0
    mallinfo.restype = _Mallinfo2
    return int(mallinfo().fordblks)


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


def give_back_freed_memory() -> None:
    """Give the system what this process keeps and no tensor has, where the C library can."""
    if not sys.platform.startswith("linux"):
        return
    try:
        trim = ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):
        return
    trim(ctypes.c_size_t(0))
