"""Goal: threads and event loops that all read and write the same cells, and nobody sees a lie.

Each write brings a value of its own to a run of cells of eight bytes. A counter that all share says
when a request was submitted and when its result was there. Afterwards:

1. the answers of all requests can be explained by an order of them in which each takes its place
   between the begin and the end of its submission (`linear.unlinearizable`): no read returns what
   was overwritten before it began, nor what was written after it ended; so one thread's own
   requests are in the order of their submission, and what was cancelled was never there;
2. another descriptor sees at least what results and flushes have promised (`linear.stale`);
3. every ticket has resolved, a cancelled read's buffer is untouched, and in the end the file is
   what a last read says.

The disk may be slow, short, busy and shuffle, but it fails nothing for good.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import random
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
from linear import CELL, History, stale, unlinearizable
from soak_round import draw_disk, draw_options, takes_direct

import iolift

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from faulty import FaultyDisk

try:
    import uvloop
except ImportError:
    uvloop = None

UNTOUCHED = 0xA5A5A5A5A5A5A5A5
RUNS = [1, 1, 1, 2, 3, 8, 64, 512]
PARKED = "parked"


class Deed:
    """A request: its cells, when it was submitted, and what came of it.

    value: what a write brings; seen: what a read got; there: from when on a write's bytes have
    to be in the file (-1: nobody was told).
    """

    __slots__ = ("begin", "buffer", "end", "file", "first", "n", "seen", "there", "ticket", "value")

    def __init__(self, file: int, first: int, n: int, value: int, begin: int) -> None:
        self.file, self.first, self.n, self.value, self.begin = file, first, n, value, begin
        self.end = self.there = -1
        self.seen = self.ticket = self.buffer = None


class SharedRound:
    """One coalescer, files of cells, workers that share them; `play()` raises what is wrong."""

    def __init__(self, backend: str, seed: str, count: int, directory: Path) -> None:
        self.chance = chance = random.Random(seed)
        self.directory = directory
        self.direct = chance.random() < 0.2 and takes_direct(directory)
        self.options = draw_options(chance)
        self.disk = None
        if backend == "hosted":
            self.disk = draw_disk(chance, self.options["gap"], self.direct)
        self.backend = backend
        self.cells = chance.choice([4, 64, 512, 8192])
        self.runs = [n for n in RUNS if n <= self.cells // 2]
        kinds: list[Callable[[Worker], None]] = [Worker.run_thread, Worker.run_loop]
        self.plan = [chance.choice(kinds) for _ in range(chance.choice([1, 2, 2, 3, 4]))]
        self.count = count // len(self.plan)
        self.tick = itertools.count().__next__
        self.files: list[Any] = []
        self.looks: list[int] = []

    def __str__(self) -> str:
        said = f"{self.options}, direct={self.direct}, {self.cells} cells in {len(self.files)}"
        return f"{said} files, {[run.__name__ for run in self.plan]}"

    def play(self) -> int:
        try:
            with iolift.Coalescer(**self.options, backend=self.disk or self.backend) as self.c:
                self.begin()
                workers = [Worker(self, k) for k in range(len(self.plan))]
                self.in_threads(workers)
                self.conclude(workers)
            if self.disk is not None:
                self.disk.check()
        except BaseException as error:
            error.add_note(str(self))
            raise
        finally:
            for look in self.looks:
                os.close(look)
        return self.count * len(self.plan)

    def begin(self) -> None:
        for k in range(self.chance.choice([1, 1, 2])):
            path = self.directory / f"cells{k}"
            path.unlink(missing_ok=True)
            path.write_bytes(bytes(self.cells * CELL))
            self.files.append(self.c.open(path, "r+", direct=self.direct))
            self.looks.append(os.open(path, os.O_RDONLY))
        if self.disk is not None and self.chance.random() < 0.5:
            trouble(self.chance, self.disk)

    def in_threads(self, workers: list[Worker]) -> None:
        failures: list[BaseException] = []
        start = threading.Barrier(len(workers))

        def work(worker: Worker, run: Callable[[Worker], None]) -> None:
            try:
                start.wait()
                run(worker)
            except BaseException as error:
                failures.append(error)

        pairs = zip(workers, self.plan, strict=True)
        threads = [threading.Thread(target=work, args=pair) for pair in pairs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]

    def conclude(self, workers: list[Worker]) -> None:
        self.c._check()
        self.c.flush()
        for worker in workers:
            worker.keep_order(self.tick())
        for k, f in enumerate(self.files):
            begin = self.tick()
            last = np.frombuffer(f.pread(self.cells * CELL, 0), np.uint64)
            end = self.tick()
            found = np.frombuffer(os.pread(self.looks[k], self.cells * CELL, 0), np.uint64)
            assert (last == found).all(), f"file {k} at the end, cell {np.argmax(last != found)}"
            deeds = [d for w in workers for d in w.deeds if d.file == k]
            flushes = np.array([s for w in workers for s in w.flushes if s[0] == k], np.int64)
            history, there = History(), []
            for deed in deeds:
                written = deed.seen is None
                values = np.full(deed.n, deed.value, np.uint64) if written else deed.seen
                assert len(values) == deed.n, f"{len(values)} of {deed.n} cells"
                history.note(deed.first, values, deed.begin, deed.end, written)
                there.append(earliest(deed, flushes) if written else -1)
            history.note(0, last, begin, end, False)
            wrong = unlinearizable(history, self.cells)
            assert not wrong, f"file {k}, {wrong}"
            looks = History()
            for w in workers:
                for file, first, values, a, b in w.looks:
                    if file == k:
                        looks.note(first, values, a, b, False)
            wrong = stale(history, looks, np.array([*there, -1]), self.cells)
            assert not wrong, f"file {k}, {wrong}"
        for f in self.files:
            f.close()  # reads that were dropped are over, too
        stats = self.c.stats()
        assert (stats.held_requests, stats.held_bytes, stats.batches_in_flight) == (0, 0, 0), stats
        for w in workers:
            for buffer, then in w.cancelled:
                assert (buffer == then).all(), "a cancelled read touched its buffer"


def trouble(chance: random.Random, disk: FaultyDisk) -> None:
    disk.shorten("random", times=chance.choice([10, 1000]))
    for _ in range(3):
        disk.fail(chance.choice([errno.EINTR, errno.EAGAIN]), at=chance.randrange(200), times=5)


def earliest(deed: Deed, flushes: np.ndarray) -> int:
    """From when on it has to be in the file: its own result, or a flush that began after it."""
    after = flushes[flushes[:, 1] > deed.end, 2] if len(flushes) else flushes
    moments = [int(after.min())] if len(after) else []
    return min([*moments, *([deed.there] if deed.there >= 0 else [])], default=-1)


def cell_value(number: int) -> int:
    """So that bytes of two values are no third one: where a write comes short, whoever reads past
    iolift sees a cell that is half written."""
    return number << 32 | number * 0x9E3779B1 & 0xFFFFFFFF


class Worker:
    """What one thread, or the tasks of one event loop, does to the files."""

    def __init__(self, r: SharedRound, number: int) -> None:
        self.r, self.c, self.tick, self.cells = r, r.c, r.tick, r.cells
        self.chance = random.Random(r.chance.randrange(1 << 30))
        self.values = map(cell_value, itertools.count(((number + 1) << 24) + 1))
        self.deeds: list[Deed] = []
        self.flushes: list[tuple[int, int, int]] = []
        self.looks: list[tuple[int, int, np.ndarray, int, int]] = []
        self.cancelled: list[tuple[np.ndarray, np.ndarray]] = []
        n = r.count * 40 + 4000
        dice = np.random.default_rng(self.chance.randrange(1 << 30))
        runs = np.array(r.runs)[dice.integers(0, len(r.runs), n)]
        hot = dice.integers(0, self.cells, 4)
        firsts = np.where(dice.random(n) < 0.6, hot[dice.integers(0, 4, n)],
                          dice.integers(0, self.cells, n))  # fmt: skip
        self.places = zip(np.minimum(firsts, self.cells - runs).tolist(), runs.tolist(),
                          dice.integers(0, len(r.files), n).tolist(), strict=True)  # fmt: skip
        self.dice: Iterator[int] = iter(dice.integers(0, 1 << 30, n).tolist())
        # What was submitted in this order must take effect in it.
        self.order: list[Deed] = []

    # ------------------------------------------------------------------------------ one request

    def submit(self) -> Deed:
        first, n, file = next(self.places)
        f, luck, tick = self.r.files[file], next(self.dice), self.tick
        if luck & 1:
            value = next(self.values)
            data = value.to_bytes(CELL, "little") * n
            deed = Deed(file, first, n, value, tick())
            if luck & 2:
                deed.ticket = f.submit_pwrite(data, first * CELL)
            else:
                memory = bytearray(data)
                deed.ticket = f.submit_pwrite(memory, first * CELL)
                memory[:] = bytes(len(memory))
        elif luck & 2:
            deed = Deed(file, first, n, 0, tick())
            deed.ticket = f.submit_pread(n * CELL, first * CELL)
        else:
            buffer = np.full(n, UNTOUCHED, np.uint64)
            deed = Deed(file, first, n, 0, tick())
            deed.ticket = f.submit_pread(n * CELL, first * CELL, into=buffer)
            deed.buffer = buffer
        # A ticket that is parked has its place in the order, but what it meets is not yet known.
        if deed.ticket.state != PARKED:
            deed.end = tick()
        return deed

    def made(self, deed: Deed, result: Any) -> None:
        """Its result is there."""
        deed.there = self.tick()
        if deed.end < 0:
            deed.end = deed.there
        deed.ticket = None
        size = deed.n * CELL
        if deed.value:
            assert result == size, f"{result} of {size}"
        elif deed.buffer is not None:
            assert result == size, f"{result} of {size}"
            deed.seen = deed.buffer
        else:
            assert len(result) == size, f"{len(result)} of {size}"
            deed.seen = np.frombuffer(result, np.uint64)
        self.deeds.append(deed)

    def withdrawn(self, deed: Deed) -> None:
        """It was never made: a value that is seen nevertheless is one that nobody wrote."""
        assert deed.ticket.cancelled(), deed.ticket.state
        assert deed.ticket.done(), deed.ticket.state
        if deed.buffer is not None:
            self.cancelled.append((deed.buffer, deed.buffer.copy()))

    def dropped(self, deed: Deed) -> None:
        """Nobody asks for its result; a write comes all the same."""
        deed.ticket = None
        if deed.value:
            self.deeds.append(deed)

    def at_once(self) -> None:
        """A call that returns when it is done."""
        kind = next(self.dice) % 6
        first, n, file = next(self.places)
        f, at, size = self.r.files[file], first * CELL, n * CELL
        ranges = [(first, n)]
        if kind >= 4:
            ranges = [next(self.places)[:2] for _ in range(next(self.dice) % 6)]
        where, sizes = [a * CELL for a, _ in ranges], [k * CELL for _, k in ranges]
        values = [next(self.values) for _ in ranges]
        rows = [v.to_bytes(CELL, "little") * k for v, (_, k) in zip(values, ranges, strict=True)]
        deeds, got = [], b""
        begin = self.tick()
        if kind == 0:
            got = f.pread(size, at)
        elif kind == 1:
            memory = [bytearray(CELL), bytearray(size - CELL)]
            f.preadv(memory, at)
            got = b"".join(memory)
        elif kind == 4:
            got = f.read_ranges(where, sizes).tobytes()
        elif kind == 2:
            f.pwrite(rows[0], at)
        elif kind == 3:
            f.pwritev([rows[0][:CELL], rows[0][CELL:]], at)
        else:
            f.write_ranges(where, b"".join(rows), lengths=sizes)
        end = self.tick()
        for (a, k), value in zip(ranges, values, strict=True):
            deed = Deed(file, a, k, value, begin)
            deed.end = deed.there = end
            if kind in (0, 1, 4):
                deed.seen, got = np.frombuffer(got[: k * CELL], np.uint64), got[k * CELL :]
            deeds.append(deed)
        self.deeds += deeds

    def flush(self) -> None:
        luck = next(self.dice)
        file = luck % len(self.r.files)
        begin = self.tick()
        if luck & 64:
            self.c.flush()
        elif luck & 32 and (luck & 1024 or self.r.disk):
            self.r.files[file].sync()
        else:
            self.r.files[file].flush()
        self.flushes.append((file, begin, self.tick()))

    def look(self) -> None:
        """As another process would read it: past iolift, under the nose of its writes."""
        first, n, file = next(self.places)
        if not self.r.direct:
            begin = self.tick()
            data = os.pread(self.r.looks[file], n * CELL, first * CELL)
            self.looks.append((file, first, np.frombuffer(data, np.uint64), begin, self.tick()))

    def check(self) -> None:
        self.c._check()
        stats = self.c.stats()
        assert stats.held_bytes <= max(self.r.options["max_held_bytes"], 512 * CELL), stats
        assert stats.held_requests <= self.r.options["max_held_requests"], stats

    # --------------------------------------------------------------------------------- a thread

    def run_thread(self) -> None:
        pending: list[Deed] = []
        dice = self.dice
        for _ in range(self.r.count):
            luck = next(dice) % 100
            if luck < 60 or not pending:
                pending.append(self.submit())
            elif luck < 88:
                k = next(dice) % len(pending)
                pending[k], pending[-1] = pending[-1], pending[k]
                deed = pending.pop()
                if luck < 75:
                    self.made(deed, deed.ticket.result())
                elif luck < 82:
                    self.dropped(deed)
                elif deed.ticket.cancel():
                    self.withdrawn(deed)
                else:
                    pending.append(deed)
            elif luck < 93:
                self.at_once()
            elif luck < 97:
                self.look()
            elif luck < 99:
                self.flush()
            else:
                self.check()
        for deed in pending:
            self.made(deed, deed.ticket.result())

    # ----------------------------------------------------------------------------- an event loop

    def run_loop(self) -> None:
        make = uvloop.new_event_loop if uvloop and self.chance.random() < 0.5 else None
        with asyncio.Runner(loop_factory=make) as runner:
            runner.run(self.tasks())

    async def tasks(self) -> None:
        count = self.chance.choice([1, 2, 8, 30])
        await asyncio.gather(*[self.task(self.r.count // count) for _ in range(count)])

    async def task(self, count: int) -> None:
        dice = self.dice
        while count > 0:
            luck = next(dice) % 100
            burst = [self.submit() for _ in range(1 + next(dice) % (20 if luck & 1 else 3))]
            self.order += burst
            count -= len(burst)
            if luck < 40:
                for deed in burst:
                    self.made(deed, await deed.ticket)
            elif luck < 60:
                results = await asyncio.gather(*[deed.ticket for deed in burst])
                for deed, result in zip(burst, results, strict=True):
                    self.made(deed, result)
            elif luck < 75:
                for deed in burst:
                    await self.give_up(deed)
            elif luck < 85:
                await self.change_of_mind(burst, turns=luck % 3)
            elif luck < 90:
                for deed in burst:
                    self.dropped(deed)
            elif luck < 95:
                for deed in burst:
                    if deed.ticket.cancel():
                        self.withdrawn(deed)
                    else:
                        self.made(deed, await deed.ticket)
            else:
                for deed in burst:
                    self.made(deed, await deed.ticket)
                self.between(luck)

    def between(self, luck: int) -> None:
        """Calls that block the loop: foolish, but answered."""
        if luck == 95:
            self.at_once()
        elif luck == 96:
            self.flush()
        elif luck == 97:
            self.check()
        else:
            self.look()

    async def give_up(self, deed: Deed) -> None:
        """No patience at all: the ticket is cancelled, unless it is too late for that."""
        try:
            if next(self.dice) & 3:
                async with asyncio.timeout(0):
                    result = await deed.ticket
            else:
                result = await asyncio.wait_for(awaiting(deed.ticket), 0)
        except TimeoutError:
            await self.settled(deed)
        else:
            self.made(deed, result)

    async def change_of_mind(self, burst: list[Deed], turns: int) -> None:
        """Tasks that await the tickets are cancelled, after some turns of the loop."""
        tasks = [asyncio.ensure_future(awaiting(deed.ticket)) for deed in burst]
        for _ in range(turns):
            await asyncio.sleep(0)
        for task in tasks[:: 1 + next(self.dice) % 2]:
            task.cancel()
        for deed, task in zip(burst, tasks, strict=True):
            try:
                self.made(deed, await task)
            except asyncio.CancelledError:
                await self.settled(deed)

    async def settled(self, deed: Deed) -> None:
        if deed.ticket.cancelled():
            self.withdrawn(deed)
            return
        with contextlib.suppress(asyncio.CancelledError):
            self.made(deed, await deed.ticket)
            return
        self.withdrawn(deed)

    def keep_order(self, now: int) -> None:
        """One that was parked took effect before whatever the same loop has submitted later."""
        latest: dict[int, int] = {}
        made = set(map(id, self.deeds))
        for deed in self.deeds:
            deed.end = deed.end if deed.end >= 0 else now
        for deed in reversed([deed for deed in self.order if id(deed) in made]):
            deed.end = min(deed.end, latest.get(deed.file, deed.end))
            latest[deed.file] = deed.end


async def awaiting(ticket: Any) -> Any:
    return await ticket
