"""Goal: no acknowledged record is dropped silently, no wrong byte applied, however a disk decays.

A reference journal of 200 records, acknowledged to the last, is bent in every way: each byte
flipped, each length cut to, each sector zeroed, sectors swapped. The survey either says damage, or
has found every record as it was written - or, the one documented gap, all but those of the very
last batch, after which nothing was written that could vouch for it.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from crashing import SEGMENT, open_journal
from modeldisk import SECTOR, ModelDisk

from iolift._format import BLOCK
from iolift._recovery import recover, replayable
from iolift._survey import Survey, read_segment, survey
from iolift.errors import JournalDamagedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from iolift._records import Entry

RECORDS, BATCH = 200, 16


@pytest.fixture(scope="module")
def reference() -> dict[str, bytes]:
    """Its files. 200 records in 13 batches; a checkpoint after the first 32."""
    disk = ModelDisk(1)
    journal = open_journal(disk, lambda: 0)
    chance = random.Random(1)
    for first in range(0, RECORDS, BATCH):
        for i in range(first, min(first + BATCH, RECORDS)):
            receipt = journal.write(0, 100 * i, chance.randbytes(chance.randrange(1, 100)))
        receipt.wait()
        if first == BATCH:
            journal.checkpoint(2 * BATCH)
    assert journal.log.durable == RECORDS
    image = disk.image()
    assert len([name for name in image if name.endswith(".seg")]) == 2
    return image


class Images(ModelDisk):
    """A disk with given files, cheap to make."""

    def __init__(self, image: dict[str, bytes]) -> None:
        super().__init__(1)
        self.image_now = image

    def names(self) -> list[str]:
        return list(self.image_now)

    def open(self, name: str) -> int:
        self.next_handle += 1
        self.opened = getattr(self, "opened", {})
        self.opened[self.next_handle] = self.image_now[name]
        return self.next_handle

    def shut(self, handle: int) -> None:
        del self.opened[handle]

    def size(self, handle: int) -> int:
        return len(self.opened[handle])

    def read(self, handle: int, n: int, offset: int) -> bytes:
        return self.opened[handle][offset : offset + n]


def found_in(storage: ModelDisk) -> tuple[Survey, list[tuple[Any, ...]]]:
    """What would be replayed."""
    found = survey(storage)
    records: list[tuple[Any, ...]] = []
    if found.damage is None:
        for segment, entries in replayable(found):
            data = read_segment(storage, segment.number)
            records += [content(entry, data) for entry in entries]
    return found, records


def content(entry: Entry, data: memoryview) -> tuple[Any, ...]:
    return (entry.sequence, entry.type, entry.target, entry.offset, entry.key,
            bytes(data[entry.data_begin : entry.data_end]))  # fmt: skip


def last_batch(reference: dict[str, bytes]) -> tuple[str, int, int]:
    """(name, begin, end) of the place of the documented gap."""
    found = survey(Images(reference))
    segment = found.segments[-1]
    begin = max(e.position for e in segment.entries if e.position % BLOCK == 0)
    return segment.name, begin, segment.end


class Judge:
    """Whether a bent journal is honest about it. gaps: how often it was the documented gap."""

    def __init__(self, reference: dict[str, bytes]) -> None:
        self.reference = reference
        _, self.records = found_in(Images(reference))
        assert len(self.records) == RECORDS - 2 * BATCH
        self.gap = last_batch(reference)
        self.before_gap = len(self.records) - RECORDS % BATCH
        self.damaged = self.unharmed = self.gaps = 0

    def look(self, name: str, data: bytes, begin: int, end: int) -> None:
        """The file is this now; bytes from begin to end are not what they were."""
        try:
            found, records = found_in(Images({**self.reference, name: data}))
        except JournalDamagedError:
            self.damaged += 1
            return
        if found.damage is not None:
            self.damaged += 1
        elif records == self.records:
            self.unharmed += 1
        elif name == "checkpoint" and records[-len(self.records) :] == self.records:
            self.unharmed += 1  # the older slot: more is replayed
        else:
            assert name == self.gap[0], (name, begin)
            assert begin < self.gap[2], (name, begin)
            assert end > self.gap[1], (name, begin)
            assert records == self.records[: len(records)], (name, begin)
            assert len(records) >= self.before_gap, (name, begin)
            self.gaps += 1


@pytest.fixture
def judge(reference: dict[str, bytes]) -> Judge:
    return Judge(reference)


def files(reference: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    for name in sorted(reference):
        yield name, reference[name]


@pytest.mark.parametrize("part", range(8))
def test_every_byte_flipped(judge: Judge, part: int) -> None:
    for name, data in files(judge.reference):
        used = len(data.rstrip(b"\0")) + 100
        for place in range(part, min(used, len(data)), 8):
            bent = bytearray(data)
            bent[place] ^= 1 << place // 8 % 8
            judge.look(name, bytes(bent), place, place + 1)
    assert judge.damaged > 1000
    assert judge.gaps < 2 * BLOCK // 8


def test_every_byte_beyond_flipped(judge: Judge) -> None:
    # Zeros that nobody has written to yet: a tail, and all records are there.
    name = max(name for name in judge.reference if name.endswith(".seg"))
    data = judge.reference[name]
    for place in range(len(data.rstrip(b"\0")) + 100, len(data), 61):
        bent = bytearray(data)
        bent[place] ^= 1
        judge.look(name, bytes(bent), place, place + 1)
    assert judge.damaged == judge.gaps == 0


def test_every_length(judge: Judge) -> None:
    for name, data in files(judge.reference):
        for size in range(0, len(data), 7):
            judge.look(name, data[:size], size, len(data))
    assert judge.gaps == 0
    assert judge.damaged > 2 * SEGMENT // 7


def test_every_sector_zeroed(judge: Judge) -> None:
    for name, data in files(judge.reference):
        for begin in range(0, len(data), SECTOR):
            bent = data[:begin] + bytes(SECTOR) + data[begin + SECTOR :]
            judge.look(name, bent, begin, begin + SECTOR)
    assert judge.damaged
    assert judge.gaps <= 2


def test_sectors_swapped(judge: Judge) -> None:
    chance = random.Random(2)
    for name, data in files(judge.reference):
        sectors = len(data) // SECTOR
        for _ in range(1500):
            one, two = sorted(chance.sample(range(sectors), 2))
            a, b = (data[i * SECTOR : (i + 1) * SECTOR] for i in (one, two))
            bent = bytearray(data)
            bent[one * SECTOR : (one + 1) * SECTOR] = b
            bent[two * SECTOR : (two + 1) * SECTOR] = a
            judge.look(name, bytes(bent), one * SECTOR, (two + 1) * SECTOR)
    assert judge.damaged


@pytest.mark.parametrize("which", [0, 1])
def test_a_segment_that_is_gone(judge: Judge, which: int) -> None:
    names = sorted(name for name in judge.reference if name.endswith(".seg"))
    image = {k: v for k, v in judge.reference.items() if k != names[which]}
    found, _ = found_in(Images(image))
    if which == 0:
        assert found.damage is not None
        assert found.damage.witness == f"the header of {names[1]}"
    else:
        # Nothing is left that vouches for it but the checkpoint, which is from before.
        assert found.sequence < RECORDS


def test_damage_is_told_with_offsets_and_nothing_is_touched(reference: dict[str, bytes]) -> None:
    disk = ModelDisk(1)
    disk.targets[0].content[:] = b"as it was"
    for name, data in reference.items():
        disk.write(disk.create(name), data, 0)
    first = min(name for name in reference if name.endswith(".seg"))
    place = 3 * BLOCK + 70
    handle = disk.open(first)
    disk.write(handle, bytes([reference[first][place] ^ 1]), place)
    before, changes = disk.image(), disk.changes
    with pytest.raises(JournalDamagedError, match="iolift journal salvage") as caught:
        open_journal(disk, lambda: 0)
    error = caught.value
    assert (error.filename, error.offset, error.lost) == (first, 3 * BLOCK, 2 * BATCH + 1)
    assert error.witness.startswith(f"a record at {4 * BLOCK} of ")
    with pytest.raises(JournalDamagedError):
        recover(disk, survey(disk), {0: 0})
    assert (disk.image(), disk.changes) == (before, changes)
    assert disk.contents() == (b"as it was",)
    assert not disk.locked
