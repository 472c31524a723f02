"""How often does a coalescer wake up that nobody uses any more?

A fresh process uses one - threads, asyncio, reads, writes, syncs - and then waits for its standard
input, with the coalescer open or with an event loop running too. Meanwhile the context switches of
all its threads are read, twice, a second apart, from /proc/PID/task/*/status: what did not run did
not switch.

`python bench/bench_window_idle.py CASE PATH` is that process.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from _measure import Count, Tally, benchmark_count
from _work import MIB

if TYPE_CHECKING:
    from _work import Work

SIZE, BLOCK, SETTLE_S, WATCH_S = 64 * MIB, 4096, 1.0, 2.0
CASES = {
    "threads": "blocked in the main thread",
    "asyncio": "an event loop waits",
    "posix": "backend posix",
}


def use(f: Any) -> None:
    """Threads that read, write and sync."""
    offsets = range(0, 256 * BLOCK, BLOCK)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda offset: f.pread(BLOCK, offset), offsets))
        list(pool.map(lambda offset: f.pwrite(bytes(BLOCK), offset), offsets))
    for offset in offsets:
        f.submit_pwrite(bytes(64), offset)
    f.sync()


async def use_and_wait(f: Any) -> None:
    """Tasks that read, and then an event loop with nothing to do but to watch its input."""
    await asyncio.gather(*(asyncio.wait_for(f.submit_pread(BLOCK, 0), 5) for _ in range(100)))
    f.submit_pwrite(bytes(64), 0)
    await f.submit_sync()
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sys.stdin, done.set)
    print("ready", flush=True)
    await done.wait()


def probe(case: str, path: str) -> None:
    """The process that is watched."""
    import iolift

    with iolift.open(path, "r+", backend="posix" if case == "posix" else "auto") as f:
        use(f)
        if case == "asyncio":
            asyncio.run(use_and_wait(f))
        else:
            print("ready", flush=True)
            sys.stdin.read()


def switches(pid: int) -> dict[str, int]:
    """Context switches so far of each thread of the process."""
    found = {}
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        lines = [line for line in status.read_text().splitlines() if "ctxt_switches" in line]
        found[status.parent.name] = sum(int(line.split()[1]) for line in lines)
    return found


def count(work: Work, case: str) -> Tally:
    """Switches per second of the watched process."""
    command = [sys.executable, __file__, case, str(work.file(SIZE, "idle"))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        ready = process.stdout.readline()
        if ready != "ready\n":
            raise RuntimeError(f"the watched process said {ready!r}")
        time.sleep(SETTLE_S)
        before = switches(process.pid)
        time.sleep(WATCH_S)
        after = switches(process.pid)
    finally:
        process.stdin.close()
        process.wait(30)
        process.stdout.close()
    # A thread that has ended meanwhile woke up for that.
    woken = sum(
        after.get(tid, before.get(tid, 0) + 1) - before.get(tid, 0) for tid in before | after
    )
    per_second = woken / WATCH_S
    return Tally(per_second, f"{per_second:g} per s, {len(after)} threads", "0 per s")


QUESTIONS = [
    Count(
        f"window_idle_{case}",
        f"wake-ups of an idle coalescer, {how}",
        partial(count, case=case),
        "0 per s",
        0,
    )
    for case, how in CASES.items()
]


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda q: q.key)
def test_window_idle(benchmark, work, question) -> None:
    """The number is in extra_info."""
    benchmark_count(benchmark, question, work)


if __name__ == "__main__":
    probe(sys.argv[1], sys.argv[2])
