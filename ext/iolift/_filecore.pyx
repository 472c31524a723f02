"""FileCore: an open descriptor and the calls on it.

1. An argument is checked before anything is moved, and a refused call leaves no trace.
2. A descriptor is closed when the last call that uses it has left, never under its feet.
3. A failed sync is for good: the kernel has marked the pages clean, and a second fsync would lie.

Who may call: any thread, with the GIL, which guards every field here.
"""

import errno
import io
import os

import numpy as np

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, EINTR
from libc.stdint cimport INT64_MAX, int64_t, uint32_t
from libc.stdlib cimport free, malloc

from ._arguments cimport Buffer, Ranges, parse_int, parse_ranges, take_buffer
from ._backend cimport (
    QUEUED, READ, SYNC, WRITE, Answer, Kind, Lane, Operation, run_in_place,
)
from ._batch cimport MAX_PAUSE_NS, MAX_REFUSALS, Batch, pthread_rwlock_t
from ._coalescer cimport Coalescer
from ._scatter cimport MAX_CHUNK_BYTES
from ._system cimport O_DIRECT, iolift_direct_alignment, iolift_pause_ns, iovec
from .errors import PoisonedError, RangeError, ShortReadError

cdef extern from "<pthread.h>" nogil:
    int pthread_rwlock_init(pthread_rwlock_t*, void*)
    int pthread_rwlock_destroy(pthread_rwlock_t*)

cdef extern from "Python.h":
    const Py_ssize_t PY_SSIZE_T_MAX

cdef enum:
    PAGE = 4096
    SYNC_REAP_NS = 1000000000
    DEFAULT_DIRECT_ALIGNMENT = 4096     # where the kernel does not say (before Linux 6.1)


cdef class FileCore:
    """An open descriptor and the calls on it. `iolift.File` adds what an io.RawIOBase needs."""

    def __cinit__(self, Coalescer coalescer not None, int fd, object name, *, bint readable,
                  bint writable, bint direct, bint owns_descriptor):
        coalescer.enter()
        self.coalescer = coalescer
        self.name = name
        self.readable = readable
        self.writable = writable
        self.direct = direct
        self.target.descriptor = self.target.buffered_descriptor = fd
        self.target.alignment = self.target.memory_alignment = 1
        if direct:
            prepare_direct(self)
        self.owns_descriptor = owns_descriptor      # from here on ours to close
        coalescer.files.add(self)

    def __dealloc__(self):
        if self.target.pages != NULL:
            pthread_rwlock_destroy(self.target.pages)
            free(self.target.pages)

    @property
    def alignment(self):
        """What direct I/O asks of (memory addresses, file offsets), bytes; (1, 1) if buffered."""
        return self.target.memory_alignment, self.target.alignment

    @property
    def closed(self):
        return self.is_closed

    def fileno(self):
        self.enter(SYNC)
        self.leave()
        return self.target.descriptor

    cdef int enter(self, Kind kind) except -1:
        # At the start of each call; `leave` ends it. Kind SYNC asks for no mode.
        if self.is_closed:
            raise ValueError("I/O operation on closed file")
        self.coalescer.enter()
        if kind == READ and not self.readable:
            raise io.UnsupportedOperation("File not open for reading")
        if kind == WRITE:
            if not self.writable:
                raise io.UnsupportedOperation("File not open for writing")
            self.check_poison()
        self.active += 1
        return 0

    cdef int leave(self) except -1:
        self.active -= 1
        if self.is_closed and self.active == 0:
            close_descriptors(self)
        return 0

    def check_poison(self):
        if self.poison:
            raise PoisonedError(
                self.poison, f"a sync failed before ({os.strerror(self.poison)}): what was written "
                f"may be lost, and no further write or sync is accepted", self.name)

    def close(self):
        if self.is_closed:
            return
        self.is_closed = True
        self.coalescer.files.discard(self)
        if self.active == 0:
            close_descriptors(self)

    cdef Batch batch(self, Kind kind, Py_ssize_t n):
        cdef Batch batch = Batch.__new__(Batch)
        batch.backend = self.coalescer.io
        batch.kind = kind
        batch.order = self.coalescer.parsed_order
        batch.rule = self.coalescer.rule
        batch.target = self.target
        if self.coalescer.io.name == "hosted":
            batch.target.pages = NULL
        batch.trace = self.coalescer.trace
        batch.n = n
        return batch

    # --------------------------------------------------------------------------------- one request

    def pread(self, n, offset):
        cdef int64_t size = parse_int(n, "n", 0, PY_SSIZE_T_MAX)
        cdef int64_t position = parse_position(offset, size)
        cdef int64_t got
        self.enter(READ)
        try:
            data = PyBytes_FromStringAndSize(NULL, size)
            got = move_one(self, READ, PyBytes_AS_STRING(data), size, position)
        finally:
            self.leave()
        return data if got == size else data[:got]

    def pread_into(self, buffer, offset):
        cdef Buffer memory = take_buffer(buffer, "buffer", True)
        cdef int64_t position = parse_position(offset, memory.view.len)
        self.enter(READ)
        try:
            return move_one(self, READ, <char*>memory.view.buf, memory.view.len, position)
        finally:
            self.leave()

    def pwrite(self, data, offset):
        cdef Buffer memory = take_buffer(data, "data", False)
        cdef int64_t position = parse_position(offset, memory.view.len)
        self.enter(WRITE)
        try:
            return move_one(self, WRITE, <char*>memory.view.buf, memory.view.len, position)
        finally:
            self.leave()

    def preadv(self, buffers, offset):
        return move_vector(self, READ, buffers, offset)

    def pwritev(self, buffers, offset):
        return move_vector(self, WRITE, buffers, offset)

    # ------------------------------------------------------------------------------- many requests

    def read_ranges(self, offsets, lengths, out=None):
        cdef Ranges ranges = parse_ranges(offsets, lengths, True)
        cdef bint rows = np.ndim(lengths) == 0
        cdef Buffer memory
        if out is None:
            if ranges.total > PY_SSIZE_T_MAX - 2 * DEFAULT_DIRECT_ALIGNMENT:
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
        cdef Ranges ranges
        if lengths is None:
            lengths = row_length(offsets, data, memory)
        ranges = parse_ranges(offsets, lengths, True)
        if memory.view.len != ranges.total:
            raise ValueError(f"data has {memory.view.len} bytes, the ranges ask for {ranges.total}")
        move_ranges(self, WRITE, ranges, <char*>memory.view.buf)
        return ranges.total

    # ----------------------------------------------------------------------------- the whole file

    def truncate(self, size):
        cdef int64_t length = parse_int(size, "size", 0, INT64_MAX)
        self.enter(WRITE)
        try:
            os.ftruncate(self.target.descriptor, length)
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.name) from None
        finally:
            self.leave()

    def size(self):
        self.enter(SYNC)
        try:
            return os.fstat(self.target.descriptor).st_size
        finally:
            self.leave()

    def flush(self):
        self.enter(SYNC)
        self.leave()

    def sync(self):
        cdef Operation operation
        self.enter(SYNC)
        try:
            self.check_poison()
            operation.kind = SYNC
            operation.fd = self.target.descriptor
            operation.offset = 0
            operation.segments = NULL
            operation.segment_count = 0
            if self.coalescer.trace is not None:
                self.coalescer.trace.append(np.array([[2, 0, 0]], np.int64))
            sync_once(self, &operation)
            if self.poison:
                raise OSError(self.poison, os.strerror(self.poison), self.name)
        finally:
            self.leave()


