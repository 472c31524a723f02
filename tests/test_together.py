"""Goal: files that have one journal in common are one in what survives, and several in all else.

That a crash leaves them as after one prefix of all requests is in test_durable.py
(`test_the_whole_stack_crashes`, two files) and test_crashes.py; the negative control is here.
"""

from __future__ import annotations

import _thread
import asyncio
import errno
import os
import random
import shutil
import sys
import threading
from typing import TYPE_CHECKING, Any

import child
import pytest
from crashing import Explorer, LostError, Told
from durable import Stack
from faulty import FaultyDisk
from modeldisk import ModelDisk

import iolift
from iolift import _journal
from iolift.cli import main
from iolift.errors import ForeignJournalError, JournalError, PoisonedError

if TYPE_CHECKING:
    from pathlib import Path

HANG_S = 60  # not an expectation: what takes this long hangs
LONG = {"write_window_ms": 60_000}
SMALL = {"journal_segment_bytes": 32 << 10, "journal_max_bytes": 6 * (32 << 10)}


def names(place: Path, count: int = 2) -> list[Path]:
    return [place / f"file{i}" for i in range(count)]


def opened(place: Path, count: int = 2, mode: str = "r+", **options: Any) -> Any:
    paths = names(place, count)
    if mode == "r+":
        for path in paths:
            path.touch()
    return iolift.open_together(paths, mode, journal=place / "journal", **options)


def contents(place: Path, count: int = 2) -> list[bytes]:
    return [path.read_bytes() for path in names(place, count)]


def after_a_crash(place: Path, count: int = 2) -> list[bytes]:
    """What the journal, as it is now, makes of files that got nothing so far."""
    copy = place / "crash"
    copy.mkdir()
    shutil.copytree(place / "journal", copy / "journal", ignore=shutil.ignore_patterns("*.new"))
    for path in names(copy, count):
        path.touch()
    arguments = ["journal", "recover", copy / "journal", *names(copy, count), "--adopt"]
    assert main([str(argument) for argument in arguments]) == 0
    return contents(copy, count)


# ------------------------------------------------------------------------------------ what survives


def test_what_is_received_of_one_brings_all_that_was_submitted_before(tmp_path: Path) -> None:
    with opened(tmp_path, 3, **LONG) as files:
        tickets = [files[i % 3].submit_pwrite(b"%d" % (i % 3), i) for i in range(30)]
        assert tickets[-1].received() == 30
        assert {ticket.receipt.state for ticket in tickets} == {"received"}
        assert files[0]._journal.log.commits == 1
        for i, content in enumerate(after_a_crash(tmp_path, 3)):
            assert content.replace(b"\0", b"") == b"%d" % i * 10
        with pytest.raises(BlockingIOError, match="open already"):
            opened(tmp_path, 3)


def test_each_has_its_own_order_truncates_and_syncs(tmp_path: Path) -> None:
    with opened(tmp_path) as (a, b):
        a.write(b"aaaa")
        b.write(b"bbbb")
        a.truncate(2)
        b.sync()
        assert (a.pread(9, 0), b.pread(9, 0)) == (b"aa", b"bbbb")
        assert a.submit_pwrite(b"once", 0, key=b"k").received() == 4
        # A key is the journal's, whichever file it comes with.
        assert b.submit_pwrite(b"again", 0, key=b"k").received() == 4
    assert contents(tmp_path) == [b"once", b"bbbb"]


def test_after_a_crash_each_file_must_be_there(tmp_path: Path) -> None:
    child.run(
        """
        import os, sys, iolift
        paths = [sys.argv[1] + "/file0", sys.argv[1] + "/file1"]
        a, b = iolift.open_together(paths, "x+", journal=sys.argv[1] + "/journal",
                                    write_window_ms=60_000)
        a.submit_pwrite(b"first", 0)
        b.submit_pwrite(b"second", 0).received()
        os._exit(0)
        """,
        tmp_path,
    )
    first, second = names(tmp_path)
    with pytest.raises(ForeignJournalError, match="records for other files"):
        iolift.open(first, "r+", journal=tmp_path / "journal")
    with pytest.raises(ForeignJournalError, match="records for other files"):
        iolift.open_together([second], journal=tmp_path / "journal")
    with iolift.open_together([second, first], journal=tmp_path / "journal"):
        assert contents(tmp_path) == [b"first", b"second"]
    # With nothing left to recover, one of them may be open alone.
    with iolift.open(first, "r+", journal=tmp_path / "journal") as f:
        f.pwrite(b"FIRST", 0)
    assert contents(tmp_path) == [b"FIRST", b"second"]


