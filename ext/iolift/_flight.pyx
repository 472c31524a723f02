"""Flight: tickets, the pieces they are moved in, and the batch that moves them.

    window -> flight (pieces) -> plan -> execute, without the GIL -> conclude -> desk.landed

1. A piece is what one ticket still needs of the file: all of it, or a hole of the overlay.
2. While a flight is planned it may not be looked into by others (`is_planned`): they must take it
   for one that overlaps everything.
3. A flight never hears signals: whoever was interrupted stops waiting, and nobody else's request
   is hurt.

Who may call: any thread, with the GIL, but for `execute`.
"""

from libc.errno cimport EAGAIN, EINTR
from libc.stdint cimport INT64_MAX, int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc

from ._backend cimport QUEUED, READ, Answer, Kind, Operation
from ._batch cimport MAX_PAUSE_NS, MAX_REFUSALS
from ._drivers cimport Job
from ._log cimport RECEIVED
from ._request cimport Request
from ._sort cimport ORDER_ELEVATOR, load_requests
from ._system cimport iolift_now_ns, iolift_pause_ns
from ._ticket cimport CANCELLED, FLYING, Desk, Record, Ticket
from ._window cimport Reads, Tickets, Window, Writes

cdef enum:
    SYNC_REAP_NS = 1000000000


cdef inline const Tickets* tickets_of(Flight self) noexcept:
    return &self.reads.tickets if self.kind == READ else &self.writes.tickets


cdef class Flight(Job):
    def __dealloc__(self):
        free(self.pointers)
        free(self.offsets)
        free(self.lengths)
        free(self.owners)
        free(self.sorted_copy)
        free(self.reach)

    cdef Py_ssize_t operations(self) noexcept:
        return self.batch.extents.size if self.has_io else 0

    cdef int64_t bytes_asked(self) noexcept:
        cdef int64_t total = 0
        cdef Py_ssize_t i
        for i in range(self.n):
            total += self.lengths[i]
        return total

    cdef int64_t bytes_planned(self) noexcept:
        return self.batch.bytes_planned() if self.has_io else 0

    cdef int plan(self, int64_t start) except -1:
        # Lets go of the GIL.
        cdef bint equal = True
        cdef Py_ssize_t i
        if self.failure is not None:
            return 0
        for i in range(1, self.n):
            if self.lengths[i] != self.lengths[0]:
                equal = False
                break
        try:
            self.batch = self.desk.make_batch(self.kind, self.n)
            self.batch.deaf = True
            self.batch.number = self.record.number
            self.batch.rows.pointers = self.pointers
            self.batch.rows.offsets = self.offsets
            if self.n:
                self.has_io = self.batch.prepare(NULL if equal else self.lengths,
                                                 self.lengths[0], start)
                sort_pieces(self)
        except BaseException as error:
            self.failure = error
            self.has_io = False
        self.is_planned = self.failure is None
        return 0

    cdef void execute(self) noexcept nogil:
        if self.is_journalled:
            receive(self)
        self.record.started_ns = iolift_now_ns()
        if self.has_io and not self.journal_failed:
            self.batch.execute()

    cdef void finish(self) noexcept:
        self.desk.landed(self)

    cdef int conclude(self) except -1:
        self.record.landed_ns = iolift_now_ns()
        if self.record.started_ns == 0:
            self.record.started_ns = self.record.landed_ns
        self.is_down = True
        if self.has_io:
            try:
                self.batch.conclude()
            except BaseException as error:
                self.failure = error
        return 0

    cdef int64_t piece_outcome(self, Py_ssize_t piece) noexcept:
        # Bytes, or -errno.
        if self.batch.outcome.items == NULL:
            return self.lengths[piece]
        return min(self.batch.outcome.items[piece], self.lengths[piece])

    # ------------------------------------------------------------------- what others ask of it

    cdef int64_t end(self) noexcept:
        # One past the last byte that any piece asks for.
        if not self.is_planned:
            return INT64_MAX
        if self.sorted_count == 0:
            return 0
        return reach_of(self)[self.sorted_count - 1] if reach_of(self) != NULL else INT64_MAX

    cdef Py_ssize_t find(self, int64_t offset, int64_t end) noexcept:
        # A piece that has all of [offset, end), or -1. Pieces that begin together come longest
        # first, so a glance at the nearest few finds nearly all there are.
        cdef Py_ssize_t lo = 0, hi = self.sorted_count, middle, i
        if not self.is_planned or self.failure is not None:
            return -1
        while lo < hi:
            middle = (lo + hi) // 2
            if self.sorted[middle].offset <= offset:
                lo = middle + 1
            else:
                hi = middle
        for i in range(lo - 1, max(lo - 9, -1), -1):
            if self.sorted[i].end >= end:
                return self.sorted[i].index
        return -1

    cdef bint overlaps(self, int64_t offset, int64_t end) except -1:
        cdef Py_ssize_t lo = 0, hi = self.sorted_count, middle
        if not self.is_planned:
            return True
        if reach_of(self) == NULL:
            return True
        # The first piece that ends past `offset`; none that begins later begins earlier.
        while lo < hi:
            middle = (lo + hi) // 2
            if self.reach[middle] > offset:
                hi = middle
            else:
                lo = middle + 1
        return lo < self.sorted_count and self.sorted[lo].offset < end

    cdef int count_plan(self) except -1:
        # After the flight: what it moved, and which I/O carried each of its tickets.
        cdef Py_ssize_t k, i
        cdef uint32_t lo, hi
        cdef Request* pieces
        cdef Ticket ticket
        cdef const Tickets* tickets = tickets_of(self)
        if not self.has_io:
            return 0
        pieces = self.batch.pieces
        for k in range(self.batch.ragged.size):
            self.bytes_moved += self.batch.ragged.items[k].end - self.batch.ragged.items[k].offset
        for k in range(self.batch.extents.size):
            extent = self.batch.extents.items[k]
            self.bytes_moved += extent.end - extent.offset
            lo, hi = extent.lo, min(extent.hi, <uint32_t>self.batch.piece_count)
            for i in range(lo, hi):
                if (i > lo and self.kind == READ and pieces[i].offset >= extent.offset
                        and pieces[i].offset == pieces[i - 1].offset
                        and pieces[i].end == pieces[i - 1].end):
                    self.duplicates += 1
                ticket = <Ticket>tickets.items[self.owners[pieces[i].index]]
                if ticket.extent_end == 0 and pieces[i].offset < extent.end:
                    ticket.extent_offset = extent.offset
                    ticket.extent_end = extent.end
                    ticket.companions = hi - lo - 1
        return 0


