"""Records of the journal: written into memory, and believed only when everything about them holds.

    put_record      chain -> bytes          the chain goes on to the next record
    take_record     bytes -> chain          GOOD, NO_RECORD or BROKEN; the chain goes on if GOOD
    find_voucher    whether anything that comes later proves that a record was once durable

1. Pure: no I/O, no clock, no lock. `src/iolift/_format.py` has the grammar and a worked example.
2. Nothing is read past `room`, and no number of a header is used before the header's own CRC, the
   segment's salt, the expected sequence and the CRC of the record before have been found right.
   Lengths and counts are capped even then: a CRC is no proof against who can compute one.
3. A record is GOOD only with its whole payload, by its CRC.

Who may call: anybody; what is `nogil` without the GIL.
"""

import sys

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport INT64_MAX, int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from ._arguments cimport Buffer, take_buffer
from ._crc32c cimport extend_crc

if sys.byteorder != "little":
    raise ImportError("the journal's records are written as little-endian machines have them")

cdef enum:
    CHECKED_BYTES = HEADER_BYTES - 4


cdef inline int64_t align(int64_t value, int64_t step) noexcept nogil:
    return (value + step - 1) & ~(step - 1)


cdef int64_t record_bytes(int64_t payload) noexcept nogil:
    return HEADER_BYTES + align(payload, 8)


cdef int64_t put_record(char* memory, Chain* chain, uint16_t type, uint32_t target, uint64_t offset,
                        const char* key, uint16_t key_size, const char* data, uint32_t size,
                        uint32_t flags) noexcept nogil:
    # size: of the data. There is room for record_bytes(key_size + size), which is returned.
    cdef Header header
    cdef int64_t payload = key_size + <int64_t>size
    cdef char* place = memory + HEADER_BYTES
    if key_size:
        memcpy(place, key, key_size)
    if size:
        memcpy(place + key_size, data, size)
    memset(place + payload, 0, align(payload, 8) - payload)
    header.magic = RECORD_MAGIC
    header.type = type
    header.key_size = key_size
    header.sequence = chain.sequence
    header.salt = chain.salt
    header.size = <uint32_t>payload
    header.previous = chain.previous
    header.durable = chain.durable
    header.target = target
    header.payload_crc = extend_crc(0, place, payload)
    header.offset = offset
    header.flags = flags
    header.crc = extend_crc(0, &header, CHECKED_BYTES)
    memcpy(memory, &header, HEADER_BYTES)
    chain.sequence += 1
    chain.previous = header.crc
    return record_bytes(payload)


cdef bint is_sound(const Header* header, int64_t room) noexcept nogil:
    # Caps: whatever the CRC says, no writer of ours ever wrote more.
    if header.type < WRITE_RECORD or header.type > KEY_RECORD:
        return False
    if header.key_size > MAX_KEY or header.size > MAX_PART + MAX_KEY:
        return False
    if header.size < header.key_size or header.size - header.key_size > MAX_PART:
        return False
    if header.type != WRITE_RECORD and header.size != header.key_size:
        return False
    if header.target >= MAX_TARGETS or header.flags > (MORE | END | CONTINUES):
        return False
    if header.offset > <uint64_t>(INT64_MAX - (header.size - header.key_size)):
        return False
    if header.durable >= header.sequence or header.sequence > <uint64_t>INT64_MAX:
        return False
    return record_bytes(header.size) <= room


cdef Verdict take_record(const char* memory, int64_t room, Chain* chain, Header* header,
                         bint check_payload) noexcept nogil:
    if room < HEADER_BYTES:
        return NO_RECORD
    memcpy(header, memory, HEADER_BYTES)
    if header.magic != RECORD_MAGIC:
        return NO_RECORD
    if header.crc != extend_crc(0, memory, CHECKED_BYTES):
        return BROKEN
    if (header.salt != chain.salt or header.sequence != chain.sequence
            or header.previous != chain.previous or header.durable < chain.durable
            or not is_sound(header, room)):
        return BROKEN
    if check_payload and header.payload_crc != extend_crc(0, memory + HEADER_BYTES, header.size):
        return BROKEN
    chain.sequence += 1
    chain.previous = header.crc
    chain.durable = header.durable
    return GOOD


cdef int64_t find_voucher(const char* memory, int64_t size, int64_t begin, uint64_t salt,
                          uint64_t lost) noexcept nogil:
    # The first place from `begin` on of a header of this segment that was written when the record
    # `lost` was durable already; -1 where there is none. A payload is no place to find one by
    # accident: bytes that were copied from this journal are older than what they are a part of.
    cdef int64_t position = align(begin, 8)
    cdef Header header
    cdef uint32_t magic
    while position + HEADER_BYTES <= size:
        memcpy(&magic, memory + position, 4)
        if magic == RECORD_MAGIC:
            memcpy(&header, memory + position, HEADER_BYTES)
            if (header.salt == salt and header.durable >= lost
                    and header.crc == extend_crc(0, memory + position, CHECKED_BYTES)):
                return position
        position += 8
    return -1


cdef bint is_zero(const char* memory, int64_t size) noexcept nogil:
    cdef int64_t i
    cdef uint64_t word
    for i in range(0, size - 7, 8):
        memcpy(&word, memory + i, 8)
        if word:
            return False
    for i in range(size & ~<int64_t>7, size):
        if memory[i]:
            return False
    return True


