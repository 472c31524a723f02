"""History: the records of all segments that are still there, as events, and what they restore.

    every segment, oldest first -> records, each bound to the one before -> a file as it was
    salvage: every record that can still be read, whatever is missing between them

1. Reads of a journal only. What is written is a file that the caller names, never a target by what
   the journal says.
2. `history` is an unbroken chain: where a record is missing it raises, and says where.

Who may call: as of a survey.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._format import (
    BLOCK,
    SegmentHeader,
    Slot,
    decode_header,
    salt_of,
    segment_name,
    segment_numbers,
)
from ._records import Entry, all_zeros, scan, voucher
from ._recovery import apply
from ._storage import Room
from ._survey import read_checkpoint, read_segment, unfinished
from .errors import JournalDamagedError, JournalError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._storage import Storage


def history(storage: Storage) -> Iterator[tuple[str, memoryview, list[Entry]]]:
    """(segment's name, its bytes, its records), oldest first.

    Raises JournalDamagedError where the chain breaks. O(bytes) time, a segment of memory.
    """
    before: SegmentHeader | None = None
    sequence = durable = previous = 0
    for number in segment_numbers(storage.names()):
        data = read_segment(storage, number)
        if all_zeros(data):
            continue
        name = segment_name(number)
        try:
            header = decode_header(bytes(data[:BLOCK]))
        except ValueError as error:
            # As it is when a crash tore the first batch of a segment: nothing may come behind it.
            if before is None:
                raise JournalDamagedError(name, 0, 1, str(error), "its place") from None
            continue
        if before is None:
            sequence, previous = header.first_sequence, header.previous
        elif (header.first_sequence, header.previous) != (sequence, previous):
            reason = f"the segment begins with record {header.first_sequence}"
            raise JournalDamagedError(name, 0, sequence, reason, "its header")
        before = header
        entries, _, _ = scan(
            data, BLOCK, sequence=sequence, salt=header.salt, durable=durable, previous=previous
        )
        if entries:
            sequence, durable = entries[-1].sequence + 1, entries[-1].durable
            previous = entries[-1].crc
        yield name, data, entries


def restore(storage: Storage, target: int, handle: int, *, base: int, at: int) -> int:
    """Bring a file that is as after record `base` to what it was after record `at`.

    handle: of the file. Returns how many records were applied. Raises JournalError where the
    history does not reach from one to the other. O(bytes of the history).
    """
    if at < base:
        raise JournalError(f"record {at} is older than the copy, which is as after {base}")
    # Nothing is written before it is known that all of it is there.
    seen = [entry for _, _, entries in history(storage) for entry in entries]
    if at > base and (not seen or seen[0].sequence > base + 1):
        begin = f"begins with record {seen[0].sequence}" if seen else "is empty"
        raise JournalError(f"the history {begin}, {base + 1} is needed")
    if seen and seen[-1].sequence < at:
        raise JournalError(f"the history ends with record {seen[-1].sequence}, {at} is asked for")
    gone = unfinished(entry for entry in seen if entry.sequence <= at)
    del seen
    room, count = Room(), 0
    for _, data, entries in history(storage):
        wanted = [e for e in entries if base < e.sequence <= at and e.target == target
                  and e.type != "key" and e.sequence not in gone]  # fmt: skip
        apply(storage, handle, wanted, data, room)
        count += len(wanted)
    return count


def salvage(storage: Storage, slot: Slot | None) -> Iterator[tuple[str, memoryview, Entry]]:
    """Every record of the live segments that can still be read, in order, gaps and all.

    slot: the checkpoint; None where there is none any more, which makes every segment live. A
    record is taken by its own CRCs and its segment's salt; what it was bound to may be gone.
    O(bytes).
    """
    for number in segment_numbers(storage.names()):
        if slot is not None and number < slot.first_segment:
            continue
        data = read_segment(storage, number)
        journal_id = _journal_id(data) if slot is None else slot.journal_id
        if journal_id is None:
            continue
        salt = salt_of(journal_id, number)
        position = 0
        while position >= 0:
            position = voucher(data, position, salt=salt, lost=0)
            if position < 0:
                break
            words = [int.from_bytes(data[position + a : position + b], "little")
                     for a, b in ((8, 16), (28, 32), (32, 40))]  # fmt: skip
            entries, end, _ = scan(
                data,
                position,
                sequence=words[0],
                salt=salt,
                durable=words[2],
                previous=words[1],
            )
            for entry in entries:
                yield segment_name(number), data, entry
            position = max(end, position + 8)


def _journal_id(data: memoryview) -> bytes | None:
    try:
        return decode_header(bytes(data[:BLOCK])).journal_id
    except ValueError:
        return None


def last_checkpoint(storage: Storage) -> Slot | None:
    """The newer good slot; None where none can be read."""
    try:
        return read_checkpoint(storage)[0]
    except (JournalDamagedError, FileNotFoundError):
        return None
