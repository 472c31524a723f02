"""What do a million small writes cost that are submitted one by one and flushed at the end?

1M rows of 64 bytes, each into a random one of the 1Mi slots of a 64 MiB file in the page cache (0.6
of the slots get one, the last counts), against a loop of os.pwrite. Nobody keeps the tickets. "one
window" has bounds and a window wide enough for all of them: there a row that a later one covers is
never written. The file is synced before each turn, so that neither side pays for the other's dirty
pages.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from _measure import Ask, Count, Question, Side, Tally, benchmark_count, benchmark_side
from _work import MIB

import iolift

if TYPE_CHECKING:
    from pathlib import Path

    from _work import Work

SIZE, ROW, ROWS = 64 * MIB, 64, 1_000_000
WIDE = {"max_held_requests": 2 * ROWS, "max_held_bytes": 1024 * MIB, "write_window_ms": 60_000}


def draw() -> tuple[list[bytes], Any]:
    """The rows and their places."""
    rng = np.random.default_rng(13)
    offsets = rng.integers(0, SIZE // ROW, ROWS) * ROW
    data = rng.bytes(ROWS * ROW)
    return [data[i : i + ROW] for i in range(0, ROWS * ROW, ROW)], offsets


def submit_all(f: Any, pieces: list[bytes], offsets: list[int]) -> None:
    """The work of our side."""
    for piece, offset in zip(pieces, offsets, strict=True):
        f.submit_pwrite(piece, offset)
    f.flush()


def opened(path: Path, options: dict[str, int]) -> Any:
    """Our side's file."""
    return iolift.open(path, "r+", **options)


def build(work: Work) -> dict[str, Side]:
    """All write the same rows; their files are compared byte by byte."""
    path = work.file(SIZE, "rows")
    pieces, array = draw()
    offsets = array.tolist()
    plain = path.open("r+b", buffering=0)
    fd = plain.fileno()

    def loop() -> None:
        for piece, offset in zip(pieces, offsets, strict=True):
            os.pwrite(plain.fileno(), piece, offset)

    def settle() -> None:
        os.fsync(fd)

    before = path.read_bytes()
    loop()
    expected = path.read_bytes()
    sides = {"os.pwrite loop": Side(ROWS, loop, settle)}
    for name, options in (("iolift", {}), ("one window", WIDE)):
        f = opened(path, options)
        path.write_bytes(before)
        submit_all(f, pieces, offsets)
        assert path.read_bytes() == expected
        sides[name] = Side(ROWS, partial(submit_all, f, pieces, offsets), settle)
    return sides


def count_written(work: Work, options: dict[str, int]) -> Tally:
    """Bytes handed to the file, of those that somebody could ever see again."""
    path = work.file(SIZE, "rows")
    pieces, array = draw()
    f = opened(path, options)
    c = f.coalescer
    submit_all(f, pieces, array.tolist())
    stats = c.stats()
    f.close()
    unique = len(np.unique(array)) * ROW
    assert stats.bytes_written + stats.bytes_superseded == ROWS * ROW
    shown = (
        f"{stats.bytes_written / unique:.3f} of the unique bytes,"
        f" {stats.bytes_superseded / MIB:.1f} MiB superseded, {stats.batches} batches"
    )
    return Tally(stats.bytes_written / unique, shown, f"os.pwrite: {ROWS * ROW / unique:.3f}")


QUESTIONS = [
    Question(
        "window_small_writes",
        "1M submit_pwrite of 64 B, random in 64 MiB, then flush",
        build,
        (
            Ask("os.pwrite loop", at_least=2),
            Ask("os.pwrite loop", us="one window"),
        ),
        most_rounds=3,
    ),
    Count(
        "window_small_written",
        "the same: bytes written",
        partial(count_written, options={}),
        most_rounds=1,
    ),
    Count(
        "window_small_written_once",
        "the same, one window: bytes written",
        partial(count_written, options=WIDE),
        "each byte once",
        1.001,  # an idle device may take the first row at once
        most_rounds=1,
    ),
]


def test_window_small_writes(benchmark, side) -> None:
    """One side of the question."""
    benchmark_side(benchmark, side, rounds=3)


@pytest.mark.parametrize(
    "question", [q for q in QUESTIONS if isinstance(q, Count)], ids=lambda q: q.key
)
def test_window_small_written(benchmark, work, question) -> None:
    """The number is in extra_info."""
    benchmark_count(benchmark, question, work)
