"""Goal: what a sync has said is on the device was there, and a sync that failed is never forgotten.

The disk has a gate and keeps a log, so which write and which fdatasync came first is a fact.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from typing import Any

import pytest
from gated import MS, WRITE_WINDOW_MS

import iolift

EIO = os.strerror(errno.EIO)
CONTENT = bytes(range(256)) * 40


def kinds(r: Any) -> list[str]:
    return [op.kind for op in r.disk.log]


def test_a_sync_follows_the_writes_submitted_before_it(rig: Any) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.occupy()
    writes = [f.submit_pwrite(b"data", 100 * k) for k in range(5)]
    r.disk.close(kind="write")
    sync = f.submit_sync()
    later = f.submit_pwrite(b"later", 5000)
    with pytest.raises(TimeoutError):
        sync.result(timeout=0)
    r.disk.arrived(5, "write")
    # All are submitted and none is complete: the moment at which a hasty sync would begin.
    assert "sync" not in kinds(r)
    r.disk.open()
    assert sync.result() is None
    assert all(w.done() for w in writes)
    log = r.disk.log
    first = next(op.index for op in log if op.kind == "sync")
    before = {op.offset for op in log if op.kind == "write" and op.index < first}
    assert before >= {100 * k for k in range(5)}
    assert later.result() == 5


def test_a_sync_covers_writes_already_in_the_file(rig: Any) -> None:
    r = rig()
    f = r.open(CONTENT)
    f.pwrite(b"data", 0)
    assert "sync" not in kinds(r)
    f.submit_sync().result()
    assert kinds(r).count("sync") == 1
    f.sync()
    assert kinds(r).count("sync") == 2, "nobody knows what another process has written since"
    assert r.c.stats().syncs_issued == 2


def test_concurrent_syncs_share_one_fdatasync(rig: Any) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.disk.close(kind="sync")
    first = f.submit_sync()
    r.disk.arrived(1, "sync")
    # These were submitted after it had begun: it is no answer for them, but one is for all.
    f.submit_pwrite(b"data", 0)
    others = [f.submit_sync() for _ in range(100)]
    r.disk.open()
    for sync in [first, *others]:
        assert sync.result() is None
    assert kinds(r).count("sync") == 2
    stats = r.c.stats()
    assert (stats.syncs_asked, stats.syncs_issued) == (101, 2)


def test_one_that_began_too_early_is_no_answer(rig: Any) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.disk.close(kind="sync")
    early = f.submit_sync()
    r.disk.arrived(1)
    f.pwrite(b"data", 0)
    late = f.submit_sync()
    assert kinds(r) == ["sync", "write"]
    assert not late.done()
    r.disk.open()
    assert early.result() is None
    assert late.result() is None
    assert kinds(r) == ["sync", "write", "sync"]


def test_threads_that_write_and_sync_share(rig: Any) -> None:
    """The first one's fdatasync does not end until all have written: one more serves the rest."""
    r = rig(clock=False)
    f = r.open(CONTENT)
    count = 30
    r.disk.close(kind="sync")
    first = f.submit_sync()
    r.disk.arrived(1, "sync")
    failures: list[BaseException] = []

    def work(k: int) -> None:
        try:
            f.pwrite(b"mine", 100 * k)
            f.sync()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(count)]
    for thread in threads:
        thread.start()
    r.disk.arrived(count, "write")
    r.disk.open()
    for thread in threads:
        thread.join()
    assert not failures
    assert first.result() is None
    log = r.disk.log
    last = max(op.index for op in log if op.kind == "write")
    assert any(op.kind == "sync" and op.index > last for op in log)
    assert kinds(r).count("sync") < count


def test_syncs_of_many_tasks_share(rig: Any) -> None:
    r = rig(clock=False)
    f = r.open(CONTENT)

    async def one(k: int) -> None:
        f.submit_pwrite(b"mine", 4 * k)
        await f.submit_sync()

    async def main() -> None:
        await asyncio.gather(*[one(k) for k in range(1000)])

    asyncio.run(main())
    assert r.path().read_bytes()[:4000] == b"mine" * 1000
    stats = r.c.stats()
    assert stats.syncs_asked == 1000
    assert stats.syncs_issued <= 20
    log = r.disk.log
    assert log[-1].kind == "sync"


