"""Keep freed memory for later tensors on a CPU, as PyTorch's caching allocator does on a GPU."""

import ctypes
import sys
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from glibc's <malloc.h>
_NEVER = 2**31 - 1


_MALLINFO2 = (
    *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
    *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
)


class _Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in _MALLINFO2]


def kept_bytes() -> int:
    """Return the freed bytes that this process keeps for later tensors; 0 if the C library does not tell."""
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
    """Let this process keep freed memory for later tensors; return whether the C library allows that.

    A matching step allocates and frees the same tens of megabytes again and again. By default glibc returns such blocks
    to the system and receives them back page by page, zeroed, which takes more than half of a step's time. Nothing is
    changed for other C libraries and systems. Results do not depend on this.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))


def give_back_freed_memory() -> None:
    """Return freed memory that this process keeps to the system, if the C library can."""
    if not sys.platform.startswith("linux"):
        return
    try:
        trim = ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):
        return
    trim(ctypes.c_size_t(0))
