"""How much memory there is and is in use; and how freed memory goes back to the system.

Main memory only: what a GPU has, torch says.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import sys

import psutil

# mallopt's parameters (malloc.h), and how much the heap grows at a time, in bytes.
_M_TOP_PAD, _M_MMAP_THRESHOLD = -2, -3
_TOP_PAD = 64 << 20


def available_memory() -> int:
    """Bytes that can be allocated now without making the machine swap."""
    return psutil.virtual_memory().available


def total_memory() -> int:
    """Bytes of main memory in this machine."""
    return psutil.virtual_memory().total


def process_memory() -> int:
    """Resident bytes of this process now."""
    return psutil.Process().memory_info().rss


def peak_process_memory() -> int:
    """The largest number of resident bytes of this process so far."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def use_huge_pages() -> None:
    """Ask torch to put tensors of 2 MiB and more on huge pages (Linux), in this process.

    Memory that comes fresh from the system for each activation costs a fault a page; with pages
    500 times as large, element by element operations take half their time. Only before the first
    tensor is made: torch looks once.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def return_large_blocks(size: int = 512 << 10) -> bool:
    """Give blocks of `size` bytes and more pages of their own, from now on, in this process.

    glibc raises that limit to 32 MiB by itself, and activations of ever new sizes leave holes on
    its heap between those that are kept: a fifth to two fifths of the peak. Costs 5 to 20 % of
    speed, for pages that are new each time: where all activations have a few sizes, say one above
    those. Returns whether the C library could be told.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    settings = ((_M_MMAP_THRESHOLD, size), (_M_TOP_PAD, _TOP_PAD))
    return all(libc.mallopt(parameter, value) == 1 for parameter, value in settings)


def return_free_memory() -> None:
    """Give back what nothing holds any more, where the C library knows how."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
