"""Goal: what others do meanwhile neither loses what a file with a journal accepted, nor hangs it.

Truncates beside a close and beside a full journal, threads that are all busy, syncs behind what was
refused, Ctrl-C in a close, signal handlers that call what they have interrupted.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import child
import pytest
from gated import GatedDisk
from test_durable import opened, place
from test_durable_edges import SMALL, Door, dying, refused

import iolift
from iolift._storage import DirectoryStorage
from iolift._survey import survey

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["place"]  # a fixture

HANG_S = 60  # not an expectation: what takes this long hangs


def last_record(place: Path) -> int:
    found = survey(DirectoryStorage(str(place / "data.journal"), read_only=True))
    return max([found.slot.sequence, *(entry.sequence for _, entry in found.entries())])


def test_truncates_beside_a_close(place: Path) -> None:
    for _ in range(40):
        f = opened(place, **SMALL)
        log, going = f._journal.log, threading.Semaphore(0)

        def cut(which: int, f: Any = f, going: threading.Semaphore = going) -> None:
            for size in range(1 << 20):
                try:
                    f.truncate(100_000 * which + size)
                except ValueError:  # closed
                    return
                going.release()

        threads = [threading.Thread(target=cut, args=(which,)) for which in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(12):
            going.acquire()
        f.submit_pwrite(b"z" * 100, 0)
        f.close()
        for thread in threads:
            thread.join()
        assert last_record(place) == log.durable


def test_a_truncate_lets_in_who_found_the_journal_full(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dying(place, journal_segment_bytes=32 << 10, journal_max_bytes=5 * (32 << 10)) as f:
        f.pwrite(b"x" * 15_000, 500_000)
        original, begun, go = f._journal.begin_segment, threading.Event(), threading.Event()

        def begin_segment(needed: int) -> None:
            original(needed)
            begun.set()
            go.wait(HANG_S)

        monkeypatch.setattr(f._journal, "begin_segment", begin_segment)

        def cut() -> None:
            size = 1 << 20
            while not begun.is_set():
                size += 1
                f.truncate(size)

        async def main() -> None:
            thread = threading.Thread(target=cut)
            thread.start()
            await asyncio.to_thread(begun.wait)
            ticket = f.submit_pwrite(b"M" * f._journal.max_request, 0)
            state = ticket.state
            go.set()
            await asyncio.to_thread(thread.join)
            assert await asyncio.wait_for(end_of(ticket), HANG_S) == f._journal.max_request
            assert state == "parked"

        async def end_of(ticket: Any) -> Any:
            return await ticket

        asyncio.run(main())


def test_a_receipt_waits_for_none_of_the_busy_threads(place: Path) -> None:
    disk = GatedDisk()
    (place / "data").write_bytes(bytes(1 << 20))
    with dying(place, backend=disk, **SMALL) as f:
        f.submit_pwrite(b"x" * 15_000, 0).received()
        disk.close("read")
        reads = []
        for i in range(16):
            reads.append(f.submit_pread(1, 600_000 + 8192 * i))
            f.flush()
            disk.arrived(i + 1, "read")
        guard = threading.Timer(HANG_S, disk.open)
        guard.start()
        # It needs a segment, so this, the main thread, does not do it.
        ticket = f.submit_pwrite(b"y" * 15_000, 65_536)
        with pytest.raises(TimeoutError):
            ticket.received(0)
        assert ticket.received(2 * HANG_S) > 0
        assert not any(read.done() for read in reads)
        guard.cancel()
        disk.open()
        assert [read.result() for read in reads] == [b"\0"] * 16


def test_a_receipt_with_a_time_is_in_time(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with dying(place, **SMALL) as f:
        f.pwrite(b"x" * 15_000, 500_000)
        f.pwrite(b"x" * 100, 520_000)
        door = Door(f, monkeypatch)
        door.is_held = True
        ticket = f.submit_pwrite(b"y" * 15_000, 0)
        for wait in (ticket.received, f.submit_sync().result):
            with pytest.raises(TimeoutError):
                wait(0.001)
        door.go.set()
        assert ticket.received() > 0


def test_a_sync_is_not_hurt_by_what_was_cancelled(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dying(place, **SMALL) as f:
        f.pwrite(b"x", 500_000)
        door = Door(f, monkeypatch)
        door.is_full = True
        f.submit_pwrite(b"F" * 16_000, 0).received()
        told = f.submit_pwrite(b"F" * 16_000, 16_000)
        cancelled = f.submit_pwrite(b"G" * 100, 100_000)
        assert cancelled.cancel()
        refused(told)
        assert f.submit_sync().exception() is None
        f.sync()
        with pytest.raises(OSError, match="could not grow"):
            told.result()


def test_no_descriptor_for_a_segment_is_no_end(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dying(place, **SMALL) as f:
        f.pwrite(b"x" * 16_000, 0)
        create = f._journal._storage.create

        def none(name: str) -> int:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        monkeypatch.setattr(f._journal._storage, "create", none)
        ticket = f.submit_pwrite(b"y" * 16_000, 16_000)
        with pytest.raises(OSError, match="could not grow") as caught:
            ticket.received()
        assert caught.value.errno == errno.EMFILE
        monkeypatch.setattr(f._journal._storage, "create", create)
        assert f.pwrite(b"y" * 16_000, 16_000) == 16_000


def test_who_only_looks_for_a_key_keeps_no_write_from_its_cancel(place: Path) -> None:
    with dying(place) as f:
        f.pwrite(b"x", 0)  # the next one is held
        ticket = f.submit_pwrite(b"x", 0, key=b"k")
        assert f._journal.find(b"k").state == "gathered"
        assert ticket.cancel()
        assert f._journal.find(b"k") is None


def test_a_close_that_is_interrupted_lets_go_of_the_journal(place: Path) -> None:
    child.run(
        """
        import signal, sys, threading
        import iolift
        place = sys.argv[1]
        f = iolift.open(place + "/data", "r+", journal=place + "/j")
        f.pwrite(b"x" * 100, 0)
        held, let_go = threading.Event(), threading.Event()
        def prepare():                  # a slow disk, while a segment is made ahead
            with f._journal._preparing:
                held.set()
                let_go.wait()
        thread = threading.Thread(target=prepare)
        thread.start()
        held.wait()
        heard = 0
        def handler(*_):
            global heard
            heard += 1
            if heard < 3:
                signal.setitimer(signal.ITIMER_REAL, .05)
            else:
                let_go.set()
            raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, .05)
        try:
            f.close()
        except KeyboardInterrupt:
            pass
        assert heard == 3, heard
        thread.join()
        iolift.open(place + "/data", "r+", journal=place + "/j").close()
        """,
        place,
    )


class Interrupted:
    """A file on a coalescer that goes on, whose close() was interrupted while a read and a truncate
    behind it are under way."""

    def __init__(self, place: Path) -> None:
        (place / "data").write_bytes(bytes(1000))
        self.disk = GatedDisk()
        self.file = opened(place, coalescer=iolift.Coalescer(backend=self.disk), **SMALL)
        self.fd = self.file.fileno()
        self.disk.close("read")
        self.read = self.file.submit_pread(1, 0)
        self.truncate = threading.Thread(target=self._truncate)
        self.errors: list[OSError] = []
        self.truncate.start()
        while not self.file._journal.log.gathered_bytes:
            os.sched_yield()

        def handler(*_: object) -> None:
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGALRM, handler)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(KeyboardInterrupt):
                self.file.close()
        finally:
            signal.signal(signal.SIGALRM, before)

    def _truncate(self) -> None:
        try:
            self.file.truncate(10)
        except OSError as error:
            self.errors.append(error)

    def is_open(self) -> bool:
        return os.path.exists(f"/proc/self/fd/{self.fd}")


def test_a_truncate_beside_an_interrupted_close(place: Path) -> None:
    that = Interrupted(place)
    with pytest.raises(BlockingIOError):  # it is not over
        opened(place)
    that.disk.open()
    that.truncate.join()
    assert that.read.result() == b"\0"
    assert not that.errors
    with opened(place) as g:
        assert len(g.pread(2000, 0)) == 10


def test_who_ends_last_leaves_the_file_to_who_closes_the_journal(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    that = Interrupted(place)
    told, go_on = threading.Event(), threading.Event()
    that.read.add_done_callback(lambda _: (told.set(), go_on.wait()))
    sync, seen = that.file._journal._storage.sync, []

    def slow(handle: int) -> None:
        if handle == that.fd:
            # Of the two that are the last to end, the truncate closes the journal: this is its
            # last checkpoint. Now the read ends as well.
            told.wait()
            go_on.set()
            seen.extend(that.is_open() for _ in range(1000))  # each lets go of the GIL
        sync(handle)

    monkeypatch.setattr(that.file._journal._storage, "sync", slow)
    that.disk.open()
    that.truncate.join()
    assert seen == [True] * 1000
    assert not that.errors


def test_a_journal_that_fails_at_the_end_of_an_interrupted_close(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    that = Interrupted(place)

    real = os.ftruncate

    def last(fd: int, size: int) -> None:
        that.read.result()
        for _ in range(1000):
            that.is_open()  # lets go of the GIL: the read's thread is done with it all
        real(fd, size)

    def fails(handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "ftruncate", last)
    monkeypatch.setattr(that.file._journal._storage, "sync", fails)
    that.disk.open()
    that.truncate.join()
    assert [error.errno for error in that.errors] == [errno.EIO]
    assert not that.is_open()


HANDLER = """
    import os, signal, sys, threading
    sys.path.insert(0, sys.argv[2])
    import iolift
    from gated import GatedDisk
    place, disk = sys.argv[1], GatedDisk()
    f = iolift.open(place + "/data", "r+", journal=place + "/j", write_window_ms=60000,
                    backend=disk, journal_segment_bytes=32768, journal_max_bytes=8 * 32768)
    f.pwrite(b"x" * 15000, 0)
    handled = []
    def alarm(handler):
        signal.signal(signal.SIGALRM, lambda *_: handled.append(handler()))
