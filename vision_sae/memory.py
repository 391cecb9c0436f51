"""How the C library treats memory that is freed."""

import ctypes
import os
from contextlib import suppress

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt(3)
KEPT, LARGEST = 2**31 - 1, 2**25  # bytes; glibc takes no more for either
ENVIRONMENT = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")


def keep_freed() -> bool:
    """Tell glibc to keep what is freed for what is needed next, instead of giving it back.

    A denoiser frees and asks for the same large blocks at every step, and each time the system has
    to clear their pages. Costs the memory of the largest step for as long as the process lives.
    Returns whether it was told: not where the C library is another one, nor where the environment
    says what to do.
    """
    if any(name in os.environ for name in ENVIRONMENT):
        return False
    with suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(TRIM_THRESHOLD, KEPT) and mallopt(MMAP_THRESHOLD, LARGEST))
    return False
