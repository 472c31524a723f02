"""FileCore: an open descriptor and the calls on it.

1. An argument is checked before anything is held or moved; a refused call leaves no trace.
2. A descriptor is closed when the last call and the last ticket that use it are over, never under
   their feet.
3. A failed sync is for good: the kernel has marked the pages clean, and a second fsync would lie.
4. A call that waits goes straight to the file where nothing that is held or flying could matter to
   it, and through the window where something does. Calls of many requests have the window settled
   first: all that was submitted before is in the file when they begin.

Who may call: any thread, with the GIL, which guards every field here.
"""

import errno
import io
import os

import numpy as np

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport INT64_MAX, int64_t, uint32_t
from libc.stdlib cimport free, malloc

from ._arguments cimport Buffer, Ranges, parse_int, parse_ranges, take_buffer
from ._backend cimport READ, SYNC, WRITE, Kind, Operation, fork_generation, run_in_place
from ._batch cimport Batch, pthread_rwlock_t
from ._coalescer cimport Coalescer
from ._desk cimport FileDesk
from ._dispatch cimport file_size, new_ticket
from ._landing cimport Solo, poisoned
from ._scatter cimport MAX_CHUNK_BYTES
from ._solo cimport begin_solo, end_solo
from ._system cimport O_DIRECT, iolift_direct_alignment, iovec
from ._ticket cimport DONE, HELD, Ticket, outcome
from .errors import RangeError, ShortReadError

cdef extern from "<pthread.h>" nogil:
    int pthread_rwlock_init(pthread_rwlock_t*, void*)
    int pthread_rwlock_destroy(pthread_rwlock_t*)

cdef extern from "Python.h":
    const Py_ssize_t PY_SSIZE_T_MAX

cdef enum:
    PAGE = 4096
    # gap="auto" of direct files: an I/O costs about as much as 40 KiB of transfer.
    AUTO_DIRECT_GAP = 1 << 15
    DEFAULT_DIRECT_ALIGNMENT = 4096     # where the kernel does not say (before Linux 6.1)


