"""Tell glibc to keep the memory a training step frees, so that the next step need not fault it in again.

By default glibc maps each big buffer anew and gives it back at once; the page faults take a large part of a
step on a CPU (a third of it, in fp32 on two cores: docs/log.md). Keeping them costs memory, up to about 1 GB.
This module imports nothing heavy: it has its full effect before torch is imported.
"""

from __future__ import annotations

import ctypes
import os
import sys

# Parameters of mallopt(3), by their numbers in malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> bool:
    """Make malloc keep what is freed, for this process; return whether this system could do so.

    AUTOENCODE_KEEP_MEMORY=0 in the environment turns it off.
    """
    if not sys.platform.startswith("linux") or os.environ.get("AUTOENCODE_KEEP_MEMORY") == "0":
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library, such as musl
        return False
    # torch reads this when it allocates first: big tensors then lie on huge pages.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 256 << 20), (_M_ARENA_MAX, 1))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)
