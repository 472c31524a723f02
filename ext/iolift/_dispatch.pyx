"""DispatchDesk: when what is held of a file goes, and in which order.

    window: reads, writes      the hold ends: alone, time, bytes, count, flush, demand, turn, close
                |
                v              dispatch: reads, then writes, then syncs
    flight -> plan -> scheduler.launch -> (a driver) -> landed -> go_on

1. Reads go before the writes of the same file that are held with them. A generation of writes goes
   when the one before has landed, and when nothing that is under way overlaps it (or may see where
   the file ended before it). Nothing else waits for anything: reads that come later have the
   overlay, and what is left of them overlaps no write that is held or flying.
2. What should go and can't yet is `reads_due` or `writes_due`, with the reason; every landing, and
   the clock where it is shaping that says no, asks again.
3. A sync follows its generation: it is issued when all writes submitted before it are in the file,
   and one fdatasync answers all that wait by then.

Who may call: any thread, with the GIL, which guards every field. Planning lets go of it, after
what is planned has left the window and is in `flights` or `flying`. To make an object may run a
garbage collection (before CPython 3.12), finalizers, and other threads meanwhile: objects are made
before a decision, not between it and what it decides.
"""

import os

import numpy as np

from libc.errno cimport errno
from libc.stdint cimport INT64_MAX, int64_t
from libc.string cimport memset
from posix.stat cimport fstat, struct_stat

from ._backend cimport READ, SYNC, WRITE, Kind, Operation
from ._flight cimport Flight, SyncFlight, new_flight, take_reads, take_writes
from ._landing cimport LandingDesk, Solo, end_now, refuse_held
from ._scheduler cimport Scheduler
from ._solo cimport is_interrupted, meets_solo
from ._ticket cimport DONE, FLYING, HELD, Ticket, tell
from ._window cimport Tickets, Window, Writes

cdef enum:
    # With a journal, nobody waits for the file: writes are held for it so many windows.
    WRITE_BACK_WINDOWS = 10

# Who waits is served while the device has room; what is overdue goes whatever the device does.
cdef tuple PATIENT = ("demand", "turn")