@pytest.mark.parametrize("call", ["f.sync", "c.sync", "submit_sync", "close"])
def test_each_way_to_wait_writes_what_is_held(rig: Any, call: str) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.occupy()
    f.submit_pwrite(b"held", 8)
    f.write(b"behind")
    if call == "f.sync":
        f.sync()
    elif call == "c.sync":
        r.disk.open()
        r.c.sync()
    elif call == "submit_sync":
        f.submit_sync().result()
    else:
        f.close()
    assert r.path().read_bytes()[:12] == b"behind" + CONTENT[6:8] + b"held"
    assert ("sync" in kinds(r)) == (call != "close")


def test_a_failed_sync_is_learned_by_all_and_for_good(rig: Any) -> None:
    """Held writes, all who wait, and whoever comes later: the kernel's second answer is a lie."""
    r = rig()
    f, other = r.open(CONTENT), r.open(CONTENT, "second")
    r.disk.fail(errno.EIO, kind="sync")
    r.disk.close(kind="sync")
    f.pwrite(b"written", 0)
    first = f.submit_sync()
    r.disk.arrived(1, "sync")
    # While that one is under way: a write that is held behind it or goes, and one more sync.
    write = f.submit_pwrite(b"held", 100)
    second = f.submit_sync()
    r.disk.open()
    with pytest.raises(OSError, match=EIO) as caught:
        first.result()
    assert caught.value.errno == errno.EIO
    with pytest.raises(OSError, match=EIO) as caught:
        second.result()
    assert caught.value.errno == errno.EIO
    assert write.done()
    issued = kinds(r).count("sync")
    for refused in (
        lambda: f.pwrite(b"x", 0),
        lambda: f.write(b"x"),
        lambda: f.write_ranges([0], b"x", lengths=1),
        lambda: f.submit_pwrite(b"x", 0).result(),
        lambda: f.submit_sync().result(),
        f.sync,
    ):
        with pytest.raises(iolift.PoisonedError) as caught:
            refused()
        assert caught.value.errno == errno.EIO
    assert kinds(r).count("sync") == issued, "it was tried again"
    assert f.pread(4, 0) == b"writ"
    # Another file of the same coalescer has no part in it.
    other.pwrite(b"fine", 0)
    other.sync()
    r.c._check()


def with_a_sync_that_will_fail(r: Any) -> Any:
    # A file, and its sync at a closed gate of the disk.
    f = r.open(CONTENT)
    r.disk.fail(errno.EIO, kind="sync")
    r.disk.close(kind="sync")
    sync = f.submit_sync()
    r.disk.arrived(1, "sync")
    return f, sync


def test_a_write_held_when_a_sync_fails_is_not_reported_as_written(rig: Any) -> None:
    r = rig()
    f, sync = with_a_sync_that_will_fail(r)
    held = [f.submit_pwrite(b"held", 100 * k) for k in range(5)]
    assert {w.state for w in held} == {"held"}, "the device is busy, no time has passed"
    r.disk.open()
    with pytest.raises(OSError, match=EIO):
        sync.result()
    for write in held:
        with pytest.raises(iolift.PoisonedError):
            write.result()
    assert r.path().read_bytes() == CONTENT


def test_a_dropped_write_behind_a_failed_sync_is_not_silent(rig: Any) -> None:
    r = rig()
    f, sync = with_a_sync_that_will_fail(r)
    f.write(b"behind")
    r.disk.open()
    with pytest.raises(OSError, match=EIO):
        sync.result()
    with pytest.raises(OSError, match=EIO):
        f.flush()


def test_a_sync_that_is_cancelled_in_time_costs_nothing(rig: Any) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.occupy()
    write = f.submit_pwrite(b"data", 0)
    sync = f.submit_sync()
    assert sync.cancel()
    assert sync.cancelled()
    r.pass_time(WRITE_WINDOW_MS * MS)
    assert write.result() == 4
    assert "sync" not in kinds(r)
    f.submit_pwrite(b"data", 0)
    sync, kept = f.submit_sync(), f.submit_sync()
    assert sync.cancel()
    assert kept.result() is None, "one of two was withdrawn, the other one was not"
    assert kinds(r).count("sync") == 1


def test_error_of_a_dropped_write_comes_at_the_next_sync(rig: Any) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.disk.bad(0, 100, errno.ENOSPC)
    f.write(b"lost")
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as caught:
        f.sync()
    assert caught.value.errno == errno.ENOSPC
    assert str(caught.value.filename) == str(r.path())
    f.sync()
    f.pwrite(b"fine", 200)
