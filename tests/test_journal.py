"""Goal: receipts are honest, groups are groups, and a full or a failing disk is no surprise.

On the model of a disk, where operations can be counted, held back and made to fail; the last tests
are on a real one.
"""

from __future__ import annotations

import errno
import os
import random
import threading
from typing import TYPE_CHECKING, Any

import child
import preload
import pytest
from crashing import SEGMENT, open_journal
from modeldisk import ModelDisk, Recorder, change_bytes, record_on, replay

from iolift._journal import Journal, check_sizes
from iolift._recovery import recover
from iolift._storage import DirectoryStorage
from iolift._survey import survey
from iolift.errors import (
    ForeignJournalError,
    JournalDamagedError,
    JournalError,
    OutcomeUnknownError,
    PoisonedError,
)

if TYPE_CHECKING:
    from pathlib import Path


class Rig:
    """A journal on a recording disk, whose owner writes back when asked."""

    def __init__(self, disk: ModelDisk | None = None, **options: Any) -> None:
        self.disk: Any = Recorder(1) if disk is None else disk
        self.pending: list[tuple[Any, int, bytes]] = []
        self.journal = open_journal(self.disk, self.write_back, **options)
        self.written: int = self.journal.checkpointed  # sequence

    def write(self, offset: int, data: bytes, key: bytes = b"") -> Any:
        receipt = self.journal.write(0, offset, data, key)
        self.pending.append((receipt, offset, data))
        return receipt

    def write_back(self) -> int:
        while self.pending and self.pending[0][0].state == "received":
            receipt, offset, data = self.pending.pop(0)
            self.disk.write(0, data, offset)
            self.written = receipt.sequence
        return self.written

    def operations(self) -> list[str]:
        """The changes since the last call."""
        log, self.disk.log = self.disk.log, []
        return [op[0] for op in log if op[0] not in ("open", "shut")]

    def reopen(self, **options: Any) -> Rig:
        """After a crash that kept nothing that was not synced."""
        self.disk.locked = False
        for inode in {*self.disk.names_now.values(), *self.disk.targets}:
            inode.content[:] = inode.durable
            inode.pending.clear()
        self.disk.names_now = dict(self.disk.names_durable)
        return Rig(self.disk, **options)


class Gate(Recorder):
    """A sync of a segment waits until it is let through."""

    def __init__(self, targets: int = 1) -> None:
        super().__init__(targets)
        self.arrived = threading.Semaphore(0)
        self.through = threading.Semaphore(0)
        self.closed = False

    def sync(self, handle: int) -> None:
        if self.closed and handle >= 1000:
            self.arrived.release()
            self.through.acquire()
        super().sync(handle)


# ------------------------------------------------------------------------------------ group commit


def test_a_commit_is_one_write_and_one_sync() -> None:
    rig = Rig()
    rig.write(0, b"first").wait()
    for count in (1, 10, 100):
        rig.operations()
        receipts = [rig.write(i, b"x" * 10) for i in range(count)]
        assert [r.state for r in receipts] == ["gathered"] * count
        receipts[-1].wait()
        assert rig.operations() == ["write", "sync"]
        assert [r.state for r in receipts] == ["received"] * count
    assert [r.sequence for r in receipts] == list(range(13, 113))


def under_way() -> tuple[Rig, Any, threading.Thread]:
    """A record, number 2, whose commit is held at the gate, and who leads that."""
    rig = Rig(Gate(1))
    rig.write(0, b"first").wait()
    rig.disk.closed = True
    first = rig.write(0, b"a")
    leader = threading.Thread(target=first.wait)
    leader.start()
    rig.disk.arrived.acquire()
    return rig, first, leader


