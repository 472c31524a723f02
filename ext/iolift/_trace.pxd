# The I/Os of a batch as they were handed to its lane.

from libc.stdint cimport int64_t, uint32_t


cdef struct Event:
    int64_t offset
    int64_t length
    int64_t asked               # bytes of it that a request asked for; set when it is done
    int64_t result              # bytes, or -errno
    int64_t submitted_ns
    int64_t done_ns             # 0: never
    int kind
    uint32_t in_flight          # I/Os of the batch that were under way, itself included


cdef struct TraceLog:
    Event* items                # owned
    Py_ssize_t size
    Py_ssize_t room


# Where it is in the log from now on, or -1: out of memory.
cdef Py_ssize_t add_event(TraceLog* log, const Event* event) noexcept nogil
cdef object export_trace(const TraceLog* log)
