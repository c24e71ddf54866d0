"""The heap of the C library, which most tensors of a CPU training live in."""

import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""What glibc's mallopt calls these (malloc.h)."""
LARGEST_IN_HEAP = 32 * 2**20
"""Bytes; no larger threshold is accepted."""


def keep_freed_memory() -> None:
    """From now on this process keeps what a step frees: the next step needs as much again.

    glibc would give large blocks back to the operating system, and get them again page by page, zeroed: a step with
    91M parameters then takes 60,000 page faults, an eighth of its time. Other C libraries are left as they are.
    """
    try:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    except TypeError:  # Windows has no handle for "the libraries of this process"
        return
    if mallopt is not None:
        mallopt(TRIM_THRESHOLD, -1)  # the end of the heap is never given back
        mallopt(MMAP_THRESHOLD, LARGEST_IN_HEAP)  # what lies outside the heap is always given back