def test_who_comes_while_a_group_is_under_way_goes_with_the_next() -> None:
    rig, first, leader = under_way()
    others = [rig.write(i, b"b") for i in range(20)]
    waiting = [threading.Thread(target=other.wait) for other in others]
    for thread in waiting:
        thread.start()
    assert first.state == "committing"
    assert {other.state for other in others} == {"gathered"}
    before = rig.journal.log.commits
    rig.disk.through.release()
    leader.join()
    rig.disk.arrived.acquire()
    assert first.state == "received"
    assert {other.state for other in others} == {"committing"}
    rig.disk.through.release()
    for thread in waiting:
        thread.join()
    assert {other.state for other in others} == {"received"}
    assert rig.journal.log.commits == before + 2


def test_a_wait_ends_when_its_time_is_up() -> None:
    rig, _, leader = under_way()
    second = rig.write(0, b"b")
    with pytest.raises(TimeoutError):
        second.wait(0)
    rig.disk.closed = False
    rig.disk.through.release()
    leader.join()
    assert second.wait() == 3


def test_a_small_one_never_waits_for_a_huge_one() -> None:
    rig = Rig(segment_bytes=1 << 20, max_bytes=8 << 20)
    rig.write(0, b"first").wait()
    rig.operations()
    small, huge, last = rig.write(0, b"a"), rig.write(0, bytes(400_000)), rig.write(0, b"b")
    assert small.wait() == 2
    assert rig.operations() == ["write", "sync"]
    assert (huge.state, last.state) == ("gathered", "gathered")
    last.wait()
    assert rig.operations() == ["write", "sync"] * 2
    assert huge.state == "received"


def test_a_record_of_any_size() -> None:
    rig = Rig()
    sizes = [0, 1, 4095, 4096, 12287, 12288]
    for size in sizes:
        rig.write(0, bytes([size % 251]) * size).wait()
    with pytest.raises(ValueError, match="12289 bytes, a journal with max_bytes = 131072"):
        rig.write(0, bytes(12289))
    again = rig.reopen()
    assert again.disk.contents() == (bytes([12288 % 251]) * 12288,)


def test_buffers_of_any_kind_are_copied_and_bytes_are_kept() -> None:
    rig = Rig()
    data = bytearray(b"before")
    receipt = rig.journal.write(0, 0, data)
    data[:] = b"after."
    receipt.wait()
    assert rig.reopen().disk.contents() == (b"before",)


