"""Settings of glibc's allocator: freed memory stays in the process, and is backed by huge pages."""

import ctypes
import functools
import mmap
import os
import resource
from pathlib import Path

# The same settings for another program, as variables that glibc reads when a process starts.
VARIABLES = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
NEVER = -1
RESERVED = 0.5  # ours: of the machine's memory, as addresses. What a run does not touch takes no memory
OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
STRICT = "2"  # every reserved address counts as used memory


@functools.cache
def keep_freed_memory() -> bool:
    """Keep freed blocks in this process instead of returning them to the system.

    A training step frees and allocates the same large blocks repeatedly. By default, the kernel clears each of them
    page by page, which takes a fifth of a full fine-tuning step. Where the system lets the heap grow freely, its blocks
    come from huge pages too: with pages of 4 KiB, each step looks up more addresses than a core remembers.

    Returns: Whether the C library has these settings (glibc does).
    """
    try:
        libc = ctypes.CDLL(None)
        mallopt = libc.mallopt
    except (AttributeError, OSError):
        return False  # not glibc
    kept = bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, NEVER))
    if kept and heap_may_grow():
        reserve_huge_pages(libc, int(RESERVED * os.sysconf("SC_PHYS_PAGES")) * mmap.PAGESIZE)
    return kept


def heap_may_grow() -> bool:
    """Whether addresses are free of charge: no limit on them, and no strict accounting."""
    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    strict = OVERCOMMIT.exists() and OVERCOMMIT.read_text().strip() == STRICT
    return not strict and all(limit == resource.RLIM_INFINITY for limit in limits)


def reserve_huge_pages(libc: ctypes.CDLL, size: int) -> None:
    """Grow the heap by `size` bytes and ask for huge pages there.

    glibc has a setting for this (`glibc.malloc.hugetlb`), but reads it only when a process starts. Because the heap is
    never trimmed, the freed block stays at its top, and later blocks are cut from it.
    """
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    libc.free.restype, libc.free.argtypes = None, (ctypes.c_void_p,)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    start = libc.malloc(size)
    if start:
        page = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        libc.madvise(page, start + size - page, mmap.MADV_HUGEPAGE)  # refused by a kernel without huge pages
        libc.free(start)
