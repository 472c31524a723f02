"""FileDesk: one file's requests from submit to dispatch, and from landing to their tickets.

    submit -> (parked) -> take: overlay -> join -> window
                                                     |  the hold ends: alone, time, bytes, count,
                                                     v  flush, demand, turn, close
                                          dispatch: reads, then writes
                                                     |
                                          landed: outcomes -> tickets -> whoever waits

1. Order. Reads go before the writes of the same file that are held with them. A generation of
   writes goes when the one before has landed, and when no read that is under way overlaps it (or
   may see where the file ended before it). Nothing else waits for anything: reads that come later
   have the overlay, and what is left of them overlaps no write that is held or flying.
2. So a read may join one that is under way whenever the overlay has nothing of it: no write of
   these bytes can have gone in between. Writes that pass the window by (`direct_writes`) are
   counted, and end that.
3. A sync follows its generation: it is issued when all writes submitted before it are in the file,
   and one fdatasync answers all that wait by then.
4. A write that fails and that nobody can ask about any more leaves its error in `deferred`, for the
   next flush, sync or close.
5. Where a ticket ends, the file's state is right before anybody hears of it.

Who may call: any thread, with the GIL, which guards every field. Planning lets go of it, after
what is planned has left the window and is in `flights` or `flying`.
"""

import os

import numpy as np

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport EAGAIN, EINTR, EIO
from libc.stdint cimport INT64_MAX, int64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset
from posix.stat cimport fstat, struct_stat

from ._backend cimport READ, SYNC, WRITE, Kind, Operation, fork_generation
from ._drivers cimport Job
from ._flight cimport Flight, SyncFlight, read_flight, write_flight
from ._scatter cimport MAX_CHUNK_BYTES
from ._scheduler cimport Scheduler, count_time
from ._system cimport iolift_now_ns, iolift_read_cached
from ._ticket cimport (
    CANCELLED, DONE, FLYING, FROM_DEVICE, FROM_JOIN, FROM_OVERLAY, HELD, PARKED, Desk, Hub, Record,
    Ticket, end_ticket, is_observed, tell,
)
from ._window cimport Reads, Tickets, Window, Writes
from .errors import ForkedError, PoisonedError

cdef enum:
    # Tickets that end in a row before other threads get a chance.
    BREATH = 256


cdef Ticket new_ticket(FileDesk desk, Kind kind, int64_t offset, int64_t end, char* memory,
                       object owner):
    cdef Ticket ticket = Ticket.__new__(Ticket)
    ticket.desk = desk
    ticket.kind = kind
    ticket.offset = offset
    ticket.end = end
    ticket.got = end - offset
    ticket.memory = memory
    ticket.owner = owner
    ticket.hole_count = 1
    return ticket


