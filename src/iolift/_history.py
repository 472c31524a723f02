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

from ._format import BLOCK, SegmentHeader, decode_header, salt_of, segment_name, segment_number
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
    for number in sorted(n for n in map(segment_number, storage.names()) if n is not None):
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
    first, last, count = None, base, 0
    gone = unfinished(e for _, _, entries in history(storage) for e in entries if e.sequence <= at)
    room = Room()
    for _, data, entries in history(storage):
        if first is None and entries:
            first = entries[0].sequence
        wanted = [entry for entry in entries if base < entry.sequence <= at]
        if wanted:
            last = wanted[-1].sequence
        wanted = [e for e in wanted
                  if e.target == target and e.type != "key" and e.sequence not in gone]  # fmt: skip
        apply(storage, handle, wanted, data, room)
        count += len(wanted)
    if first is None or (first > base + 1 and at > base):
        raise JournalError(f"the history begins with record {first}, {base + 1} is needed")
    if last < at:
        raise JournalError(f"the history ends with record {last}, {at} is asked for")
    return count


def salvage(storage: Storage) -> Iterator[tuple[str, memoryview, Entry]]:
    """Every record of the live segments that can still be read, in order, gaps and all.

    A record is taken by its own CRCs and its segment's salt; what it was bound to may be gone.
    O(bytes).
    """
    slot, _, _ = read_checkpoint(storage)
    for number in sorted(n for n in map(segment_number, storage.names()) if n is not None):
        if number < slot.first_segment:
            continue
        data = read_segment(storage, number)
        salt = salt_of(slot.journal_id, number)
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
