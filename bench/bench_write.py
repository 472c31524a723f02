"""What does a batch of small scattered writes cost, against a loop of os.pwrite?

1M random rows of 64 bytes into a 64 MiB file in the page cache: each row into one of the file's 1Mi
slots (0.6 of them get one, the last counts), and, to see what alignment does, at any byte. The file
is synced before each turn, so that neither side pays for the other's dirty pages. The loop's pieces
are `bytes` made beforehand.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from _measure import Ask, Question, Side, benchmark_side
from _work import MIB, page_aligned

import iolift

if TYPE_CHECKING:
    from _work import Work

SIZE, ROW, ROWS = 64 * MIB, 64, 1_000_000


def build(work: Work, step: int) -> dict[str, Side]:
    """Both write the same rows at the same places, where a later row lies over an earlier one."""
    path = work.file(SIZE, "rows")
    rng = np.random.default_rng(13)
    offsets = rng.integers(0, (SIZE - ROW) // step + 1, ROWS) * step
    data = page_aligned(ROWS, ROW)
    data[:] = np.frombuffer(rng.bytes(ROWS * ROW), np.uint8).reshape(ROWS, ROW)
    pieces, listed = [row.tobytes() for row in data], offsets.tolist()
    f = iolift.open(path, "r+")
    fd = f.fileno()

    def loop() -> None:
        for piece, offset in zip(pieces, listed, strict=True):
            os.pwrite(fd, piece, offset)

    before = path.read_bytes()
    loop()
    expected = path.read_bytes()
    path.write_bytes(before)
    f.write_ranges(offsets, data)
    assert path.read_bytes() == expected

    def settle() -> None:
        os.fsync(fd)

    return {
        "iolift": Side(ROWS, lambda: f.write_ranges(offsets, data), settle),
        "os.pwrite loop": Side(ROWS, loop, settle),
    }


QUESTIONS = [
    Question(
        "write_rows",
        "write_ranges, 1M random 64 B rows into 64 MiB",
        partial(build, step=ROW),
        (Ask("os.pwrite loop", at_least=3),),
        most_rounds=3,
    ),
    Question(
        "write_any",
        "write_ranges, 1M random 64 B rows at any byte of 64 MiB",
        partial(build, step=1),
        (Ask("os.pwrite loop"),),
        slow=True,
        most_rounds=3,
    ),
]


def test_write(benchmark, side) -> None:
    """One side of one question."""
    benchmark_side(benchmark, side, rounds=3)
