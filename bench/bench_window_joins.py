"""How often does the disk read each block that 64 tasks ask for at about the same time?

1000 distinct random 4 KiB blocks, 64 tasks that read all of them, O_DIRECT: what the page cache
would hide is counted. In "one by one" each task awaits a block before it asks for the next; in "all
at once" each asks for all 1000 and then awaits them: 256 MiB, for which the coalescer gets room.
The trace of its I/Os is counted: an I/O counts once for each of the blocks it covers, so merging
neighbours makes the figure no better. One by one without joining it would be 64.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from _crowd import tasks
from _measure import Count, Tally, benchmark_count
from _work import MIB

import iolift

if TYPE_CHECKING:
    from _work import Work

SIZE, BLOCK, BLOCKS, TASKS = 256 * MIB, 4096, 1000, 64
ASKED = 1.05


def reads_per_block(trace: Any, offsets: Any) -> float:
    """How many of the traced reads cover a block, on average of the blocks asked for."""
    begins = trace[trace[:, 0] == 0, 1]
    ends = begins + trace[trace[:, 0] == 0, 2]
    begins.sort()
    ends.sort()
    covering = np.searchsorted(begins, offsets, "right") - np.searchsorted(ends, offsets, "right")
    assert covering.min() >= 1
    return float(covering.mean())


def count(work: Work, at_once: bool) -> Tally:
    """One run on a coalescer of its own."""
    path = work.file(SIZE)
    rng = np.random.default_rng(31)
    offsets = rng.choice(SIZE // BLOCK, BLOCKS, replace=False) * BLOCK
    listed = offsets.tolist()
    with path.open("rb") as plain:
        expected = [os.pread(plain.fileno(), BLOCK, offset) for offset in listed]
    with iolift.Coalescer(max_held_bytes=512 * MIB) as c:
        f = c.open(path, direct=True)

        async def reader() -> None:
            if at_once:
                tickets = [f.submit_pread(BLOCK, offset) for offset in listed]
                assert [await ticket for ticket in tickets] == expected
            else:
                for offset, data in zip(listed, expected, strict=True):
                    assert await f.submit_pread(BLOCK, offset) == data

        c.trace_start()
        tasks(lambda: [reader() for _ in range(TASKS)])
        trace = c.trace_stop()
    value = reads_per_block(trace, offsets)
    shown = f"{value:.3f} reads per block, in {np.count_nonzero(trace[:, 0] == 0)} I/Os"
    return Tally(value, shown, f"without joining: {TASKS}")


QUESTIONS = [
    Count(
        f"window_joins_{key}",
        f"64 tasks read the same 1000 blocks, {how}",
        partial(count, at_once=at_once),
        f"<= {ASKED:g} reads per block",
        ASKED,
    )
    for key, how, at_once in (("turns", "one by one", False), ("at_once", "all at once", True))
]


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda q: q.key)
def test_window_joins(benchmark, work, question) -> None:
    """The number is in extra_info."""
    benchmark_count(benchmark, question, work)