# ------------------------------------------------------------------------------- seen from Python

TYPES = {WRITE_RECORD: "write", TRUNCATE_RECORD: "truncate", KEY_RECORD: "key"}
LIMITS = {"block": BLOCK, "header": HEADER_BYTES, "part": MAX_PART, "key": MAX_KEY,
          "targets": MAX_TARGETS, "sequence": INT64_MAX}
FLAG_PARTS = MORE | CONTINUES
FLAG_END = END


@cython.final
@cython.freelist(64)
cdef class Entry:
    """A record that was found good. position: of its header in the segment, bytes."""

    cdef readonly str type
    cdef readonly uint64_t sequence, durable, offset
    cdef readonly uint32_t target, crc, flags
    cdef readonly int64_t position
    cdef readonly bytes key
    cdef readonly int64_t data_begin, data_end

    @property
    def length(self):
        """Bytes of data."""
        return self.data_end - self.data_begin

    @property
    def more(self):
        """Whether the request goes on in the next record."""
        return bool(self.flags & MORE)

    @property
    def continues(self):
        """Whether it is a part of the request of the record before."""
        return bool(self.flags & CONTINUES)

    def __repr__(self):
        return (f"<record {self.sequence}: {self.type} of {self.length} bytes at {self.offset} "
                f"of target {self.target}>")


cdef Entry entry_of(const Header* header, const char* memory, int64_t position):
    cdef Entry entry = Entry.__new__(Entry)
    entry.type = TYPES[header.type]
    entry.sequence = header.sequence
    entry.durable = header.durable
    entry.offset = header.offset
    entry.target = header.target
    entry.crc = header.crc
    entry.flags = header.flags
    entry.position = position
    entry.data_begin = position + HEADER_BYTES + header.key_size
    entry.data_end = position + HEADER_BYTES + header.size
    entry.key = PyBytes_FromStringAndSize(memory + position + HEADER_BYTES, header.key_size)
    return entry


def encode(records, *, sequence, salt, durable, previous):
    """One batch as bytes, padded to 4 KiB, and the CRC that the next record has as `previous`.

    records: (type, target, offset, key, data, more) each. Raises ValueError past a cap.
    O(bytes). The writer does the same without the GIL; this is for tests and tools.
    """
    cdef Chain chain = Chain(sequence, salt, durable, previous)
    cdef int64_t size = 0
    cdef bytes memory
    cdef char* place
    for kind, _, _, key, data, _ in records:
        if len(key) > MAX_KEY or len(data) > MAX_PART or kind not in TYPES.values():
            raise ValueError(f"no record may be: {kind}, a key of {len(key)} and data of "
                             f"{len(data)} bytes")
        size += record_bytes(len(key) + len(data))
    memory = bytes(align(size, BLOCK))
    place = <char*>memory
    types = {name: number for number, name in TYPES.items()}
    goes_on = False
    for i, (kind, target, offset, key, data, more) in enumerate(records):
        flags = (MORE if more else 0) | (CONTINUES if goes_on else 0)
        flags |= END if i == len(records) - 1 else 0
        goes_on = more
        place += put_record(place, &chain, types[kind], target, offset, <bytes>key, len(key),
                            <bytes>data, len(data), flags)
    return memory, chain.previous


def scan(data, begin, *, sequence, salt, durable, previous, check_payload=True):
    """The good records of a segment from `begin` on, and where they end.

    Returns (list of Entry, end, clean): `end` is where the next batch would begin, or the place
    of the first byte that can't be believed; clean: nothing but zeros from there on. O(bytes).
    check_payload=False believes payloads without their CRC: tests show what that costs.
    """
    cdef Buffer buffer = take_buffer(data, "data", False)
    cdef const char* memory = <const char*>buffer.view.buf
    cdef int64_t size = buffer.view.len, position = begin
    cdef Chain chain = Chain(sequence, salt, durable, previous)
    cdef Header header
    cdef bint check = check_payload, clean
    cdef Verdict verdict = GOOD
    if position < 0 or position > size:
        raise ValueError(f"begin = {position} is outside of the segment")
    found = []
    while position < size:
        with nogil:
            verdict = take_record(memory + position, size - position, &chain, &header, check)
        if verdict != GOOD:
            break
        found.append(entry_of(&header, memory, position))
        position += record_bytes(header.size)
        if header.flags & END:
            position = align(position, BLOCK)
    position = min(position, size)
    with nogil:
        clean = is_zero(memory + position, size - position)
    return found, position, clean


def voucher(data, begin, *, salt, lost):
    """Where, from `begin` on, a record says that the record `lost` was durable; -1: nowhere."""
    cdef Buffer buffer = take_buffer(data, "data", False)
    cdef const char* memory = <const char*>buffer.view.buf
    cdef int64_t size = buffer.view.len, first = begin, found
    cdef uint64_t own_salt = salt, number = lost
    if first < 0:
        raise ValueError(f"begin = {first} is outside of the segment")
    with nogil:
        found = find_voucher(memory, size, first, own_salt, number)
    return found


def all_zeros(data):
    """Whether a buffer holds nothing but zeros. O(n)."""
    cdef Buffer buffer = take_buffer(data, "data", False)
    return is_zero(<const char*>buffer.view.buf, buffer.view.len)
