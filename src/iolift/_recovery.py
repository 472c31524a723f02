"""Recovery: from whatever a crash left to targets that have every record, and an empty journal.

    survey -> sync what it read -> copy the tail aside -> cut it
           -> replay -> sync the targets -> slot -> old ones go

1. Nothing is touched before the survey has found no damage. What it read may be on no device yet,
   where a process died and the system did not: it is synced before anything is made of it.
2. Every step may be the last: the next recovery does the same again. A tail is cut, and that is
   synced, before anything new is written; the slot comes after the targets' sync; segments go after
   the slot's.
3. Where there is nothing to do, nothing is written, only synced.

Who may call: whoever has the journal's lock. Names come from the directory and from numbers, never
from what a record says.
"""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ._format import BLOCK, CHECKPOINT_NAME, TAIL_SUFFIX, Slot, encode_slot, segment_name
from ._plan import plan
from ._records import FLAG_END
from ._storage import Room, Storage, read_into, write_all
from ._survey import Segment, Survey, read_segment, unfinished

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from ._records import Entry

CHUNK = 1 << 20
PREPARED_SUFFIX = ".new"


@dataclass(frozen=True)
class Recovered:
    """What a recovery did. keys: idempotency key -> sequence, oldest first."""

    slot: Slot
    place: int
    records: int
    bytes_written: int
    tails: tuple[str, ...]
    keys: dict[bytes, int]


def replayable(found: Survey) -> Iterator[tuple[Segment, list[Entry]]]:
    """The records that the targets may lack, by segment, in order."""
    gone = unfinished(entry for _, entry in found.entries())
    for segment in found.segments:
        entries = [
            entry
            for entry in segment.entries
            if entry.sequence > found.slot.sequence and entry.sequence not in gone
        ]
        if entries:
            yield segment, entries


def pending_targets(found: Survey) -> set[int]:
    """Which targets must be there for a replay."""
    return _targets_of(replayable(found))


def _targets_of(work: Iterable[tuple[Segment, list[Entry]]]) -> set[int]:
    return {entry.target for _, entries in work for entry in entries if entry.type != "key"}


def keys_of(found: Survey) -> dict[bytes, int]:
    """Idempotency key -> sequence, of all records in the live segments, oldest first."""
    keys: dict[bytes, int] = {}
    for _, entry in found.entries():
        if entry.key:
            keys[entry.key] = entry.offset if entry.type == "key" else entry.sequence
    # By age, not by place: a segment that a crash tore may begin with only the first of the keys
    # that were carried into it, and these are not the youngest.
    return dict(sorted(keys.items(), key=lambda item: item[1]))


def apply(
    storage: Storage, handle: int, entries: Iterable[Entry], data: memoryview, room: Room
) -> int:
    """Records of one target into it, as if one after the other; returns the bytes written.

    data: the segment that they are in. O(n log n).
    """
    size = 0
    writes: list[Entry] = []
    for entry in entries:
        if entry.type == "write" and entry.length:
            writes.append(entry)
        elif entry.type == "truncate":
            size += _write_merged(storage, handle, writes, data, room)
            writes = []
            storage.truncate(handle, entry.offset)
    return size + _write_merged(storage, handle, writes, data, room)


def _write_merged(
    storage: Storage, handle: int, writes: list[Entry], data: memoryview, room: Room
) -> int:
    """Each byte once, from its last record, in the order of offsets."""
    if not writes:
        return 0
    offsets = np.array([entry.offset for entry in writes], np.int64)
    merged = plan(offsets, np.array([entry.length for entry in writes], np.int64))
    # The extents lie in the room one after the other.
    ends = np.cumsum(merged.lengths)
    begins = ends - merged.lengths
    places = begins[merged.first] + offsets - merged.offsets[merged.first]
    view = room.take(merged.bytes_moved)
    for entry, place in zip(writes, places.tolist(), strict=True):
        view[place : place + entry.length] = data[entry.data_begin : entry.data_end]
    for begin, end, offset in zip(
        begins.tolist(), ends.tolist(), merged.offsets.tolist(), strict=True
    ):
        write_all(storage, handle, view[begin:end], offset)
    return merged.bytes_moved


