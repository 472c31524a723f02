"""Goal: a ticket can be awaited on any event loop, and no request costs a thread or a wake-up.

The same on asyncio and uvloop, and on trio by add_done_callback. Where order matters the disk has
a gate (see gated.py); nothing here waits for time to pass.
"""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
import uvloop
from gated import MS, WRITE_WINDOW_MS

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

CONTENT = bytes(range(256)) * 400


async def wait(ticket: Any) -> Any:
    return await ticket


LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """run(coroutine) -> its result, on a fresh loop of each kind."""

    def run_it(coroutine: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            return runner.run(coroutine)

    return run_it


def test_await(backend: Any, make_file: Any, run: Any) -> None:
    path, content = make_file(100_000)

    async def main() -> None:
        with backend.open(path, "r+") as f:
            assert await f.submit_pread(100, 50) == content[50:150]
            assert await f.submit_pwrite(b"new", 60) == 3
            assert await f.submit_pread(100, 50) == content[50:60] + b"new" + content[63:150]
            assert await f.submit_sync() is None
            memory = bytearray(10)
            assert await f.submit_pread(10, 99_995, into=memory) == 5
            ticket = f.submit_pread(5, 0)
            assert await ticket == await ticket == ticket.result() == content[:5]

    run(main())
    assert path.read_bytes() == content[:60] + b"new" + content[63:]


def test_two_thousand_at_once(backend: Any, make_file: Any, run: Any) -> None:
    path, content = make_file(2_000_000)

    async def main() -> None:
        with backend.open(path) as f:
            places = [(k * 7919) % 1_990_000 for k in range(2000)]
            got = await asyncio.gather(*[f.submit_pread(4096, place) for place in places])
            for place, data in zip(places, got, strict=True):
                assert data == content[place : place + 4096]
            stats = f.coalescer.stats()
            assert stats.requests == 2000
            assert stats.batches < 200, "few batches, not one for each"

    run(main())


def test_many_await_one_ticket(rig: Any, run: Any) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.occupy()

    async def main() -> None:
        ticket = f.submit_pread(10, 0)
        assert await asyncio.gather(*[wait(ticket) for _ in range(20)]) == [CONTENT[:10]] * 20
        assert ticket.explain().hold_ended_by == "turn"

    run(main())


def test_errors_are_the_awaiters(rig: Any, run: Any) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.disk.bad(100, 200)

    async def main() -> None:
        tickets = [f.submit_pread(10, 0), f.submit_pread(10, 100), f.submit_pwrite(b"x", 150)]
        got = await asyncio.gather(*tickets, return_exceptions=True)
        assert got[0] == CONTENT[:10]
        assert [type(e) for e in got[1:]] == [OSError, OSError]
        with pytest.raises(OSError, match="Input/output"):
            await tickets[1]

    run(main())
    f.flush()


# ------------------------------------------------------------------------------------ cancelling


def test_a_cancelled_task_withdraws_its_request(rig: Any, run: Any) -> None:
    r = rig(depth=1)
    f = r.open(CONTENT)
    r.occupy()
    memory = bytearray(b"untouched!")

    async def main() -> None:
        write = f.submit_pwrite(b"never", 0)
        read = f.submit_pread(10, 100, into=memory)
        kept = f.submit_pread(10, 200)
        tasks = [asyncio.ensure_future(wait(t)) for t in (write, read, kept)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        tasks[0].cancel()
        tasks[1].cancel()
        await asyncio.gather(*tasks[:2], return_exceptions=True)
        assert all(task.cancelled() for task in tasks[:2])
        assert write.cancelled()
        assert read.cancelled()
        assert not kept.done()
        with pytest.raises(asyncio.CancelledError):
            await write
        r.disk.open()
        assert await tasks[2] == CONTENT[200:210]

    run(main())
    f.flush()
    assert r.path().read_bytes() == CONTENT
    assert memory == b"untouched!"


def test_a_cancelled_task_leaves_a_ticket_that_others_await(rig: Any, run: Any) -> None:
    r = rig(depth=1)
    f = r.open(CONTENT)
    r.occupy()

    async def main() -> None:
        ticket = f.submit_pread(10, 0)
        tasks = [asyncio.ensure_future(wait(ticket)) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        tasks[2].cancel()
        await asyncio.gather(tasks[0], tasks[2], return_exceptions=True)
        assert tasks[0].cancelled()
        assert not ticket.cancelled()
        r.disk.open()
        assert await tasks[1] == CONTENT[:10]

    run(main())


def test_a_task_cancelled_too_late_ends_and_its_write_stays(rig: Any, run: Any) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.disk.close()

    async def main() -> None:
        ticket = f.submit_pwrite(b"written", 0)
        task = asyncio.ensure_future(wait(ticket))
        await asyncio.sleep(0)
        r.disk.arrived(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ticket.state == "flying"
        r.disk.open()
        assert await ticket == 7

    run(main())
    assert r.path().read_bytes()[:7] == b"written"


def test_timeouts(rig: Any, run: Any) -> None:
    r = rig(depth=1)
    f = r.open(CONTENT)
    r.occupy()

    async def main() -> None:
        tickets = [f.submit_pread(10, 10 * k) for k in range(3)]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(tickets[0], 0.001)
        assert tickets[0].cancelled()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await tickets[1]
        assert tickets[1].cancelled()
        r.disk.open()
        assert await asyncio.wait_for(tickets[2], 1000) == CONTENT[20:30]
        assert await asyncio.shield(f.submit_pread(3, 0)) == CONTENT[:3]

    run(main())


def test_a_task_group(rig: Any, run: Any) -> None:
    """One fails: the others are cancelled, and so are their requests."""
    r = rig(depth=1)
    f = r.open(CONTENT)
    r.occupy()

    async def fail() -> None:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    async def main() -> None:
        tickets = [f.submit_pwrite(b"x", 10 * k) for k in range(5)]

        async def together() -> None:
            async with asyncio.TaskGroup() as group:
                for ticket in tickets:
                    group.create_task(wait(ticket))
                group.create_task(fail())

        with pytest.raises(ExceptionGroup) as caught:
            await together()
        assert [type(e) for e in caught.value.exceptions] == [ZeroDivisionError]
        assert all(t.cancelled() for t in tickets)

    run(main())
    r.disk.open()
    f.flush()
    assert r.path().read_bytes() == CONTENT


# ----------------------------------------------------------------------------- loops and threads


def test_two_loops_on_one_file(backend: Any, make_file: Any) -> None:
    """Each sees its own writes, and both the same file."""
    path, content = make_file(80_000)
    failures: list[BaseException] = []
    with backend.open(path, "r+") as f:

        async def main(own: int) -> None:
            for turn in range(30):
                data = bytes([turn * 2 + own]) * 40
                places = [(2 * k + own) * 40 for k in range(50)]
                for place in places:
                    f.submit_pwrite(data, place)
                got = await asyncio.gather(*[f.submit_pread(40, place) for place in places])
                assert got == [data] * 50
                await f.submit_pread(1000, 10_000)

        def work(own: int, make: Any) -> None:
            try:
                with asyncio.Runner(loop_factory=make) as runner:
                    runner.run(main(own))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=pair) for pair in enumerate(LOOPS.values())]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
    rows = b"".join(bytes([58 + k % 2]) * 40 for k in range(100))
    assert path.read_bytes() == rows + content[4000:]


def test_no_thread_and_no_wake_up_for_each_request(rig: Any, run: Any) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.occupy()
    before = len(os.listdir("/proc/self/task"))
    wakes = 0

    async def one(offset: int) -> Any:
        return await f.submit_pread(10, offset)

    async def main() -> None:
        nonlocal wakes
        loop = asyncio.get_running_loop()
        tasks = [asyncio.ensure_future(one(20 * k)) for k in range(1000)]
        real = loop.call_soon_threadsafe
        if isinstance(loop, asyncio.BaseEventLoop):

            def counting(*args: Any, **options: Any) -> Any:
                nonlocal wakes
                wakes += 1
                return real(*args, **options)

            loop.call_soon_threadsafe = counting
        await asyncio.gather(*tasks)
        assert len(os.listdir("/proc/self/task")) <= before + 3

    run(main())
    assert wakes <= 3


def test_full_bounds_park_and_the_loop_goes_on(rig: Any, run: Any) -> None:
    r = rig(max_held_requests=10, depth=1)
    f = r.open(CONTENT)
    r.disk.close()

    async def main() -> None:
        writes = [f.submit_pwrite(b"%4d" % k, 4 * k) for k in range(30)]
        reads = [f.submit_pread(4, 4 * k) for k in range(30)]
        states = [t.state for t in writes + reads]
        assert states.count("parked") >= 50
        assert "parked" not in states[:5]
        assert states == sorted(states, key=lambda s: s == "parked"), "in order"
        assert writes[-1].cancel(), "one that is parked can be withdrawn"
        assert writes[-1].cancelled()
        r.c._check()
        turns = 0
        for _ in range(10):
            await asyncio.sleep(0)
            turns += 1
        assert turns == 10, "the loop was never blocked"
        assert r.c.stats().held_requests <= 10
        r.disk.open()
        assert await asyncio.gather(*writes[:-1]) == [4] * 29
        got = await asyncio.gather(*reads)
        assert got == [b"%4d" % k for k in range(29)] + [CONTENT[116:120]]

    run(main())
    f.flush()
    assert r.c.stats().held_requests == 0


def test_a_thread_waits_where_a_loop_parks(rig: Any) -> None:
    r = rig(max_held_requests=4)
    f = r.open(CONTENT)
    r.disk.close()
    submitted = []
    thread = threading.Thread(
        target=lambda: submitted.extend(f.submit_pwrite(b"data", 4 * k) for k in range(40))
    )
    thread.start()
    r.disk.arrived(1)
    assert r.c.stats().held_requests <= 4
    r.disk.open()
    thread.join()
    assert [t.result() for t in submitted] == [4] * 40
    r.c._check()


def test_a_blocking_call_on_the_loop_is_answered_though_tickets_are_parked(rig: Any) -> None:
    """Foolish, but no deadlock: what was parked before has its place before it."""
    r = rig(max_held_requests=4, clock=False)
    f = r.open(CONTENT)

    async def main() -> None:
        tickets = [f.submit_pwrite(b"%4d" % k, 0) for k in range(20)]
        assert f.pread(4, 0) == b"  19"
        f.submit_pwrite(b"last", 0)
        f.flush()
        assert r.path().read_bytes()[:4] == b"last"
        assert await asyncio.gather(*tickets) == [4] * 20

    asyncio.run(main())


def test_async_with(rig: Any, run: Any) -> None:
    r = rig()
    path = r.path()
    path.write_bytes(CONTENT)

    async def main() -> None:
        async with r.c as c:
            f = c.open(path, "r+")
            f.submit_pwrite(b"held", 0)
        assert c.closed

    run(main())
    assert path.read_bytes() == b"held" + CONTENT[4:]


def test_a_loop_that_is_gone_harms_nobody(rig: Any) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.disk.close()
    loop = asyncio.new_event_loop()

    async def begin() -> tuple[Any, Any]:
        ticket = f.submit_pread(10, 0)
        task = asyncio.ensure_future(wait(ticket))
        await asyncio.sleep(0)
        return ticket, task

    ticket, task = loop.run_until_complete(begin())
    task.cancel()
    loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    loop.close()
    r.disk.open()
    if not ticket.cancelled():
        assert ticket.result() == CONTENT[:10]
    assert f.pread(10, 50) == CONTENT[50:60]
    del ticket, task
    gc.collect()


def test_who_reads_where_it_stands_lets_in_what_is_parked(rig: Any, run: Any) -> None:
    """The only read that was held is done by the thread that waits for it: no batch lands."""
    r = rig(max_held_requests=2)
    f = r.open(CONTENT)
    r.occupy()
    r.disk.close()
    held = f.submit_pread(10, 100)
    assert held.state == "held"
    reader = threading.Thread(target=held.result)
    reader.start()
    r.disk.arrived(1)

    async def main() -> None:
        parked = f.submit_pread(10, 200)
        assert parked.state == "parked"
        r.disk.open(f.fileno())
        assert await parked == CONTENT[200:210]

    run(main())
    reader.join()
    assert held.result() == CONTENT[100:110]


def test_trio(rig: Any) -> None:
    """Any other loop: add_done_callback, and its own way back from another thread."""
    r = rig()
    f = r.open(CONTENT)
    r.occupy()

    async def wait(ticket: Any) -> Any:
        done, token = trio.Event(), trio.lowlevel.current_trio_token()
        ticket.add_done_callback(lambda t: token.run_sync_soon(done.set))
        await done.wait()
        return ticket.result()

    async def main() -> None:
        got = {}

        async def one(k: int) -> None:
            got[k] = await wait(f.submit_pread(4, 4 * k))

        async with trio.open_nursery() as nursery:
            for k in range(50):
                nursery.start_soon(one, k)
            await trio.testing.wait_all_tasks_blocked()
            r.pass_time(WRITE_WINDOW_MS * MS)
        assert got == {k: CONTENT[4 * k : 4 * k + 4] for k in range(50)}
        ticket = f.submit_pread(4, 0)
        assert ticket.cancel()

    trio.run(main)
