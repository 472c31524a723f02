"""What does a batch of cached reads cost, against an os.pread loop and a C program that sorts?

256 MiB file in the page cache, 4 KiB requests, `out` given. The rows begin at a page boundary
for every side that takes rows; "(out=numpy.empty)" is the same work into a plain numpy array,
whose data begins 16 bytes after one, where the kernel's copy is slow on some CPUs. os.pread's
results are dropped at once (its best case: always the same hot 4 KiB).
"""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from _measure import Ask, Question, Side, benchmark_side
from _work import MIB, UnavailableError, page_aligned

import iolift

if TYPE_CHECKING:
    from collections.abc import Callable

    from _work import Work

SIZE, BLOCK = 256 * MIB, 4096
BLOCKS = SIZE // BLOCK
FSSPEC_AT_MOST = 2_000  # fsspec takes so long per range that a sample is enough


def loops(offsets: Any) -> int:
    """5000 requests are over in 3 ms: too short for one measurement."""
    return 1 if len(offsets) > 50_000 else 4


def c_program(work: Work, fd: int, offsets: Any, rows: Any) -> Side:
    """The sorted, merged preadv in C."""
    kernel = work.sorted_preadv
    return Side(len(offsets), lambda: kernel(fd, offsets, rows), loops=loops(offsets))


def pread_loop(fd: int, offsets: list[int]) -> Side:
    """What everybody writes first."""

    def run() -> None:
        for offset in offsets:
            os.pread(fd, BLOCK, offset)

    return Side(len(offsets), run, loops=loops(offsets))


def thread_pool(fd: int, offsets: list[int], threads: int) -> Side:
    """What everybody writes second."""

    def run() -> None:
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(lambda offset: os.pread(fd, BLOCK, offset), offsets, chunksize=1):
                pass

    return Side(len(offsets), run)


def libraries(path: Any, offsets: list[int]) -> dict[str, Side]:
    """The peers that are packages, as far as they are installed."""
    sides = {}
    with contextlib.suppress(ImportError):
        import obstore
        from obstore.store import LocalStore

        store, lengths = LocalStore(str(path.parent)), [BLOCK] * len(offsets)

        def ranges() -> None:
            obstore.get_ranges(store, path.name, starts=offsets, lengths=lengths, coalesce=0)

        sides["obstore coalesce=0"] = Side(len(offsets), ranges, loops=loops(offsets))
    with contextlib.suppress(ImportError):
        import fsspec

        fs, some = fsspec.filesystem("file"), offsets[:FSSPEC_AT_MOST]
        paths, ends = [str(path)] * len(some), [offset + BLOCK for offset in some]
        sides["fsspec cat_ranges"] = Side(len(some), lambda: fs.cat_ranges(paths, some, ends))
    return sides


def build(choose: Callable[[np.random.Generator], Any]) -> Callable[[Work], dict[str, Side]]:
    """The sides for the offsets that `choose` makes."""

    def sides(work: Work) -> dict[str, Side]:
        path = work.file(SIZE)
        work.warm(path)
        offsets = np.ascontiguousarray(choose(np.random.default_rng(7)), np.int64)
        n, listed, again = len(offsets), offsets.tolist(), loops(offsets)
        rows, shifted = page_aligned(n, BLOCK), page_aligned(n, BLOCK, shift=16)
        f = iolift.open(path)
        fd = f.fileno()
        result = {
            "iolift": Side(n, lambda: f.read_ranges(offsets, BLOCK, out=rows), loops=again),
            "iolift, out=numpy.empty": Side(
                n, lambda: f.read_ranges(offsets, BLOCK, out=shifted), loops=again
            ),
            "os.pread loop": pread_loop(fd, listed),
            "ThreadPool(8)": thread_pool(fd, listed, 8),
            **libraries(path, listed),
        }
        with contextlib.suppress(UnavailableError):
            result["C program"] = c_program(work, fd, offsets, rows)
            result["C program, out=numpy.empty"] = c_program(work, fd, offsets, shifted)
        check(result, fd, listed, rows, shifted)
        return result

    return sides


def check(sides: dict[str, Side], fd: int, offsets: list[int], rows: Any, shifted: Any) -> None:
    """Sides that fill rows fill them with what os.pread says (a sample), or there is no figure."""
    sample = range(0, len(offsets), max(1, len(offsets) // 500))
    for name, side in sides.items():
        if name.startswith(("iolift", "C program")):
            target = shifted if name.endswith("numpy.empty") else rows
            target[:] = 0xA5
            side.run()
            for i in sample:
                assert target[i].tobytes() == os.pread(fd, BLOCK, offsets[i]), (name, i)


PLAIN = "out=numpy.empty"
SHOWN = (
    Ask(f"C program, {PLAIN}", us=f"iolift, {PLAIN}"),
    Ask("fsspec cat_ranges"),
)

QUESTIONS = [
    Question(
        "warm_random",
        "read_ranges, warm, 100k random 4 KiB in 256 MiB",
        build(lambda rng: rng.integers(0, BLOCKS, 100_000) * BLOCK),
        (
            Ask("os.pread loop", at_most=0.6),
            Ask("C program", at_most=1.15),
            Ask("obstore coalesce=0"),
            Ask("ThreadPool(8)"),
            *SHOWN,
        ),
    ),
    Question(
        "warm_unaligned",
        "read_ranges, warm, 100k random 4 KiB at any byte",
        build(lambda rng: rng.integers(0, SIZE - BLOCK, 100_000)),
        (Ask("os.pread loop"), Ask("C program")),
    ),
    Question(
        "warm_adjacent",
        "read_ranges, warm, 5000 adjacent 4 KiB",
        build(lambda rng: np.arange(5_000) * BLOCK),
        (
            Ask("obstore coalesce=0", at_least=1),
            Ask("os.pread loop"),
            Ask("C program"),
            *SHOWN,
        ),
    ),
    Question(
        "warm_distinct",
        "read_ranges, warm, 5000 of 50 distinct 4 KiB",
        build(lambda rng: rng.choice(rng.permutation(BLOCKS)[:50], 5_000) * BLOCK),
        (
            Ask("obstore coalesce=0", at_least=1),
            Ask("os.pread loop"),
            Ask("C program"),
            *SHOWN,
        ),
    ),
]


def test_read_warm(benchmark, side) -> None:
    """One side of one question."""
    benchmark_side(benchmark, side)
