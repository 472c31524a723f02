"""What does a batch of reads from the disk cost, against fio's io_uring and asyncio's caio?

2 GiB file, 20k distinct random 4 KiB blocks of it, other ones in every round, the page cache
emptied before each (and shown to be empty by mincore). fio reads as many blocks of the same
file, chosen the same way, with its own clock: its start is not counted. caio runs at its best
of what was tried (32..512 workers, SQPOLL or not, deferred or not): 256 workers with one
submission per event-loop turn; 32 workers, the same depth as fio's, are shown too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from _cold import BLOCK, REQUESTS, SIZE, Draw, fio
from _measure import Ask, Question, Side, benchmark_side
from _work import page_aligned

import iolift

if TYPE_CHECKING:
    from pathlib import Path

    from _work import Work


def ours(path: Path, draw: Draw, rows: Any, **options: Any) -> Side:
    """`read_ranges` into page-aligned rows; the first run is compared with os.pread."""
    f = iolift.open(path, **options)
    draw.again()
    f.read_ranges(draw.offsets, BLOCK, out=rows)
    with path.open("rb") as plain:
        for i in range(0, REQUESTS, 97):
            assert rows[i].tobytes() == os.pread(plain.fileno(), BLOCK, int(draw.offsets[i])), i

    def run() -> None:
        f.read_ranges(draw.offsets, BLOCK, out=rows)

    return Side(REQUESTS, run, draw.again)


def build_direct(work: Work) -> dict[str, Side]:
    """O_DIRECT, at fio's depths and at our own default."""
    path = work.file(SIZE)
    draw, rows = Draw(work, path), page_aligned(REQUESTS, BLOCK)
    sides = {"iolift": ours(path, draw, rows, direct=True)}
    for depth in (32, 128):
        sides[f"depth {depth}"] = ours(path, draw, rows, direct=True, depth=depth)
        if shutil.which("fio"):
            sides[f"fio depth {depth}"] = fio(path, depth, draw, direct=True)
    return sides


def caio_workers(fd: int, draw: Draw, workers: int) -> Side:
    """asyncio tasks, each with one read under way on caio's io_uring context until none is left."""
    from caio.linux_uring_asyncio import AsyncioContext

    async def main() -> None:
        context = AsyncioContext(max_requests=512, sqpoll=False, deferred=True)
        todo = iter(draw.offsets.tolist())

        async def worker() -> None:
            for offset in todo:
                await context.read(BLOCK, fd, offset)

        await asyncio.gather(*(worker() for _ in range(workers)))
        context.close()

    return Side(REQUESTS, lambda: asyncio.run(main()), draw.again)


def build_buffered(work: Work) -> dict[str, Side]:
    """Through the page cache, cold."""
    path = work.file(SIZE)
    draw, rows = Draw(work, path), page_aligned(REQUESTS, BLOCK)
    fd = os.open(path, os.O_RDONLY)

    def pread_loop() -> None:
        for offset in draw.offsets.tolist():
            os.pread(fd, BLOCK, offset)

    def thread_pool() -> None:
        with ThreadPoolExecutor(32) as pool:
            for _ in pool.map(lambda offset: os.pread(fd, BLOCK, offset), draw.offsets.tolist()):
                pass

    sides = {
        "iolift": ours(path, draw, rows),
        "depth 256": ours(path, draw, rows, depth=256),
        "os.pread loop": Side(REQUESTS, pread_loop, draw.again),
        "ThreadPool(32)": Side(REQUESTS, thread_pool, draw.again),
    }
    with contextlib.suppress(ImportError):
        sides["caio, 256 workers"] = caio_workers(fd, draw, 256)
        sides["caio, 32 workers"] = caio_workers(fd, draw, 32)
    if shutil.which("fio"):
        sides["fio buffered, depth 128"] = fio(path, 128, draw, direct=False)
    return sides


QUESTIONS = [
    Question(
        "cold_direct",
        "read_ranges, cold, O_DIRECT, 20k random 4 KiB in 2 GiB",
        build_direct,
        (
            Ask("fio depth 32", at_least=0.9, us="depth 32"),
            Ask("fio depth 32"),
            Ask("fio depth 128", us="depth 128"),
        ),
    ),
    Question(
        "cold_buffered",
        "read_ranges, cold, buffered, 20k random 4 KiB in 2 GiB",
        build_buffered,
        (
            Ask("caio, 256 workers", at_least=1.4),
            Ask("caio, 32 workers", at_least=1.4),
            Ask("caio, 256 workers", us="depth 256"),
            Ask("fio buffered, depth 128"),
            Ask("ThreadPool(32)"),
            Ask("os.pread loop"),
        ),
    ),
]


def test_read_cold(benchmark, side) -> None:
    """One side of one question."""
    benchmark_side(benchmark, side, rounds=3)
