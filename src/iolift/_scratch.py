"""Scratch memory for surfaces that read many ranges at once and give each as bytes of its own.

Slices of an mmap are bytes, at half the price of those of a memoryview, and it begins where the
kernel copies fast. To map it and touch it first costs as much as a dozen reads: so some are kept.

Who may call: any thread; who has borrowed one has it alone.
"""

from __future__ import annotations

import mmap
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# Smaller stays in the CPU's cache, larger keeps the device busy: between 1 and 8 MiB it is all one.
SCRATCH = 4 << 20
MOST_IDLE = 4
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS

_idle: list[mmap.mmap] = []


@contextmanager
def borrowed_scratch() -> Iterator[mmap.mmap]:
    """SCRATCH bytes of memory, with whatever the last one left in them."""
    try:
        scratch = _idle.pop()
    except IndexError:
        scratch = mmap.mmap(-1, SCRATCH, flags=PRIVATE)
    try:
        yield scratch
    finally:
        if len(_idle) < MOST_IDLE:
            _idle.append(scratch)