"""

WRITES_IN_A_TRUNCATE = """
    alarm(lambda: f.pwrite(b"W" * 100, 5000))
    aside = f._journal.commit_aside
    def commit_aside():
        signal.raise_signal(signal.SIGALRM)
        return aside()
    f._journal.commit_aside = commit_aside
    while not handled:
        f.truncate(1000)
    f.sync()
    assert f.pread(100, 5000) == b"W" * 100
    f.close()
    with open(place + "/data", "rb") as data:
        assert data.read()[5000:] == b"W" * 100
"""

RAISES_IN_A_TRUNCATE = """
    alarm(lambda: handled.append(1) or sys.exit(3))
    aside = f._journal.commit_aside
    def commit_aside():
        if not handled:
            signal.raise_signal(signal.SIGALRM)
        return aside()
    f._journal.commit_aside = commit_aside
    try:
        for size in range(1 << 20):
            f.truncate(size)
    except SystemExit:
        pass
    assert f.pwrite(b"y" * 15000, 0) == 15000
    f.close()
"""

CALLS_WHILE_A_TRUNCATE_WAITS = """
    for call in (lambda: f.pwrite(b"W" * 100, 50), lambda: f.truncate(200), lambda: f.pread(9, 5)):
        disk.close("read")
        reader = threading.Thread(target=f.pread, args=(1, 0))
        reader.start()
        disk.arrived(1, "read")
        alarm(lambda: (disk.open(), call()))
        signal.setitimer(signal.ITIMER_REAL, .05)
        f.truncate(10)
        reader.join()
    assert len(handled) == 3
    f.close()
