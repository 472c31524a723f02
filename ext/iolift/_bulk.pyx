"""BulkDesk: calls of many requests, preadv, read_ranges and their like; truncate is as one of them.

    settle (all that was submitted before is over) -> begin_solo -> plan, execute -> outcomes

Such a call is a batch of its own, planned and moved by its caller, past the window. A request of
several fails by itself; of preadv and pwritev, which are one request, the first error counts.
"""

import os

import numpy as np

from libc.stdint cimport INT64_MAX, int64_t, uint32_t
from libc.stdlib cimport free, malloc

from ._arguments cimport (
    Buffer, Ranges, length_of, parse_int, parse_position, parse_ranges, take_buffer, take_buffers,
)
from ._backend cimport READ, WRITE, Kind
from ._batch cimport Batch
from ._desk cimport FileDesk
from ._landing cimport Solo, record_call
from ._recorder cimport Recorder, RequestRow
from ._request cimport Extent
from ._solo cimport begin_solo, end_solo
from ._system cimport iolift_now_ns
from .errors import RangeError, ShortReadError

cdef extern from "Python.h":
    const Py_ssize_t PY_SSIZE_T_MAX

cdef enum:
    PAGE = 4096


cdef class BulkDesk(FileDesk):
    cdef int enter(self, Kind kind) except -1:
        raise NotImplementedError

    cdef int leave(self) except -1:
        raise NotImplementedError

    def preadv(self, buffers, offset):
        return move_vector(self, READ, buffers, offset)

    def pwritev(self, buffers, offset):
        return move_vector(self, WRITE, buffers, offset)

    def read_ranges(self, offsets, lengths, out=None):
        cdef Ranges ranges = parse_ranges(offsets, lengths, True)
        cdef bint rows = np.ndim(lengths) == 0
        cdef Buffer memory
        if out is None:
            if ranges.total > PY_SSIZE_T_MAX - 2 * PAGE:
                raise MemoryError(f"lengths: {ranges.total} bytes")
            out = empty_aligned(ranges.total, self.target.memory_alignment)
            if rows:
                out = out.reshape(ranges.n, ranges.length)
        memory = take_buffer(out, "out", True)
        if memory.view.len != ranges.total:
            raise ValueError(f"out has {memory.view.len} bytes, the ranges ask for {ranges.total}")
        move_ranges(self, READ, ranges, <char*>memory.view.buf)
        return out

    def write_ranges(self, offsets, data, lengths=None):
        cdef Buffer memory = take_buffer(data, "data", False)
        cdef Ranges ranges = ranges_of_data(offsets, data, lengths, memory)
        move_ranges(self, WRITE, ranges, <char*>memory.view.buf)
        return ranges.total

    def outlast(self):
        """Return when all that was asked for before is over, reads as well."""
        cdef Solo solo
        self.enter(WRITE)
        try:
            begin_many(self, &solo, WRITE, 0, INT64_MAX)
            end_solo(self, &solo, 0)
        finally:
            self.leave()

    def truncate(self, size):
        cdef int64_t length = parse_int(size, "size", 0, INT64_MAX)
        cdef Solo solo
        self.enter(WRITE)
        try:
            begin_many(self, &solo, WRITE, 0, INT64_MAX)
            try:
                os.ftruncate(self.target.descriptor, length)
            finally:
                end_solo(self, &solo, 0)
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.name) from None
        finally:
            self.leave()


cdef int begin_many(BulkDesk self, Solo* solo, Kind kind, int64_t offset, int64_t end) except -1:
    # What passes the window by, somewhere in [offset, end): all that was submitted earlier is over.
    if kind == WRITE:
        self.settle_reads()
    self.settle_writes()
    # What came meanwhile and is held still was submitted before this, too.
    while kind == WRITE and self.window.reads.tickets.size:
        self.settle_reads()
    return begin_solo(self, solo, kind, offset, end, NULL)


