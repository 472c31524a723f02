"""What do ten thousand random durable 4 KiB writes cost that are submitted at once?

Until the last one is received, against os.pwrite + os.fdatasync of each into the same places of a
file that is full already, and against the bandwidth of sequential 1 MiB writes, each with its
os.fdatasync, into a file that was written before. The peer of one sync per write does a tenth of
them, and its time is per write.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
from _measure import Ask, Question, Side, benchmark_side
from _work import MIB

import iolift
from iolift._journal import SPARES

if TYPE_CHECKING:
    from _work import Work

SIZE, BLOCK, N = 256 * MIB, 4096, 10_000
DATA = np.random.default_rng(41).bytes(BLOCK)
CHUNK = np.random.default_rng(42).bytes(MIB)


def build(work: Work) -> dict[str, Side]:
    """What the journal received is in the file at the end."""
    places = (np.random.default_rng(43).permutation(SIZE // BLOCK)[:N] * BLOCK).tolist()
    path, whole = work.file(SIZE, "burst"), work.file(SIZE, "burst-whole")
    f = iolift.open(path, "r+", journal=work.root / "burst.journal")
    fd, one = f.fileno(), os.open(whole, os.O_RDWR)

    def journalled() -> None:
        tickets = [f.submit_pwrite(DATA, place) for place in places]
        for ticket in tickets:
            ticket.received()

    def each() -> None:
        for place in places[: N // 10]:
            os.pwrite(one, DATA, place)
            os.fdatasync(one)

    def sequential() -> None:
        for offset in range(0, N * BLOCK, MIB):
            os.pwrite(one, CHUNK, offset)
            os.fdatasync(one)

    def quiet() -> None:
        # The file gets what it was promised, the journal is empty again, and the segments that it
        # makes ready in the background after that are there: this waits for them.
        f.checkpoint()
        f._journal.prepare_ahead(SPARES)

    journalled()
    f.flush()
    assert all(os.pread(fd, BLOCK, place) == DATA for place in places[::97])
    return {
        "os.pwrite + os.fdatasync each": Side(N // 10, each),
        "sequential 1 MiB + os.fdatasync": Side(N, sequential),
        "iolift": Side(N, journalled, before=quiet),
    }


QUESTIONS = [
    Question(
        "journal_burst",
        "10,000 random durable 4 KiB writes at once, all received",
        build,
        (
            Ask("os.pwrite + os.fdatasync each", at_least=25),
            Ask("sequential 1 MiB + os.fdatasync", at_least=0.6),
        ),
    ),
]


def test_journal_burst(benchmark, side) -> None:
    """One side of the question."""
    benchmark_side(benchmark, side)
