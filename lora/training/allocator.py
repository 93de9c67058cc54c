"""glibc's allocator, told to keep freed memory."""

import ctypes
import functools

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
NEVER = 2**31 - 1


@functools.cache
def keep_freed_memory() -> bool:
    """Never give freed blocks back to the system while this process lives, once per process.

    A training step frees and allocates the same large blocks again and again; by default each comes from the kernel,
    which clears it page by page: a fifth of a step of full fine-tuning.

    Returns: Whether the C library here has the settings.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False  # not glibc
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, NEVER))