cdef int64_t move_vector(BulkDesk self, Kind kind, object buffers, object offset) except -1:
    # preadv and pwritev: a batch whose requests follow each other in the file.
    cdef list memory
    cdef Py_ssize_t i, n
    cdef int64_t total = 0, position
    cdef int64_t* places
    cdef char** pointers
    memory = take_buffers(buffers, kind == READ)
    n = len(memory)
    for i in range(n):
        total += (<Buffer>memory[i]).view.len
    position = parse_position(offset, total)
    places = <int64_t*>malloc(max(1, 2 * n) * sizeof(int64_t))
    pointers = <char**>malloc(max(1, n) * sizeof(char*))
    try:
        if places == NULL or pointers == NULL:
            raise MemoryError
        for i in range(n):
            places[i] = position
            places[n + i] = (<Buffer>memory[i]).view.len
            pointers[i] = <char*>(<Buffer>memory[i]).view.buf
            position += places[n + i]
        return run_vector(self, kind, n, places, pointers, total)
    finally:
        free(places)
        free(pointers)


cdef int64_t run_vector(BulkDesk self, Kind kind, Py_ssize_t n, int64_t* places, char** pointers,
                        int64_t total) except -1:
    cdef Batch batch
    cdef Py_ssize_t i
    self.enter(kind)
    try:
        batch = self.make_batch(kind, n)
        batch.rows.pointers = pointers
        batch.rows.offsets = places
        batch.rule.max_io = INT64_MAX
        batch.is_one = True
        run_many(self, batch, 1, total, places + n, 0, 0)
    finally:
        self.leave()
    if batch.outcome.items == NULL:
        return total
    total = 0
    for i in range(n):
        if batch.outcome.items[i] < 0:
            raise OSError(-batch.outcome.items[i], os.strerror(-batch.outcome.items[i]), self.name)
    for i in range(n):
        total += min(batch.outcome.items[i], places[n + i])
        if batch.outcome.items[i] < places[n + i]:
            break
    return total


cdef Ranges ranges_of_data(object offsets, object data, object lengths, Buffer memory):
    # Of write_ranges; memory: the buffer of data.
    cdef Ranges ranges
    if lengths is None:
        lengths = row_length(offsets, data, memory)
    ranges = parse_ranges(offsets, lengths, True)
    if memory.view.len != ranges.total:
        raise ValueError(f"data has {memory.view.len} bytes, the ranges ask for {ranges.total}")
    return ranges


cdef int64_t row_length(object offsets, object data, Buffer memory) except -1:
    # write_ranges without lengths: as many equal rows as there are offsets.
    n = len(offsets)
    if memory.view.ndim > 1 and memory.view.shape[0] != n:
        raise ValueError(f"data has {memory.view.shape[0]} rows for {n} offsets")
    if n == 0:
        return 0
    if memory.view.len % n:
        raise ValueError(f"data has {memory.view.len} bytes, which {n} equal rows can't share: "
                         f"give lengths")
    return memory.view.len // n


cdef int move_ranges(BulkDesk self, Kind kind, Ranges ranges, char* memory) except -1:
    cdef Batch batch
    cdef int64_t[::1] starts
    self.enter(kind)
    try:
        batch = self.make_batch(kind, ranges.n)
        batch.rows.base = memory
        batch.rows.stride = ranges.length
        batch.rows.offsets = ranges.offsets
        if ranges.lengths != NULL:
            lengths = np.asarray(ranges.length_array.view)
            starts = np.cumsum(lengths) - lengths
            batch.rows.starts = &starts[0]
        run_many(self, batch, ranges.n, ranges.total, ranges.lengths, ranges.length, self.arm)
        if batch.extents.size:
            self.arm = batch.last_position()
    finally:
        self.leave()
    if batch.outcome.items != NULL:
        raise_worst(self, ranges, batch)
    return 0


cdef int run_many(BulkDesk self, Batch batch, Py_ssize_t requests, int64_t total,
                  const int64_t* lengths, int64_t length, int64_t start) except -1:
    # A batch of the caller's own, past the window, after all that was submitted before.
    cdef Solo solo
    cdef Py_ssize_t i
    cdef int64_t moved, first = INT64_MAX, end = 0, submitted_ns = 0
    while not self.scheduler.may_go():
        self.scheduler.wait_for_landing(self.scheduler.ready_at())
    if self.scheduler.recorder is not None:
        submitted_ns = iolift_now_ns()
    self.scheduler.counters.requests += requests
    self.scheduler.counters.batches += 1
    self.scheduler.batch_number += 1
    batch.number = self.scheduler.batch_number
    if batch.kind == READ:
        self.scheduler.counters.reads += requests
        self.scheduler.counters.bytes_asked += total
    else:
        self.scheduler.counters.writes += requests
    for i in range(batch.n):
        first = min(first, batch.rows.offsets[i])
        end = max(end, batch.rows.offsets[i] + (length if lengths == NULL else lengths[i]))
    begin_many(self, &solo, batch.kind, first, end)
    try:
        batch.run(lengths, length, start)
    finally:
        end_solo(self, &solo, 0)
    moved = batch.bytes_planned()
    if self.scheduler.recorder is not None:
        record_ranges(self, batch, total, lengths, length, submitted_ns)
    self.scheduler.charge(batch.extents.size, moved)
    self.scheduler.counters.extents += batch.extents.size
    if batch.kind == READ:
        self.scheduler.counters.bytes_moved += moved
    else:
        self.scheduler.counters.bytes_written += moved
    return 0


