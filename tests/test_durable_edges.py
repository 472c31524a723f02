"""Goal: what was received survives whatever else happens meanwhile, and nothing else is called so.

Cancels, refusals for want of room, keys that two ask with, checkpoints at a bad moment, signals,
forks, ends of processes, and requests that no file could take.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import errno
import gc
import os
import shutil
import threading
import tracemalloc
from typing import TYPE_CHECKING, Any

import child
import pytest
from faulty import FaultyDisk
from gated import GatedDisk
from test_durable import crashed, opened, place, recovered

import iolift
from iolift import _journal
from iolift.errors import JournalError, OutcomeUnknownError, PoisonedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["place"]  # a fixture

SMALL = {"journal_segment_bytes": 32 << 10, "journal_max_bytes": 8 * (32 << 10)}
LONG = {"write_window_ms": 60_000}


@contextlib.contextmanager
def dying(place: Path, **options: Any) -> Iterator[Any]:
    """A file with a journal that is left as if the process died, but for its threads."""
    f = opened(place, **{**LONG, **options})
    f._journal._aside = lambda work: None  # every moment is the test's own
    yield f
    with contextlib.suppress(OSError):
        f.close()


def after_a_crash(place: Path, name: str = "crash") -> bytes:
    return recovered(place, crashed(place, name), (place / "data").read_bytes())


class Door:
    """Stands in for a journal's begin_segment: shut (no room), or held until it is let go."""

    def __init__(self, f: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_full = self.is_held = False
        self.arrived, self.go = threading.Event(), threading.Event()
        self.original = f._journal.begin_segment
        monkeypatch.setattr(f._journal, "begin_segment", self)

    def __call__(self, needed: int) -> None:
        self.arrived.set()
        if self.is_held:
            self.go.wait()
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.original(needed)


def refused(ticket: Any) -> None:
    with pytest.raises(OSError, match="could not grow"):
        ticket.receipt.wait()
    assert ticket.receipt.state == "refused"


# -------------------------------------------------------------------------------------- cancelled


def test_no_checkpoint_passes_what_is_behind_a_cancelled_write(place: Path) -> None:
    with dying(place) as f:
        f.pwrite(b"x", 50_000)
        cancelled = f.submit_pwrite(b"W" * 100, 90_000)
        for i in range(5):
            f.submit_pwrite(b"A" * 4096, 4096 * i)
        assert cancelled.cancel()
        f.sync()
        assert cancelled.receipt.state == "withdrawn"
        with pytest.raises(concurrent.futures.CancelledError):
            cancelled.receipt.wait()
        assert not (place / "data").read_bytes().startswith(b"A")
        f._journal.checkpoint(f._journal._write_back())
        assert after_a_crash(place).startswith(b"A" * 20_480)


def test_a_cancel_while_a_segment_begins_leaves_no_hole(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dying(place, **SMALL) as f:
        f.pwrite(b"x" * 15_000, 500_000)
        f.pwrite(b"x" * 100, 520_000)
        door = Door(f, monkeypatch)
        door.is_held = True
        kept = f.submit_pwrite(b"K" * 100, 0)
        others = [f.submit_pwrite(b"L" * 6000, 10_000 * i) for i in (1, 2)]
        leader = threading.Thread(target=kept.received)
        leader.start()
        door.arrived.wait()
        assert [ticket.cancel() for ticket in others] == [True, True]
        door.go.set()
        leader.join()
        f.submit_pwrite(b"N" * 100, 4096).received()
        f.submit_pwrite(b"N" * 100, 4196).received()
        content = after_a_crash(place)
        assert (content[:100], content[4096:4296]) == (b"K" * 100, b"N" * 200)
        assert content[10_000:26_000] == bytes(16_000)


def test_cancelled_keys_are_forgotten(place: Path) -> None:
    with dying(place) as f:
        f.pwrite(b"x", 0)
        tracemalloc.start()
        for i in range(2100):
            if i == 100:
                before, _ = tracemalloc.get_traced_memory()
            assert f.submit_pwrite(b"y", 0, key=(b"%d" % i).ljust(255, b".")).cancel()
            if i % 100 == 99:
                f.flush()
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert after - before < 100_000


# --------------------------------------------------------------------------------- refused, shared


def test_what_was_refused_is_no_ones_success(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with dying(place, **SMALL) as f:
        f.pwrite(b"x", 500_000)
        door = Door(f, monkeypatch)
        door.is_full = True
        first = f.submit_pwrite(b"B" * 16_000, 0)
        first.received()
        second = f.submit_pwrite(b"B" * 16_000, 16_000)
        refused(second)
        door.is_full = False
        third = f.submit_pwrite(b"D" * 100, 100_000)
        third.received()
        with pytest.raises(OSError, match="could not grow"):
            second.result()
        assert (first.result(), third.result()) == (16_000, 100)
        assert f.pread(32_000, 0) == b"B" * 16_000 + bytes(16_000)


@pytest.mark.parametrize("how", ["sync", "submit_sync"])
def test_a_sync_tells_of_what_was_refused_before(
    place: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    def sync() -> None:
        f.sync() if how == "sync" else f.submit_sync().result()

    with dying(place, **SMALL) as f:
        f.pwrite(b"x", 500_000)
        door = Door(f, monkeypatch)
        door.is_full = True
        for offset in (0, 16_000):
            f.seek(offset)
            f.write(b"B" * 16_000)
            f._core.commit_aside()
            f._journal.log.drain()
        door.is_full = False
        f.seek(100_000)
        f.write(b"D" * 100)
        with pytest.raises(OSError, match="could not grow"):
            sync()
        sync()
        assert f.pread(32_000, 0) == b"B" * 16_000 + bytes(16_000)
        content = after_a_crash(place)
        assert content[16_000:32_000] == bytes(16_000)
        assert content[100_000:100_100] == b"D" * 100


def test_what_a_refused_write_covers_is_not_lost(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dying(place, **SMALL) as f:
        f.pwrite(b"x", 500_000)
        f.submit_pwrite(b"A" * 2000, 0)
        f.sync()
        door = Door(f, monkeypatch)
        door.is_full = True
        f.submit_pwrite(b"F" * 16_000, 700_000).received()
        f.submit_pwrite(b"F" * 100, 720_000).received()
        tickets = [f.submit_pwrite(b"B" * 2000, 0), f.submit_pwrite(b"C" * 100, 3000)]
        tickets += [f.submit_pwrite(b"P" * 16_000, 600_000 + i * 16_000) for i in range(2)]
        for ticket in tickets:
            refused(ticket)
        f.flush()
        assert f.pread(2000, 0) == b"A" * 2000
        f.checkpoint()
        assert after_a_crash(place)[:2000] == b"A" * 2000


def test_what_was_received_is_seen_until_it_has_landed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = GatedDisk()
    with dying(place, backend=disk, **SMALL) as f:
        f.pwrite(b"x", 500_000)
        door = Door(f, monkeypatch)
        first = f.submit_pwrite(b"A" * 2000, 0)
        f.sync()
        door.is_full = True
        tickets = [f.submit_pwrite(b"P" * 16_000, 600_000 + i * 16_000) for i in range(2)]
        refused(tickets[1])
        door.is_full = False
        disk.close("write", (0, 2000))
        there = len(disk.ops("write"))
        waits = threading.Thread(target=first.exception)
        waits.start()
        disk.arrived(there + 1, "write")  # it is written by itself, as the generation was broken
        assert f.pread(2, 0) == b"AA"
        assert f._core.landed_sequence() < first.receipt.sequence
        second = f.submit_pwrite(b"E" * 2000, 0)
        disk.open()
        waits.join()
        assert second.result() == 2000
        assert f.pread(2, 0) == b"EE"


def test_a_key_that_two_wait_for_cannot_be_withdrawn(place: Path) -> None:
    with dying(place) as f:
        f.pwrite(b"x", 500_000)
        first, second = (f.submit_pwrite(b"A" * 4096, 0, key=b"k") for _ in range(2))
        assert not first.cancel()
        assert second.received() == first.received()
        assert after_a_crash(place)[:4096] == b"A" * 4096


def test_who_came_second_with_a_key_learns_that_it_failed(place: Path) -> None:
    with dying(place) as f:
        f.pwrite(b"x", 500_000)
        first, second = (f.submit_pwrite(b"A" * 4096, 0, key=b"k") for _ in range(2))
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, f._journal.log.handle)  # the segment takes no more
        os.close(null)
        for ticket in (first, second):
            with pytest.raises(OutcomeUnknownError):
                ticket.result()


# ------------------------------------------------------------------------------------- checkpoints


def test_keys_stay_where_a_checkpoint_meets_a_segment_that_begins(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dying(place, **SMALL) as f:
        journal = f._journal
        f.submit_pwrite(b"k" * 100, 0, key=b"order-1").result()
        copies = []

        def encode(header: Any) -> bytes:
            if header.number > 1:
                other = threading.Thread(target=lambda: journal.checkpoint(journal._write_back()))
                other.start()
                other.join()
                copies.append(crashed(place, f"now-{len(copies)}"))
            return original(header)

        original = _journal.encode_header
        monkeypatch.setattr(_journal, "encode_header", encode)
        for _ in range(9):
            f.pwrite(b"x" * 12_000, 500_000)
    assert copies
    for copy in copies:
        shutil.copyfile(place / "data", copy / "data")
        recovered(place, copy, (place / "data").read_bytes())
        with iolift.open(copy / "data", "r+", journal=copy / "data.journal") as f:
            assert f._journal.find(b"order-1") is not None


def test_a_small_journal_goes_round_and_round(place: Path) -> None:
    options = {"journal_segment_bytes": 1 << 16, "journal_max_bytes": 1 << 19}
    with opened(place, write_window_ms=20, **options) as f:
        for n in range(6000):
            f.submit_pwrite(n.to_bytes(8, "little") * 64, n % 600 * 4096)
            if n % 12 == 11:
                f.sync()
        for n in range(5400, 6000):
            assert f.pread(512, n % 600 * 4096) == n.to_bytes(8, "little") * 64


def test_a_checkpoint_that_cannot_be_opened_harms_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dying(place) as f:
        f.pwrite(b"x", 0)
        storage = f._journal._storage

        def no_more(name: str) -> int:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), name)

        with monkeypatch.context() as patch:
            patch.setattr(storage, "open", no_more)
            with pytest.raises(OSError, match="Too many"):
                f.checkpoint()
        f.pwrite(b"y", 1)
        f.checkpoint()


def test_who_hears_of_a_failed_checkpoint_may_close_the_file(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dying(place) as f:
        f.pwrite(b"x", 0)

        def fails(*_: Any) -> None:
            raise OSError(errno.EIO, "slot")

        monkeypatch.setattr(_journal, "write_slot", fails)
        ticket = f.submit_pwrite(b"A", 0)
        heard: list[str] = []

        def hear(receipt: Any) -> None:
            heard.append(receipt.state)
            with contextlib.suppress(OSError):
                f.close()

        ticket.receipt.add_done_callback(hear)
        with pytest.raises(OSError, match="slot"):
            f._journal.checkpoint(1)
        assert heard == ["refused"]
        assert f.closed


# ------------------------------------------------------------------- poison, truncates and handlers


def test_a_buffer_is_the_callers_again_after_an_error(place: Path) -> None:
    disk = GatedDisk()
    with dying(place, backend=disk) as f:
        disk.fail(errno.EIO, times=None, kind="write", within=(0, 4096))
        disk.close("write")
        first = f.submit_pwrite(b"A" * 512, 0)
        disk.arrived(1, "write")
        buffer = bytearray(b"B" * 512)
        errors: list[BaseException] = []

        def write() -> None:
            try:
                f.pwrite(buffer, 8192)
            except OSError as error:
                errors.append(error)
            buffer[:] = b"C" * 512
            buffer.append(1)

        other = threading.Thread(target=write)
        other.start()
        while f.coalescer.stats().held_requests < 1 + (not first.done()):
            pass
        disk.open()
        other.join()
        assert isinstance(errors[0], PoisonedError)
        assert first.exception() is not None
        assert after_a_crash(place)[8192:8704] == b"B" * 512


def test_a_sync_ends_where_the_file_has_failed(place: Path) -> None:
    disk = GatedDisk()
    with dying(place, backend=disk) as f:
        disk.fail(errno.EIO, times=None, kind="write", within=(0, 4096))
        disk.close("write")

        async def main() -> None:
            first = f.submit_pwrite(b"A" * 512, 0)
            await asyncio.to_thread(disk.arrived, 1, "write")
            f.submit_pwrite(b"B" * 512, 8192)
            behind = f.submit_sync()
            disk.open()
            with pytest.raises(OSError, match="Input/output"):
                await first
            await behind

        asyncio.run(main())


@pytest.mark.parametrize("on_loop", [True, False])
def test_a_truncate_among_parked_writes(place: Path, on_loop: bool) -> None:
    with opened(place, max_held_requests=16, write_window_ms=10) as f:

        async def main() -> None:
            tickets = [f.submit_pwrite(bytes([i]) * 512, 512 * i) for i in range(64)]
            assert tickets[-1].state == "parked"
            if on_loop:
                f.truncate(4096)
            else:
                await asyncio.to_thread(f.truncate, 4096)
            for ticket in tickets:
                assert await ticket == 512

        asyncio.run(main())
        assert f.pread(1 << 20, 0) == b"".join(bytes([i]) * 512 for i in range(8))


HANDLER_WRITES = """
    import signal, sys
    import iolift
    path = sys.argv[1]
    f = iolift.open(path + "/data", "r+", journal=path + "/j", write_window_ms=10,
                    journal_segment_bytes=32768, journal_max_bytes=16 * 32768)
    inside = handled = 0
    def handler(*_):
        global inside, handled
        if not inside:
            inside = 1
            f.submit_pwrite(b"h" * 100, 900000).received()
            handled += 1
            inside = 0
            # Not while it was at it: on a slow disk nothing else would ever get on.
            signal.setitimer(signal.ITIMER_REAL, .001)
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, .001)
    i = 0
    while i < 300 or handled < 30:
        f.submit_pwrite(b"m" * 6000, i % 50 * 8192).received()
        i += 1
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    f.close()
"""

HANDLER_IN_TRUNCATE = """
    import signal, sys
    sys.path.insert(0, sys.argv[2])
    import iolift
    from gated import GatedDisk
    path, disk = sys.argv[1], GatedDisk()
    f = iolift.open(path + "/data", "r+", journal=path + "/j", backend=disk)
    def handler(*_):
        handled.append(f.submit_pwrite(b"h" * 100, 0))
        disk.open()
    handled = []
    signal.signal(signal.SIGALRM, handler)
    disk.close("write")
    f.submit_pwrite(b"A" * 512, 0)
    f.submit_pwrite(b"B" * 512, 512)
    signal.setitimer(signal.ITIMER_REAL, .05)
    f.truncate(50)
    assert handled and handled[0].result() == 100
    f.close()
"""


@pytest.mark.parametrize("code", [HANDLER_WRITES, HANDLER_IN_TRUNCATE])
def test_a_signal_handler_writes(place: Path, code: str) -> None:
    child.run(code, place, os.path.dirname(__file__))


def test_an_awaited_receipt_is_not_forgotten_behind_a_commit(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dying(place, **SMALL) as f:
        f.pwrite(b"x" * 15_000, 500_000)
        f.pwrite(b"x" * 100, 500_000)
        door = Door(f, monkeypatch)
        door.is_held = True

        async def main() -> None:
            first = f.submit_pwrite(b"a" * 14_000, 0)
            leader = threading.Thread(target=first.received)
            leader.start()
            await asyncio.to_thread(door.arrived.wait)
            second = f.submit_pwrite(b"s" * 15_000, 65_536)
            asyncio.get_running_loop().call_soon(door.go.set)
            assert await second.receipt > 0
            leader.join()

        asyncio.run(main())


def test_a_callback_is_heard_whenever_it_comes(place: Path) -> None:
    with dying(place) as f:
        f.pwrite(b"x", 0)
        receipt = f.submit_pwrite(b"A", 0).receipt
        heard: list[Any] = []

        def collect(phase: str, _: Any) -> None:
            if phase == "start":
                gc.callbacks.remove(collect)
                gc.disable()
                receipt.wait()

        hear = heard.append
        add = receipt.add_done_callback
        threshold = gc.get_threshold()
        gc.collect()
        gc.disable()
        try:
            gc.callbacks.append(collect)
            gc.set_threshold(1)
            gc.enable()
            add(hear)
        finally:
            gc.set_threshold(*threshold)
            if collect in gc.callbacks:
                gc.callbacks.remove(collect)
            gc.enable()
        receipt.wait()
        assert heard == [receipt]


# --------------------------------------------------------------------------- forks, ends, no memory


def test_a_forked_child_does_not_commit_what_the_parent_gathered(place: Path) -> None:
    out = child.run(
        """
        import os, sys, warnings
        import iolift
        warnings.simplefilter("ignore", DeprecationWarning)     # of forks among threads
        path = sys.argv[1]
        f = iolift.open(path + "/data", "r+", journal=path + "/data.journal",
                        write_window_ms=60000)
        f.pwrite(b"x", 500000)
        first = f.submit_pwrite(b"A" * 100, 0)
        ready, go = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.read(ready, 1)
            try:
                first.receipt.wait()
            except iolift.ForkedError:
                os._exit(0)
            os._exit(1)
        second = f.submit_pwrite(b"B" * 6000, 8192)
        first.received(), second.received()
        os.write(go, b"x")
        print(os.waitpid(pid, 0)[1], flush=True)
        os._exit(0)
        """,
        place,
    )
    assert out == "0\n"
    content = after_a_crash(place)
    assert (content[:100], content[8192:14_192]) == (b"A" * 100, b"B" * 6000)


def test_after_its_end_a_journal_writes_to_nobody_elses_file(place: Path) -> None:
    out = child.run(
        """
        import atexit, os, sys
        path, state = sys.argv[1], {}
        def late():
            others = [os.open(path + "/other", os.O_RDWR) for _ in range(12)]
            try:
                state["f"].submit_pwrite(b"late" * 10, 0).received()
            except Exception as error:
                print(type(error).__name__)
            print(os.path.getsize(path + "/other"))
        atexit.register(late)           # before iolift is there: runs after its own end
        import iolift
        with open(path + "/other", "wb") as other:
            other.write(b"V" * 100)
        f = state["f"] = iolift.open(path + "/data", "r+", journal=path + "/j")
        f.pwrite(b"x", 0)
        """,
        place,
    )
    assert out == "ValueError\n100\n"


def test_no_memory_is_the_end_of_no_wait(place: Path) -> None:
    pytest.importorskip("_testcapi")
    child.run(
        """
        import _testcapi, sys
        import iolift
        path = sys.argv[1]
        for n in range(1, 60):
            f = iolift.open(path + "/data", "r+", journal=path + f"/j{n}", write_window_ms=60000)
            f._journal._aside = lambda work: None
            f.pwrite(b"x", 500000)
            tickets = [f.submit_pwrite(b"A" * 100, i * 4096, key=b"k%d" % i) for i in range(3)]
            receipt = tickets[2].receipt
            _testcapi.set_nomemory(n, n + 1)
            try:
                receipt.wait()
            except (MemoryError, OSError):
                pass
            finally:
                _testcapi.remove_mem_hooks()
            try:
                receipt.wait()
            except (MemoryError, OSError):
                pass
            assert {t.receipt.state for t in tickets} <= {"received", "refused", "unknown"}
            try:
                f.close()
            except OSError:
                pass
        """,
        place,
    )


# -------------------------------------------------------------- requests that no file could take


def test_the_last_byte_that_there_is(place: Path) -> None:
    with dying(place) as f:
        f.pwrite(b"x", 0)
        for call in (
            lambda: f.pwrite(b"xx", (1 << 63) - 3),
            lambda: f.submit_pwrite(b"x", 1 << 62, key=b"k"),
            lambda: f.truncate((1 << 63) - 1),
            lambda: f.write_ranges([0, 1 << 62], b"ab"),
        ):
            with pytest.raises(OSError, match="a file here has at most") as caught:
                call()
            assert caught.value.errno == errno.EFBIG
            assert caught.value.filename == str(place / "data")
        f.pwrite(b"y", 1)
        assert f.coalescer.stats().held_requests == 0
        assert after_a_crash(place) == b"xy"


def test_recovery_of_a_direct_file(place: Path) -> None:
    (place / "data").write_bytes(bytes(16_384))
    try:
        with opened(place, direct=True):
            pass
    except OSError as error:
        pytest.skip(f"no O_DIRECT: {error}")
    child.run(
        """
        import os, sys
        import iolift
        f = iolift.open(sys.argv[1] + "/data", "r+", journal=sys.argv[1] + "/data.journal",
                        direct=True, write_window_ms=60000)
        f.pwrite(b"first", 1)
        f.submit_pwrite(b"hello", 8190).received()
        os._exit(0)
        """,
        place,
    )
    with opened(place, direct=True) as f:
        assert f.direct
        assert f.pread(5, 8190) == b"hello"
        assert f.pread(5, 1) == b"first"


def test_a_bound_is_for_the_segments_that_there_are(place: Path) -> None:
    opened(place).close()
    with pytest.raises(ValueError, match="max_bytes = 8388608 must be at least four segments"):
        opened(place, journal_segment_bytes=1 << 20, journal_max_bytes=8 << 20)
    opened(place, journal_segment_bytes=1 << 20).close()


def test_an_open_that_is_refused_keeps_no_descriptor(place: Path) -> None:
    with opened(place):
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            with pytest.raises(BlockingIOError):
                opened(place)
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_was_made_anew_is_another_one(place: Path) -> None:
    child.run(
        """
        import os, sys
        import iolift
        f = iolift.open(sys.argv[1] + "/data", "r+", journal=sys.argv[1] + "/data.journal",
                        write_window_ms=60000)
        f.submit_pwrite(b"old", 0).received()
        os._exit(0)
        """,
        place,
    )
    data = place / "data"
    node = data.stat().st_ino
    data.unlink()
    for i in range(200):  # until the inode is used again, where the file system does that
        data.write_bytes(b"new")
        if data.stat().st_ino == node:
            break
        data.rename(place / f"not-{i}")
    else:
        data.write_bytes(b"new")
    with pytest.raises(JournalError, match="other files"):
        opened(place)
    assert data.read_bytes() == b"new"


def test_a_fault_of_the_disk_shows_where_the_file_is_closed(place: Path) -> None:
    disk = FaultyDisk()
    f = opened(place, backend=disk, **LONG)
    f.submit_pwrite(b"first", 0).result()
    disk.fail(errno.EIO, times=None, kind="write")
    f.submit_pwrite(b"second", 10).received()
    with pytest.raises(OSError, match="Input/output"):
        f.close()
    assert after_a_crash(place)[10:16] == b"second"