cdef class FileDesk(Desk):
    def __cinit__(self, *args, **kwargs):
        self.window = Window()
        self.flights = []
        self.syncs = []
        self.last_read_ns = self.last_write_ns = -INT64_MAX // 2

    # ------------------------------------------------------------------------------ for tickets

    cdef int check_process(self) except -1:
        if self.scheduler.generation != fork_generation():
            raise ForkedError("this ticket belongs to the parent process: "
                              "open the file again after a fork")
        return 0

    cdef int wait(self, Ticket ticket, object timeout) except -1:
        cdef int64_t until = INT64_MAX
        self.check_process()
        if timeout is not None:
            until = iolift_now_ns() + <int64_t>(min(max(float(timeout), 0.0), 1e9) * 1e9)
        if ticket.state == HELD or ticket.state == PARKED:
            if timeout is None and leads(self, ticket):
                return 0
            self.demand(ticket)
        while ticket.state < DONE:
            if until != INT64_MAX and iolift_now_ns() >= until:
                raise TimeoutError(f"{ticket!r} after {timeout} seconds")
            self.scheduler.wait_for_landing(until)
            if ticket.state == HELD:
                self.demand(ticket)         # it was parked, or there was no room
        return 0

    cdef int demand(self, Ticket ticket) except -1:
        # Somebody waits: the hold ends while the device has room.
        if ticket.state != HELD:
            return 0
        if ticket.kind == READ:
            if self.scheduler.has_room():
                return self.dispatch_reads("demand")
            self.reads_due = self.reads_due or "demand"
        elif self.scheduler.has_room():
            return self.dispatch_writes("demand")
        else:
            self.writes_due = self.writes_due or "demand"
        return 0

    cdef bint withdraw(self, Ticket ticket) except -1:
        cdef Writes writes = self.window.writes
        cdef list heard = [], hubs = []
        if ticket.state == HELD:
            if ticket.kind == WRITE and (
                    ticket.seen or (ticket.end > ticket.offset and ticket.end > writes.seen_from)):
                return False
            self.window.withdraw(ticket)
            self.scheduler.freed(ticket)
        elif ticket.state == PARKED:
            ticket.state = CANCELLED
        else:
            return ticket.state == CANCELLED
        self.scheduler.counters.cancelled += 1
        self.pending -= 1
        let_go(ticket)
        ticket.owner = None
        end_ticket(ticket, heard, hubs)
        self.scheduler.go_on()
        self.scheduler.drivers.land()
        tell(heard, hubs)
        self.at_rest()
        return True

    cdef int hasten(self, Ticket ticket) except -1:
        if ticket.kind == READ:
            self.reads_awaited = True
        else:
            self.writes_awaited = True
        return 0

    cdef Hub hub_of(self, object loop):
        return self.scheduler.hub_of(loop)

    cdef object describe(self, Ticket ticket, int error):
        if ticket.poisoned:
            return poisoned(self)
        return OSError(error, os.strerror(error), self.name)

    # -------------------------------------------------------------------------- from submit on

    cdef int submit(self, Ticket ticket) except -1:
        # Arguments, mode and poison are checked. The ticket ends, whatever comes.
        self.pending += 1
        try:
            self.scheduler.admit(self, ticket)
        except BaseException:
            # Not admitted: as if it had never been made.
            if ticket.state < PARKED:
                self.pending -= 1
            raise
        return 0

    cdef int take(self, Ticket ticket) except -1:
        # Counted against the bounds already. Nothing in here but what is marked lets go of the
        # GIL, so it is one step for everybody else.
        cdef Scheduler scheduler = self.scheduler
        ticket.submitted_ns = scheduler.now()
        ticket.state = HELD
        try:
            if ticket.kind == READ:
                return take_read(self, ticket)
            if self.poison:
                ticket.poisoned = True
                return end_now(self, ticket, self.poison)
            if ticket.kind == SYNC:
                return take_sync(self, ticket)
            return take_write(self, ticket)
        except MemoryError:
            ticket.failure = MemoryError(f"{ticket!r}")
            return end_now(self, ticket, 0)

    cdef bint is_empty(self):
        return self.window.reads.tickets.size == 0 and self.window.writes.tickets.size == 0

    cdef void strike_off(self) noexcept:
        self.is_listed = False

    cdef bint reads_go_straight(self) noexcept:
        # Whether a caller may read the file itself: nothing is held or flying that it must see.
        return not (self.window.has_writes() or self.scheduler.is_shaped or self.parked_here)

    cdef bint writes_go_straight(self) noexcept:
        return not (self.window.has_writes() or self.window.reads.tickets.size
                    or self.flights or self.solos != NULL or self.scheduler.is_shaped
                    or self.parked_here)

    cdef bint has_joinable(self, int64_t offset, int64_t end) noexcept:
        # Whether a read that is under way has these bytes.
        cdef Solo* solo = self.solos
        cdef Flight flight
        if self.direct_writes:
            return False
        while solo != NULL:
            if solo.offset <= offset and end <= solo.end:
                return True
            solo = solo.next
        for flight in self.flights:
            if flight.write_changes == self.write_changes and flight.find(offset, end) >= 0:
                return True
        return False

    # -------------------------------------------------------------------------------- dispatch

    cdef int64_t go_on_time(self, int64_t now) except -1:
        # Dispatches what is due. Returns when the next will be.
        cdef Scheduler scheduler = self.scheduler
        cdef int64_t soonest = INT64_MAX, due
        if self.window.reads.tickets.size:
            due = self.window.reads.since_ns + scheduler.read_window_ns
            if due <= now:
                self.dispatch_reads("time")
            else:
                soonest = due
        if self.window.writes.tickets.size:
            due = self.window.writes.since_ns + scheduler.write_window_ns
            if due <= now:
                self.dispatch_writes("time")
            else:
                soonest = min(soonest, due)
        return soonest

    cdef int end_turn(self) except -1:
        if self.reads_awaited:
            self.reads_awaited = False
            if self.scheduler.has_room():
                self.dispatch_reads("turn")
            else:
                self.reads_due = self.reads_due or "turn"
        if self.writes_awaited:
            self.writes_awaited = False
            if self.scheduler.has_room():
                self.dispatch_writes("turn")
            else:
                self.writes_due = self.writes_due or "turn"
        return 0

    cdef int hurry(self) except -1:
        if self.window.reads.tickets.size:
            self.dispatch_reads("count")
        if self.window.writes.tickets.size:
            self.dispatch_writes("count")
        return 0

    cdef int go_on(self) except -1:
        if self.reads_due is not None and self.scheduler.has_room():
            self.dispatch_reads(self.reads_due)
        if self.writes_due is not None:
            self.dispatch_writes(self.writes_due)
        return 0

    cdef int dispatch_reads(self, str reason) except -1:
        # All that are held, unless shaping says later. Lets go of the GIL.
        cdef Scheduler scheduler = self.scheduler
        cdef Flight flight
        if self.window.reads.tickets.size == 0:
            self.reads_due = None
            return 0
        if not scheduler.may_go():
            self.reads_due = self.reads_due or reason
            return 0
        self.reads_due = None
        self.reads_awaited = False
        scheduler.batch_number += 1
        flight = read_flight(self, self.window.take_reads(), reason, scheduler.now(),
                             scheduler.batch_number)
        flight.write_changes = self.write_changes
        self.flights.append(flight)
        return launch(self, flight)

    cdef int dispatch_writes(self, str reason) except -1:
        # All that are held, unless order or shaping say later: a landing, or the clock, asks again.
        # Lets go of the GIL.
        cdef Scheduler scheduler = self.scheduler
        if self.window.writes.tickets.size == 0:
            self.writes_due = None
            return 0
        self.writes_due = self.writes_due or reason
        if self.window.flying is not None:
            return 0
        self.dispatch_reads(reason)
        if (self.window.reads.tickets.size or self.window.flying is not None
                or self.window.writes.tickets.size == 0):
            return 0
        if self.poison:
            return refuse_held(self)
        if has_reads_in_the_way(self) or not scheduler.may_go():
            return 0
        reason, self.writes_due = self.writes_due, None
        self.writes_awaited = False
        scheduler.batch_number += 1
        return launch(self, write_flight(self, self.window.take_writes(), reason, scheduler.now(),
                                         scheduler.batch_number))

    cdef int launch_syncs(self, bint here) except -1:
        cdef SyncFlight flight
        cdef Ticket ticket
        if self.sync_flying or not self.syncs:
            return 0
        tickets, self.syncs = [t for t in self.syncs if (<Ticket>t).state == HELD], []
        if not tickets:
            return 0
        if self.poison:
            for ticket in tickets:
                ticket.poisoned = True
                end_now(self, ticket, self.poison)
            return 0
        flight = SyncFlight.__new__(SyncFlight)
        flight.desk = self
        flight.tickets = tickets
        flight.dispatched_ns = self.scheduler.now()
        flight.lane = self.scheduler.io.acquire(True)
        memset(&flight.operation, 0, sizeof(Operation))
        flight.operation.kind = SYNC
        flight.operation.fd = self.target.descriptor
        for ticket in tickets:
            ticket.state = FLYING
        self.sync_flying = True
        if self.scheduler.trace is not None:
            self.scheduler.trace.append(np.array([[2, 0, 0]], np.int64))
        self.scheduler.counters.syncs_issued += 1
        return self.scheduler.launch(flight, 1, here)

    # --------------------------------------------------------------------------------- landing

    cdef int landed(self, Job job) except -1:
        cdef list heard = [], hubs = []
        cdef Flight flight
        if isinstance(job, SyncFlight):
            land_sync(self, <SyncFlight>job, heard, hubs)
        else:
            flight = <Flight>job
            flight.conclude()
            self.scheduler.landed(flight.launched_operations)
            if flight.kind == READ:
                land_reads(self, flight, heard, hubs)
            else:
                land_writes(self, flight, heard, hubs)
        self.launch_syncs(False)
        self.scheduler.go_on()
        self.scheduler.drivers.land()
        tell(heard, hubs)
        self.at_rest()
        return 0

    cdef int at_rest(self) except -1:
        # After anything has ended; the file closes here when it was left open for its tickets.
        return 0

    # ------------------------------------------------------------------------- waiting for many

    cdef int settle_writes(self) except -1:
        # Returns when every write submitted so far is in the file, or has failed.
        cdef Ticket barrier
        if not self.window.has_writes() and not self.parked_here:
            return 0
        barrier = new_ticket(self, WRITE, 0, 0, NULL, None)
        self.submit(barrier)
        while barrier.state < DONE:
            if barrier.state == HELD:
                self.dispatch_writes("flush")
            if barrier.state < DONE:
                self.scheduler.wait_for_landing(INT64_MAX)
        return 0

    cdef int settle_reads(self) except -1:
        # Returns when every read dispatched or held so far has landed.
        self.dispatch_reads("flush")
        for flight in list(self.flights):
            while not (<Flight>flight).is_down:
                self.scheduler.wait_for_landing(INT64_MAX)
        return 0

    cdef int drain(self) except -1:
        # Returns when nothing is held or flying any more.
        while self.pending:
            self.dispatch_reads("close")
            self.dispatch_writes("close")
            self.launch_syncs(False)
            if self.pending:
                self.scheduler.wait_for_landing(INT64_MAX)
        return 0

    cdef int raise_deferred(self) except -1:
        error, self.deferred = self.deferred, None
        if error is not None:
            raise error
        return 0

    # ---------------------------------------------------------------------- past the window

    cdef int64_t read_straight(self, char* memory, int64_t size, int64_t position) except? -1:
        # By the caller itself, and others may join. Only if reads_go_straight. The bytes read, or
        # -errno.
        cdef Solo solo
        cdef int64_t got = -EIO
        solo.offset, solo.end = position, position + size
        solo.memory = memory
        solo.joined = NULL
        solo.next = self.solos
        solo.place = &self.solos
        if solo.next != NULL:
            solo.next.place = &solo.next
        self.solos = &solo
        try:
            got = self.move_straight(READ, memory, size, position)
        finally:
            solo.place[0] = solo.next       # here, after all: the GIL was away
            if solo.next != NULL:
                solo.next.place = solo.place
            if solo.joined != NULL or self.writes_due is not None:
                land_solo(self, &solo, got)
        return got

    cdef int64_t move_straight(self, Kind kind, char* memory, int64_t size,
                               int64_t position) except? -1:
        raise NotImplementedError

    def _check(self):
        """Assert every invariant that can be seen from here."""
        check(self)