cdef class FileCore(FileDesk):
    """An open descriptor and the calls on it. `iolift.File` adds what an io.RawIOBase needs."""

    def __cinit__(self, Coalescer coalescer not None, int fd, object name, *, bint readable,
                  bint writable, bint direct, bint owns_descriptor):
        coalescer.enter()
        self.coalescer = coalescer
        self.scheduler = coalescer.scheduler
        self.name = name
        self.readable = readable
        self.writable = writable
        self.direct = direct
        self.target.descriptor = self.target.buffered_descriptor = fd
        self.target.alignment = self.target.memory_alignment = 1
        if direct:
            prepare_direct(self)
        self.is_plain = self.asks_cache = not direct and coalescer.io.name != "hosted"
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
        self.at_rest()
        return 0

    cdef int at_rest(self) except -1:
        if (self.is_closed and self.active == 0 and not self.is_draining
                and (self.pending == 0 or self.scheduler.generation != fork_generation())):
            close_descriptors(self)
        return 0

    def check(self):
        """Raise ValueError or ForkedError where no call would be accepted."""
        self.enter(SYNC)
        self.leave()

    def check_poison(self):
        if self.poison:
            raise poisoned(self)

    def close(self):
        if self.is_closed:
            return
        self.is_closed = True
        self.coalescer.files.discard(self)
        try:
            if self.scheduler.generation == fork_generation():
                self.is_draining = True
                self.drain()
        finally:
            self.is_draining = False
            self.at_rest()
        self.raise_deferred()

    def drain_at_exit(self):
        """Bring everything that is held to its end; the first error that nobody else would hear."""
        self.drain()
        self.raise_deferred()

    cdef Batch make_batch(self, Kind kind, Py_ssize_t n):
        cdef Batch batch = Batch.__new__(Batch)
        batch.backend = self.coalescer.io
        batch.kind = kind
        batch.order = self.coalescer.parsed_order
        batch.rule = self.coalescer.rule
        if batch.rule.gap < 0:
            batch.rule.gap = AUTO_DIRECT_GAP if self.direct else 0
        batch.max_waste = self.coalescer.max_waste
        batch.target = self.target
        if self.coalescer.io.name == "hosted":
            batch.target.pages = NULL
        batch.trace = self.scheduler.trace
        batch.n = n
        return batch

    # --------------------------------------------------------------------------------- tickets

    def submit_pread(self, n, offset, into=None):
        cdef int64_t size = parse_int(n, "n", 0, PY_SSIZE_T_MAX)
        cdef int64_t position = parse_position(offset, size)
        cdef Ticket ticket
        cdef Buffer memory
        self.enter(READ)
        try:
            if into is None:
                data = PyBytes_FromStringAndSize(NULL, size)
                ticket = new_ticket(self, READ, position, position + size,
                                    PyBytes_AS_STRING(data), data)
            else:
                memory = take_buffer(into, "into", True)
                if memory.view.len != size:
                    raise ValueError(f"into has {memory.view.len} bytes, n is {size}")
                ticket = new_ticket(self, READ, position, position + size,
                                    <char*>memory.view.buf, memory)
                ticket.is_into = True
            self.submit(ticket)
        finally:
            self.leave()
        return ticket

    def submit_pwrite(self, data, offset):
        cdef Ticket ticket
        data = keep(data)
        cdef int64_t size = len(data)
        cdef int64_t position = parse_position(offset, size)
        self.enter(WRITE)
        try:
            ticket = new_ticket(self, WRITE, position, position + size, PyBytes_AS_STRING(data),
                                data)
            self.submit(ticket)
        finally:
            self.leave()
        return ticket

    def submit_sync(self):
        cdef Ticket ticket
        self.enter(SYNC)
        try:
            self.check_poison()
            ticket = new_ticket(self, SYNC, 0, 0, NULL, None)
            self.submit(ticket)
        finally:
            self.leave()
        return ticket

    def write_behind(self, data, offset):
        # A write nobody has the ticket of: its error is the file's.
        data = keep(data)
        self.submit_pwrite(data, offset)
        return len(data)

    # --------------------------------------------------------------------------------- one request

    cdef int64_t move_straight(self, Kind kind, char* memory, int64_t size,
                               int64_t position) except? -1:
        # No window, no plan. Small and buffered, it is one system call.
        cdef Operation operation
        cdef iovec segment
        if not self.is_plain or size > MAX_CHUNK_BYTES or self.scheduler.trace is not None:
            return move_batch_of_one(self, kind, memory, size, position)
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

    def pread(self, n, offset):
        cdef int64_t size = parse_int(n, "n", 0, PY_SSIZE_T_MAX)
        cdef int64_t position = parse_position(offset, size)
        cdef int64_t got
        data = PyBytes_FromStringAndSize(NULL, size)
        self.enter(READ)
        try:
            got = read_now(self, PyBytes_AS_STRING(data), size, position, data)
        finally:
            self.leave()
        return data if got == size else data[:got]

    def pread_into(self, buffer, offset):
        cdef Buffer memory = take_buffer(buffer, "buffer", True)
        cdef int64_t position = parse_position(offset, memory.view.len)
        self.enter(READ)
        try:
            return read_now(self, <char*>memory.view.buf, memory.view.len, position, memory)
        finally:
            self.leave()

    def pwrite(self, data, offset):
        cdef Buffer memory = take_buffer(data, "data", False)
        cdef int64_t position = parse_position(offset, memory.view.len)
        self.enter(WRITE)
        try:
            return write_now(self, <char*>memory.view.buf, memory.view.len, position, memory)
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

    def size(self):
        cdef int64_t size, end
        self.enter(SYNC)
        try:
            while self.parked_here:
                self.scheduler.wait_for_landing(INT64_MAX)
            size, end = file_size(self), self.window.writes_end(True)
            if end > size:
                self.window.see_size_beyond(size)
            return max(size, end)
        finally:
            self.leave()

    def flush(self):
        self.enter(SYNC)
        try:
            self.settle_reads()
            self.settle_writes()
            self.raise_deferred()
        finally:
            self.leave()

    def sync(self):
        cdef Ticket ticket
        self.enter(SYNC)
        try:
            self.check_poison()
            ticket = new_ticket(self, SYNC, 0, 0, NULL, None)
            if (self.window.has_writes() or self.parked_here
                    or self.scheduler.is_full(0)):
                self.submit(ticket)
            else:
                sync_now(self, ticket)
            self.wait(ticket, None)
            outcome(ticket)
            self.raise_deferred()
        finally:
            self.leave()


cdef int sync_now(FileCore self, Ticket ticket) except -1:
    # There is nothing to wait for but a sync that may be under way; without one, it is done here.
    self.pending += 1
    self.scheduler.held_requests += 1
    self.scheduler.counters.syncs_asked += 1
    ticket.submitted_ns = self.scheduler.now()
    ticket.state = HELD
    self.syncs.append(ticket)
    return self.launch_syncs(True)


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
    if descriptor < 0:
        return 0
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