def test_others_may_join(tmp_path: Path) -> None:
    opened(tmp_path).close()
    (tmp_path / "stranger").touch()
    with pytest.raises(ForeignJournalError, match="other files than"):
        iolift.open_together([tmp_path / "stranger"], journal=tmp_path / "journal")
    with opened(tmp_path, 3) as files:
        files[2].pwrite(b"joined", 0)
    assert contents(tmp_path, 3) == [b"", b"", b"joined"]
    before = len(os.listdir("/proc/self/fd"))
    with opened(tmp_path, 3) as files:
        files[0].submit_pwrite(b"x", 0, key=b"so that a segment stays").received()
    with pytest.raises(ValueError, match="at most 64"):
        opened(tmp_path, 65)
    assert len(os.listdir("/proc/self/fd")) == before
    opened(tmp_path, 64).close()


def test_a_release_that_syncs_nothing_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a file that was closed early has of the journal may go with the next checkpoint."""
    monkeypatch.setattr(_journal.Journal, "release", lambda self, number: self.targets.pop(number))

    def search() -> None:
        for seed in range(20):
            folder = tmp_path / str(seed)
            folder.mkdir()
            with monkeypatch.context() as patch:
                explore_an_early_close(folder, patch, seed)

    with pytest.raises(LostError):
        search()


def explore_an_early_close(folder: Path, patch: pytest.MonkeyPatch, seed: int) -> None:
    chance = random.Random(seed)
    stack = Stack(folder, patch, count=2)
    for asked in range(1, 21):
        if asked == 10:
            stack.files[1].close()
        which = chance.randrange(2) if asked < 10 else 0
        stack.write(chance.randrange(20_000), chance.randbytes(5000), which).received()
        stack.disk.note("received", asked)
    stack.files.close()
    Explorer(seed, deep=0, per_point=3).crash_all(
        ModelDisk(2), stack.disk.log, Told([(b"", b"")], 0, [], [])
    )


def test_a_file_that_was_closed_is_nothing_to_the_journal_any_more(tmp_path: Path) -> None:
    child.run(
        """
        import os, sys, iolift
        paths = [sys.argv[1] + "/file0", sys.argv[1] + "/file1", sys.argv[1] + "/file2"]
        a, b, c = iolift.open_together(paths, "x+", journal=sys.argv[1] + "/journal",
                                       write_window_ms=60_000)
        c.submit_pwrite(b"held", 0)
        a.submit_pwrite(b"old", 0)
        b.submit_pwrite(b"gone", 0).received()
        a.close()
        b.close()
        with open(paths[0], "r+b") as f:
            f.write(b"NEW")
        os.unlink(paths[1])
        c.submit_pwrite(b"last", 10).received()
        os._exit(0)
        """,
        tmp_path,
    )
    first, _, last = names(tmp_path, 3)
    iolift.open_together([first, last], journal=tmp_path / "journal").close()
    assert (first.read_bytes(), last.read_bytes()) == (b"NEW", b"held\0\0\0\0\0\0last")


def test_a_sync_of_one_is_for_all(tmp_path: Path) -> None:
    with opened(tmp_path, **LONG) as (a, b):
        for sync in (a.sync, lambda: a.submit_sync().result()):
            ticket = b.submit_pwrite(b"x", 0)
            sync()
            assert ticket.receipt.state == "received"


def test_a_sync_of_one_tells_what_was_refused_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path, **LONG) as (a, b):
        storage, real = a._journal._storage, a._journal._storage.create

        def full(name: str) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(storage, "create", full)
        a.submit_pwrite(b"value", 0)  # whose ticket nobody keeps
        with pytest.raises(OSError, match="could not grow"):
            b.submit_pwrite(b"entry", 0).received()
        monkeypatch.setattr(storage, "create", real)
        b.submit_pwrite(b"later", 10).received()
        with pytest.raises(OSError, match="could not grow"):
            b.sync()
        b.sync()
    assert contents(tmp_path) == [b"", bytes(10) + b"later"]


def test_an_early_close_is_as_safe_as_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    explore_an_early_close(tmp_path, monkeypatch, 0)


# --------------------------------------------------------------------------------- opening, closing


def test_bad_arguments_leave_nothing_open(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    first, second = names(tmp_path)
    first.touch()
    link = tmp_path / "link"
    link.symlink_to(first)
    before = len(os.listdir("/proc/self/fd"))
    with iolift.Coalescer(backend="posix") as c:
        for error, match, arguments, options in (
            (TypeError, "several, not 'data'", ("data",), {}),
            (ValueError, "paths is empty", ([],), {}),
            (ValueError, r"paths\[0\] = .* and paths\[1\] = .*link'\) are the same",
             ([first, link],), {}),
            (FileNotFoundError, "file1", ([first, second],), {}),
            (FileExistsError, "file0", ([first], "x"), {}),
            (ValueError, "needs the mode r", ([first], "r"), {}),
            (ValueError, "needs the mode r", ([first], "w"), {}),
            (ValueError, "mode must be", ([first], "q"), {}),
            (ValueError, "journal_segment_bytes|segment_bytes", ([first],),
             {"journal_segment_bytes": 1}),
            (TypeError, "can't be set", ([first],), {"depth": 3}),
        ):  # fmt: skip
            with pytest.raises(error, match=match):
                iolift.open_together(*arguments, journal=journal, coalescer=c, **options)
        with pytest.raises(TypeError, match="no options"):
            iolift.open_together([first], journal=journal, colour="red")
        with pytest.raises(TypeError, match="must be an iolift"):
            iolift.open_together([first], journal=journal, coalescer=3)  # type: ignore[arg-type]
        assert not journal.exists()
        assert len(os.listdir("/proc/self/fd")) == before
        with iolift.open_together([first], journal=journal, coalescer=c) as (f,):
            f.write(b"works")
        assert not c.closed
    assert first.read_bytes() == b"works"


def test_the_last_one_closes_journal_and_coalescer(tmp_path: Path) -> None:
    a, b, c = files = opened(tmp_path, 3, **LONG)
    journal, coalescer = a._journal, a.coalescer
    a.write(b"held")
    a.close()
    assert (a.closed, b.closed, journal.closed, coalescer.closed) == (True, False, False, False)
    assert len(journal.targets) == 2
    b.write(b"goes on")
    c.close()
    assert b.pread(9, 0) == b"goes on"
    files.close()
    assert (journal.closed, coalescer.closed, b.closed) == (True, True, True)
    files.close()
    assert contents(tmp_path, 3) == [b"held", b"goes on", b""]


def test_all_are_closed_at_once(tmp_path: Path) -> None:
    for turn in range(20):
        files = opened(tmp_path, 4, **LONG)
        for i, f in enumerate(files):
            f.write(b"%d of %d" % (i, turn))
        start = threading.Barrier(len(files))

        def close(f: Any, start: threading.Barrier = start) -> None:
            start.wait()
            f.close()

        threads = [threading.Thread(target=close, args=(f,)) for f in files]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert files[0]._journal.closed
        assert files[0].coalescer.closed
        assert contents(tmp_path, 4) == [b"%d of %d" % (i, turn) for i in range(4)]


def test_closes_that_meet(tmp_path: Path) -> None:
    """Of two files; of one file twice, which must leave the other one its coalescer."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for turn in range(100):
            a, b, c = opened(tmp_path, 3, **LONG)
            a.write(b"a")
            closes = [a.close, a.close] if turn % 2 else [a.close, b.close]
            threads = [threading.Thread(target=close) for close in closes]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            c.pwrite(b"c", 0)
            c.close()
            b.close()
    finally:
        sys.setswitchinterval(interval)
    assert contents(tmp_path, 3) == [b"a", b"", b"c"]