# ------------------------------------------------------------------------------ from submit on

cdef object poisoned(FileDesk self):
    return PoisonedError(
        self.poison, f"a sync failed before ({os.strerror(self.poison)}): what was written "
        f"may be lost, and no further write or sync is accepted", self.name)


cdef int take_read(FileDesk self, Ticket ticket) except -1:
    cdef Scheduler scheduler = self.scheduler
    scheduler.counters.requests += 1
    scheduler.counters.reads += 1
    scheduler.counters.bytes_asked += ticket.end - ticket.offset
    if ticket.end == ticket.offset:
        return end_now(self, ticket, 0)
    if self.window.has_writes():
        self.window.cover(ticket)
        look_past_the_end(self, ticket)
    if ticket.hole_count == 0:
        scheduler.counters.overlay_hits += 1
        ticket.source = FROM_OVERLAY
        return end_now(self, ticket, 0)
    if ticket.holes == NULL and ticket.zeros_until == 0 and join(self, ticket):
        return 0
    hold_read(self, ticket)
    return end_hold_of_reads(self, ticket.submitted_ns)


cdef int hold_read(FileDesk self, Ticket ticket) except -1:
    self.window.add_read(ticket)
    enlist(self)
    return 0


cdef int enlist(FileDesk self) except -1:
    # It holds something: the scheduler looks at it when time has passed or something has landed.
    if not self.is_listed:
        self.scheduler.desks.add(self)
        self.is_listed = True
    return 0


