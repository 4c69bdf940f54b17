"""glibc's allocator, told to keep what is freed.

A training on CPU frees after every micro-batch what the next one asks for. By default glibc gives large blocks back to
the system at once, and the system then fills each page with zeros again, which costs more than many a product.
"""

import ctypes

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h
GROWTH = 64 << 20  # bytes that the heap grows by, at least


def keep_freed_pages() -> None:
    """Have this process use freed memory again rather than give it back. Nothing changes under another C library."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, GROWTH)):
        mallopt(option, value)
