"""What the C library does with memory that tensors no longer need."""

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # the names in <malloc.h> begin with M_
_LARGEST = 32 << 20  # of glibc's own area; no tensor of a training step exceeds it
_KEPT = 1 << 30


def keep_freed_memory() -> None:
    """Let freed blocks of up to 32 MiB stay with the process, a gigabyte in all.

    By default glibc hands them back to the system at once, to get them anew, zeroed and page by
    page, for the next tensor of that size: some 12,000 page faults in a training step on a CPU.
    Does nothing with another C library.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST)
        libc.mallopt(_TRIM_THRESHOLD, _KEPT)