cdef int look_past_the_end(FileDesk self, Ticket ticket) except -1:
    # Held and flying writes may reach past the end of the file: a hole before their end is zeros
    # there, and whoever is told so has seen them.
    cdef int64_t limit = min(ticket.end, self.window.writes_end()), first, size
    if ticket.hole_count == 0:
        return 0
    first = ticket.offset if ticket.holes == NULL else ticket.holes[0].begin
    if first >= limit:
        return 0
    size = file_size(self)
    if size < limit:
        ticket.zeros_until = limit
        self.window.see_size_beyond(size)
    return 0


cdef int64_t file_size(FileDesk self) except -1:
    cdef struct_stat status
    if fstat(self.target.descriptor, &status) < 0:
        raise OSError(EIO, os.strerror(EIO), self.name)
    return status.st_size


cdef int join(FileDesk self, Ticket ticket) except -1:
    cdef Flight flight
    cdef Solo* solo = self.solos
    cdef Py_ssize_t piece
    while solo != NULL and not (solo.offset <= ticket.offset and ticket.end <= solo.end):
        solo = solo.next
    if solo != NULL and self.direct_writes == 0:
        if solo.joined == NULL:
            joined = []
            Py_INCREF(joined)
            solo.joined = <PyObject*>joined
        (<list>solo.joined).append(ticket)
        ticket.record = Record.__new__(Record)
    else:
        for flight in self.flights:
            if flight.write_changes == self.write_changes and self.direct_writes == 0:
                piece = flight.find(ticket.offset, ticket.end)
                if piece >= 0:
                    break
        else:
            return False
        if flight.joined is None:
            flight.joined = []
        flight.joined.append((ticket, piece))
        ticket.record = flight.record
    ticket.source = FROM_JOIN
    ticket.state = FLYING
    self.scheduler.counters.joins += 1
    return True