def test_many_threads() -> None:
    rig = Rig(segment_bytes=256 << 10, max_bytes=1 << 20)
    done: list[int] = []

    def work(number: int) -> None:
        for i in range(50):
            rig.write(1000 * number + i, bytes([number])).wait()
            done.append(number)

    threads = [threading.Thread(target=work, args=[number]) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 800
    assert rig.journal.log.records == 800
    (content,) = rig.reopen(max_bytes=1 << 20).disk.contents()
    assert all(content[1000 * n : 1000 * n + 50] == bytes([n]) * 50 for n in range(16))


# ---------------------------------------------------------------------------- segments, checkpoints


def test_the_order_of_a_checkpoint() -> None:
    rig = Rig()
    for _i in range(6):
        rig.write(0, bytes(12000)).wait()
    rig.operations()
    rig.journal.checkpoint(rig.write_back())
    assert rig.operations() == ["write"] * 6 + ["sync", "write", "sync"] + ["unlink"] * 2
    assert rig.journal.checkpointed == 6
    rig.journal.checkpoint(6)
    assert rig.operations() == []


def test_the_order_of_a_new_segment() -> None:
    rig = Rig()
    new = ["create", "write", "sync", "rename", "sync_directory"]
    found = ["sync", "sync_directory"]  # of the recovery, which found the checkpoint
    assert rig.operations() == new + found
    rig.write(0, b"x").wait()
    made = ["create", "write", "sync", "rename", "sync_directory"]
    assert rig.operations() == [*made, "write", "sync"]
    rig.journal.prepare_ahead()
    rig.journal.prepare_ahead()
    assert rig.operations() == made
    rig.write(0, bytes(12000)).wait()
    rig.write(0, bytes(12000)).wait()
    assert rig.operations() == ["write", "sync"] * 2


def test_a_full_journal_waits_for_a_checkpoint_and_loses_nothing() -> None:
    rig = Rig()
    receipts = [rig.write(100 * i, bytes([i]) * 9000) for i in range(40)]
    most = 0
    for receipt in receipts:
        receipt.wait()
        most = max(most, rig.journal.live_bytes)
    assert most <= 4 * SEGMENT
    assert rig.journal.checkpointed > 0
    (content,) = rig.reopen().disk.contents()
    assert content[3900:] == bytes([39]) * 9000
    assert content[:3900] == b"".join(bytes([i]) * 100 for i in range(39))


@pytest.mark.parametrize("key", [b"", b"k" * 200])
def test_the_last_byte_that_can_be_named(key: bytes) -> None:
    rig = Rig()
    most = (1 << 63) - 1
    rig.write(0, b"before").wait()
    rig.journal.write(0, most - 3, b"end", key).wait()
    rig.write(10, b"behind").wait()
    with pytest.raises(ValueError, match="offset"):
        rig.journal.write(0, most - 2, b"end", key)
    rig.disk.locked = False
    found = survey(rig.disk)
    assert found.damage is None
    assert found.sequence == 3


@pytest.mark.parametrize("there", [None, b"other", b"torn"])
def test_a_tail_is_kept_beside_another_one_of_its_name(there: bytes | None) -> None:
    rig = Rig()
    rig.write(0, b"x").wait()
    disk: Any = rig.disk
    segment = next(n for n in disk.names() if n.endswith(".seg"))
    disk.names_now[segment].change(("write", 8192, b"torn"))
    name = segment.removesuffix(".seg") + "-00002000.tail"
    if there is not None:
        disk.write(disk.create(name), there, 0)
    (kept,) = recover(disk, survey(disk), {0: 0}).tails
    assert disk.image()[kept] == b"torn"
    assert (kept == name) == (there != b"other")
    assert there is None or disk.image()[name] == there


def test_an_orderly_end_leaves_nothing_to_do() -> None:
    rig = Rig()
    for i in range(10):
        rig.write(i * 100, bytes([i]) * 9000)
    rig.journal.close()
    rig.journal.close()
    assert sorted(rig.disk.names()) == ["checkpoint"]
    again = rig.reopen()
    assert again.journal.recovered.records == 0
    assert again.write(0, b"x").wait() == 11
    with pytest.raises(ValueError, match="closed"):
        rig.journal.write(0, 0, b"x")


def test_history_is_kept_where_asked() -> None:
    rig = Rig(keep_segments=True)
    for _ in range(10):
        rig.write(0, bytes(9000)).wait()
    rig.journal.close()
    kept = sorted(n for n in rig.disk.names() if n.endswith(".seg"))
    assert len(kept) == 5
    again = rig.reopen(keep_segments=True)
    assert again.journal.recovered.records == 0
    assert sorted(n for n in again.disk.names() if n.endswith(".seg")) == kept
    again.journal.close()
    assert [n for n in rig.reopen().disk.names() if n.endswith(".seg")] == []


# ------------------------------------------------------------------------------------ several files


def test_several_targets_share_a_journal() -> None:
    disk = Recorder(3)
    journal = open_journal(disk, lambda: 0)
    journal.write(2, 0, b"two")
    journal.truncate(1, 5)
    journal.write(0, 3, b"zero").wait()
    disk.locked = False
    open_journal(disk, lambda: 0)
    assert disk.contents() == (b"\0\0\0zero", bytes(5), b"two")


@pytest.mark.parametrize("seed", range(20))
def test_a_replay_is_sorted_and_joined_and_as_if_one_after_the_other(seed: int) -> None:
    chance = random.Random(seed)
    disk = Recorder(2)
    journal = open_journal(disk, lambda: 0, max_bytes=64 * SEGMENT)
    files = [bytearray(), bytearray()]
    for _ in range(chance.choice([3, 60, 300])):
        target = chance.randrange(2)
        if chance.random() < 0.05:
            change = ("truncate", chance.randrange(9000))
            last = journal.truncate(target, change[1])
        else:
            change = ("write", chance.randrange(9000), chance.randbytes(chance.choice([0, 1, 700])))
            last = journal.write(target, *change[1:])
        if change[-1] != b"":
            change_bytes(files[target], change)
    last.wait()
    disk.locked = False
    disk.log.clear()
    segments = len(survey(disk).segments)
    open_journal(disk, lambda: 0, max_bytes=64 * SEGMENT)
    assert disk.contents() == tuple(map(bytes, files))
    # In order of offsets, and no byte twice, between two changes of the size and in one segment.
    swept = dict.fromkeys((0, 1), 0)
    turns = 0
    for name, *arguments in disk.log:
        if name == "truncate" and arguments[0] in swept:
            swept[arguments[0]] = 0
        elif name == "write" and arguments[0] in swept:
            target, data, offset = arguments
            turns += offset < swept[target]
            swept[target] = offset + len(data)
    assert turns <= 2 * segments


def test_a_journal_for_other_files_is_refused() -> None:
    disk = ModelDisk(2)
    Journal(disk, [0], write_back=lambda: 0, background=False).close()
    for targets in ([1], [0, 1]):
        with pytest.raises(ForeignJournalError, match="other files"):
            Journal(disk, targets, write_back=lambda: 0, background=False)
    with pytest.raises(ValueError, match="twice"):
        Journal(disk, [0, 0], write_back=lambda: 0, background=False)
    assert not disk.locked


def test_targets_join_later() -> None:
    disk = ModelDisk(3)
    journal = Journal(disk, [1], write_back=lambda: 0, background=False)
    assert journal.adopt(1) == 0
    assert journal.adopt(0) == 1
    journal.write(1, 0, b"x").wait()
    disk.locked = False
    with pytest.raises(ForeignJournalError, match="records for other files"):
        Journal(disk, [1], write_back=lambda: 0, background=False)
    journal = Journal(disk, [2, 0], write_back=lambda: 0, background=False, extend=True)
    assert journal.targets == {1: 0, 2: 2}
    assert disk.contents() == (b"x", b"", b"")


# -------------------------------------------------------------------------------------------- keys


def test_a_key_is_written_once() -> None:
    rig = Rig()
    first = rig.write(0, b"one", b"k")
    assert rig.journal.write(0, 0, b"two", b"k") is first
    first.wait()
    again = rig.journal.write(0, 0, b"two", b"k")
    assert (again.state, again.wait()) == ("received", 1)
    assert rig.journal.find(b"other") is None
    after = rig.reopen()
    assert after.disk.contents() == (b"one",)
    assert after.journal.find(b"k").wait() == 1
    with pytest.raises(ValueError, match="256 bytes"):
        rig.journal.write(0, 0, b"x", bytes(256))


def test_keys_outlive_their_segments_and_the_youngest_are_remembered() -> None:
    rig = Rig(max_keys=5)
    sequences = [rig.write(0, b"x", b"key%d" % i).wait() for i in range(8)]
    for _ in range(12):
        rig.write(0, bytes(12000)).wait()
        rig.journal.checkpoint(rig.write_back())
    for journal in (rig.journal, rig.reopen(max_keys=5).journal, rig.reopen(max_keys=5).journal):
        known = [i for i in range(8) if journal.find(b"key%d" % i)]
        assert known == [3, 4, 5, 6, 7]
        assert journal.find(b"key7").wait() == sequences[7]
    after = rig.reopen(max_keys=5)
    after.journal.close()
    assert rig.reopen(max_keys=5).journal.find(b"key7").wait() == sequences[7]


def test_keys_keep_their_age_where_a_crash_tore_the_segment_that_they_were_carried_into() -> None:
    """Only the first of those that were carried are there: they are not the youngest."""
    rig = Rig()
    receipts = [rig.write(0, b"x", b"key%d" % i) for i in range(15)]
    receipts[-1].wait()
    carried: list[Any] = []
    while not carried:
        rig.write(0, bytes(4000)).wait()
        segment = survey(rig.disk).segments[-1]
        carried = [entry for entry in segment.entries if entry.type == "key"]
    assert [entry.key for entry in carried] == [b"key%d" % i for i in range(3, 15)]
    inode = rig.disk.names_now[segment.name]
    torn = inode.content[: carried[6].position]
    inode.durable = bytes(torn).ljust(SEGMENT, b"\0")

    rig = rig.reopen()
    assert list(rig.journal.log.keys) == [b"key%d" % i for i in range(15)]
    rig.write(0, b"x", b"key15").wait()
    for _ in range(12):
        rig.write(0, bytes(12000)).wait()
        rig.journal.checkpoint(rig.write_back())
    known = [i for i in range(16) if rig.reopen().journal.find(b"key%d" % i)]
    assert known == list(range(4, 16))


def test_what_a_killed_process_left_is_on_the_device_before_anything_is_made_of_it() -> None:
    """The kernel had the record, the device had not: the power goes after the next one opened."""
    rig = Rig()
    rig.write(0, b"one", b"k").wait()
    rig.write(0, b"two", b"l").wait()
    *log, last = rig.disk.log
    assert last[0] == "sync"
    *_, killed = replay(ModelDisk(1), log, lambda *_: None)
    assert Rig(record_on(killed)).reopen().disk.contents() == (b"two",)


# ----------------------------------------------------------------------------------------- failures


class Failing(Recorder):
    """Fails from a call on: (operation, handle is a target, errno)."""

    fault: tuple[str, bool, int] | None = None

    def _happens(self, operation: tuple[Any, ...]) -> None:
        if self.fault is not None:
            name, is_target, error = self.fault
            on_target = len(operation) > 1 and isinstance(operation[1], int) and operation[1] < 1000
            if operation[0] == name and on_target == is_target:
                raise OSError(error, os.strerror(error))
        super()._happens(operation)


@pytest.mark.parametrize("operation", ["write", "sync"])
def test_an_error_poisons_the_journal(operation: str) -> None:
    rig = Rig(Failing(1))
    good = rig.write(0, b"good")
    good.wait()
    rig.disk.fault = (operation, False, errno.EIO)
    receipts = [rig.write(i, b"bad") for i in range(3)]
    for receipt in receipts:
        with pytest.raises(OutcomeUnknownError) as caught:
            receipt.wait()
        assert caught.value.errno == errno.EIO
        assert receipt.state == "unknown"
    assert good.wait() == 1
    rig.disk.fault = None  # the device is well again, and the kernel has forgotten
    rig.operations()
    with pytest.raises(PoisonedError, match="no more is accepted"):
        rig.write(0, b"more")
    rig.journal.checkpoint(rig.write_back())
    rig.journal.close()
    assert set(rig.operations()) <= {"write"}  # of what was received, to the target
    assert rig.reopen().disk.contents() == (b"good",)


def test_what_had_not_begun_is_refused_and_never_written() -> None:
    rig = Rig(Failing(1), segment_bytes=1 << 20, max_bytes=8 << 20)
    rig.write(0, b"good").wait()
    rig.disk.fault = ("sync", False, errno.EIO)
    first, second = rig.write(0, b"a"), rig.write(0, bytes(300_000))
    with pytest.raises(OutcomeUnknownError):
        first.wait()
    with pytest.raises(PoisonedError, match="not written") as caught:
        second.wait()
    assert not isinstance(caught.value, OutcomeUnknownError)


@pytest.mark.parametrize("operation", ["create", "write"])
def test_no_room_to_grow_is_a_clear_error_and_not_the_end(operation: str) -> None:
    rig = Rig(Failing(1))
    for _ in range(2):
        rig.write(0, bytes(12000)).wait()
    rig.disk.fault = (operation, False, errno.ENOSPC)
    third, fourth = rig.write(0, bytes(12000)), rig.write(0, b"four", b"l")
    for receipt in (third, fourth):
        with pytest.raises(OSError, match="could not grow") as caught:
            receipt.wait()
        assert caught.value.errno == errno.ENOSPC
        assert not isinstance(caught.value, PoisonedError)
    assert not [name for name in rig.disk.names() if name.endswith(".new")]
    rig.disk.fault = None
    assert rig.write(0, b"four", b"l").wait() == 3
    assert rig.reopen().disk.contents() == (b"four" + bytes(11996),)


def test_any_other_error_of_a_new_segment_is_the_end() -> None:
    rig = Rig(Failing(1))
    rig.write(0, bytes(12000)).wait()
    rig.write(0, bytes(9000)).wait()
    rig.disk.fault = ("sync_directory", False, errno.EIO)
    receipt = rig.write(0, bytes(12000))
    with pytest.raises(PoisonedError):
        receipt.wait()


def test_a_target_that_fails_keeps_the_segments() -> None:
    rig = Rig(Failing(1))
    for _ in range(4):
        rig.write(0, bytes(12000)).wait()
    names = sorted(rig.disk.names())
    rig.disk.fault = ("sync", True, errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        rig.journal.checkpoint(rig.write_back())
    rig.disk.fault = None
    rig.operations()
    for _ in range(2):  # a second sync would say that all is well
        with pytest.raises(JournalError, match="a target failed before"):
            rig.journal.checkpoint(rig.journal.log.durable)
    with pytest.raises(JournalError, match="a target failed before"):
        rig.journal.close()
    assert "sync" not in rig.operations()
    assert sorted(rig.disk.names()) == names
    rig.disk.targets[0].content[:] = b""
    assert rig.reopen().disk.contents() == (bytes(12000),)


def test_a_slot_that_fails_poisons_the_journal() -> None:
    rig = Rig(Failing(1))
    rig.write(0, bytes(100)).wait()
    written = rig.write_back()
    rig.disk.fault = ("write", False, errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        rig.journal.checkpoint(written)
    rig.disk.fault = None
    with pytest.raises(PoisonedError):
        rig.write(0, b"x")
    assert rig.reopen().disk.contents() == (bytes(100),)


# ------------------------------------------------------------------------------------------ opening


def test_one_opener() -> None:
    rig = Rig()
    with pytest.raises(BlockingIOError):
        Rig(rig.disk)
    rig.journal.close()
    Rig(rig.disk)


@pytest.mark.parametrize(
    ("segment_bytes", "max_bytes", "says"),
    [
        (4096, 1 << 20, "segment_bytes"),
        (SEGMENT + 1, 1 << 20, "segment_bytes"),
        (2 << 30, 8 << 30, "segment_bytes"),
        (SEGMENT, 3 * SEGMENT, "max_bytes"),
    ],
)
def test_sizes_that_no_journal_has(segment_bytes: int, max_bytes: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_sizes(segment_bytes, max_bytes)
    with pytest.raises(TypeError, match="segment_bytes"):
        check_sizes(True, max_bytes)


def test_a_directory_with_something_else_is_left_alone() -> None:
    disk = ModelDisk(1)
    disk.create("thesis.tex")
    with pytest.raises(JournalError, match="not empty"):
        Rig(disk)
    assert disk.names() == ["thesis.tex"]


def test_segments_without_a_checkpoint_are_damage() -> None:
    rig = Rig()
    rig.write(0, b"x").wait()
    del rig.disk.names_durable["checkpoint"]
    with pytest.raises(JournalDamagedError, match="it is gone"):
        rig.reopen()


# ----------------------------------------------------------------------------------- on a real disk


def test_on_a_real_disk(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(100))
    fd = os.open(path, os.O_RDWR)

    def opened() -> Journal:
        return Journal(
            DirectoryStorage(tmp_path / "j"),
            [fd],
            write_back=lambda: 0,
            segment_bytes=1 << 16,
            max_bytes=1 << 24,
        )

    journal = opened()
    receipts = [journal.write(0, 100 * i, b"%03d" % i) for i in range(500)]
    threads = [threading.Thread(target=receipt.wait) for receipt in receipts[::50]]
    for thread in threads:
        thread.start()
    receipts[-1].wait()
    for thread in threads:
        thread.join()
    assert path.read_bytes() == bytes(100)
    journal._storage.close()  # as a process does that dies
    again = opened()
    assert again.recovered.records == 500
    assert all(path.read_bytes()[100 * i :].startswith(b"%03d" % i) for i in range(500))
    again.close()
    os.close(fd)


SHORT = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <unistd.h>

static int left = 1, direct;
int seen_direct(void) { return direct; }
int is_done(void) { return left == 0; }

/* The first group that goes past the page cache comes back short, and where no sector ends. */
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t offset)
{
    static ssize_t (*real)(int, const void *, size_t, off64_t);
    if (!real)
        real = dlsym(RTLD_NEXT, "pwrite64");
    int flags = fcntl(fd, F_GETFL);
    direct |= flags & O_DIRECT;
    if (left && (flags & O_DIRECT) && n >= 8192) {
        left = 0;
        fcntl(fd, F_SETFL, flags & ~O_DIRECT);
        ssize_t got = real(fd, data, 5001, offset);
        fcntl(fd, F_SETFL, flags);
        return got;
    }
    return real(fd, data, n, offset);
}
ssize_t pwrite(int fd, const void *data, size_t n, off_t offset)
{
    return pwrite64(fd, data, n, offset);
}
"""


@preload.needed[0]
@preload.needed[1]
def test_groups_go_past_the_page_cache_and_on_where_they_were_short(tmp_path: Path) -> None:
    library = preload.build(SHORT, tmp_path)
    out = child.run(
        """
        import ctypes, os, sys
        from iolift._journal import Journal
        from iolift._storage import DirectoryStorage
        path, library, part = sys.argv[1], ctypes.CDLL(sys.argv[2]), 9000
        fd = os.open(path + "/data", os.O_RDWR | os.O_CREAT)
        journal = Journal(DirectoryStorage(path + "/j"), [fd], write_back=lambda: 0)
        for i in range(5):
            journal.write(0, part * i, bytes([65 + i]) * part).wait()
        journal._storage.close()        # as a process does that dies
        again = Journal(DirectoryStorage(path + "/j"), [fd], write_back=lambda: 0)
        assert again.recovered.records == 5
        assert os.pread(fd, 6 * part, 0) == b"".join(bytes([65 + i]) * part for i in range(5))
        again.close()
        print(bool(library.seen_direct()), bool(library.is_done()))
        """,
        tmp_path,
        library,
        LD_PRELOAD=str(library),
    )
    # The same where the file system has no O_DIRECT, or does not say what it asks.
    assert out in ("True True\n", "False False\n")


def test_a_forked_child_is_refused(tmp_path: Path) -> None:
    child.run(
        """
        import os, sys
        from iolift import ForkedError
        from iolift._journal import Journal
        from iolift._storage import DirectoryStorage
        fd = os.open(sys.argv[1] + "/data", os.O_RDWR | os.O_CREAT)
        storage = DirectoryStorage(sys.argv[1] + "/j")
        journal = Journal(storage, [fd], write_back=lambda: 0, background=False)
        pid = os.fork()
        if pid == 0:
            try:
                journal.write(0, 0, b"x")
            except ForkedError:
                os._exit(0)
            os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        journal.write(0, 0, b"x").wait()
        """,
        tmp_path,
    )
