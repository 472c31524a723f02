"""Do 32 threads that block in `pread` read a cold file faster through a window than by os.pread?

2 GiB file, 20k random 4 KiB blocks, all distinct or by Zipf's law with exponent 1.1 (half of the
requests ask for a hundred blocks), the page cache emptied before each turn. The peer is what is
usually written, `ThreadPoolExecutor(32)` over os.pread. "32 threads, os.pread" has no executor:
each thread has its share of the offsets, as ours do. With O_DIRECT every repeated block costs the
peer another read of the disk.
"""

from __future__ import annotations

import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from _cold import BLOCK, REQUESTS, SIZE, Draw, distinct, zipf
from _crowd import threads
from _measure import Ask, Question, Side, benchmark_side

import iolift

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from _work import Work

THREADS = 32


def shared_out(draw: Draw, make: Callable[[int], Callable[[int], object]]) -> Callable[[], float]:
    """A run in which thread i calls what `make(i)` returned for every 32nd offset."""

    def run() -> float:
        parts = [draw.offsets[i::THREADS].tolist() for i in range(THREADS)]

        def caller(i: int) -> None:
            read = make(i)
            for offset in parts[i]:
                read(offset)

        return threads(THREADS, caller)

    return run


def pooled(draw: Draw, read: Callable[[int], object]) -> Callable[[], None]:
    """A run in which the executor's threads call `read` for every offset."""

    def run() -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(read, draw.offsets.tolist()):
                pass

    return run


def direct_reader(fd: int) -> Callable[[int], object]:
    """os.pread's equal with O_DIRECT: a page-aligned buffer, used again."""
    buffer = [mmap.mmap(-1, BLOCK)]
    return lambda offset: os.preadv(fd, buffer, offset)


def build(
    work: Work, choose: Callable[[np.random.Generator], Any], direct: bool
) -> dict[str, Side]:
    """The same draw of blocks for all."""
    path = work.file(SIZE)
    draw = Draw(work, path, choose)
    f = iolift.open(path, direct=direct)
    fd = f.fileno()

    def through_window(offset: int) -> bytes:
        return f.pread(BLOCK, offset)

    def plain(offset: int) -> bytes:
        return os.pread(fd, BLOCK, offset)

    draw.again()
    with path.open("rb") as file:
        for offset in draw.offsets.tolist()[::97]:
            assert through_window(offset) == os.pread(file.fileno(), BLOCK, offset), offset

    def reader(i: int) -> Callable[[int], object]:
        return direct_reader(fd) if direct else plain

    runs = {
        "iolift": shared_out(draw, lambda i: through_window),
        "32 threads, os.pread": shared_out(draw, reader),
        "ThreadPool(32), f.pread": pooled(draw, through_window),
    }
    if not direct:
        runs["ThreadPool(32), os.pread"] = pooled(draw, plain)
    return {name: Side(REQUESTS, run, draw.again) for name, run in runs.items()}


EXECUTOR, BARE, OURS = "ThreadPool(32), os.pread", "32 threads, os.pread", "ThreadPool(32), f.pread"
QUESTIONS = [
    Question(
        "window_threads_distinct",
        "32 threads, blocking pread, cold, distinct blocks",
        partial(build, choose=distinct, direct=False),
        (Ask(EXECUTOR, at_least=1), Ask(EXECUTOR, us=OURS), Ask(BARE)),
    ),
    Question(
        "window_threads_zipf",
        "32 threads, blocking pread, cold, Zipf(1.1) blocks",
        partial(build, choose=zipf, direct=False),
        (Ask(EXECUTOR, at_least=2), Ask(EXECUTOR, us=OURS), Ask(BARE)),
    ),
    Question(
        "window_threads_direct_distinct",
        "32 threads, blocking pread, O_DIRECT, distinct blocks",
        partial(build, choose=distinct, direct=True),
        (Ask(BARE),),
    ),
    Question(
        "window_threads_direct_zipf",
        "32 threads, blocking pread, O_DIRECT, Zipf(1.1) blocks",
        partial(build, choose=zipf, direct=True),
        (Ask(BARE),),
    ),
]


def test_window_threads(benchmark, side) -> None:
    """One side of one question."""
    benchmark_side(benchmark, side, rounds=3)