cdef int end_hold_of_reads(FileDesk self, int64_t now) except -1:
    # After one was added: whether the hold ends here and now.
    cdef Scheduler scheduler = self.scheduler
    cdef Reads reads = self.window.reads
    cdef int64_t before = self.last_read_ns
    self.last_read_ns = now
    if reads.bytes > scheduler.max_held_bytes // 2:
        return self.dispatch_reads("bytes")
    if reads.tickets.size > scheduler.max_held_requests // 2:
        return self.dispatch_reads("count")
    if (reads.tickets.size == 1 and scheduler.flights == 0 and self.solos == NULL
            and now - before > scheduler.read_window_ns):
        if self.asks_cache and read_cached(self):
            return 0
        return self.dispatch_reads("alone")
    if not scheduler.arm(reads.since_ns + scheduler.read_window_ns):
        return self.dispatch_reads("alone")
    return 0


cdef bint read_cached(FileDesk self) except -1:
    # Whether the one read that is held could be had from the page cache, here and now: to hand it
    # to a driver would cost twenty times as much.
    cdef Ticket ticket = <Ticket>self.window.reads.tickets.items[0]
    cdef int64_t size = ticket.end - ticket.offset, got
    if ticket.holes != NULL or size > MAX_CHUNK_BYTES or self.scheduler.is_shaped:
        return False
    got = iolift_read_cached(self.target.descriptor, ticket.memory, size, ticket.offset)
    if got != size:
        # Also where the file ends: that is for a batch to find out.
        self.asks_cache = got >= 0 or got == -EAGAIN or got == -EINTR
        return False
    take_lone(self, ticket, "alone")
    ticket.record.landed_ns = self.scheduler.now()
    return end_now(self, ticket, 0) == 0


cdef int take_lone(FileDesk self, Ticket ticket, str reason) except -1:
    # The one read that is held leaves the window, to be done where the caller stands.
    cdef Scheduler scheduler = self.scheduler
    cdef Record record = Record.__new__(Record)
    self.window.drop_reads()
    self.reads_due = None
    scheduler.batch_number += 1
    record.number = scheduler.batch_number
    record.reason = reason
    record.requests = record.extents = 1
    record.bytes_asked = record.bytes_moved = ticket.end - ticket.offset
    record.dispatched_ns = record.started_ns = scheduler.now()
    scheduler.counters.batches += 1
    scheduler.counters.extents += 1
    scheduler.counters.bytes_moved += record.bytes_moved
    ticket.state = FLYING
    ticket.record = record
    ticket.extent_offset, ticket.extent_end = ticket.offset, ticket.end
    return 0


cdef int take_write(FileDesk self, Ticket ticket) except -1:
    cdef Scheduler scheduler = self.scheduler
    cdef int64_t let_go_of = self.window.supersede(ticket)
    if ticket.end > ticket.offset:          # else a barrier of ours, or nothing to count
        scheduler.counters.requests += 1
        scheduler.counters.writes += 1
    if let_go_of:
        scheduler.counters.bytes_superseded += let_go_of
        scheduler.held_bytes -= let_go_of
        scheduler.held_requests -= 1
        self.pending -= 1
    self.window.add_write(ticket)
    enlist(self)
    return end_hold_of_writes(self, ticket.submitted_ns)


cdef int end_hold_of_writes(FileDesk self, int64_t now) except -1:
    cdef Scheduler scheduler = self.scheduler
    cdef Writes writes = self.window.writes
    cdef int64_t before = self.last_write_ns
    self.last_write_ns = now
    if writes.bytes > scheduler.max_held_bytes // 2:
        return self.dispatch_writes("bytes")
    if writes.tickets.size > scheduler.max_held_requests // 2:
        return self.dispatch_writes("count")
    if (writes.tickets.size == 1 and scheduler.flights == 0
            and now - before > scheduler.write_window_ns):
        return self.dispatch_writes("alone")
    if not scheduler.arm(writes.since_ns + scheduler.write_window_ns):
        return self.dispatch_writes("alone")
    return 0