"""

CLOSES_IN_A_CHECKPOINT = """
    alarm(f.close)
    storage = f._journal._storage
    sync = storage.sync
    def raising(handle):
        storage.sync = sync
        sync(handle)
        signal.raise_signal(signal.SIGALRM)
    storage.sync = raising
    f.checkpoint()
    assert handled and f.closed
"""


@pytest.mark.parametrize(
    "code",
    [
        WRITES_IN_A_TRUNCATE,
        RAISES_IN_A_TRUNCATE,
        CALLS_WHILE_A_TRUNCATE_WAITS,
        CLOSES_IN_A_CHECKPOINT,
    ],
    ids=["writes", "raises", "waits", "closes"],
)
def test_a_handler_that_comes_in_between(place: Path, code: str) -> None:
    child.run(HANDLER + code, place, os.path.dirname(__file__))


def test_locks_of_the_process_stay(place: Path) -> None:
    fd = os.open(place / "data", os.O_RDWR)
    os.lseek(fd, 7, os.SEEK_SET)
    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    code = """
        import fcntl, sys
        with open(sys.argv[1], "r+b") as f:
            try:
                fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print("locked")
    """
    with iolift.open(fd, "r+", journal=place / "j", closefd=False) as f:
        assert child.run(code, place / "data") == "locked\n"
        with pytest.raises(OSError, match="at most"):
            f.pwrite(b"x", (1 << 63) - 2)
        assert os.lseek(fd, 0, os.SEEK_CUR) == 7
    os.close(fd)


def test_an_interrupted_close_closes_no_descriptor_twice(place: Path) -> None:
    shut: list[int] = []

    class Interrupted(DirectoryStorage):
        is_armed = True

        def unlink(self, name: str) -> None:
            super().unlink(name)
            if len(shut) and self.is_armed:  # of a spare segment, in a close
                self.is_armed = False
                raise KeyboardInterrupt

        def shut(self, handle: int) -> None:
            shut.append(handle)
            super().shut(handle)

    storage = Interrupted(str(place / "data.journal"))
    f = iolift.open(place / "data", "r+", journal=storage)  # type: ignore[arg-type]
    f.pwrite(b"x", 0)
    f.sync()
    f._journal.prepare_ahead(2)  # type: ignore[union-attr]
    shut.clear()
    with pytest.raises(KeyboardInterrupt):
        f.close()
    assert len(shut) == len(set(shut)) > 1
    with opened(place) as f:
        assert f.pread(1, 0) == b"x"


def test_no_segment_is_prepared_behind_a_close(place: Path, monkeypatch: Any) -> None:
    f = opened(place)
    f.pwrite(b"x", 0)
    journal = f._journal
    written_back = journal._write_back

    def late() -> Any:
        journal.prepare_ahead(1)  # as a thread may that was begun before
        return written_back()

    monkeypatch.setattr(journal, "_write_back", late)
    f.close()
    assert sorted(os.listdir(place / "data.journal")) == ["checkpoint", "lock"]
