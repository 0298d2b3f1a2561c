"""Memory that a step gives back is kept for the next one, in large pages.

The C library hands what it allocates in large pieces back to the system when it is freed, and takes it anew a moment
later: the system then clears every page again. A step of training allocates the same pieces each time, so a process
that trains keeps them. Source: mallopt(3), madvise(2) of glibc and Linux; elsewhere nothing is changed.
"""

import ctypes
import os
from functools import cache

TRIM_THRESHOLD, MMAP_MAX = -1, -4
"""Parameters of mallopt. Source: malloc.h of glibc."""

MADV_HUGEPAGE = 14
"""Source: mman.h of Linux."""

PAGE = os.sysconf("SC_PAGE_SIZE")


@cache
def keep_memory() -> None:
    """Has this process keep what it frees, and asks for large pages in what it allocates next, up to half of the
    machine's memory. It takes none yet. Without glibc, or where the system declines, nothing changes."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return
    library.mallopt(MMAP_MAX, 0)  # never from the system for a piece alone
    library.mallopt(TRIM_THRESHOLD, -1)  # never
    library.malloc.restype = ctypes.c_void_p
    library.malloc.argtypes = (ctypes.c_size_t,)
    library.free.argtypes = (ctypes.c_void_p,)
    library.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    n_bytes = os.sysconf("SC_PHYS_PAGES") * PAGE // 2
    room = library.malloc(n_bytes)
    if room is None:
        return
    first = -(-room // PAGE) * PAGE
    library.madvise(first, (room + n_bytes - first) // PAGE * PAGE, MADV_HUGEPAGE)
    library.free(room)