cdef int take_sync(FileDesk self, Ticket ticket) except -1:
    self.scheduler.counters.syncs_asked += 1
    if self.window.has_writes():
        self.window.add_write(ticket)       # it follows those before it
        enlist(self)
        return end_hold_of_writes(self, ticket.submitted_ns)
    self.syncs.append(ticket)
    return self.launch_syncs(False)


# ------------------------------------------------------------------------------------ dispatch

cdef int launch(FileDesk self, Flight flight) except -1:
    flight.plan(self.arm)
    if flight.has_io and flight.batch.extents.size:
        self.arm = flight.last_position()
    flight.launched_operations = flight.operations()
    self.scheduler.charge(flight.launched_operations, flight.bytes_planned())
    return self.scheduler.launch(flight, flight.launched_operations, not flight.has_io)


cdef bint leads(FileDesk self, Ticket ticket) except -1:
    # Whether the caller, who waits for a read that is alone in the window, may and did do it.
    cdef Scheduler scheduler = self.scheduler
    cdef int64_t got = -EIO
    if (ticket.kind != READ or ticket.state != HELD or self.window.reads.tickets.size != 1
            or ticket.holes != NULL or ticket.zeros_until or scheduler.is_shaped
            or ticket.end - ticket.offset > MAX_CHUNK_BYTES or not scheduler.has_room()):
        return False
    take_lone(self, ticket, "demand")
    try:
        got = self.read_straight(ticket.memory, ticket.end - ticket.offset, ticket.offset)
    except BaseException:
        # Whoever waited was interrupted. The ticket lives on.
        ticket.state = HELD
        ticket.record = None
        hold_read(self, ticket)
        self.dispatch_reads("demand")
        raise
    ticket.record.landed_ns = scheduler.now()
    if got >= 0:
        ticket.got = got
    end_now(self, ticket, <int>-got if got < 0 else 0)
    return True


cdef bint has_reads_in_the_way(FileDesk self) except -1:
    # Whether a read that is under way must be over before the held writes may go.
    cdef Writes writes = self.window.writes
    cdef Solo* solo = self.solos
    cdef Flight flight
    cdef Ticket write
    cdef Py_ssize_t i
    cdef int64_t size = INT64_MAX
    if not self.flights and solo == NULL:
        return False
    if writes.end:
        size = file_size(self)
        if writes.end <= size:
            size = INT64_MAX            # it does not grow
    while solo != NULL:
        if solo.end > size or overlaps_writes(writes, solo.offset, solo.end):
            return True
        solo = solo.next
    for flight in self.flights:
        if flight.end() > size:
            return True
        for i in range(writes.tickets.size):
            if writes.tickets.items[i] == NULL:
                continue
            write = <Ticket>writes.tickets.items[i]
            if (write.state == HELD and write.end > write.offset
                    and flight.overlaps(write.offset, write.end)):
                return True
    return False


cdef bint overlaps_writes(Writes writes, int64_t begin, int64_t end) noexcept:
    cdef Ticket write
    cdef Py_ssize_t i
    for i in range(writes.tickets.size):
        if writes.tickets.items[i] != NULL:
            write = <Ticket>writes.tickets.items[i]
            if write.state == HELD and write.offset < end and begin < write.end:
                return True
    return False


cdef int refuse_held(FileDesk self) except -1:
    # After a sync has failed: held writes and syncs learn it, and never go.
    cdef Writes writes = self.window.take_writes()
    cdef Ticket ticket
    cdef Py_ssize_t i
    self.window.flying = None
    self.writes_due = None
    for i in range(writes.tickets.size):
        if writes.tickets.items[i] != NULL:
            ticket = <Ticket>writes.tickets.items[i]
            if ticket.state == HELD:
                ticket.poisoned = ticket.end > ticket.offset or ticket.kind == SYNC
                end_now(self, ticket, self.poison if ticket.poisoned else 0)
    return 0


# ------------------------------------------------------------------------------------- landing

cdef inline void let_go(Ticket ticket) noexcept:
    ticket.memory = NULL
    free(ticket.holes)
    ticket.holes = NULL


