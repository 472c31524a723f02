"""Goal: a file with a journal is as any other file, and what was received survives everything.

The same requests as everywhere, with receipts; the whole stack on a disk that crashes after each
operation; a journal, and a file, that fail under it.
"""

from __future__ import annotations

import asyncio
import errno
import io
import os
import random
import shutil
import threading
from typing import TYPE_CHECKING, Any

import child
import pytest
from crashing import Explorer, Told
from durable import SEGMENT, Disk, Stack
from faulty import FaultyDisk
from gated import GatedDisk
from modeldisk import ModelDisk

import iolift
from iolift.errors import OutcomeUnknownError, PoisonedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "data").write_bytes(b"")
    return tmp_path


def opened(place: Path, mode: str = "r+", **options: Any) -> Any:
    return iolift.open(place / "data", mode, journal=place / "data.journal", **options)


def crashed(place: Path, name: str) -> Path:
    """What a process that died now would leave: the files as they are."""
    copy = place / name
    copy.mkdir()
    unfinished = shutil.ignore_patterns("*.new")  # a segment that is being prepared
    while True:
        try:
            shutil.copytree(place / "data.journal", copy / "data.journal", ignore=unfinished)
            return copy
        except shutil.Error:  # one was renamed or removed meanwhile: no moment in time
            shutil.rmtree(copy / "data.journal")


def recovered(place: Path, copy: Path, before: bytes = b"") -> bytes:
    """The file as the journal makes it from what it was before the journal began."""
    from iolift.cli import main

    (copy / "data").write_bytes(before)
    arguments = ["journal", "recover", copy / "data.journal", copy / "data", "--adopt"]
    assert main([str(argument) for argument in arguments]) == 0
    return (copy / "data").read_bytes()


# ----------------------------------------------------------------------------------- as any file


def test_the_states_of_a_write(place: Path) -> None:
    disk = GatedDisk()
    with opened(place, backend=disk, write_window_ms=1000) as f:
        f.submit_pwrite(b"-", 0).result()  # the second one has company
        disk.close("write")
        ticket = f.submit_pwrite(b"hello", 3)
        assert ticket.state == "held"
        assert ticket.receipt.state == "gathered"
        assert ticket.received() == 2
        assert ticket.state == "received"
        assert not ticket.done()
        assert f.pread(100, 0) == b"-\0\0hello"
        assert (place / "data").read_bytes() == b"-"
        disk.open()
        assert ticket.result() == 5
        assert ticket.state == "written"
        assert (place / "data").read_bytes() == b"-\0\0hello"
        f.checkpoint()
        assert ticket.state == "checkpointed"
        assert ticket.received() == 2
        assert ticket.explain().state == "done"


def test_a_sync_waits_for_receipts_and_for_nothing_else(place: Path) -> None:
    disk = GatedDisk()
    with opened(place, backend=disk) as f:
        disk.close("write")
        tickets = [f.submit_pwrite(b"x" * 100, 100 * i) for i in range(50)]
        f.sync()
        assert {ticket.state for ticket in tickets} == {"received"}
        assert f.submit_sync().result() is None
        last = f.submit_pwrite(b"y", 0)
        assert f.submit_sync().result() is None
        assert last.state == "received"
        assert disk.ops("sync") == []
        copy = crashed(place, "now")
        assert recovered(place, copy) == b"y" + b"x" * 4999
        disk.open()
    assert (place / "data").read_bytes() == b"y" + b"x" * 4999


def test_every_way_to_write(place: Path) -> None:
    with opened(place) as f:
        f.pwrite(bytearray(b"pwrite"), 0)
        f.pwritev([b"vec", memoryview(b"tor")], 10)
        f.write_ranges([20, 30, 20], b"aabbcc")
        f.seek(40)
        f.write(b"behind")
        f.truncate(43)
        f.submit_pwrite(b"", 5).result()
        assert f.submit_pwrite(b"", 5).received() == 0
        assert f.size() == 43 if hasattr(f, "size") else True
        f.sync()
        wanted = bytearray(43)
        parts = {0: b"pwrite", 10: b"vector", 20: b"cc", 30: b"bb", 40: b"beh"}
        for offset, data in parts.items():
            wanted[offset : offset + len(data)] = data
        assert f.pread(100, 0) == wanted
        assert recovered(place, crashed(place, "now")) == wanted
        f.flush()
        assert (place / "data").read_bytes() == wanted
    assert (place / "data").read_bytes() == wanted
    assert not list((place / "data.journal").glob("*.seg"))