cdef int sync_once(FileCore self, Operation* operation) except -1:
    # Until there is an answer of the device: EINTR, EAGAIN and a full lane are none.
    cdef Lane lane = self.coalescer.io.acquire(True)
    cdef Operation* finished = NULL
    cdef Answer answer
    cdef int refusals = 0
    try:
        while True:
            with nogil:
                operation.result = -EAGAIN          # should it be BUSY
                answer = lane.submit(operation)
                while answer == QUEUED and lane.reap(&finished, 1, 1, SYNC_REAP_NS) == 0:
                    pass
                if operation.result == -EAGAIN:
                    refusals += 1
                    iolift_pause_ns(MAX_PAUSE_NS)
            if operation.result != -EINTR and (operation.result != -EAGAIN
                                               or refusals > MAX_REFUSALS):
                break
            PyErr_CheckSignals()
            self.coalescer.enter()                  # the handler may have forked
        if operation.result < 0:
            self.poison = <int>-operation.result
        lane.raise_pending()
    finally:
        self.coalescer.io.release(lane)
    return 0


# -------------------------------------------------------------------------------- opening, closing

cdef int prepare_direct(FileCore self) except -1:
    cdef uint32_t memory = 0, offset = 0
    if O_DIRECT == 0:
        raise OSError(errno.EINVAL, "this system has no O_DIRECT", self.name)
    iolift_direct_alignment(self.target.descriptor, &memory, &offset)
    self.target.memory_alignment = memory or DEFAULT_DIRECT_ALIGNMENT
    self.target.alignment = offset or DEFAULT_DIRECT_ALIGNMENT
    if self.writable:
        self.target.pages = <pthread_rwlock_t*>malloc(sizeof(pthread_rwlock_t))
        if self.target.pages == NULL:
            raise MemoryError
        pthread_rwlock_init(self.target.pages, NULL)
        # A descriptor of its own, for the ragged ends of writes: O_DIRECT is a property of it.
        self.target.buffered_descriptor = os.open(
            f"/proc/self/fd/{self.target.descriptor}",
            (os.O_RDWR if self.readable else os.O_WRONLY) | os.O_CLOEXEC)
    return 0


cdef int close_descriptors(FileCore self) except -1:
    cdef int descriptor = self.target.descriptor, buffered = self.target.buffered_descriptor
    self.target.descriptor = self.target.buffered_descriptor = -1
    if buffered != descriptor:
        os.close(buffered)
    if self.owns_descriptor:
        try:
            os.close(descriptor)
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.name) from None
    return 0


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