cdef int end_now(FileDesk self, Ticket ticket, int error) except -1:
    # One ticket that ends by itself.
    cdef list heard = None, hubs = None
    if ticket.awaiter is not None or ticket.watchers is not None:
        heard, hubs = [], []
    ticket.error = error
    end_one(self, ticket, heard, hubs, 1)
    self.scheduler.drivers.land()
    if heard is not None:
        tell(heard, hubs)
    self.at_rest()
    return 0


cdef int end_one(FileDesk self, Ticket ticket, list heard, list hubs, Py_ssize_t own) except -1:
    # own: how many references to it are ours.
    cdef Record record = ticket.record
    cdef bint failed = ticket.error != 0 or ticket.failure is not None
    let_go(ticket)
    if ticket.kind != READ or ticket.is_into or failed:
        ticket.owner = None
    elif ticket.got < ticket.end - ticket.offset:
        ticket.owner = ticket.owner[:ticket.got]        # a copy: the rest is not kept alive
    if failed and ticket.kind == WRITE and not is_observed(ticket, own) and self.deferred is None:
        self.deferred = ticket.failure or self.describe(ticket, ticket.error)
    ticket.state = DONE
    self.scheduler.freed(ticket)
    self.pending -= 1
    if record is not None and record.dispatched_ns:
        count_time(self.scheduler.counters.hold_histogram,
                   record.dispatched_ns - ticket.submitted_ns)
        count_time(self.scheduler.counters.service_histogram,
                   record.landed_ns - max(record.dispatched_ns, ticket.submitted_ns))
    if ticket.awaiter is not None or ticket.watchers is not None:
        end_ticket(ticket, heard, hubs)
    return 0


cdef int end_all(FileDesk self, const Tickets* tickets, list heard, list hubs) except -1:
    cdef Ticket ticket
    cdef Py_ssize_t i
    for i in range(tickets.size):
        if tickets.items[i] == NULL:
            continue
        ticket = <Ticket>tickets.items[i]
        if ticket.state == FLYING:
            if ticket.kind == SYNC:
                ticket.state = HELD
                self.syncs.append(ticket)
            else:
                end_one(self, ticket, heard, hubs, 2)
        if i % BREATH == BREATH - 1:
            ticket = None
            with nogil:
                pass                    # whoever waits for the GIL may have it here
    return 0


cdef int count(FileDesk self, Flight flight) except -1:
    cdef Scheduler scheduler = self.scheduler
    scheduler.counters.batches += 1
    if not flight.has_io:
        return 0
    flight.count_plan()
    flight.record.extents = flight.batch.extents.size
    flight.record.bytes_moved = flight.bytes_moved
    flight.record.bytes_asked = flight.bytes_asked()
    scheduler.counters.extents += flight.record.extents
    scheduler.counters.duplicates += flight.duplicates
    if flight.kind == READ:
        scheduler.counters.bytes_moved += flight.bytes_moved
    else:
        scheduler.counters.bytes_written += flight.bytes_moved
        scheduler.counters.bytes_superseded += flight.record.bytes_asked - flight.bytes_moved
    return 0


cdef int take_outcomes(Flight flight, const Tickets* tickets) except -1:
    # From pieces to tickets. The first error of a ticket counts, and the shortest read.
    cdef Py_ssize_t p
    cdef int64_t outcome
    cdef Ticket ticket
    for p in range(flight.n):
        if flight.failure is not None:
            ticket = <Ticket>tickets.items[flight.owners[p]]
            ticket.failure = flight.failure
            continue
        outcome = flight.piece_outcome(p)
        if outcome == flight.lengths[p]:
            continue
        ticket = <Ticket>tickets.items[flight.owners[p]]
        if outcome < 0:
            ticket.error = ticket.error or <int>-outcome
        else:
            end_early(ticket, flight.pointers[p] + outcome, flight.offsets[p] + outcome,
                      flight.offsets[p] + flight.lengths[p])
    return 0


cdef void end_early(Ticket ticket, char* memory, int64_t position, int64_t end) noexcept:
    # The file ends at `position`, within a hole that goes on to `end`.
    if position < ticket.zeros_until:
        memset(memory, 0, min(end, ticket.zeros_until) - position)
    ticket.got = min(ticket.got, max(<int64_t>0,
                                     max(position, ticket.zeros_until) - ticket.offset))