@pytest.mark.parametrize("seed", range(6))
def test_as_if_one_by_one(place: Path, seed: int) -> None:
    chance = random.Random(seed)
    content = bytearray()
    options = {"journal_segment_bytes": SEGMENT, "journal_max_bytes": 8 * SEGMENT}
    f = opened(place, **options)
    tickets: list[Any] = []
    for turn in range(400):
        does = chance.random()
        offset, size = chance.randrange(20000), chance.choice((1, 100, 3000, 14000))
        if does < 0.5:
            data = chance.randbytes(size)
            tickets.append(f.submit_pwrite(data, offset))
            content.extend(bytes(max(0, offset + size - len(content))))
            content[offset : offset + size] = data
        elif does < 0.8:
            assert f.pread(size, offset) == content[offset : offset + size], turn
        elif does < 0.85 and tickets:
            tickets[-1].received()
        elif does < 0.9:
            f.truncate(offset)
            content[offset:] = b""
            content.extend(bytes(offset - len(content)))
        elif does < 0.93:
            f.sync()
            assert recovered_now(place, turn, f) == content
        elif does < 0.95:
            f.flush()
            assert (place / "data").read_bytes() == content
        elif does < 0.97:
            f.checkpoint()
        else:
            f.close()
            assert (place / "data").read_bytes() == content
            f = opened(place, **options)
            tickets = []
        f._core._check()
    f.close()
    assert (place / "data").read_bytes() == content


def recovered_now(place: Path, turn: int, f: Any) -> bytes:
    # The file first: a checkpoint in between only takes away what the file has by then.
    f._core._check()
    before = (place / "data").read_bytes()
    copy = crashed(place, f"at{turn}")
    after = recovered(place, copy, before)
    shutil.rmtree(copy)
    return after


