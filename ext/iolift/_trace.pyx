"""Recording what was really done: what `iolift replay` counts comes from here, not from a plan."""

import numpy as np

from libc.stdint cimport int64_t
from libc.stdlib cimport realloc
from libc.string cimport memcpy


cdef int add_trace(TraceLog* log, int64_t kind, int64_t offset, int64_t length) noexcept nogil:
    # 0, or -1: out of memory.
    cdef Py_ssize_t room
    cdef int64_t* items
    if log.size + 3 > log.room:
        room = max(192, 2 * log.room)
        items = <int64_t*>realloc(log.items, room * sizeof(int64_t))
        if items == NULL:
            return -1
        log.items = items
        log.room = room
    log.items[log.size] = kind
    log.items[log.size + 1] = offset
    log.items[log.size + 2] = length
    log.size += 3
    return 0


cdef object export_trace(const TraceLog* log):
    # A copy: int64[k, 3].
    cdef int64_t[::1] copy
    result = np.empty(log.size, np.int64)
    if log.size:
        copy = result
        memcpy(&copy[0], log.items, log.size * sizeof(int64_t))
    return result.reshape(-1, 3)