@pytest.mark.parametrize("moment", ["_write_slot", "_sync_targets"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_file_that_is_collected_in_a_checkpoint(tmp_path: Path, count: int, moment: str) -> None:
    child.run(
        """
        import gc, sys, threading, warnings, iolift
        warnings.simplefilter("ignore")
        gc.disable()
        place, count, moment = sys.argv[1], int(sys.argv[2]), sys.argv[3]
        paths = [place + f"/file{i}" for i in range(count)]
        files = iolift.open_together(paths, "x+", journal=place + "/journal")
        for f in files:
            f.pwrite(b"x", 0)
        journal, core, last = files[0]._journal, files[0]._core, files[-1]
        real = getattr(journal, moment)
        def collect(*arguments):
            gc.collect()
            return real(*arguments)
        setattr(journal, moment, collect)
        cycle = [files[0]]
        cycle.append(cycle)
        files[0].cycle = cycle
        del f, files, cycle
        if count == 1:
            last = None
        journal.checkpoint(journal._write_back())
        if last is not None:
            last.close()
        while not (core.closed and journal.closed):
            pass
        """,
        tmp_path,
        count,
        moment,
    )
    assert contents(tmp_path, count) == [b"x"] * count
    opened(tmp_path, count).close()


def test_the_first_error_of_closing_is_told(tmp_path: Path) -> None:
    files = opened(tmp_path)
    numbers = {file.fileno(): i for i, file in enumerate(files)}
    storage = files[0]._journal._storage
    real = storage.sync

    def sync(handle: int) -> None:
        if handle in numbers:
            raise OSError(errno.EIO, f"of file {numbers[handle]}")
        real(handle)

    storage.sync = sync
    for file in files:
        file.pwrite(b"x", 0)
    with pytest.raises(OSError, match="of file 0"):
        files.close()
    assert [file.closed for file in files] == [True, True]


def test_a_close_that_is_interrupted_keeps_the_descriptor_for_the_sync(tmp_path: Path) -> None:
    a, b = opened(tmp_path, **LONG)
    storage, fd = a._journal._storage, a.fileno()
    a.write(b"held")
    raised, synced = threading.Event(), threading.Event()
    real = storage.sync

    def sync(handle: int) -> None:
        if handle == fd and threading.current_thread() is not threading.main_thread():
            _thread.interrupt_main()
            assert raised.wait(HANG_S)
            real(handle)  # EBADF, if it was closed
            synced.set()
        else:
            real(handle)

    storage.sync = sync
    with pytest.raises(KeyboardInterrupt):
        a.close()
    raised.set()
    assert synced.wait(HANG_S)
    b.close()
    assert a._journal._target_error is None
    assert contents(tmp_path) == [b"held", b""]


@pytest.mark.parametrize("close_first", ["", "a.close()"])
def test_the_interpreter_ends_with_them_open(tmp_path: Path, close_first: str) -> None:
    child.run(
        f"""
        import sys, iolift
        paths = [sys.argv[1] + "/file0", sys.argv[1] + "/file1"]
        a, b = iolift.open_together(paths, "x+", journal=sys.argv[1] + "/journal",
                                    write_window_ms=60_000)
        a.write(b"first")
        b.write(b"second")
        {close_first}
        """,
        tmp_path,
    )
    assert contents(tmp_path) == [b"first", b"second"]
    assert sorted(os.listdir(tmp_path / "journal")) == ["checkpoint", "lock"]


def test_a_forked_child_may_close_them(tmp_path: Path) -> None:
    child.run(
        """
        import os, sys, iolift
        paths = [sys.argv[1] + "/file0", sys.argv[1] + "/file1"]
        files = iolift.open_together(paths, "x+", journal=sys.argv[1] + "/journal",
                                     write_window_ms=60_000)
        files[0].write(b"parent")
        pid = os.fork()
        if pid == 0:
            try:
                files[1].pwrite(b"child", 0)
            except iolift.ForkedError:
                files.close()
                os._exit(0)
            os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        files[1].write(b"again")
        files.close()
        """,
        tmp_path,
    )
    assert contents(tmp_path) == [b"parent", b"again"]


# --------------------------------------------------------------------- checkpoints, and what fails


def test_a_checkpoint_is_for_all_of_them(tmp_path: Path) -> None:
    with opened(tmp_path, **LONG) as (a, b):
        a.submit_pwrite(b"first", 0)
        ticket = b.submit_pwrite(b"second", 0)
        a.checkpoint()
        assert a._journal.checkpointed == 2
        assert ticket.state == "checkpointed"
        assert contents(tmp_path) == [b"first", b"second"]


def test_a_full_journal_waits_for_whichever_file_holds_it_up(tmp_path: Path) -> None:
    with opened(tmp_path, **LONG, **SMALL) as (a, b):
        a._journal._aside = lambda work: None  # no checkpoint but those that somebody waits for
        held = a.submit_pwrite(b"held", 0)
        held.received()
        for i in range(100):
            b.submit_pwrite(bytes([i]) * 6000, 0)
        b.sync()
        assert held.state in ("written", "checkpointed")
        assert b.pread(6000, 0) == bytes([99]) * 6000
    assert contents(tmp_path) == [b"held", bytes([99]) * 6000]


def test_a_truncate_of_another_file_is_waited_for_where_the_journal_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path, **SMALL) as (a, b):
        a._journal._aside = lambda work: None
        cutting, go, real = threading.Event(), threading.Event(), os.ftruncate

        def ftruncate(fd: int, size: int) -> None:
            cutting.set()
            assert go.wait(HANG_S)
            real(fd, size)

        monkeypatch.setattr(os, "ftruncate", ftruncate)
        thread = threading.Thread(target=b.truncate, args=(10,))
        thread.start()
        assert cutting.wait(HANG_S)
        tickets: list[Any] = []

        async def fill() -> None:
            for i in range(60):
                tickets.append(a.submit_pwrite(bytes([i]) * 6000, 0))
                if tickets[-1].state == "parked" and not go.is_set():
                    go.set()
                await tickets[-1]

        asyncio.run(fill())
        assert go.is_set()
        thread.join()
        assert a.pread(1, 0) == bytes([59])


def test_a_file_that_fails_holds_back_checkpoints_and_is_made_good(tmp_path: Path) -> None:
    disk = FaultyDisk()
    files = opened(tmp_path, backend=disk, **LONG)
    a, b = files
    b.pwrite(b"before", 0)
    disk.fail(errno.EIO, times=1, kind="write")
    ticket = a.submit_pwrite(b"received", 0)
    assert ticket.received() == 2
    with pytest.raises(OSError, match="Input/output"):
        ticket.result()
    with pytest.raises(PoisonedError):
        a.pwrite(b"x", 0)
    b.pwrite(b"BEHIND", 0)  # the other one goes on
    a.close()
    b.checkpoint()
    assert b._journal.checkpointed == 1
    files.close()
    assert contents(tmp_path) == [b"", b"BEHIND"]
    opened(tmp_path).close()
    assert contents(tmp_path) == [b"received", b"BEHIND"]


def test_a_file_that_can_not_be_synced_at_its_close(tmp_path: Path) -> None:
    files = opened(tmp_path)
    a, b = files
    storage, fd = a._journal._storage, a.fileno()
    real = storage.sync

    def sync(handle: int) -> None:
        if handle == fd:
            raise OSError(errno.EIO, "Input/output error")
        real(handle)

    storage.sync = sync
    a.submit_pwrite(b"received", 0).received()
    with pytest.raises(OSError, match="Input/output"):
        a.close()
    b.pwrite(b"goes on", 0)
    with pytest.raises(JournalError, match="a target failed before"):
        b.checkpoint()
    with pytest.raises(JournalError, match="a target failed before"):
        files.close()
    names(tmp_path)[0].write_bytes(b"")  # what it had is lost
    opened(tmp_path).close()
    assert contents(tmp_path) == [b"received", b"goes on"]


def test_direct(tmp_path: Path) -> None:
    try:
        opened(tmp_path, direct=True).close()
    except OSError as error:
        pytest.skip(f"no direct I/O here: {error}")
    with opened(tmp_path, direct=True, **LONG) as (a, b):
        a.submit_pwrite(bytes(5000), 3)
        b.submit_pwrite(b"odd", 1).received()
        assert after_a_crash(tmp_path) == [bytes(5003), b"\0odd"]
    assert contents(tmp_path) == [bytes(5003), b"\0odd"]
