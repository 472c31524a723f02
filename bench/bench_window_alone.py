"""What does one thread pay that reads or writes cached blocks one at a time, with nobody to merge?

256 MiB file in the page cache, 20k random 4 KiB requests, each waited for before the next. There
is nothing to gain here: the figure is what the window costs a caller who has no use for it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
from _measure import Ask, Question, Side, benchmark_side
from _work import MIB

import iolift

if TYPE_CHECKING:
    from _work import Work

SIZE, BLOCK, REQUESTS = 256 * MIB, 4096, 20_000


def draw() -> list[int]:
    """Random blocks of the file."""
    rng = np.random.default_rng(19)
    return (rng.integers(0, SIZE // BLOCK, REQUESTS) * BLOCK).tolist()


def build_reads(work: Work) -> dict[str, Side]:
    """Results are dropped at once, on every side."""
    path, offsets = work.file(SIZE), draw()
    work.warm(path)
    f = iolift.open(path)
    fd = f.fileno()

    def plain() -> None:
        for offset in offsets:
            os.pread(fd, BLOCK, offset)

    def pread() -> None:
        for offset in offsets:
            f.pread(BLOCK, offset)

    def ticket() -> None:
        for offset in offsets:
            f.submit_pread(BLOCK, offset).result()

    for offset in offsets[::200]:
        expected = os.pread(fd, BLOCK, offset)
        assert f.pread(BLOCK, offset) == f.submit_pread(BLOCK, offset).result() == expected
    return {
        "f.pread": Side(REQUESTS, pread, loops=5),
        "submit_pread().result()": Side(REQUESTS, ticket, loops=5),
        "os.pread": Side(REQUESTS, plain, loops=5),
    }


def build_writes(work: Work) -> dict[str, Side]:
    """One immutable block everywhere; the file is synced before each turn."""
    path, offsets = work.file(SIZE), draw()
    data = np.random.default_rng(23).bytes(BLOCK)
    f = iolift.open(path, "r+")
    fd = f.fileno()

    def plain() -> None:
        for offset in offsets:
            os.pwrite(fd, data, offset)

    def pwrite() -> None:
        for offset in offsets:
            f.pwrite(data, offset)

    def ticket() -> None:
        for offset in offsets:
            f.submit_pwrite(data, offset).result()

    def settle() -> None:
        os.fsync(fd)

    for write in (pwrite, ticket):
        for offset in offsets:
            os.pwrite(fd, bytes(BLOCK), offset)
        write()
        assert all(os.pread(fd, BLOCK, offset) == data for offset in offsets)
    return {
        "f.pwrite": Side(REQUESTS, pwrite, settle),
        "submit_pwrite().result()": Side(REQUESTS, ticket, settle),
        "os.pwrite": Side(REQUESTS, plain, settle),
    }


QUESTIONS = [
    Question(
        "window_alone_read",
        "one thread, warm 4 KiB reads one at a time",
        build_reads,
        (
            Ask("os.pread", at_most=1.3, us="f.pread"),
            Ask("os.pread", at_most=2, us="submit_pread().result()"),
        ),
    ),
    Question(
        "window_alone_write",
        "one thread, 4 KiB writes one at a time",
        build_writes,
        (
            Ask("os.pwrite", us="f.pwrite"),
            Ask("os.pwrite", us="submit_pwrite().result()"),
        ),
    ),
]


def test_window_alone(benchmark, side) -> None:
    """One side of one question."""
    benchmark_side(benchmark, side)
