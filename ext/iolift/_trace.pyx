"""Recording what was really done: what `iolift replay` counts comes from here, not from a plan."""

import numpy as np

from libc.stdint cimport int64_t
from libc.stdlib cimport realloc


cdef Py_ssize_t add_event(TraceLog* log, const Event* event) noexcept nogil:
    cdef Py_ssize_t room
    cdef Event* items
    if log.size == log.room:
        room = max(64, 2 * log.room)
        items = <Event*>realloc(log.items, room * sizeof(Event))
        if items == NULL:
            return -1
        log.items = items
        log.room = room
    log.items[log.size] = event[0]
    log.size += 1
    return log.size - 1


cdef object export_trace(const TraceLog* log):
    # int64[k, 3]: kind, offset, length.
    cdef int64_t[:, ::1] rows
    cdef Py_ssize_t i
    result = np.empty((log.size, 3), np.int64)
    rows = result
    for i in range(log.size):
        rows[i, 0] = log.items[i].kind
        rows[i, 1] = log.items[i].offset
        rows[i, 2] = log.items[i].length
    return result