cdef int64_t* reach_of(Flight self) noexcept:
    # Made when first asked for: most flights never meet a write.
    cdef Py_ssize_t i
    if self.reach == NULL:
        self.reach = <int64_t*>malloc(max(1, self.sorted_count) * sizeof(int64_t))
        if self.reach != NULL:
            for i in range(self.sorted_count):
                self.reach[i] = max(self.sorted[i].end, self.reach[i - 1] if i else 0)
    return self.reach


cdef int sort_pieces(Flight self) except -1:
    if self.batch.order == ORDER_ELEVATOR or self.n == 1:
        self.sorted = self.batch.requests
        self.sorted_count = self.batch.request_count
        return 0
    self.sorted_copy = <Request*>malloc(self.n * sizeof(Request))
    if self.sorted_copy == NULL:
        raise MemoryError
    self.sorted = self.sorted_copy
    self.sorted_count = load_requests(self.offsets, self.lengths, 0, self.n, ORDER_ELEVATOR,
                                      self.sorted_copy)
    if self.sorted_count < 0:
        self.sorted_count = 0
        raise MemoryError
    return 0


# ----------------------------------------------------------------------------------- making one

cdef Flight new_flight(Desk desk, Kind kind, str reason, int64_t now):
    cdef Flight flight = Flight.__new__(Flight)
    flight.desk = desk
    flight.kind = kind
    flight.record = Record.__new__(Record)
    flight.record.reason = reason
    flight.record.dispatched_ns = now
    if kind == READ:
        flight.reads = Reads.__new__(Reads)         # to be left in the window
    else:
        flight.writes = Writes.__new__(Writes)
    return flight