cdef object keep(object data):
    # What a held write keeps: the caller's bytes, which never change, or a copy.
    cdef Buffer memory
    if type(data) is bytes:
        return data
    memory = take_buffer(data, "data", False)
    return PyBytes_FromStringAndSize(<char*>memory.view.buf, memory.view.len)


cdef int64_t read_now(FileCore self, char* memory, int64_t size, int64_t position,
                      object owner) except -1:
    cdef int64_t got
    cdef Ticket ticket
    if not self.reads_go_straight() or self.has_joinable(position, position + size):
        ticket = new_ticket(self, READ, position, position + size, memory, owner)
        ticket.is_into = True
        wait_for_own(self, ticket)
        return outcome(ticket)
    self.scheduler.counters.requests += 1
    self.scheduler.counters.reads += 1
    self.scheduler.counters.bytes_asked += size
    if size == 0:
        return 0
    got = self.read_straight(memory, size, position)
    if got < 0:
        raise OSError(-got, os.strerror(<int>-got), self.name)
    return got


cdef int64_t write_now(FileCore self, char* memory, int64_t size, int64_t position,
                       object owner) except -1:
    cdef int64_t written = 0
    cdef Ticket ticket
    cdef Solo solo
    if not self.writes_go_straight():
        ticket = new_ticket(self, WRITE, position, position + size, memory, owner)
        wait_for_own(self, ticket)
        return outcome(ticket)
    self.scheduler.counters.requests += 1
    self.scheduler.counters.writes += 1
    if size == 0:
        return 0
    begin_solo(self, &solo, WRITE, position, position + size, NULL)
    try:
        written = self.move_straight(WRITE, memory, size, position)
    finally:
        end_solo(self, &solo, 0)
    if written < 0:
        raise OSError(-written, os.strerror(<int>-written), self.name)
    self.scheduler.counters.bytes_written += written
    return written


cdef int wait_for_own(FileCore self, Ticket ticket) except -1:
    # The memory is the caller's: whatever happens, nothing touches it when this is over.
    try:
        if ticket.end == ticket.offset and ticket.kind == READ:
            ticket.state = DONE
        else:
            self.submit(ticket)
            self.wait(ticket, None)
    except BaseException:
        if ticket.state == HELD and not self.withdraw(ticket):
            self.demand(ticket)
        while ticket.state < DONE and self.scheduler.generation == fork_generation():
            self.scheduler.drivers.wait_for_landing(self.scheduler.drivers.landings(), INT64_MAX)
        raise
    return 0


cdef int begin_many(FileCore self, Solo* solo, Kind kind, int64_t offset, int64_t end) except -1:
    # What passes the window by, somewhere in [offset, end): all that was submitted earlier is over.
    if kind == WRITE:
        self.settle_reads()
    self.settle_writes()
    # What came meanwhile and is held still was submitted before this, too.
    while kind == WRITE and self.window.reads.tickets.size:
        self.settle_reads()
    return begin_solo(self, solo, kind, offset, end, NULL)


cdef int64_t move_batch_of_one(FileCore self, Kind kind, char* memory, int64_t size,
                               int64_t position) except? -1:
    # The bytes moved, or -errno.
    cdef Batch batch = self.make_batch(kind, 1)
    batch.is_one = True
    batch.rows.pointers = &memory
    batch.rows.offsets = &position
    batch.run(NULL, size, 0)
    return size if batch.outcome.items == NULL else min(batch.outcome.items[0], size)


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
            self.arm = last_position(batch)
    finally:
        self.leave()
    if batch.outcome.items != NULL:
        raise_worst(self, ranges, batch)
    return 0


cdef int run_many(FileCore self, Batch batch, Py_ssize_t requests, int64_t total,
                  const int64_t* lengths, int64_t length, int64_t start) except -1:
    # A batch of the caller's own, past the window, after all that was submitted before.
    cdef Solo solo
    cdef Py_ssize_t i
    cdef int64_t moved = 0, first = INT64_MAX, end = 0
    while not self.scheduler.may_go():
        self.scheduler.wait_for_landing(self.scheduler.ready_at())
    self.scheduler.counters.requests += requests
    self.scheduler.counters.batches += 1
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
    for i in range(batch.extents.size):
        moved += batch.extents.items[i].end - batch.extents.items[i].offset
    self.scheduler.charge(batch.extents.size, moved)
    self.scheduler.counters.extents += batch.extents.size
    if batch.kind == READ:
        self.scheduler.counters.bytes_moved += moved
    else:
        self.scheduler.counters.bytes_written += moved
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
