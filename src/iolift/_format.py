"""The journal on the disk: its grammar, with a worked example, and its rare parts.

A journal is a directory. Numbers are little-endian; CRCs are CRC32C; a block is 4096 bytes.

    journal    = lock checkpoint segment*
    checkpoint = slot slot                  two blocks; they are written in turn
    segment    = header batch* zero*        fixed size; name: its number, 16 hex digits, ".seg"
    header     = "IOLIFTJ1" fields table crc zero*                                  one block
    batch      = record+ zero*              whole blocks: what one device write carries
    record     = fields crc key data zero*  64 bytes, the payload, zeros to a multiple of 8
    slot       = "IOLIFTCP" fields table crc zero*                                  one block
    table      = identity*                  the targets: 32 bytes each, at most 64

Records are numbered 1, 2, 3, ... (below 2^63) through all segments. Each has the CRC of the record
before it, so that none can be missing, and says which record was durable when it was written, so
that it vouches for all up to that one. A batch begins on a block of its own: a torn write never
touches bytes that were acknowledged. Segments are filled with zeros and synced before they are
used, so that a commit is one write and one flush, and never used again.

    record: magic u32 "IOL1", type u16, key length u16, sequence u64, salt u64, payload length u32,
            CRC of the record before u32, durable sequence u64, target u32, payload CRC u32,
            offset u64, flags u32, CRC of these 60 bytes u32
    types:  1 write; 2 truncate (offset is the new size); 3 key (offset is the sequence that the
            key in the payload stands for)
    flags:  1 the request goes on in the next record; 2 last record of the batch; 4 part of the
            request of the record before

A request of more than a part is several records. It counts when its last one is there: where
another request begins first, or nothing comes, a crash was faster, and its records are passed
over. A segment begins with the idempotency keys of those before it, as records of type key.

A worked example: the batch of one write, of b"hello" to offset 8 of target 0.

>>> from iolift._records import encode, scan
>>> batch, crc = encode([("write", 0, 8, b"", b"hello", False)], sequence=1, salt=7, durable=0,
...                     previous=0)
>>> len(batch), batch[:24].hex(" ", 8)
(4096, '494f4c3101000000 0100000000000000 0700000000000000')
>>> batch[24:48].hex(" ", 8), batch[48:60].hex(" ", 4)
('0500000000000000 0000000000000000 000000004cbb719a', '08000000 00000000 02000000')
>>> batch[64:72], batch[72:] == bytes(4024), int.from_bytes(batch[60:64], "little") == crc
(b'hello\\x00\\x00\\x00', True, True)
>>> scan(batch, 0, sequence=1, salt=7, durable=0, previous=0)
([<record 1: write of 5 bytes at 8 of target 0>], 4096, True)

The end, an edge case by rule: where the next record should be there are zeros, and no later
segment goes on: a clean end. Or there is something that can't be believed. If a later record of
this journal, or the checkpoint, says that the record that should be there was durable, this is
damage: acknowledged bytes are gone, and nothing is touched. If nobody does, it is a write that
the crash tore and nobody was told of: it is copied aside and cut off.

Downsides: damage to the very last batch can't be told from a torn one, since nothing later vouches
for it (a checkpoint does). Small groups take a whole block. Data is written twice.

Who may call: anybody; nothing here has a state or does I/O.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ._crc32c import crc32c
from ._records import LIMITS

if TYPE_CHECKING:
    from collections.abc import Iterable

BLOCK = LIMITS["block"]
VERSION = 1
CHECKPOINT_NAME = "checkpoint"
SEGMENT_SUFFIX = ".seg"
TAIL_SUFFIX = ".tail"
IDENTITY_BYTES = 32
MAX_SEGMENT_BYTES = 1 << 30

HEADER = struct.Struct("<8sIIQ16sQQII")
HEADER_MAGIC = b"IOLIFTJ1"
SLOT = struct.Struct("<8sIIQ16sQQQQII")
SLOT_MAGIC = b"IOLIFTCP"


@dataclass(frozen=True)
class SegmentHeader:
    """The first block of a segment. previous: the CRC of the record before its first one."""

    journal_id: bytes
    number: int
    first_sequence: int
    previous: int
    segment_bytes: int
    targets: tuple[bytes, ...]

    @property
    def salt(self) -> int:
        """In every record of the segment: no other segment's can be taken for one of this."""
        return salt_of(self.journal_id, self.number)