def test_threads_fill_a_small_journal(place: Path) -> None:
    options = {"journal_segment_bytes": SEGMENT, "journal_max_bytes": 4 * SEGMENT}
    with opened(place, **options) as f:

        def work(number: int) -> None:
            for i in range(60):
                ticket = f.submit_pwrite(bytes([number]) * 700, 700 * (number * 60 + i))
                if i % 7 == 0:
                    ticket.received()
                if i % 20 == 19:
                    f.sync()

        threads = [threading.Thread(target=work, args=[number]) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert f._journal.live_bytes <= 4 * SEGMENT
        assert f._journal.checkpointed > 0
    wanted = b"".join(bytes([number]) * 42000 for number in range(8))
    assert (place / "data").read_bytes() == wanted


def test_truncates_among_writers(place: Path) -> None:
    with opened(place) as f:
        stop = threading.Event()

        def work(number: int) -> None:
            i = 0
            while not stop.is_set():
                i += 1
                f.submit_pwrite(bytes([number, i % 256]) * 50, 1000 * number).received()

        threads = [threading.Thread(target=work, args=[number]) for number in range(3)]
        for thread in threads:
            thread.start()
        for i in range(20):
            f.truncate(i % 3 * 700)
        stop.set()
        for thread in threads:
            thread.join()
        f.sync()
        assert recovered(place, crashed(place, "now")) == f.pread(10000, 0)


def test_on_an_event_loop(place: Path) -> None:
    with opened(place) as f:

        async def one(i: int) -> tuple[int, int]:
            ticket = f.submit_pwrite(b"%03d" % i, 3 * i)
            return await ticket.receipt, await ticket

        async def main() -> list[tuple[int, int]]:
            some = await asyncio.gather(*[one(i) for i in range(200)])
            await f.submit_sync()
            return some

        results = asyncio.run(main())
        assert sorted(results) == [(i + 1, 3) for i in range(200)]
        assert f._journal.log.commits < 100
        assert f.pread(600, 0) == b"".join(b"%03d" % i for i in range(200))


def test_a_write_is_withdrawn_until_it_is_on_its_way(place: Path) -> None:
    with opened(place, write_window_ms=1000) as f:
        f.submit_pwrite(b"first", 0).result()
        ticket, other = f.submit_pwrite(b"never", 10), f.submit_pwrite(b"other", 20)
        assert ticket.cancel()
        assert ticket.state == "cancelled"
        f.sync()
        assert not other.cancel()
        with pytest.raises(BaseException, match=r"^$") as caught:
            ticket.received()
        assert type(caught.value).__name__ == "CancelledError"
        last = f.submit_pwrite(b"last", 30)
        assert last.cancel()
        f.sync()
        assert recovered(place, crashed(place, "now")) == b"first".ljust(20, b"\0") + b"other"
    assert (place / "data").read_bytes() == b"first".ljust(20, b"\0") + b"other"


def test_a_key_is_written_once(place: Path) -> None:
    with opened(place) as f:
        first = f.submit_pwrite(b"first", 0, key=b"k")
        again = f.submit_pwrite(b"again", 0, key=b"k")
        assert again.received() == first.received()
        assert again.result() == first.result() == 5
        assert f.pread(10, 0) == b"first"
    with opened(place) as f:
        assert f.submit_pwrite(b"later", 0, key=b"k").received() == 1
        assert f.submit_pwrite(b"other", 5, key=b"l").result() == 5
        assert f.pread(10, 0) == b"firstother"
        for key, error in ((b"", ValueError), (bytes(256), ValueError), ("k", TypeError)):
            with pytest.raises(error, match="key"):
                f.submit_pwrite(b"x", 0, key=key)


# ---------------------------------------------------------------------------------------- opening


def test_modes(place: Path) -> None:
    for mode in ("r", "w", "w+"):
        with pytest.raises(ValueError, match="a journal needs the mode"):
            opened(place, mode)
    assert not (place / "data.journal").exists()
    with opened(place, "a") as f:
        f.write(b"one")
    with opened(place, "a+") as f:
        f.write(b"two")
        assert f.pread(10, 0) == b"onetwo"
    with iolift.open(place / "new", "x+", journal=place / "new.journal") as f:
        f.write(b"new")
    with iolift.open(place / "new", "r+") as f:
        with pytest.raises(io.UnsupportedOperation, match="no journal"):
            f.checkpoint()
        ticket = f.submit_pwrite(b"x", 0)
        with pytest.raises(io.UnsupportedOperation, match="a journal have a receipt"):
            ticket.received()
        assert ticket.receipt is None
        with pytest.raises(ValueError, match="key is for"):
            f.submit_pwrite(b"x", 0, key=b"k")
    for options in ({"journal_max_bytes": 1}, {"journal_segment_bytes": 4097}):
        with pytest.raises(ValueError, match="_bytes ="):
            opened(place, **options)


def test_one_opener_and_one_file(place: Path) -> None:
    (place / "other").write_bytes(b"")
    with opened(place) as f:
        with pytest.raises(BlockingIOError, match="open already"):
            opened(place)
        f.write(b"x")
    with pytest.raises(iolift.ForeignJournalError):
        iolift.open(place / "other", "r+", journal=place / "data.journal")
    with iolift.Coalescer() as c:
        f = c.open(place / "data", "r+", journal=place / "data.journal")
        f.write(b"y")
    assert f.closed is False
    assert (place / "data").read_bytes() == b"y"
    f.close()


def test_more_than_the_journal_takes(place: Path) -> None:
    options = {"journal_segment_bytes": SEGMENT, "journal_max_bytes": 4 * SEGMENT}
    with opened(place, **options) as f:
        for call in (f.pwrite, f.submit_pwrite):
            with pytest.raises(ValueError, match="takes at most 12288 at once"):
                call(bytes(12289), 0)
            call(bytes(12288), 0)


def test_a_forked_child_is_refused_and_harms_nothing(place: Path) -> None:
    child.run(
        """
        import os, sys, iolift
        f = iolift.open(sys.argv[1] + "/data", "r+", journal=sys.argv[1] + "/data.journal")
        ticket = f.submit_pwrite(b"parent", 0)
        ticket.received()
        pid = os.fork()
        if pid == 0:
            for call in (lambda: f.pwrite(b"child", 0), f.sync, f.checkpoint):
                try:
                    call()
                except iolift.ForkedError:
                    continue
                os._exit(1)
            f.close()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        f.pwrite(b"again", 10)
        f.close()
        with open(sys.argv[1] + "/data", "rb") as data:
            assert data.read() == b"parent\\0\\0\\0\\0again"
        """,
        place,
    )


def test_a_process_that_ends_without_closing(place: Path) -> None:
    child.run(
        """
        import os, sys, iolift
        f = iolift.open(sys.argv[1] + "/data", "r+", journal=sys.argv[1] + "/data.journal")
        f.submit_pwrite(b"received", 0).received()
        f.submit_pwrite(b"held", 10)
        """,
        place,
    )
    assert (place / "data").read_bytes() == b"received\0\0held"
    with opened(place) as f:
        assert f.pread(20, 0) == b"received\0\0held"


# ---------------------------------------------------------------------------------------- crashes


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("seed", range(8))
def test_the_whole_stack_crashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, count: int
) -> None:
    """Also where several files have one journal, and one of them is closed before the others."""
    chance = random.Random(seed)
    stack = Stack(tmp_path, monkeypatch, count=count)
    asked = 0
    waiting: list[tuple[Any, int]] = []
    for i in range(60):
        if i == 40 and count > 1:
            stack.files[1].close()
        which = chance.randrange(count) if i < 40 else 0
        does = chance.random()
        if does < 0.7:
            size = chance.choice((10, 500, 5000, 12500))
            asked += 1
            data = chance.randbytes(size)
            waiting.append((stack.write(chance.randrange(20000), data, which), asked))
        elif does < 0.8:
            asked += 1
            stack.truncate(chance.randrange(20000), which)
            stack.disk.note("received", asked)
        elif does < 0.9 and waiting:
            ticket, number = waiting.pop()
            ticket.received()
            stack.disk.note("received", number)
        elif does < 0.95:
            stack.file.coalescer.sync()
            stack.disk.note("received", asked)
        else:
            stack.files[which].flush()
    stack.files.close()
    assert stack.disk.contents() == tuple(bytes(content) for content in stack.contents)
    explorer = Explorer(seed, deep=1)
    log = stack.disk.log
    explorer.crash_all(ModelDisk(count), log, Told([(b"",) * count], 0, [], []))
    assert explorer.states > 100


