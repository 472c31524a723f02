"""How many durable writes a second do 64 threads get that each wait for their own?

Each thread writes 4 KiB under its own key or place and waits until it is durable, 30 times, against
SQLite (WAL, synchronous=FULL, a connection for each thread), lmdb (sync) and rocksdict (WAL sync),
where these are installed.
"""

from __future__ import annotations

import sqlite3
import threading
from typing import TYPE_CHECKING

import numpy as np
from _crowd import threads
from _measure import Ask, Question, Side, benchmark_side
from _work import MIB, UnavailableError

import iolift

if TYPE_CHECKING:
    from collections.abc import Callable

    from _work import Work

BLOCK, THREADS, ROUNDS = 4096, 64, 30
N = THREADS * ROUNDS
DATA = np.random.default_rng(45).bytes(BLOCK)


def crowd(write: Callable[[int], object]) -> Side:
    """Each thread writes its own ROUNDS numbers."""

    def caller(i: int) -> None:
        for number in range(i * ROUNDS, (i + 1) * ROUNDS):
            write(number)

    return Side(N, lambda: threads(THREADS, caller))


def sqlite(work: Work) -> Side:
    """One connection per thread, kept open."""
    path = work.root / "threads.sqlite"
    local = threading.local()

    def connection() -> sqlite3.Connection:
        made = sqlite3.connect(path, timeout=300, isolation_level=None)
        made.execute("PRAGMA journal_mode=WAL")
        made.execute("PRAGMA synchronous=FULL")
        return made

    first = connection()
    first.execute("CREATE TABLE IF NOT EXISTS t (k INTEGER PRIMARY KEY, v BLOB)")
    first.close()

    def write(number: int) -> None:
        if not hasattr(local, "made"):
            local.made = connection()
        local.made.execute("INSERT OR REPLACE INTO t VALUES (?, ?)", (number, DATA))

    return crowd(write)


def lmdb_side(work: Work) -> Side:
    """One environment; its writers take turns."""
    try:
        import lmdb
    except ImportError:
        raise UnavailableError("lmdb is not installed") from None
    environment = lmdb.open(str(work.root / "threads.lmdb"), map_size=1 << 30)

    def write(number: int) -> None:
        with environment.begin(write=True) as transaction:
            transaction.put(number.to_bytes(8, "big"), DATA)

    return crowd(write)


def rocks(work: Work) -> Side:
    """One database; its writers commit in groups."""
    try:
        import rocksdict
    except ImportError:
        raise UnavailableError("rocksdict is not installed") from None
    database = rocksdict.Rdict(str(work.root / "threads.rocks"), rocksdict.Options(raw_mode=True))
    options = rocksdict.WriteOptions()
    options.sync = True

    def write(number: int) -> None:
        database.put(number.to_bytes(8, "big"), DATA, options)

    return crowd(write)


def build(work: Work) -> dict[str, Side]:
    """Peers that are not installed are left out."""
    f = iolift.open(work.file(16 * MIB, "threads"), "r+", journal=work.root / "threads.journal")
    ours = crowd(lambda number: f.submit_pwrite(DATA, number * BLOCK).received())
    ours.before = f.checkpoint
    sides = {"iolift": ours}
    for name, make in (("SQLite", sqlite), ("lmdb", lmdb_side), ("rocksdict", rocks)):
        try:
            sides[name] = make(work)
        except UnavailableError:
            continue
    return sides


QUESTIONS = [
    Question(
        "journal_threads",
        "64 threads, each waiting for its own durable 4 KiB write",
        build,
        (Ask("SQLite", at_least=5), Ask("lmdb", at_least=3), Ask("rocksdict", at_least=1.5)),
        slow=True,
    ),
]


def test_journal_threads(benchmark, side) -> None:
    """One side of the question."""
    benchmark_side(benchmark, side)