cdef Ticket new_ticket(DispatchDesk desk, Kind kind, int64_t offset, int64_t end, char* memory,
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


cdef class DispatchDesk(LandingDesk):
    def __cinit__(self, *args, **kwargs):
        self.last_read_ns = self.last_write_ns = -INT64_MAX // 2

    cdef bint is_empty(self):
        return self.window.reads.tickets.size == 0 and self.window.writes.tickets.size == 0

    cdef int submit(self, Ticket ticket) except -1:
        raise NotImplementedError

    cdef int demand(self, Ticket ticket) except -1:
        # Somebody waits: the hold ends while the device has room.
        if ticket.state != HELD:
            return 0
        if ticket.kind == READ:
            if self.scheduler.has_room(READ):
                return self.dispatch_reads("demand")
            self.reads_due = self.reads_due or "demand"
        elif self.scheduler.has_room(WRITE):
            return self.dispatch_writes("demand")
        else:
            self.writes_due = self.writes_due or "demand"
        return 0

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
            if self.log is not None and due <= now:
                # Received in time; the file comes later, and gets more of it at once.
                self.log.commit_aside(scheduler.drivers, True)
                due += scheduler.write_window_ns * (WRITE_BACK_WINDOWS - 1)
                if due > now:
                    soonest = min(soonest, now + scheduler.write_window_ns)
            if due <= now:
                self.dispatch_writes("time")
            else:
                soonest = min(soonest, due)
        return soonest

    cdef int end_turn(self) except -1:
        if self.reads_awaited:
            self.reads_awaited = False
            if self.scheduler.has_room(READ):
                self.dispatch_reads("turn")
            else:
                self.reads_due = self.reads_due or "turn"
        if self.writes_awaited:
            self.writes_awaited = False
            if self.scheduler.has_room(WRITE):
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
        if self.reads_due is not None and self.scheduler.has_room(READ):
            self.dispatch_reads(self.reads_due)
        if self.writes_due is not None and (
                self.scheduler.has_room(WRITE) or self.writes_due not in PATIENT):
            self.dispatch_writes(self.writes_due)
        return 0

    cdef int dispatch_reads(self, str reason) except -1:
        # All that are held, unless shaping says later. Lets go of the GIL.
        cdef Scheduler scheduler = self.scheduler
        cdef Flight flight
        if self.window.reads.tickets.size == 0:
            self.reads_due = None
            return 0
        flight = new_flight(self, READ, self.reads_due or reason, scheduler.now())
        if meets_solo_write(self) or not scheduler.may_go():
            self.reads_due = self.reads_due or reason
            return 0
        self.reads_due = None
        self.reads_awaited = False
        return launch_reads(self, flight, self.window)

    cdef int read_again(self, Ticket ticket) except -1:
        # It was under way already, so nothing that came after it may get ahead of it now.
        cdef Flight flight = new_flight(self, READ, "demand", self.scheduler.now())
        cdef Window alone = Window()
        alone.add_read(ticket)
        self.again += 1
        return launch_reads(self, flight, alone)

    cdef int dispatch_writes(self, str reason) except -1:
        # All that are held, unless order or shaping say later: a landing, or the clock, asks again.
        # Lets go of the GIL.
        cdef Scheduler scheduler = self.scheduler
        cdef list heard = [], hubs = []
        cdef Flight flight
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
            refuse_held(self, heard, hubs)
            self.scheduler.drivers.land()
            tell(heard, hubs)
            return 0
        flight = new_flight(self, WRITE, self.writes_due, scheduler.now())
        if (self.window.reads.tickets.size or self.window.flying is not None
                or is_in_the_way(self) or not scheduler.may_go()):
            return 0
        self.writes_due = None
        self.writes_awaited = False
        scheduler.batch_number += 1
        take_writes(flight, self.window, scheduler.batch_number)
        return launch(self, flight)

    cdef int launch_syncs(self, bint here) except -1:
        cdef SyncFlight flight
        cdef Ticket ticket
        if self.sync_flying or not self.syncs:
            return 0
        self.sync_flying = True
        waiting, self.syncs = self.syncs, []
        tickets = [t for t in waiting if (<Ticket>t).state == HELD]
        if self.poison or not tickets:
            self.sync_flying = False
            for ticket in tickets:
                ticket.poisoned = True
                end_now(self, ticket, self.poison)
            return 0
        flight = SyncFlight.__new__(SyncFlight)
        flight.desk = self
        flight.tickets = tickets
        flight.dispatched_ns = self.scheduler.now()
        try:
            flight.lane = self.scheduler.io.acquire(True)
        except BaseException as error:
            self.sync_flying = False
            for ticket in tickets:
                ticket.failure = error
                end_now(self, ticket, 0)
            return 0
        memset(&flight.operation, 0, sizeof(Operation))
        flight.operation.kind = SYNC
        flight.operation.fd = self.target.descriptor
        for ticket in tickets:
            ticket.state = FLYING
        if self.scheduler.trace is not None:
            self.scheduler.trace.append(np.array([[2, 0, 0]], np.int64))
        self.scheduler.counters.syncs_issued += 1
        return self.scheduler.launch(flight, SYNC, 1, here)

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
        # Returns when every read that was held so far has been dispatched.
        self.dispatch_reads("flush")
        while self.reads_due is not None:
            self.scheduler.wait_for_landing(INT64_MAX)
        return 0

    cdef int drain(self) except -1:
        # Returns when nothing is held or flying any more.
        while is_busy(self):
            self.dispatch_reads("close")
            self.dispatch_writes("close")
            self.launch_syncs(False)
            if is_busy(self):
                self.scheduler.wait_for_landing(INT64_MAX)
        return 0


cdef bint is_busy(DispatchDesk self) noexcept:
    # A batch of which all requests were withdrawn is under way for nobody.
    return self.pending > 0 or len(self.flights) > 0 or self.window.flying is not None


cdef int launch_reads(DispatchDesk self, Flight flight, Window window) except -1:
    # All that this window holds.
    self.flights.append(flight)
    self.scheduler.batch_number += 1
    take_reads(flight, window, self.scheduler.batch_number)
    return launch(self, flight)


cdef int launch(DispatchDesk self, Flight flight) except -1:
    flight.plan(self.arm)
    if flight.has_io and flight.batch.extents.size:
        self.arm = flight.batch.last_position()
    flight.launched_operations = flight.operations()
    self.scheduler.charge(flight.launched_operations, flight.bytes_planned())
    return self.scheduler.launch(flight, flight.kind, flight.launched_operations,
                                 not (flight.has_io or flight.is_journalled))


cdef bint meets_solo_write(DispatchDesk self) noexcept:
    # Whether a write that passes the window by must be over before the held reads may go.
    cdef const Tickets* reads = &self.window.reads.tickets
    cdef Ticket read
    cdef Py_ssize_t i
    if self.solo_writes == 0:
        return False
    for i in range(reads.size):
        read = <Ticket>reads.items[i]
        if read.state == HELD and meets_solo(self, READ, read.offset, read.end):
            return True
    return False


cdef bint is_in_the_way(DispatchDesk self) except -1:
    # Whether something that is under way must be over before the held writes may go.
    cdef Writes writes = self.window.writes
    cdef const Solo* solo = self.solos
    cdef Flight flight
    cdef Ticket write
    cdef Py_ssize_t i
    cdef int64_t size = INT64_MAX
    if not self.flights and self.solos == NULL:
        return False
    if writes.end:
        size = file_size(self)
        if writes.end <= size:
            size = INT64_MAX            # it does not grow
    while solo != NULL:
        if solo.kind == READ and solo.end > size and not is_interrupted(self, solo):
            return True
        solo = solo.next
    for i in range(writes.tickets.size if self.solos != NULL else 0):
        if writes.tickets.items[i] != NULL:
            write = <Ticket>writes.tickets.items[i]
            if write.state == HELD and meets_solo(self, WRITE, write.offset, write.end):
                return True
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


cdef int64_t file_size(DispatchDesk self) except -1:
    cdef struct_stat status
    if fstat(self.target.descriptor, &status) < 0:
        raise OSError(errno, os.strerror(errno), self.name)
    return status.st_size
