"""What does a lone writer pay that waits for the receipt of each 4 KiB write?

`submit_pwrite` and `received()` in a loop, against os.pwrite + os.fdatasync at the end of a file
that grows, and in a file that is full already.
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

BLOCK, N = 4096, 500
DATA = np.random.default_rng(44).bytes(BLOCK)


def build(work: Work) -> dict[str, Side]:
    """All write the same blocks."""
    path, full = work.file(16 * MIB, "alone"), work.file(16 * MIB, "alone-full")
    growing = os.open(work.root / "alone-growing", os.O_RDWR | os.O_CREAT)
    fd = os.open(full, os.O_RDWR)
    os.pwrite(fd, bytes(BLOCK * N), 0)
    os.fsync(fd)
    f = iolift.open(path, "r+", journal=work.root / "alone.journal")

    def journalled() -> None:
        for i in range(N):
            f.submit_pwrite(DATA, i * BLOCK).received()

    def synced(handle: int) -> None:
        for i in range(N):
            os.pwrite(handle, DATA, i * BLOCK)
            os.fdatasync(handle)

    def empty() -> None:
        os.ftruncate(growing, 0)
        os.fsync(growing)

    journalled()
    f.flush()
    assert os.pread(f.fileno(), BLOCK * N, 0) == DATA * N
    return {
        "os.pwrite + os.fdatasync, growing": Side(N, lambda: synced(growing), before=empty),
        "os.pwrite + os.fdatasync, full": Side(N, lambda: synced(fd)),
        "iolift": Side(N, journalled, before=f.checkpoint),
    }


QUESTIONS = [
    Question(
        "journal_alone",
        "one writer, submit_pwrite + received() of 4 KiB",
        build,
        (
            Ask("os.pwrite + os.fdatasync, growing", at_most=1.0),
            Ask("os.pwrite + os.fdatasync, full", at_most=1.1),
        ),
    ),
]


def test_journal_alone(benchmark, side) -> None:
    """One side of the question."""
    benchmark_side(benchmark, side)