def recover(
    storage: Storage,
    found: Survey,
    targets: Mapping[int, int],
    *,
    keep_segments: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Recovered:
    """Bring the targets (number in the table -> handle) to the state after the last record.

    Raises JournalDamagedError, before anything is touched; KeyError for a target that has records
    and is not given; OSError. O(bytes of the live segments).
    """
    if found.damage is not None:
        raise found.damage
    work = list(replayable(found))
    missing = _targets_of(work) - targets.keys()
    if missing:
        raise KeyError(min(missing))
    _sync_found(storage, found)
    tails = tuple(_cut_tails(storage, found))
    segment_room, room = Room(), Room()
    records = size = 0
    touched: set[int] = set()
    total = sum(len(entries) for _, entries in work)
    for segment, entries in work:
        data = read_segment(storage, segment.number, segment_room)
        for target in _targets_of([(segment, entries)]):
            of_target = (entry for entry in entries if entry.target == target)
            size += apply(storage, targets[target], of_target, data, room)
            touched.add(target)
        records += len(entries)
        if progress is not None:
            progress(records, total)
    for target in sorted(touched):
        storage.sync(targets[target])
    keys = keys_of(found)
    slot, place = found.slot, found.place
    wanted = _next_slot(found, bool(keys))
    if replace(wanted, generation=slot.generation) != slot:
        slot, place = wanted, 1 - place
        handle = storage.open(CHECKPOINT_NAME)
        try:
            write_slot(storage, handle, slot, place)
        finally:
            storage.shut(handle)
    _remove_old(storage, found, slot, keep_segments)
    return Recovered(slot, place, records, size, tails, keys)


def _next_slot(found: Survey, has_keys: bool) -> Slot:
    """Where there are keys, what has them stays, until the next segment carries them over: the
    last one that has its first batch whole, since that begins with all keys of before."""
    slot = found.slot
    first = slot.first_segment
    if found.segments:
        first = max(segment.number for segment in found.segments) + 1
    if has_keys:
        used = [segment for segment in found.segments if segment.header is not None]
        whole = [s for s in used if any(entry.flags & FLAG_END for entry in s.entries)]
        first = (whole[-1:] or used)[0].number
    return replace(
        slot,
        generation=slot.generation + 1,
        sequence=found.sequence,
        durable=found.sequence,
        previous=found.previous,
        first_segment=first,
    )


def write_slot(storage: Storage, handle: int, slot: Slot, place: int) -> None:
    """Write and sync one of the two slots of a checkpoint; the other one stays good meanwhile."""
    write_all(storage, handle, encode_slot(slot), place * BLOCK)
    storage.sync(handle)


def _sync_found(storage: Storage, found: Survey) -> None:
    names = [CHECKPOINT_NAME, *(s.name for s in found.segments if s.header is not None)]
    for name in names:
        handle = storage.open(name)
        try:
            storage.sync(handle)
        finally:
            storage.shut(handle)
    storage.sync_directory()


def _cut_tails(storage: Storage, found: Survey) -> Iterator[str]:
    torn = [segment for segment in found.segments if segment.tail]
    if not torn:
        return
    for segment in torn:
        data = bytes(read_segment(storage, segment.number))
        begin = segment.end if segment.header is not None else 0
        end = len(data.rstrip(b"\0"))
        if end <= begin:
            continue
        yield _keep(storage, segment.number, begin, data[begin:end])
    storage.sync_directory()
    for segment in torn:
        if segment.header is None:
            storage.unlink(segment.name)
        else:
            _zero(storage, segment)
    storage.sync_directory()


def _keep(storage: Storage, number: int, begin: int, data: bytes) -> str:
    """Returns its name. One that is there already stays, be it this one or another: numbers of
    segments come again."""
    there = storage.names()
    for i in itertools.count():
        name = f"{number:016x}-{begin:08x}{f'-{i}' if i else ''}{TAIL_SUFFIX}"
        is_there = name in there
        handle = storage.open(name) if is_there else storage.create(name)
        try:
            view = memoryview(bytearray(storage.size(handle)))
            if not is_there:
                write_all(storage, handle, data, 0)
            elif bytes(view[: read_into(storage, handle, view, 0)]) != data:
                continue
            storage.sync(handle)
            return name
        finally:
            storage.shut(handle)
    raise AssertionError


def _zero(storage: Storage, segment: Segment) -> None:
    handle = storage.open(segment.name)
    try:
        position = segment.end
        while position < segment.size:
            size = min(CHUNK, segment.size - position)
            write_all(storage, handle, bytes(size), position)
            position += size
        storage.sync(handle)
    finally:
        storage.shut(handle)


def _remove_old(storage: Storage, found: Survey, slot: Slot, keep_segments: bool) -> None:
    """Spares go, too: a new journal makes its own. So do files that were never finished."""
    gone = [s.number for s in found.segments if s.spare]
    if not keep_segments:
        gone += found.history
        gone += [s.number for s in found.segments if s.header and s.number < slot.first_segment]
    names = [segment_name(number) for number in sorted(set(gone))]
    names += [name for name in storage.names() if name.endswith(PREPARED_SUFFIX)]
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            storage.unlink(name)
    if names:
        storage.sync_directory()
