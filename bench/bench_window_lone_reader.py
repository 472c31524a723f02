"""How long does a lone reader wait at worst beside a writer that floods the window?

One thread reads 4 KiB at a time with `f.pread` and pauses for 1 ms, 1000 times over; another writes
4 KiB blocks to other places of the same file as fast as it can, for as long as that takes: with
`submit_pwrite`, or with os.pwrite. The figure is the 99th percentile of the reads. Warm: all is in
the page cache. Cold: the blocks to read are not. Direct: reads and writes, of both writers, are
O_DIRECT.
"""

from __future__ import annotations

import mmap
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from _crowd import threads
from _measure import Ask, Question, Side, benchmark_side
from _work import MIB

import iolift

if TYPE_CHECKING:
    from collections.abc import Callable

    from _work import Work

SIZE, FLOODED, BLOCK, READS, PAUSE_S = 512 * MIB, 64 * MIB, 4096, 1000, 0.001


def p99_beside(read: Callable[[int], object], write: Callable[[int], object]) -> float:
    """The reader's 99th percentile in seconds, while the writer writes."""
    rng = np.random.default_rng(43)
    reads = (rng.integers(FLOODED // BLOCK, SIZE // BLOCK, READS) * BLOCK).tolist()
    writes = (rng.integers(0, FLOODED // BLOCK, 100_000) * BLOCK).tolist()
    waits: list[float] = []
    clock = time.perf_counter

    def reader() -> None:
        for offset in reads:
            time.sleep(PAUSE_S)
            began = clock()
            read(offset)
            waits.append(clock() - began)

    def writer() -> None:
        while True:
            for offset in writes:
                write(offset)
                if len(waits) == READS:
                    return

    threads(2, lambda i: (reader, writer)[i]())
    return float(np.percentile(waits, 99))


def build(work: Work, mode: str) -> dict[str, Side]:
    """The reader is ours on every side; only the writer differs."""
    path = work.file(SIZE)
    data = np.random.default_rng(47).bytes(BLOCK)
    f = iolift.open(path, "r+", direct=mode == "direct")
    aligned = mmap.mmap(-1, BLOCK)
    aligned[:] = data

    def read(offset: int) -> bytes:
        return f.pread(BLOCK, offset)

    def flood(offset: int) -> None:
        f.submit_pwrite(data, offset)

    def plain(offset: int) -> None:
        os.pwrite(f.fileno(), aligned, offset)

    def idle(offset: int) -> None:
        time.sleep(PAUSE_S)

    def settle() -> None:
        f.sync()
        if mode == "warm":
            work.warm(path)
        else:
            work.drop(path)

    def side(write: Callable[[int], Any]) -> Side:
        return Side(1, lambda: p99_beside(read, write), settle)

    return {
        "beside submit_pwrite": side(flood),
        "beside os.pwrite": side(plain),
        "beside nobody": side(idle),
    }


QUESTIONS = [
    Question(
        f"window_lone_reader_{mode}",
        f"p99 of a lone reader, {mode}",
        partial(build, mode=mode),
        (
            Ask("beside os.pwrite", at_most=2, us="beside submit_pwrite"),
            Ask("beside nobody", us="beside submit_pwrite"),
        ),
    )
    for mode in ("warm", "cold", "direct")
]


def test_window_lone_reader(benchmark, side) -> None:
    """One side of one question."""
    benchmark_side(benchmark, side, rounds=3)
