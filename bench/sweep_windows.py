"""How long should a window hold? `python bench/sweep_windows.py [--rounds 5] [WORKLOAD ...]`.

Runs each workload where a hold can matter with every value of `read_window_us` or
`write_window_ms`, in turns (every value once, then again), and prints a table per option: a line
per value, a column per workload, in it the time per request and, in the same turn, its ratio to
that of the value that is the default now. The defaults are chosen from it: the least time of the
workloads with company, as long as those without ("lone") are not slower.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from _cold import BLOCK, SIZE
from _crowd import tasks, threads
from _measure import Side, show
from _work import MIB, work
from table import machine, say

import iolift

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from _work import Work

VALUES = {
    "read_window_us": (0, 10, 20, 50, 100, 200, 500, 1000, 2000),
    "write_window_ms": (0, 1, 2, 5, 10, 20, 50, 100, 200, 500),
}
WARM, RECORD, RECORDS = 256 * MIB, 64, 200_000


@dataclass
class Workload:
    """Work that one option may change: `make(file, work)` returns the side to time."""

    key: str
    option: str
    what: str
    make: Callable[[Any, Work], Side]
    size: int = SIZE
    direct: bool = False

    def side(self, place: Work, value: int | None) -> Side:
        """The side with this value of the option; None is the default."""
        path = place.file(self.size)
        options = {} if value is None else {self.option: value}
        return self.make(iolift.open(path, "r+", direct=self.direct, **options), place)


def blocks(size: int, n: int, seed: int) -> list[int]:
    """Random blocks of a file."""
    return (np.random.default_rng(seed).integers(0, size // BLOCK, n) * BLOCK).tolist()


def submit_bursts(f: Any, place: Work, n_threads: int, burst: int) -> Side:
    """Threads that submit some reads, wait for them, and submit again."""
    offsets = blocks(SIZE, 8192, 61)

    def caller(i: int) -> None:
        part = offsets[i::n_threads]
        for first in range(0, len(part), burst):
            tickets = [f.submit_pread(BLOCK, offset) for offset in part[first : first + burst]]
            for ticket in tickets:
                ticket.result()

    return Side(len(offsets), lambda: threads(n_threads, caller))


def blocking_reads(f: Any, place: Work, n_threads: int) -> Side:
    """Threads that block in pread."""
    offsets = blocks(SIZE, 4096 if n_threads > 1 else 512, 67)

    def caller(i: int) -> None:
        for offset in offsets[i::n_threads]:
            f.pread(BLOCK, offset)

    return Side(len(offsets), lambda: threads(n_threads, caller))


def task_reads(f: Any, place: Work, n_tasks: int) -> Side:
    """Tasks with one read after the other until none is left."""
    offsets = blocks(SIZE, 8192, 71)

    def run() -> float:
        todo = iter(offsets)

        async def worker() -> None:
            for offset in todo:
                await f.submit_pread(BLOCK, offset)

        return tasks(lambda: [worker() for _ in range(n_tasks)])

    return Side(len(offsets), run)


def trickling_reads(f: Any, place: Work) -> Side:
    """Tasks that read adjacent blocks of one region, each after a moment of its own."""
    rng = np.random.default_rng(73)
    pauses = rng.exponential(0.002, 2000).tolist()

    async def one(i: int) -> None:
        await asyncio.sleep(pauses[i])
        await f.submit_pread(BLOCK, i * BLOCK)

    return Side(len(pauses), lambda: tasks(lambda: [one(i) for i in range(len(pauses))]))


def warm_tasks(f: Any, place: Work) -> Side:
    """2000 tasks, one cached read each."""
    place.warm(place.file(WARM))
    offsets = blocks(WARM, 2000, 79)

    async def one(offset: int) -> None:
        await f.submit_pread(BLOCK, offset)

    return Side(5 * len(offsets), lambda: tasks(lambda: [one(o) for o in offsets], rounds=5))


def warm_lone(f: Any, place: Work) -> Side:
    """One thread, a cached read at a time, by ticket."""
    place.warm(place.file(WARM))
    offsets = blocks(WARM, 5000, 83)

    def run() -> None:
        for offset in offsets:
            f.submit_pread(BLOCK, offset).result()

    return Side(len(offsets), run)


def write_behind(f: Any, place: Work) -> Side:
    """A stream of small records by `write()`, flushed at the end."""
    record = bytes(range(RECORD))

    def run() -> None:
        f.seek(0)
        for _ in range(RECORDS):
            f.write(record)
        f.flush()

    return Side(RECORDS, run, f.sync)


def random_records(f: Any, place: Work, hot: int) -> Side:
    """Small records at random places of the first `hot` bytes, flushed at the end."""
    record = bytes(range(RECORD))
    slots = np.random.default_rng(89).integers(0, hot // RECORD, RECORDS)
    offsets = (slots * RECORD).tolist()

    def run() -> None:
        for offset in offsets:
            f.submit_pwrite(record, offset)
        f.flush()

    return Side(RECORDS, run, f.sync)


def lone_writes(f: Any, place: Work) -> Side:
    """One thread that waits for each write."""
    data, offsets = bytes(BLOCK), blocks(WARM, 2000, 97)

    def run() -> None:
        for offset in offsets:
            f.submit_pwrite(data, offset).result()

    return Side(len(offsets), run, f.sync)


def task_writes(f: Any, place: Work) -> Side:
    """64 tasks, each waiting for one small write after the other."""
    data, offsets = bytes(BLOCK), blocks(WARM, 8192, 101)

    def run() -> float:
        todo = iter(offsets)

        async def worker() -> None:
            for offset in todo:
                await f.submit_pwrite(data, offset)

        return tasks(lambda: [worker() for _ in range(64)])

    return Side(len(offsets), run, f.sync)


READ, WRITE = VALUES
WORKLOADS = (
    Workload("lone_warm", READ, "lone, warm", warm_lone, WARM),
    Workload("lone_cold", READ, "lone, direct", partial(blocking_reads, n_threads=1), direct=True),
    Workload("tasks_warm", READ, "2000 tasks, warm", warm_tasks, WARM),
    Workload("tasks", READ, "256 tasks, direct", partial(task_reads, n_tasks=256), direct=True),
    Workload("trickle", READ, "trickling neighbours, direct", trickling_reads, direct=True),
    Workload("threads", READ, "32 threads, direct", partial(blocking_reads, n_threads=32),
             direct=True),
    Workload("bursts", READ, "8 threads, bursts of 16, direct",
             partial(submit_bursts, n_threads=8, burst=16), direct=True),
    Workload("lone_write", WRITE, "lone, waited for", lone_writes, WARM),
    Workload("task_writes", WRITE, "64 tasks, waited for", task_writes, WARM),
    Workload("stream", WRITE, "records, write()", write_behind, WARM),
    Workload("records", WRITE, "records, random in 64 MiB",
             partial(random_records, hot=64 * MIB), WARM),
    Workload("rewrites", WRITE, "records, random in 1 MiB",
             partial(random_records, hot=MIB), WARM),
)  # fmt: skip


def sweep(workload: Workload, place: Work, rounds: int) -> dict[int | None, str]:
    """A cell per value of the option."""
    values = (None, *VALUES[workload.option])
    times: dict[int | None, list[float]] = {value: [] for value in values}
    sides = {value: workload.side(place, value) for value in values}
    for turn in range(rounds + 1):
        for value, side in sides.items():
            seconds = side.per_request()
            if turn:
                times[value].append(seconds)
    cells = {}
    for value, measured in times.items():
        ratio = statistics.median(a / b for a, b in zip(measured, times[None], strict=True))
        cells[value] = f"{show(statistics.median(measured))} ({ratio:.2f}x)"
    return cells


def table(option: str, columns: dict[str, dict[int | None, str]]) -> str:
    """Markdown: a line per value."""

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    lines = [line([option, *columns]), line(["---"] * (len(columns) + 1))]
    for value in (None, *VALUES[option]):
        name = "default" if value is None else str(value)
        lines.append(line([name, *(cells[value] for cells in columns.values())]))
    return "\n".join(lines)


def main() -> None:
    """Parses, sweeps, prints."""
    parser = argparse.ArgumentParser(description="Sweep the windows' times.")
    parser.add_argument("workloads", nargs="*", help="keys or their beginnings")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each value (default 5)")
    options = parser.parse_args()
    chosen = [w for w in WORKLOADS if w.key.startswith(tuple(options.workloads) or "")]
    with work(say) as place:
        print(machine(place))
        for option in VALUES:
            columns = {}
            for workload in chosen:
                if workload.option == option:
                    say(f"{option}: {workload.what}")
                    columns[workload.what] = sweep(workload, place, options.rounds)
            if columns:
                print(f"\n{table(option, columns)}", flush=True)


if __name__ == "__main__":
    main()
