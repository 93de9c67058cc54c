"""Settings of glibc's allocator that keep freed memory in the process."""

import ctypes
import functools

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
NEVER = 2**31 - 1


@functools.cache
def keep_freed_memory() -> bool:
    """Keep freed blocks in this process instead of returning them to the system.

    A training step frees and allocates the same large blocks repeatedly. By default, the kernel clears each of them
    page by page, which takes a fifth of a full fine-tuning step.

    Returns: Whether the C library has these settings (glibc does).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False  # not glibc
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, NEVER))
