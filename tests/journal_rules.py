"""What holds for the journal's parser whatever bytes it is given, and inputs to see it with.

    look        the rules: AssertionError where one is broken, else what the parser made of it
    seeds       good inputs
    kept        what the fuzzer found, minimised (tests/fuzz_journal.py)
    forge       a number of a header bent, and its CRC made right again

Rules: what is found lies within the input, in order, and below the caps; a found voucher is where
it says; decoders return or raise ValueError; a survey returns or raises JournalDamagedError, and
what it believes is numbered without a gap, and has all that the checkpoint says was durable, or is
called damaged. The same input gives the same answer.

An input is taken for records, for a segment's header, for a slot, and for all files of a journal:
the checkpoint, and segments of two blocks.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iolift._crc32c import crc32c
from iolift._format import (
    BLOCK,
    CHECKPOINT_NAME,
    HEADER,
    IDENTITY_BYTES,
    SLOT,
    SegmentHeader,
    Slot,
    decode_header,
    decode_slot,
    encode_header,
    encode_slot,
    segment_name,
)
from iolift._records import LIMITS, Entry, all_zeros, encode, scan, voucher
from iolift._survey import survey, unfinished
from iolift.errors import JournalDamagedError

if TYPE_CHECKING:
    import random

CORPUS = Path(__file__).with_name("journal_corpus.zip")
MAX_INPUT = 8 * BLOCK
START = {"sequence": 5, "salt": 77, "durable": 4, "previous": 99}
EDGES = [0, 1, 2, 4, 63, 64, 255, 256, 4095, 4096, 65535, 2**20, 2**31 - 1, 2**31, 2**32 - 1, -1]
# Of each header its bytes, and its numbers: (offset, width).
HEADERS = {
    b"IOL1": (60, [(4, 2), (6, 2), (8, 8), (16, 8), (24, 4), (28, 4), (32, 8), (40, 4), (44, 4),
                   (48, 8), (56, 4)]),
    b"IOLIFTJ1": (HEADER.size, [(8, 4), (12, 4), (16, 8), (40, 8), (48, 8), (56, 4), (60, 4)]),
    b"IOLIFTCP": (SLOT.size, [(8, 4), (12, 4), (16, 8), (40, 8), (48, 8), (56, 8), (72, 4),
                              (76, 4)]),
}  # fmt: skip


def seeds() -> list[bytes]:
    """Good inputs."""
    one, crc = encode(
        [("write", 0, 10, b"", b"first", False), ("write", 1, 99, b"key", b"x" * 5000, True)],
        **START,
    )
    two, _ = encode(
        [("write", 0, 2**40, b"k", b"", False), ("truncate", 1, 123, b"", b"", False)],
        sequence=7,
        salt=77,
        durable=6,
        previous=crc,
    )
    targets = (b"a" * 32, b"b" * 32)
    header = SegmentHeader(b"j" * 16, 3, 1000, 0xABCD, 1 << 20, targets)
    slot = Slot(b"j" * 16, 9, 500, 2, 700, 0xABCD, 1 << 20, targets)
    # A journal: both slots, a segment, another that goes on, and a spare one.
    slots = [Slot(b"j" * 16, i, 4, 0, 4, 99, 2 * BLOCK, targets) for i in (1, 2)]
    journal, previous = b"".join(map(encode_slot, slots)), 99
    for number, first in ((0, 5), (1, 8)):
        small = SegmentHeader(b"j" * 16, number, first, previous, 2 * BLOCK, targets)
        batch, previous = encode(
            [
                ("key", 0, 3, b"key", b"", False),
                ("write", 0, 10, b"", b"first", True),
                ("write", 0, 15, b"", b"more", False),
            ],
            sequence=first,
            salt=small.salt,
            durable=first - 1,
            previous=previous,
        )
        journal += encode_header(small) + batch
    return [
        one + two + bytes(BLOCK),
        encode_header(header),
        encode_slot(slot),
        journal + bytes(2 * BLOCK),
        b"",
    ]


def kept() -> list[bytes]:
    """What is in the corpus."""
    with zipfile.ZipFile(CORPUS) as archive:
        return [archive.read(name) for name in archive.namelist()]


def forge(data: bytes, chance: random.Random) -> bytes:
    """A number of a header, and its CRC made right again: no search guesses a CRC."""
    places = [(found[0], found.start()) for found in re.finditer(b"|".join(HEADERS), data)]
    if not places:
        return data
    magic, place = chance.choice(places)
    size, numbers = HEADERS[magic]
    bent = bytearray(data)
    at, width = chance.choice(numbers)
    value = chance.choice((chance.choice(EDGES), chance.getrandbits(64))) % 256**width
    bent[place + at : place + at + width] = value.to_bytes(width, "little")
    end = place + size
    if magic != b"IOL1":
        end += IDENTITY_BYTES * int.from_bytes(bent[end - 4 : end], "little")
    if end + 4 <= len(bent):
        bent[end : end + 4] = crc32c(bent[place:end]).to_bytes(4, "little")
    return bytes(bent[: len(data)])


class Files:
    """An input as a journal, in files of two blocks each: what a survey needs of a storage."""

    def __init__(self, data: bytes) -> None:
        self.files = [data[at : at + 2 * BLOCK] for at in range(0, max(len(data), 1), 2 * BLOCK)]

    def names(self) -> list[str]:
        return [CHECKPOINT_NAME, *map(segment_name, range(len(self.files) - 1))]

    def open(self, name: str) -> int:
        return self.names().index(name)

    def shut(self, handle: int) -> None:
        pass

    def size(self, handle: int) -> int:
        return len(self.files[handle])

    def read(self, handle: int, n: int, offset: int) -> bytes:
        return self.files[handle][offset : offset + n]


def look(data: bytes) -> tuple[object, ...]:
    """The behaviour; AssertionError where a rule is broken."""
    behaviour = look_once(data)
    assert look_once(data) == behaviour
    return behaviour


def look_once(data: bytes) -> tuple[object, ...]:
    entries, end, clean = scan(data, 0, **START)
    check_entries(entries, START["sequence"], end, len(data))
    assert not clean or all_zeros(data[end:])
    found = voucher(data, 0, salt=77, lost=5)
    assert found == -1 or data[found : found + 4] == b"IOL1"
    said = []
    for decoder in (decode_header, decode_slot):
        try:
            said.append(type(decoder(data[:BLOCK])).__name__)
        except ValueError as error:
            said.append(re.sub(r"\d+", "N", str(error))[:12])
    kinds = tuple((entry.type, entry.more, bool(entry.key)) for entry in entries[:6])
    return kinds, len(entries), clean, found >= 0, *said, *look_at_files(data)


def look_at_files(data: bytes) -> tuple[object, ...]:
    files: Any = Files(data)
    try:
        journal = survey(files)
    except JournalDamagedError as error:
        return (re.sub(r"\d+", "N", str(error)),)
    assert journal.sequence >= journal.slot.durable or journal.damage
    for segment in journal.segments:
        assert segment.header or not segment.entries
        if segment.header:
            first = segment.header.first_sequence
            check_entries(segment.entries, first, segment.end, segment.size)
            assert first + len(segment.entries) - 1 <= journal.sequence
        assert not (segment.spare and (segment.tail or segment.entries))
    entries = [entry for _, entry in journal.entries()]
    numbers = [entry.sequence for entry in entries]
    assert numbers == list(range(journal.sequence - len(entries) + 1, journal.sequence + 1))
    gone = unfinished(entries)
    assert gone <= set(numbers)
    damage = journal.damage and re.sub(r"\d+", "N", str(journal.damage))
    states = tuple((bool(s.header), s.tail, s.spare) for s in journal.segments)
    return len(journal.history), states, len(entries), len(gone), damage


def check_entries(entries: list[Entry], first: int, end: int, size: int) -> None:
    assert 0 <= end <= size
    before = 0
    for number, entry in enumerate(entries, first):
        assert entry.sequence == number
        assert before <= entry.position < entry.data_begin <= entry.data_end <= size
        assert len(entry.key) <= LIMITS["key"]
        assert entry.length <= LIMITS["part"]
        assert entry.target < LIMITS["targets"]
        assert entry.offset + entry.length < 2**63
        before = entry.data_end
