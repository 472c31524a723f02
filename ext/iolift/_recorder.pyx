"""Recorder: the requests and I/Os of a coalescer, the last `capacity` of each.

1. A row is written once, when its request or I/O is over, over the oldest one; nothing is allocated
   after the recorder was made, but for the name of a file that is new.
2. Where nothing is recorded there is no recorder, and that is all that is looked at.

Who may call: any thread, with the GIL.
"""

import os
import time

import numpy as np

from libc.stdint cimport int32_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from ._system cimport iolift_now_ns

cdef enum:
    NO_FILE = -1
    LEAST_NAMES = 1 << 16       # of files that are told apart, however short the rings are

# What ended a hold, as iolift.recording.REASONS has it.
cdef tuple REASONS = ("", "alone", "time", "bytes", "count", "flush", "demand", "turn", "close",
                      "call")
cdef dict CODES = {reason: code for code, reason in enumerate(REASONS)}


cdef uint8_t code_of(str reason):
    return 0 if reason is None else CODES[reason]


cdef class Recorder:
    def __cinit__(self, Py_ssize_t capacity):
        self.capacity = capacity
        self.numbers = {}
        self.began_ns, self.began_at = iolift_now_ns(), time.time()
        # Touched, and taken from the system, when they are first written.
        self.requests = <RequestRow*>malloc(capacity * sizeof(RequestRow))
        self.ios = <IoRow*>malloc(capacity * sizeof(IoRow))
        if self.requests == NULL or self.ios == NULL:
            raise MemoryError(f"trace = {capacity}")

    def __dealloc__(self):
        free(self.requests)
        free(self.ios)

    cdef int32_t number_of(self, object name) except -2:
        # Of names there is a bound, and the rest has none.
        number = self.numbers.get(name)
        if number is None:
            if len(self.numbers) >= max(self.capacity, <Py_ssize_t>LEAST_NAMES):
                return NO_FILE
            number = self.numbers[name] = len(self.numbers)
        return number

    cdef RequestRow* next_request(self) noexcept:
        # All zeros, for the caller to fill.
        cdef RequestRow* row = &self.requests[self.request_count % <uint64_t>self.capacity]
        self.request_count += 1
        memset(row, 0, sizeof(RequestRow))
        return row

    cdef RequestRow* request_before(self, uint64_t back) noexcept:
        # 1: the last one. NULL: it is not in the ring any more.
        if back > <uint64_t>self.capacity:
            return NULL
        return &self.requests[(self.request_count - back) % <uint64_t>self.capacity]

    cdef void skip_requests(self, uint64_t count) noexcept:
        # More than there is room for came at once: these would be overwritten.
        self.request_count += count

    cdef void add_io(self, int32_t file, uint64_t batch, const Event* event) noexcept:
        self.ios[self.io_count % <uint64_t>self.capacity] = IoRow(
            file, event.kind, event.result, event.offset, event.length, event.asked, batch,
            event.submitted_ns, event.done_ns, event.in_flight, 0)
        self.io_count += 1

    cdef void add_ios(self, int32_t file, uint64_t batch, const TraceLog* log) noexcept:
        cdef Py_ssize_t i
        for i in range(log.size):
            self.add_io(file, batch, &log.items[i])

    def rows(self, request, io):
        """(requests, I/Os, files, requests lost, I/Os lost), oldest first, of these dtypes."""
        if request.itemsize != sizeof(RequestRow) or io.itemsize != sizeof(IoRow):
            raise TypeError("these are not the dtypes of a recording")
        files = tuple(f"descriptor {name}" if isinstance(name, int) else os.fsdecode(name)
                      for name in self.numbers)
        return (unroll(<char*>self.requests, self.request_count, self.capacity, request),
                unroll(<char*>self.ios, self.io_count, self.capacity, io), files,
                self.request_count - min(self.request_count, <uint64_t>self.capacity),
                self.io_count - min(self.io_count, <uint64_t>self.capacity))


cdef object unroll(const char* ring, uint64_t count, uint64_t capacity, object dtype):
    # A copy.
    cdef uint64_t size = min(count, capacity), first = count % capacity if count > capacity else 0
    cdef uint64_t width = dtype.itemsize, k
    cdef uint8_t[::1] memory
    result = np.empty(size, dtype)
    if size:
        memory = result.view(np.uint8)
        k = size - first                # from the oldest to the end of the ring, then the rest
        memcpy(&memory[0], ring + first * width, k * width)
        memcpy(&memory[0] + k * width, ring, first * width)
    return result
