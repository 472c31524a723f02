"""FileCore: an open descriptor and the calls on it.

1. An argument is checked before anything is held or moved; a refused call leaves no trace.
2. A descriptor is closed when the last call and the last ticket that use it are over, never under
   their feet.
3. A failed sync is for good: the kernel has marked the pages clean, and a second fsync would lie.
4. A call that waits goes straight to the file where nothing that is held or flying could matter to
   it, and through the window where something does.

Who may call: any thread, with the GIL, which guards every field here.
"""

import errno
import io
import os

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport INT64_MAX, int64_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy
from posix.stdlib cimport posix_memalign
from posix.unistd cimport pread as read_at

from ._arguments cimport Buffer, parse_int, parse_position, take_buffer
from ._backend cimport READ, SYNC, WRITE, Kind, Operation, fork_generation, run_in_place
from ._batch cimport Batch, pthread_rwlock_t
from ._bulk cimport BulkDesk
from ._calls cimport begin_call, end_call
from ._coalescer cimport Coalescer
from ._dispatch cimport file_size, new_ticket
from ._gil cimport ask_for_gil, give_way, have_gil
from ._landing cimport Solo, poisoned, record_call, record_io
from ._request cimport align_down, align_up
from ._scatter cimport MAX_CHUNK_BYTES
from ._solo cimport begin_solo, end_solo
from ._system cimport O_DIRECT, iolift_direct_alignment, iolift_now_ns, iovec
from ._ticket cimport DONE, HELD, NEW, PARKED, Ticket, outcome

cdef extern from "<pthread.h>" nogil:
    int pthread_rwlock_init(pthread_rwlock_t*, void*)
    int pthread_rwlock_destroy(pthread_rwlock_t*)

cdef extern from "Python.h":
    const Py_ssize_t PY_SSIZE_T_MAX

cdef enum:
    # A direct read of no more costs less by way of a buffer of blocks than as a batch.
    MAX_BOUNCED_BYTES = 1 << 16
    DEFAULT_DIRECT_ALIGNMENT = 4096     # where the kernel does not say (before Linux 6.1)


cdef class FileCore(BulkDesk):
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
        self.reads_blocks = direct and coalescer.io.name != "hosted"
        self.costs = coalescer.costs_of(fd, direct)
        if self.scheduler.recorder is not None:
            self.file_number = self.scheduler.recorder.number_of(name)
        self.owns_descriptor = owns_descriptor      # from here on ours to close
        coalescer.files.add(self)

    def __dealloc__(self):
        if self.target.pages != NULL:
            pthread_rwlock_destroy(self.target.pages)
            free(self.target.pages)

    def own_descriptor(self, bint owns):
        """Whether close() closes the descriptor, from now on."""
        self.owns_descriptor = owns

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
        self.hold_open(kind)
        begin_call()
        return 0

    cdef int leave(self) except -1:
        end_call()
        self.release()
        return 0

    cdef int hold_open(self, Kind kind) except -1:
        # The same for a call that another thread ends, with `release`.
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

    cdef int release(self) except -1:
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
        self.is_closed = self.is_draining = True
        try:
            self.coalescer.files.discard(self)      # lets others in
            if self.scheduler.generation == fork_generation():
                begin_call()
                try:
                    self.drain()
                finally:
                    end_call()
                self.finish()                       # with nothing in hand any more
        finally:
            self.is_draining = False
            self.at_rest()
        self.raise_deferred()

    cdef int finish(self) except -1:
        # After the last ticket, before the descriptor is closed.
        return 0

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
            batch.rule.gap = 0
            batch.costs = self.costs
            batch.asks_cache = self.is_plain
        batch.max_waste = self.coalescer.max_waste
        batch.target = self.target
        if self.coalescer.io.name == "hosted":
            batch.target.pages = NULL
        batch.trace = self.scheduler.trace
        batch.recorder = self.scheduler.recorder
        batch.file_number = self.file_number
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

    cdef Ticket ticket_for(self, object data, object offset):
        # Of a write that keeps its bytes.
        cdef Buffer memory = None if type(data) is bytes else take_buffer(data, "data", False)
        cdef int64_t size = len(data) if memory is None else memory.view.len
        self.check_request(size, offset)
        cdef int64_t position = parse_position(offset, size)
        if memory is not None:
            data = copy_of(memory)
        return new_ticket(self, WRITE, position, position + size, PyBytes_AS_STRING(data), data)

    cdef int check_request(self, int64_t size, object offset) except -1:
        # Beyond what any file takes: a journal has limits of its own.
        return 0

    cdef int check_key(self, object key) except -1:
        raise ValueError("key is for files that are open with a journal")

    def submit_pwrite(self, data, offset, *, key=None):
        return self.submit_write(data, offset, key)

    cdef Ticket submit_write(self, object data, object offset, object key):
        cdef Ticket ticket
        if key is not None:
            self.check_key(key)
        give_way()                          # who does not wait has time
        ticket = self.ticket_for(data, offset)
        ticket.key = key
        self.enter(WRITE)
        try:
            self.submit(ticket)
        finally:
            self.leave()
        return ticket

    cpdef Ticket submit_sync(self):
        cdef Ticket ticket
        self.enter(SYNC)
        try:
            self.check_poison()
            ticket = new_ticket(self, SYNC, 0, 0, NULL, None)
            self.submit(ticket)
        finally:
            self.leave()
        return ticket

    # --------------------------------------------------------------------------------- one request

    cdef int64_t move_straight(self, Kind kind, char* memory, int64_t size,
                               int64_t position) except? -1:
        # No window, no plan. If it is small it is one system call, unless it is a direct write.
        cdef Operation operation
        cdef iovec segment
        cdef int64_t began_ns = 0
        if self.scheduler.recorder is not None:
            began_ns = iolift_now_ns()
        if (self.reads_blocks and kind == READ and 0 < size <= MAX_BOUNCED_BYTES
                and position < INT64_MAX >> 1 and self.scheduler.trace is None
                and read_blocks(self, memory, size, position)):
            if began_ns:
                record_io(self, kind, position, size, began_ns, size, 0)
            return size
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
            ask_for_gil()
        have_gil()
        if operation.result == size:
            if began_ns:
                record_io(self, kind, position, size, began_ns, size, 0)
            return size
        # Short or failed: the batch knows how to go on.
        return move_batch_of_one(self, kind, memory, size, position)

    cpdef object pread(self, object n, object offset):
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
        return self.read_into(take_buffer(buffer, "buffer", True), offset)

    cdef int64_t read_into(self, Buffer memory, object offset) except -1:
        cdef int64_t position = parse_position(offset, memory.view.len)
        self.enter(READ)
        try:
            return read_now(self, <char*>memory.view.buf, memory.view.len, position, memory)
        finally:
            self.leave()

    cpdef object pwrite(self, object data, object offset):
        return self.write_from(take_buffer(data, "data", False), offset)

    cdef int64_t write_from(self, Buffer memory, object offset) except -1:
        self.check_request(memory.view.len, offset)
        cdef int64_t position = parse_position(offset, memory.view.len)
        self.enter(WRITE)
        try:
            return write_now(self, <char*>memory.view.buf, memory.view.len, position, memory)
        finally:
            self.leave()

    # ----------------------------------------------------------------------------- the whole file

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
                    or self.scheduler.is_full(SYNC, 0)):
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