cdef int make_pieces(Flight self) except -1:
    # Of all tickets that were not withdrawn.
    cdef const Tickets* tickets = tickets_of(self)
    cdef Ticket ticket
    cdef Py_ssize_t i, k, count = 0
    for i in range(tickets.size):
        if tickets.items[i] != NULL:
            ticket = <Ticket>tickets.items[i]
            count += ticket.hole_count
    self.pointers = <char**>malloc(max(1, count) * sizeof(char*))
    self.offsets = <int64_t*>malloc(max(1, count) * sizeof(int64_t))
    self.lengths = <int64_t*>malloc(max(1, count) * sizeof(int64_t))
    self.owners = <uint32_t*>malloc(max(1, count) * sizeof(uint32_t))
    if (self.pointers == NULL or self.offsets == NULL or self.lengths == NULL
            or self.owners == NULL):
        self.failure = MemoryError()
    for i in range(tickets.size):
        if tickets.items[i] == NULL:
            continue
        ticket = <Ticket>tickets.items[i]
        if ticket.state == CANCELLED:
            continue
        ticket.state = FLYING
        ticket.record = self.record
        self.record.requests += 1
        if self.failure is not None:
            continue
        if ticket.holes == NULL:
            if ticket.end > ticket.offset:
                add_piece(self, ticket, i, ticket.offset, ticket.end)
        else:
            for k in range(ticket.hole_count):
                add_piece(self, ticket, i, ticket.holes[k].begin, ticket.holes[k].end)
    return 0


cdef inline void add_piece(Flight self, Ticket ticket, Py_ssize_t owner, int64_t begin,
                           int64_t end) noexcept:
    self.pointers[self.n] = ticket.memory + (begin - ticket.offset)
    self.offsets[self.n] = begin
    self.lengths[self.n] = end - begin
    self.owners[self.n] = <uint32_t>owner
    self.n += 1


cdef int take_reads(Flight self, Window window, uint64_t number) except -1:
    self.reads = window.take_reads(self.reads)
    self.record.number = number
    return make_pieces(self)


cdef int take_writes(Flight self, Window window, uint64_t number) except -1:
    self.writes = window.flying = window.take_writes(self.writes)
    self.record.number = number
    self.is_journalled = self.writes.has_records
    return make_pieces(self)


cdef void receive(Flight self) noexcept with gil:
    self.journal_failed = True          # should this raise
    self.journal_failed = not receive_all(self.writes)


cdef bint receive_all(Writes writes) except -1:
    # Every record of these has been received, or has failed, when this returns; whether none has
    # failed. Any of them may: a journal that is full refuses some, and goes on when it has room.
    cdef Ticket ticket
    cdef Py_ssize_t i
    cdef bint are_received = True
    for i in range(writes.tickets.size):
        if writes.tickets.items[i] == NULL:
            continue
        ticket = <Ticket>writes.tickets.items[i]
        if ticket.receipt is not None:
            ticket.receipt.log.settle(ticket.receipt, True)
            are_received = are_received and ticket.receipt.state == RECEIVED
    return are_received


# ----------------------------------------------------------------------------------------- syncs

cdef class SyncFlight(Job):
    cdef void execute(self) noexcept nogil:
        # Until there is an answer of the device: EINTR, EAGAIN and a full lane are none.
        cdef Operation* finished = NULL
        cdef Answer answer
        cdef int refusals = 0
        while True:
            self.operation.result = -EAGAIN             # should it be BUSY
            answer = self.lane.submit(&self.operation)
            while answer == QUEUED and self.lane.reap(&finished, 1, 1, SYNC_REAP_NS) == 0:
                pass
            if self.operation.result == -EAGAIN and refusals <= MAX_REFUSALS:
                refusals += 1
                iolift_pause_ns(MAX_PAUSE_NS)
            elif self.operation.result != -EINTR:
                return

    cdef void finish(self) noexcept:
        self.desk.landed(self)