# --------------------------------------------------------------------------------- one request

cdef int64_t parse_position(object offset, int64_t size) except -1:
    cdef int64_t position = parse_int(offset, "offset", 0, INT64_MAX)
    if size > INT64_MAX - position:
        raise ValueError(f"offset + length = {position} + {size} is past 2**63-1")
    return position


cdef int64_t move_one(FileCore self, Kind kind, char* memory, int64_t size,
                      int64_t position) except -1:
    # A request alone: no window, no plan. Small and buffered, it is one system call.
    cdef Operation operation
    cdef iovec segment
    if (self.direct or size > MAX_CHUNK_BYTES or self.coalescer.trace is not None
            or self.coalescer.io.name == "hosted"):
        return move_batch_of_one(self, kind, memory, size, position)
    if size == 0:
        return 0
    segment.iov_base = memory
    segment.iov_len = size
    operation.kind = kind
    operation.fd = self.target.descriptor
    operation.offset = position
    operation.segments = &segment
    operation.segment_count = 1
    with nogil:
        run_in_place(&operation)
    if operation.result == size:
        return size
    # Short or failed: the batch knows how to go on.
    return move_batch_of_one(self, kind, memory, size, position)


cdef int64_t move_batch_of_one(FileCore self, Kind kind, char* memory, int64_t size,
                               int64_t position) except -1:
    cdef Batch batch = self.batch(kind, 1)
    batch.is_one = True
    batch.rows.pointers = &memory
    batch.rows.offsets = &position
    batch.run(NULL, size, 0)
    if batch.outcome.items == NULL:
        return size
    if batch.outcome.items[0] < 0:
        raise OSError(-batch.outcome.items[0], os.strerror(-batch.outcome.items[0]), self.name)
    return batch.outcome.items[0]


cdef int64_t move_vector(FileCore self, Kind kind, object buffers, object offset) except -1:
    # preadv and pwritev: a batch whose requests follow each other in the file.
    cdef list memory
    cdef Py_ssize_t i, n
    cdef int64_t total = 0, position
    cdef int64_t* places
    cdef char** pointers
    if isinstance(buffers, (bytes, bytearray, memoryview)):
        raise TypeError(f"buffers must be a sequence of buffers, not {type(buffers).__name__}")
    memory = [take_buffer(buffer, f"buffers[{i}]", kind == READ)
              for i, buffer in enumerate(buffers)]
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


cdef int64_t run_vector(FileCore self, Kind kind, Py_ssize_t n, int64_t* places, char** pointers,
                        int64_t total) except -1:
    cdef Batch batch
    cdef Py_ssize_t i
    self.enter(kind)
    try:
        batch = self.batch(kind, n)
        batch.rows.pointers = pointers
        batch.rows.offsets = places
        batch.rule.max_io = INT64_MAX
        batch.is_one = True
        batch.run(places + n, 0, 0)
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


# ----------------------------------------------------------------------------------- many requests

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


cdef int move_ranges(FileCore self, Kind kind, Ranges ranges, char* memory) except -1:
    cdef Batch batch
    cdef int64_t[::1] starts
    self.enter(kind)
    try:
        batch = self.batch(kind, ranges.n)
        batch.rows.base = memory
        batch.rows.stride = ranges.length
        batch.rows.offsets = ranges.offsets
        if ranges.lengths != NULL:
            lengths = np.asarray(ranges.length_array.view)
            starts = np.cumsum(lengths) - lengths
            batch.rows.starts = &starts[0]
        batch.run(ranges.lengths, ranges.length, self.arm)
        if batch.extents.size:
            self.arm = last_position(batch)
    finally:
        self.leave()
    if batch.outcome.items != NULL:
        raise_worst(self, ranges, batch)
    return 0


cdef int64_t last_position(Batch batch) noexcept:
    # Where a full turn ended: the extent before the one that it began with.
    cdef Py_ssize_t last = batch.next_extent - 1
    return batch.extents.items[last if last >= 0 else batch.extents.size - 1].end


cdef object raise_worst(FileCore self, Ranges ranges, Batch batch):
    # An error of the device before a short read: of each, the first request in index order.
    cdef Py_ssize_t i, first_short = -1
    cdef int64_t length
    errnos = {}
    for i in range(ranges.n):
        length = ranges.length if ranges.lengths == NULL else ranges.lengths[i]
        if batch.outcome.items[i] < 0:
            errnos[i] = -batch.outcome.items[i]
        elif batch.outcome.items[i] < length and first_short < 0:
            first_short = i
    if errnos:
        i = next(iter(errnos))
        length = ranges.length if ranges.lengths == NULL else ranges.lengths[i]
        raise RangeError(errnos[i], self.name, i, ranges.offsets[i], length, errnos)
    if first_short >= 0:
        i = first_short
        length = ranges.length if ranges.lengths == NULL else ranges.lengths[i]
        raise ShortReadError(self.name, i, ranges.offsets[i], length, batch.outcome.items[i])
