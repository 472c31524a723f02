# The boundary: Python arguments -> checked C arrays. Everything below may rely on what is checked.

from libc.stdint cimport int64_t


cdef class Int64Array:
    # A one-dimensional, C-contiguous int64 view on the caller's own data where that is possible.
    cdef const int64_t[::1] view
    cdef const int64_t* data        # NULL when empty
    cdef Py_ssize_t size


cdef class Ranges:
    # n ranges, each 0 <= offset <= offset + length <= 2**63-1.
    cdef Int64Array offset_array
    cdef Int64Array length_array    # None when one length serves all
    cdef const int64_t* offsets
    cdef const int64_t* lengths     # NULL when one length serves all
    cdef int64_t length             # the one length
    cdef Py_ssize_t n
    cdef int64_t total              # sum of the lengths


cdef inline int64_t length_of(Ranges ranges, Py_ssize_t i) noexcept:
    return ranges.length if ranges.lengths == NULL else ranges.lengths[i]


cdef class Buffer:
    # A C-contiguous export, held until the object goes.
    cdef Py_buffer view
    cdef bint held


cdef Buffer take_buffer(object source, str name, bint writable)
cdef list take_buffers(object buffers, bint writable)
# snapshot: a copy that the caller can't change while the GIL is released.
cdef Ranges parse_ranges(object offsets, object lengths, bint snapshot)
cdef int64_t parse_int(object value, str name, int64_t lowest, int64_t highest) except? -1
cdef int64_t parse_position(object offset, int64_t size) except -1
# On iolift_now_ns; INT64_MAX: never.
cdef int64_t parse_timeout(object seconds) except -1
