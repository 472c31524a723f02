"""Survey: what is in a journal, and where it ends. Reads only.

    checkpoint -> the newer good slot
    segments   -> history | live: header, records ... | spare (zeros)
    the end    -> clean | torn (nobody was told of it) | damaged (somebody was)

1. Records are taken in order from the checkpoint's first segment on, each bound to the one before.
2. What can't be believed is damage as soon as anything vouches that it was durable: a later
   record, the header of a later segment, or the checkpoint. Otherwise it is a tail.
3. A request of several records counts only whole (`unfinished` are the others).
4. A segment had its whole size before it was used: one that is shorter was damaged.

Who may call: whoever has the journal's lock, or does not mind a writer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ._format import (
    BLOCK,
    CHECKPOINT_NAME,
    MAX_SEGMENT_BYTES,
    SegmentHeader,
    Slot,
    decode_header,
    decode_slot,
    salt_of,
    segment_name,
    segment_numbers,
)
from ._records import FLAG_PARTS, Entry, all_zeros, scan, voucher
from ._storage import Room, Storage, read_into
from .errors import JournalDamagedError, JournalError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@dataclass
class Segment:
    """A file of the journal. end: where its believed records end, bytes; tail: what is behind them
    is not all zeros."""

    number: int
    size: int
    header: SegmentHeader | None = None
    entries: list[Entry] = field(default_factory=list)
    end: int = 0
    tail: bool = False
    spare: bool = False

    @property
    def name(self) -> str:
        return segment_name(self.number)


@dataclass
class Survey:
    """slot, place: the checkpoint, and which of the two it is. segments: those that are live, in
    order. history: older ones. sequence, previous: of the last believed record. damage: why this
    journal must not be written to."""

    slot: Slot
    place: int
    bad_slots: dict[int, str]
    history: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    sequence: int = 0
    previous: int = 0
    damage: JournalDamagedError | None = None

    @property
    def is_torn(self) -> bool:
        return self.damage is None and any(segment.tail for segment in self.segments)

    def entries(self) -> Iterator[tuple[Segment, Entry]]:
        for segment in self.segments:
            for entry in segment.entries:
                yield segment, entry


def unfinished(entries: Iterable[Entry]) -> set[int]:
    """Sequences of the records of requests whose last record never came. O(n)."""
    gone: set[int] = set()
    open_request: list[int] = []
    for entry in entries:
        if not (open_request or entry.flags & FLAG_PARTS):
            continue  # whole in itself, as nearly all are
        if entry.type == "key":
            continue  # a segment begins with those, also in the middle of a request
        if not entry.continues:
            gone.update(open_request)
            open_request = []
        open_request.append(entry.sequence)
        if not entry.more:
            open_request = []
    return gone.union(open_request)


@dataclass
class _Chain:
    sequence: int
    durable: int
    previous: int


@dataclass
class _Break:
    segment: Segment
    offset: int
    reason: str


def read_segment(storage: Storage, number: int, room: Room | None = None) -> memoryview:
    """All bytes of a segment, in `room` where it is given."""
    handle = storage.open(segment_name(number))
    try:
        # No segment is larger: where it has more, that is seen, and no memory is taken for it.
        size = min(storage.size(handle), MAX_SEGMENT_BYTES + BLOCK)
        view = (room or Room()).take(size)
        return view[: read_into(storage, handle, view, 0)]
    finally:
        storage.shut(handle)


def read_checkpoint(storage: Storage) -> tuple[Slot, int, dict[int, str]]:
    """The newer good slot, its place (0 or 1), and why the others are not good."""
    handle = storage.open(CHECKPOINT_NAME)
    view = memoryview(bytearray(2 * BLOCK))
    try:
        data = bytes(view[: read_into(storage, handle, view, 0)])
    finally:
        storage.shut(handle)
    good: list[tuple[int, int, Slot]] = []
    bad: dict[int, str] = {}
    for place in (0, 1):
        try:
            slot = decode_slot(data[place * BLOCK : (place + 1) * BLOCK])
            good.append((slot.generation, place, slot))
        except ValueError as error:
            bad[place] = str(error)
    if not good:
        raise JournalDamagedError(CHECKPOINT_NAME, 0, 0, "; ".join(bad.values()), "its existence")
    _, place, slot = max(good, key=lambda found: found[0])
    return slot, place, bad


def survey(storage: Storage, *, check_payload: bool = True) -> Survey:
    """Raises JournalError where there is no journal. O(bytes of the live segments) time, a
    segment and 150 bytes a record of memory."""
    names = storage.names()
    numbers = segment_numbers(names)
    if CHECKPOINT_NAME not in names:
        if numbers:
            raise JournalDamagedError(CHECKPOINT_NAME, 0, 0, "it is gone", "a segment")
        raise JournalError("there is no journal in this directory")
    slot, place, bad = read_checkpoint(storage)
    found = Survey(slot, place, bad)
    found.history = [n for n in numbers if n < slot.first_segment]
    live = [n for n in numbers if n >= slot.first_segment]
    chain = _Chain(slot.sequence + 1, 0, slot.previous)
    broken: _Break | None = None
    room = Room()
    for number in live:
        data = read_segment(storage, number, room)
        segment = Segment(number, len(data))
        found.segments.append(segment)
        if broken is None:
            first = segment is found.segments[0]
            broken = _take_segment(found, segment, data, chain, first, check_payload)
        else:
            segment.tail = not all_zeros(data)
            segment.spare = not segment.tail
    found.sequence, found.previous = chain.sequence - 1, chain.previous
    found.damage = _judge(storage, found, broken)
    return found


def _take_segment(
    found: Survey,
    segment: Segment,
    data: memoryview,
    chain: _Chain,
    first: bool,
    check_payload: bool,
) -> _Break | None:
    """Its records join the chain. Where the chain breaks, if it does."""
    slot = found.slot
    if segment.size == slot.segment_bytes and all_zeros(data):
        segment.spare = True
        return None
    segment.tail = True
    if segment.size != slot.segment_bytes:
        return _Break(segment, segment.size, f"it has {segment.size} bytes")
    try:
        header = decode_header(bytes(data[:BLOCK]))
    except ValueError as error:
        return _Break(segment, 0, f"no segment header: {error}")
    if header.journal_id != slot.journal_id or header.number != segment.number:
        return _Break(segment, 0, "the header is that of another segment")
    if first and header.first_sequence <= slot.sequence + 1:
        # Records from before the checkpoint: bound to those before by the header alone.
        chain.sequence, chain.previous = header.first_sequence, header.previous
    if header.first_sequence != chain.sequence or header.previous != chain.previous:
        return _Break(segment, 0, f"it begins with record {header.first_sequence}")
    segment.header = header
    segment.entries, segment.end, clean = scan(
        data,
        BLOCK,
        sequence=chain.sequence,
        salt=header.salt,
        durable=chain.durable,
        previous=chain.previous,
        check_payload=check_payload,
    )
    if segment.entries:
        last = segment.entries[-1]
        chain.sequence, chain.durable = last.sequence + 1, last.durable
        chain.previous = last.crc
    segment.tail = not clean
    return None if clean else _Break(segment, segment.end, "no record that belongs there")


def _judge(storage: Storage, found: Survey, broken: _Break | None) -> JournalDamagedError | None:
    lost = found.sequence + 1
    slot = found.slot
    if broken is None:
        if slot.durable < lost:
            return None
        where = next((s for s in reversed(found.segments) if s.header), None)
        name, offset = (where.name, where.end) if where else (segment_name(slot.first_segment), 0)
        return JournalDamagedError(name, offset, lost, "nothing is there", "the checkpoint")
    name, offset = broken.segment.name, broken.offset
    if slot.durable >= lost:
        return JournalDamagedError(name, offset, lost, broken.reason, "the checkpoint")
    if broken.segment.size != slot.segment_bytes:
        return JournalDamagedError(name, offset, lost, broken.reason, "its size")
    for segment in found.segments[found.segments.index(broken.segment) :]:
        begin = broken.offset if segment is broken.segment else 0
        witness = _witness(storage, slot, segment, begin, lost)
        if witness is not None:
            return JournalDamagedError(name, offset, lost, broken.reason, witness)
    return None


def _witness(storage: Storage, slot: Slot, segment: Segment, begin: int, lost: int) -> str | None:
    data = read_segment(storage, segment.number)
    try:
        header = decode_header(bytes(data[:BLOCK]))
        if (
            header.journal_id == slot.journal_id
            and header.number == segment.number
            and header.first_sequence > lost
        ):
            return f"the header of {segment.name}"
    except ValueError:
        pass
    at = voucher(data, begin, salt=salt_of(slot.journal_id, segment.number), lost=lost)
    return None if at < 0 else f"a record at {at} of {segment.name}"
