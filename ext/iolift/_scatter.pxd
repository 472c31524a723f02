# From file positions to memory and back: an extent becomes chunks of segments. Pure memory work.

from libc.stdint cimport int64_t, uint32_t, uintptr_t

from ._request cimport Request
from ._system cimport iovec


cdef struct Rows:
    # Where the bytes of request i are in memory. Owned by the caller of the batch.
    char* base
    int64_t stride              # row i begins at base + i * stride ...
    const int64_t* starts       # ... unless this says where, in bytes from base ...
    char** pointers             # ... or this says at which address
    const int64_t* offsets      # the file offset of request i


cdef struct Layout:
    # What a chunk must look like. Shared by all chunks of a batch.
    int64_t alignment           # of file offsets: 1, or what O_DIRECT asks
    int64_t memory_alignment    # of addresses: 1, or what O_DIRECT asks
    # Where the file's last whole block ends: past it, a direct read would fill the rest of a
    # row's block with zeros.
    int64_t straight_end
    char* scratch               # SCRATCH_BYTES that holes are read into (buffered files)


cdef struct Cursor:
    # What is left of an extent.
    int64_t position            # next byte
    int64_t end
    uint32_t lo                 # no request before this one has bytes at `position` or later
    uint32_t hi                 # no request from this one on has bytes before `end`


cdef struct Chunk:
    # The part of an extent that one operation moves.
    int64_t begin
    int64_t end
    uint32_t lo
    uint32_t hi
    iovec* segments             # room for MAX_SEGMENTS, owned by the slot
    uint32_t segment_count
    char* bounce                # BOUNCE_BYTES, page-aligned, owned by the slot; NULL if buffered
    bint shared                 # some request has bytes that are not in its row after the I/O


cdef enum:
    SCRATCH_BYTES = 1 << 16
    BOUNCE_BYTES = 1 << 17
    # One operation: small enough for Ctrl-C to be heard soon, large enough not to matter.
    MAX_CHUNK_BYTES = 1 << 22


cdef inline char* locate(const Rows* rows, const Request* request,
                         int64_t position) noexcept nogil:
    cdef int64_t index = request.index
    cdef char* row
    if rows.pointers != NULL:
        row = rows.pointers[index]
    elif rows.starts != NULL:
        row = rows.base + rows.starts[index]
    else:
        row = rows.base + index * rows.stride
    return row + (position - rows.offsets[index])


cdef void next_chunk(const Request* requests, const Rows* rows, const Layout* layout,
                     Cursor* cursor, Chunk* chunk) noexcept nogil
cdef void settle_read(const Request* requests, const Rows* rows, const Layout* layout,
                      const Chunk* chunk, int64_t until) noexcept nogil
cdef void prepare_write(const Request* requests, const Rows* rows, const Layout* layout,
                        const Chunk* chunk) noexcept nogil
