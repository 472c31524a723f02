# The journal's records: how they lie in memory, how they are written and believed. No I/O.

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t


cdef enum:
    RECORD_MAGIC = 0x314C4F49           # "IOL1"
    BLOCK = 4096                        # batches begin and end on its multiples
    HEADER_BYTES = 64
    MAX_PART = 1 << 20                  # payload of one record, without its key
    MAX_KEY = 255
    MAX_TARGETS = 64


cdef enum RecordType:
    WRITE_RECORD = 1                    # payload: key, data. They go to `offset` of the target
    TRUNCATE_RECORD = 2                 # `offset` is the target's new size
    KEY_RECORD = 3                      # payload: a key; `offset` is the sequence it stands for


cdef enum:
    MORE = 1                            # the request goes on in the next record
    END = 2                             # the last record of its batch
    CONTINUES = 4                       # ... the one before, of which it is a part


cdef struct Header:
    # 64 bytes, little-endian, each field on a multiple of its size.
    uint32_t magic
    uint16_t type
    uint16_t key_size                   # bytes, at the beginning of the payload
    uint64_t sequence                   # 1, 2, 3, ... through all segments
    uint64_t salt                       # of the segment
    uint32_t size                       # payload, bytes
    uint32_t previous                   # `crc` of the record before, also of another segment
    uint64_t durable                    # every record up to here was synced when this was written
    uint32_t target                     # a place in the journal's table of targets
    uint32_t payload_crc
    uint64_t offset
    uint32_t flags
    uint32_t crc                        # of the 60 bytes before


cdef struct Chain:
    # What the next record must say.
    uint64_t sequence
    uint64_t salt
    uint64_t durable
    uint32_t previous


cdef enum Verdict:
    GOOD
    NO_RECORD                           # no magic: zeros, or anything
    BROKEN                              # looks like one, and is none that may come here


cdef int64_t record_bytes(int64_t payload) noexcept nogil
cdef int64_t put_record(char* memory, Chain* chain, uint16_t type, uint32_t target, uint64_t offset,
                        const char* key, uint16_t key_size, const char* data, uint32_t size,
                        uint32_t flags) noexcept nogil
cdef Verdict take_record(const char* memory, int64_t room, Chain* chain, Header* header,
                         bint check_payload) noexcept nogil
cdef int64_t find_voucher(const char* memory, int64_t size, int64_t begin, uint64_t salt,
                          uint64_t lost) noexcept nogil