cdef void record_ranges(BulkDesk self, Batch batch, int64_t total, const int64_t* lengths,
                        int64_t length, int64_t submitted_ns) noexcept:
    # A row a request; those that would not be in the ring any more are only counted.
    cdef Recorder recorder = self.scheduler.recorder
    cdef Py_ssize_t i, skipped = max(<Py_ssize_t>0, batch.n - recorder.capacity)
    cdef int64_t size
    if batch.is_one:                    # preadv, pwritev
        if batch.n:
            record_range(self, batch, batch.rows.offsets[0], total, submitted_ns,
                         -batch.own_error)
        return
    recorder.skip_requests(skipped)
    for i in range(skipped, batch.n):
        size = length if lengths == NULL else lengths[i]
        record_range(self, batch, batch.rows.offsets[i], size, submitted_ns,
                     0 if batch.outcome.items == NULL else batch.outcome.items[i])
    record_carriers(recorder, batch)


cdef void record_range(BulkDesk self, Batch batch, int64_t offset, int64_t length,
                       int64_t submitted_ns, int64_t result) noexcept:
    cdef RequestRow* row = record_call(self, batch.kind, offset, length, submitted_ns, result)
    row.batch = batch.number
    row.dispatched_ns = row.started_ns = batch.began_ns or submitted_ns
    row.ended_ns = batch.ended_ns or row.dispatched_ns
    if not batch.is_one:
        row.extent_offset = row.extent_length = 0


cdef void record_carriers(Recorder recorder, Batch batch) noexcept:
    # Of the rows that were just made: the first I/O that carried each.
    cdef RequestRow* row
    cdef Extent extent
    cdef Py_ssize_t k, p
    cdef uint32_t hi
    for k in range(batch.extents.size):
        extent = batch.extents.items[k]
        hi = min(extent.hi, <uint32_t>batch.piece_count)
        for p in range(extent.lo, hi):
            row = recorder.request_before(batch.n - batch.pieces[p].index)
            if row != NULL and row.extent_length == 0 and batch.pieces[p].offset < extent.end:
                row.extent_offset, row.extent_length = extent.offset, extent.end - extent.offset
                row.companions = hi - extent.lo - 1


cdef object raise_worst(BulkDesk self, Ranges ranges, Batch batch):
    # An error of the device before a short read: of each, the first request in index order.
    cdef Py_ssize_t i, first_short = -1
    cdef int64_t length
    errnos = {}
    for i in range(ranges.n):
        length = length_of(ranges, i)
        if batch.outcome.items[i] < 0:
            errnos[i] = -batch.outcome.items[i]
        elif batch.outcome.items[i] < length and first_short < 0:
            first_short = i
    if errnos:
        i = next(iter(errnos))
        length = length_of(ranges, i)
        raise RangeError(errnos[i], self.name, i, ranges.offsets[i], length, errnos)
    if first_short >= 0:
        i = first_short
        length = length_of(ranges, i)
        raise ShortReadError(self.name, i, ranges.offsets[i], length, batch.outcome.items[i])


cdef object empty_aligned(int64_t size, int64_t alignment):
    # Direct reads go straight into memory only where it sits right. Buffered ones gain too: the
    # kernel's copy is up to five times slower on some CPUs (seen on AMD Zen 3) where memory is 1
    # to 31 bytes ahead of the file modulo 4096, and numpy's large arrays begin at 16.
    if size < PAGE and alignment == 1:
        return np.empty(size, np.uint8)
    alignment = max(alignment, <int64_t>PAGE)
    room = np.empty(size + alignment, np.uint8)
    skip = -room.ctypes.data % alignment
    return room[skip:skip + size]