# --------------------------------------------------------------------------------- one request

cdef object copy_of(Buffer memory):
    return PyBytes_FromStringAndSize(<char*>memory.view.buf, memory.view.len)


cdef object keep(object data):
    return data if type(data) is bytes else copy_of(take_buffer(data, "data", False))


cdef int64_t read_now(FileCore self, char* memory, int64_t size, int64_t position,
                      object owner) except -1:
    cdef int64_t got, began_ns = 0
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
    if self.scheduler.recorder is not None:
        began_ns = iolift_now_ns()
    got = self.read_straight(memory, size, position)
    if began_ns:
        record_call(self, READ, position, size, began_ns, got)
    self.scheduler.counters.batches += 1
    self.scheduler.counters.extents += 1
    self.scheduler.counters.bytes_moved += size
    if got < 0:
        raise OSError(-got, os.strerror(<int>-got), self.name)
    return got


cdef int64_t write_now(FileCore self, char* memory, int64_t size, int64_t position,
                       object owner) except -1:
    cdef int64_t written = 0, began_ns = 0
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
    if self.scheduler.recorder is not None:
        began_ns = iolift_now_ns()
    begin_solo(self, &solo, WRITE, position, position + size, NULL)
    try:
        written = self.move_straight(WRITE, memory, size, position)
    finally:
        end_solo(self, &solo, 0)
    if began_ns:
        record_call(self, WRITE, position, size, began_ns, written)
    if written < 0:
        raise OSError(-written, os.strerror(<int>-written), self.name)
    self.scheduler.counters.batches += 1
    self.scheduler.counters.extents += 1
    self.scheduler.counters.bytes_written += written
    return written


cdef int wait_for_own(FileCore self, Ticket ticket) except -1:
    # The memory is the caller's: whatever happens, nothing touches it when this is over.
    try:
        if ticket.end == ticket.offset and ticket.kind == READ:
            ticket.state = DONE
        else:
            ticket.is_waited = True
            self.submit(ticket)
            self.wait(ticket, None)
    except BaseException:
        if ticket.state in (PARKED, HELD) and not self.withdraw(ticket):
            self.demand(ticket)
        while NEW < ticket.state < DONE and self.scheduler.generation == fork_generation():
            self.scheduler.drivers.wait_among(&self.scheduler.drivers.waiting, INT64_MAX)
        raise
    return 0


cdef bint read_blocks(FileCore self, char* memory, int64_t size, int64_t position) noexcept:
    # Directly, by way of the blocks that hold it. False: short, or failed.
    cdef int64_t begin = align_down(position, self.target.alignment)
    cdef int64_t end = align_up(position + size, self.target.alignment), got = -1
    cdef int descriptor = self.target.descriptor
    cdef size_t alignment = max(self.target.memory_alignment, <int64_t>sizeof(void*))
    cdef void* blocks = NULL
    with nogil:
        if posix_memalign(&blocks, alignment, end - begin) == 0:
            got = read_at(descriptor, blocks, end - begin, begin) - (position - begin)
            if got >= size:
                memcpy(memory, <char*>blocks + (position - begin), size)
            free(blocks)
        ask_for_gil()
    have_gil()
    return got >= size


cdef int64_t move_batch_of_one(FileCore self, Kind kind, char* memory, int64_t size,
                               int64_t position) except? -1:
    # The bytes moved, or -errno.
    cdef Batch batch = self.make_batch(kind, 1)
    batch.is_one = True
    batch.rows.pointers = &memory
    batch.rows.offsets = &position
    batch.run(NULL, size, 0)
    return size if batch.outcome.items == NULL else min(batch.outcome.items[0], size)
