# What a coalescer did last: a ring of requests, and one of I/Os.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from ._trace cimport Event, TraceLog


cdef enum RowState:
    ENDED = 0
    FAILED = 1
    WITHDRAWN = 2


# The rows are those of iolift.recording.REQUEST and IO, byte for byte.

cdef struct RequestRow:
    int32_t file
    uint8_t kind
    uint8_t source
    uint8_t state               # RowState
    uint8_t reason              # place in iolift.recording.REASONS
    int32_t error
    uint32_t companions
    int64_t offset
    int64_t length
    int64_t submitted_ns
    int64_t dispatched_ns
    int64_t started_ns
    int64_t ended_ns
    uint64_t batch
    int64_t extent_offset
    int64_t extent_length


cdef struct IoRow:
    int32_t file
    int32_t kind
    int64_t result
    int64_t offset
    int64_t length
    int64_t asked
    uint64_t batch
    int64_t submitted_ns
    int64_t done_ns
    uint32_t in_flight
    uint32_t unused


cdef class Recorder:
    cdef readonly Py_ssize_t capacity
    cdef RequestRow* requests
    cdef IoRow* ios
    cdef uint64_t request_count         # ever; the ring has the last `capacity` of them
    cdef uint64_t io_count
    cdef dict numbers                   # of files, by name
    cdef readonly int64_t began_ns
    cdef readonly double began_at
    cdef int32_t number_of(self, object name) except -2
    cdef RequestRow* next_request(self) noexcept
    cdef RequestRow* request_before(self, uint64_t back) noexcept
    cdef void skip_requests(self, uint64_t count) noexcept
    cdef void add_io(self, int32_t file, uint64_t batch, const Event* event) noexcept
    cdef void add_ios(self, int32_t file, uint64_t batch, const TraceLog* log) noexcept


cdef uint8_t code_of(str reason)
