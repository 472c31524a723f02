"""What does a batch of random records cost a training loop, cold?

`__getitems__` of 4096 distinct 4 KiB records of a 2 GiB file, other ones in every round, the page
cache emptied before each (and shown to be empty by mincore). Every side gives a list of 4096
samples whose bytes are in memory: np.memmap a copy of each slice (a view would only promise
them), the others what they read. "direct" passes the page cache by.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from _cold import BLOCK, SIZE, Draw
from _measure import Ask, Question, Side, benchmark_side

if TYPE_CHECKING:
    from collections.abc import Callable

    from _work import Work

BATCH, THREADS = 4096, 32


def dataset(path: Path, **options: Any) -> Callable[[Any], Any]:
    """`__getitems__` of the example."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))
    from record_dataset import RecordDataset

    return RecordDataset(path, **options).__getitems__


def build(work: Work) -> dict[str, Side]:
    """The sides; on one batch they agree."""
    path = work.file(SIZE)
    np.save(f"{path}.index.npy", np.arange(0, SIZE + BLOCK, BLOCK))
    draw = Draw(work, path, lambda rng: rng.choice(SIZE // BLOCK, BATCH, replace=False))
    fd = os.open(path, os.O_RDONLY)
    pool = ThreadPoolExecutor(THREADS)

    def pread(index: int) -> bytes:
        return os.pread(fd, BLOCK, index * BLOCK)

    def memmap(indices: list[int]) -> list[Any]:
        # Mapped in the round, which is nothing beside it: pages that are mapped can't be dropped.
        memory = np.memmap(path, np.uint8, "r").reshape(-1, BLOCK)
        return [memory[i].copy() for i in indices]

    calls = {
        "iolift": dataset(path),
        "direct": dataset(path, direct=True),
        "np.memmap": memmap,
        "os.pread loop": lambda indices: [pread(i) for i in indices],
        "ThreadPool(32), os.pread": lambda indices: list(pool.map(pread, indices)),
    }
    indices = list(range(0, 40_000, 397))
    found = {name: [bytes(s) for s in call(indices)] for name, call in calls.items()}
    assert all(samples == found["os.pread loop"] for samples in found.values())

    def side(call: Callable[[Any], Any]) -> Side:
        return Side(BATCH, lambda: call((draw.offsets // BLOCK).tolist()), draw.again)

    return {name: side(call) for name, call in calls.items()}


QUESTIONS = [
    Question(
        "dataset",
        "a batch of 4096 random 4 KiB records in 2 GiB, cold",
        build,
        (
            Ask("np.memmap", at_least=5),
            Ask("ThreadPool(32), os.pread", at_least=1.5),
            Ask("os.pread loop"),
            Ask("ThreadPool(32), os.pread", us="direct"),
        ),
    ),
]


def test_dataset(benchmark, side) -> None:
    """One side of one question."""
    benchmark_side(benchmark, side, rounds=3)
