# The I/Os of a batch as they were handed to its lane.

from libc.stdint cimport int64_t


cdef struct TraceLog:
    int64_t* items              # kind, offset, length; owned
    Py_ssize_t size             # of items, three an I/O
    Py_ssize_t room


cdef int add_trace(TraceLog* log, int64_t kind, int64_t offset, int64_t length) noexcept nogil
cdef object export_trace(const TraceLog* log)