# --------------------------------------------------------------------------------------- failures


class FailingDisk(Disk):
    """The journal's syncs, or the file's writes, fail from a moment on."""

    broken = ""

    def sync(self, handle: int) -> None:
        if self.broken == "journal" and handle >= 1000:
            raise OSError(errno.EIO, "x")
        super().sync(handle)


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    stack = Stack(tmp_path, monkeypatch, FailingDisk(), write_window_ms=1000)
    yield stack
    stack.disk.broken = ""
    stack.file.close()


def test_a_journal_that_fails(failing: Any) -> None:
    f, disk = failing.file, failing.disk
    f.submit_pwrite(b"first", 0).result()
    received = f.submit_pwrite(b"received", 10)
    received.received()
    disk.broken = "journal"
    lost = f.submit_pwrite(b"lost", 30)
    behind = f.submit_sync()
    with pytest.raises(OutcomeUnknownError):
        lost.received()
    with pytest.raises(OutcomeUnknownError):
        lost.result()
    with pytest.raises(OutcomeUnknownError):
        behind.result()
    # What was received goes on, and is read; what was not never reaches the file.
    assert received.result() == 8
    assert f.pread(100, 0) == b"first\0\0\0\0\0received"
    syncs = len([op for op in disk.log if op[0] == "sync"])
    for call in (
        lambda: f.submit_pwrite(b"x", 0),
        lambda: f.pwrite(b"x", 0),
        lambda: f.truncate(0),
        f.sync,
    ):
        with pytest.raises(PoisonedError):
            call()
    assert len([op for op in disk.log if op[0] == "sync"]) == syncs


def test_a_file_that_fails_is_made_good_by_the_next_open(place: Path) -> None:
    disk = FaultyDisk()
    f = opened(place, backend=disk, write_window_ms=1000)
    f.submit_pwrite(b"first", 0).result()
    disk.fail(errno.EIO, times=None, kind="write")
    ticket = f.submit_pwrite(b"second", 10)
    assert ticket.received() == 2
    with pytest.raises(OSError, match="Input/output"):
        ticket.result()
    with pytest.raises(PoisonedError):
        f.pwrite(b"third", 20)
    f.close()
    assert (place / "data").read_bytes() == b"first"
    with opened(place) as f:
        assert f.pread(100, 0) == b"first\0\0\0\0\0second"
    assert (place / "data").read_bytes() == b"first\0\0\0\0\0second"


def test_no_room_for_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(Disk):
        full = False

        def create(self, name: str) -> int:
            if self.full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().create(name)

    stack = Stack(tmp_path, monkeypatch, Full())
    f: Any = stack.file
    f.submit_pwrite(bytes(9000), 0).received()
    stack.disk.full = True  # type: ignore[attr-defined]
    received = 0

    def fill() -> None:
        nonlocal received
        for i in range(200):
            f.submit_pwrite(bytes([i]) * 9000, 0).received()
            received += 1

    with pytest.raises(OSError, match="could not grow") as caught:
        fill()
    assert caught.value.errno == errno.ENOSPC
    assert not isinstance(caught.value, PoisonedError)
    assert f.pread(9000, 0) == bytes([max(received - 1, 0)]) * 9000
    stack.disk.full = False  # type: ignore[attr-defined]
    f.pwrite(b"again", 0)
    f.close()
