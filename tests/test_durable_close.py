"""Goal: what others do meanwhile neither loses what a file with a journal accepted, nor hangs it.

Truncates beside a close and beside a full journal, threads that are all busy, syncs behind what was
refused, Ctrl-C in a close.
"""

from __future__ import annotations

import asyncio
import errno
import os
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


def test_a_submitted_sync_tells_of_what_was_refused_before(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
            f.submit_sync().result()
        f.submit_sync().result()
        assert f.pread(32_000, 0) == b"B" * 16_000 + bytes(16_000)


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


def test_it_is_the_same_for_a_descriptor_whose_position_is_shared(place: Path) -> None:
    fd = os.open(place / "data", os.O_RDWR)
    os.lseek(fd, 7, os.SEEK_SET)
    with iolift.open(fd, "r+", journal=place / "j") as f:
        assert f.pwrite(b"x", 10) == 1
        with pytest.raises(OSError, match="at most"):
            f.pwrite(b"x", (1 << 63) - 2)
        assert os.lseek(fd, 0, os.SEEK_CUR) == 7
