"""Reads from the disk: which blocks a round reads, with the cache emptied before, and fio as peer.

1. Every round reads other blocks of one 2 GiB file: distinct ones, or drawn by Zipf's law.
2. fio reads as many, chosen the same way, with its own clock: its start is not counted.
"""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import numpy as np
from _measure import Side
from _work import MIB

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from _work import Work

SIZE, BLOCK, REQUESTS = 2048 * MIB, 4096, 20_000
BLOCKS = SIZE // BLOCK


def distinct(rng: np.random.Generator) -> Any:
    """REQUESTS block numbers, no two the same."""
    return rng.choice(BLOCKS, REQUESTS, replace=False)


def zipf(rng: np.random.Generator) -> Any:
    """REQUESTS block numbers by Zipf's law with exponent 1.1; the popular ones lie anywhere."""
    weight = np.cumsum(np.arange(1, BLOCKS + 1) ** -1.1)
    ranks = np.searchsorted(weight, rng.random(REQUESTS) * weight[-1])
    return rng.permutation(BLOCKS)[ranks]


class Draw:
    """The blocks of this round: `again()` is a side's `before`, with the cache emptied."""

    def __init__(
        self,
        work: Work,
        path: Path,
        choose: Callable[[np.random.Generator], Any] = distinct,
    ) -> None:
        self._work, self._path, self._choose = work, path, choose
        self._rng = np.random.default_rng(11)
        self.offsets: Any = np.empty(0, np.int64)

    def again(self) -> None:
        """Other blocks, none of them cached."""
        self.offsets = self._choose(self._rng).astype(np.int64) * BLOCK
        self._work.drop(self._path)


def fio(path: Path, depth: int, draw: Draw, direct: bool) -> Side:
    """fio's io_uring engine, by its own clock."""
    options = {
        "filename": path, "size": SIZE, "rw": "randread", "bs": BLOCK, "ioengine": "io_uring",
        "iodepth": depth, "direct": int(direct), "number_ios": REQUESTS, "randrepeat": 0,
        "output-format": "json", "name": "peer",
    }  # fmt: skip
    command = ["fio", "--readonly", *(f"--{key}={value}" for key, value in options.items())]

    def run() -> float:
        done = subprocess.run(command, check=True, capture_output=True, cwd=path.parent)
        read = json.loads(done.stdout)["jobs"][0]["read"]
        assert read["total_ios"] == REQUESTS
        return REQUESTS / float(read["iops"])

    return Side(REQUESTS, run, draw.again)