cdef int land_reads(FileDesk self, Flight flight, list heard, list hubs) except -1:
    cdef Ticket ticket
    cdef Py_ssize_t piece
    cdef int64_t outcome
    self.flights.remove(flight)
    if flight.failure is None:
        count(self, flight)
    take_outcomes(flight, &flight.reads.tickets)
    for ticket, piece in flight.joined or ():
        outcome = -EIO if flight.failure is not None else flight.piece_outcome(piece)
        end_joined(self, ticket, flight.pointers[piece], flight.offsets[piece], outcome, heard,
                   hubs)
    flight.joined = None
    return end_all(self, &flight.reads.tickets, heard, hubs)


cdef int end_joined(FileDesk self, Ticket ticket, const char* memory, int64_t offset,
                    int64_t outcome, list heard, list hubs) except -1:
    # outcome: the bytes at `memory`, from `offset` in the file, or -errno.
    if outcome < 0:
        # The fault may be in bytes that this one never asked for.
        ticket.record = None
        ticket.source = FROM_DEVICE
        hold_read(self, ticket)
        self.reads_due = self.reads_due or "demand"
        return 0
    ticket.got = min(ticket.got, max(<int64_t>0, offset + outcome - ticket.offset))
    memcpy(ticket.memory, memory + (ticket.offset - offset), ticket.got)
    return end_one(self, ticket, heard, hubs, 3)


cdef int land_solo(FileDesk self, Solo* solo, int64_t got) except -1:
    cdef list heard = [], hubs = [], joined
    cdef Ticket ticket
    if solo.joined != NULL:
        joined = <list>solo.joined
        Py_DECREF(joined)
        solo.joined = NULL
        for ticket in joined:
            end_joined(self, ticket, solo.memory, solo.offset, got, heard, hubs)
    self.scheduler.go_on()
    self.scheduler.drivers.land()
    tell(heard, hubs)
    return 0


cdef int land_writes(FileDesk self, Flight flight, list heard, list hubs) except -1:
    self.window.flying = None
    if flight.failure is None:
        count(self, flight)
    take_outcomes(flight, &flight.writes.tickets)
    mark_superseded(flight)
    return end_all(self, &flight.writes.tickets, heard, hubs)


cdef void mark_superseded(Flight flight) noexcept:
    cdef Ticket ticket
    cdef Py_ssize_t p
    if not flight.has_io or flight.failure is not None:
        return
    for p in range(flight.n):
        ticket = <Ticket>flight.writes.tickets.items[flight.owners[p]]
        # The ragged ends of direct writes are in no extent.
        ticket.superseded = ticket.extent_end == 0 and flight.batch.ragged.size == 0


cdef int land_sync(FileDesk self, SyncFlight flight, list heard, list hubs) except -1:
    cdef Ticket ticket
    cdef int error = <int>-flight.operation.result if flight.operation.result < 0 else 0
    self.sync_flying = False
    self.scheduler.landed(1)
    failure = None
    try:
        flight.lane.raise_pending()
    except BaseException as raised:
        failure = raised
    self.scheduler.io.release(flight.lane)
    if error:
        self.poison = error
    elif failure is None:
        failure, self.deferred = self.deferred, None
    for ticket in flight.tickets:
        ticket.error = error
        ticket.failure = failure
        end_one(self, ticket, heard, hubs, 2)
    if self.poison:
        refuse_held(self)
    return 0


# -------------------------------------------------------------------------------------- checking

def check(FileDesk self not None):
    cdef Window window = self.window
    cdef Ticket ticket
    cdef Py_ssize_t i, live = 0
    cdef int64_t size = 0, end = 0
    for i in range(window.writes.tickets.size):
        if window.writes.tickets.items[i] == NULL:
            continue
        ticket = <Ticket>window.writes.tickets.items[i]
        assert ticket.state in (HELD, CANCELLED)
        if ticket.state == HELD:
            live += 1
            size += ticket.end - ticket.offset
            if ticket.end > ticket.offset:
                end = max(end, ticket.end)
    assert size == window.writes.bytes
    assert end == window.writes.end
    size = 0
    for i in range(window.reads.tickets.size):
        ticket = <Ticket>window.reads.tickets.items[i]
        assert ticket.state in (HELD, CANCELLED)
        if ticket.state == HELD:
            live += 1
            size += ticket.end - ticket.offset
            assert ticket.hole_count > 0
    assert size == window.reads.bytes
    assert live <= self.pending
    assert self.is_empty() or self.is_listed
    assert self.is_listed == (self in self.scheduler.desks)
    assert self.pending >= 0 and self.direct_writes >= 0 and self.parked_here >= 0
    self.scheduler.check()