@dataclass(frozen=True)
class Slot:
    """A checkpoint: every record up to `sequence` is in the targets, and synced there.

    first_segment: no older one is needed. durable: every record up to here was in the journal, and
    synced, when the slot was written. previous: the CRC of that record, 0 where there is none.
    """

    journal_id: bytes
    generation: int
    sequence: int
    first_segment: int
    durable: int
    previous: int
    segment_bytes: int
    targets: tuple[bytes, ...]


def salt_of(journal_id: bytes, number: int) -> int:
    """Known without the header, so that a segment whose header is gone can still be searched."""
    digest = hashlib.sha256(journal_id + number.to_bytes(8, "little")).digest()
    return int.from_bytes(digest[:8], "little")


def _seal(fields: bytes, targets: tuple[bytes, ...]) -> bytes:
    if len(targets) > LIMITS["targets"]:
        raise ValueError(f"{len(targets)} targets: at most {LIMITS['targets']} share a journal")
    body = fields + b"".join(targets)
    return (body + crc32c(body).to_bytes(4, "little")).ljust(BLOCK, b"\0")


def _unseal(block: bytes, layout: struct.Struct, magic: bytes) -> tuple[tuple[Any, ...], bytes]:
    """Fields and table, or ValueError: the count is capped before it says where the CRC is."""
    if len(block) < BLOCK or not block.startswith(magic):
        raise ValueError("no magic")
    fields = layout.unpack_from(block)
    version, count = fields[1], fields[-1]
    if count > LIMITS["targets"]:
        raise ValueError(f"{count} targets")
    end = layout.size + count * IDENTITY_BYTES
    if crc32c(block[:end]) != int.from_bytes(block[end : end + 4], "little"):
        raise ValueError("its CRC is wrong")
    if version != VERSION:
        raise ValueError(f"version {version}, this is for version {VERSION}")
    return fields, block[layout.size : end]


def _table(data: bytes) -> tuple[bytes, ...]:
    return tuple(data[i : i + IDENTITY_BYTES] for i in range(0, len(data), IDENTITY_BYTES))


def _checked_size(size: int) -> int:
    if not 2 * BLOCK <= size <= MAX_SEGMENT_BYTES or size % BLOCK:
        raise ValueError(f"segments of {size} bytes")
    return size


def encode_header(header: SegmentHeader) -> bytes:
    """One block."""
    fields = HEADER.pack(
        HEADER_MAGIC,
        VERSION,
        header.segment_bytes,
        header.salt,
        header.journal_id,
        header.number,
        header.first_sequence,
        header.previous,
        len(header.targets),
    )
    return _seal(fields, header.targets)


def decode_header(block: bytes) -> SegmentHeader:
    """Raises ValueError, with the reason, for a block that is no header."""
    fields, table = _unseal(block, HEADER, HEADER_MAGIC)
    _, _, segment_bytes, salt, journal_id, number, first, previous, _ = fields
    header = SegmentHeader(
        journal_id,
        number,
        first,
        previous,
        _checked_size(segment_bytes),
        _table(table),
    )
    if header.salt != salt:
        raise ValueError("its salt is wrong")
    return header


def encode_slot(slot: Slot) -> bytes:
    """One block."""
    fields = SLOT.pack(
        SLOT_MAGIC,
        VERSION,
        slot.segment_bytes,
        slot.generation,
        slot.journal_id,
        slot.sequence,
        slot.first_segment,
        slot.durable,
        0,
        slot.previous,
        len(slot.targets),
    )
    return _seal(fields, slot.targets)


def decode_slot(block: bytes) -> Slot:
    """Raises ValueError, with the reason, for a block that is no slot."""
    fields, table = _unseal(block, SLOT, SLOT_MAGIC)
    _, _, segment_bytes, generation, journal_id, sequence, first, durable, _, previous, _ = fields
    if not sequence <= durable <= LIMITS["sequence"]:
        raise ValueError(f"checkpoint {sequence} of {durable} records")
    return Slot(
        journal_id,
        generation,
        sequence,
        first,
        durable,
        previous,
        _checked_size(segment_bytes),
        _table(table),
    )


def segment_name(number: int) -> str:
    return f"{number:016x}{SEGMENT_SUFFIX}"


def segment_numbers(names: Iterable[str]) -> list[int]:
    """Of those that are names of segments, in order."""
    return sorted(n for n in map(segment_number, names) if n is not None)


def segment_number(name: str) -> int | None:
    """The number of a segment by its name; None for other files."""
    digits = name.removesuffix(SEGMENT_SUFFIX)
    if len(name) != 16 + len(SEGMENT_SUFFIX) or len(digits) != 16:
        return None
    if set(digits) - set("0123456789abcdef"):
        return None
    return int(digits, 16)
