"""Scheduler: what a coalescer's files share: bounds, the clock of the hold, room on the device.

1. Held bytes and requests, from submit to the end of the ticket, stay within their bounds, except
   that a single request larger than the bound goes alone. Writes leave a part to reads. Who finds
   them full waits: a thread until something has landed, a ticket made on an event loop (or by a
   driver, in a callback, or in a finalizer that came into another call) in `parked`, from where it
   is admitted in order.
2. A deadline that is armed is kept: on_time dispatches what is due and arms the next. Nothing is
   armed while nothing is held.
3. There is room while fewer I/Os are under way than the backend is deep; for reads, fewer reads.
   Who waits is served at once while there is room, and gathers company when there is none.
4. Shaping delays dispatch, never admission order, and what goes through at once stays within a
   tenth of a second's worth.

Who may call: any thread, with the GIL, which guards every field.
"""

import collections
import threading

from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdint cimport INT64_MAX, int64_t, uint64_t
from libc.string cimport memset

from ._backend cimport READ, WRITE, Backend, Kind, fork_generation
from ._calls cimport begin_call, end_call, hear_signals, is_nested
from ._drivers cimport SIGNAL_CHECK_NS, Drivers, Job, Sleeper
from ._system cimport iolift_bit_length, iolift_now_ns
from ._ticket cimport CANCELLED, PARKED, Desk, Hub, Ticket, is_on_a_loop
from .errors import ForkedError

cdef enum:
    MAX_DRIVERS = 16

cdef double BURST_SECONDS = 0.1


cdef void count_time(int64_t* histogram, int64_t ns) noexcept nogil:
    cdef int place = iolift_bit_length(<uint64_t>(max(ns, <int64_t>0) // 1000))
    histogram[min(place, HISTOGRAM_PLACES - 1)] += 1


# ------------------------------------------------------------------------------------- the bucket

cdef void set_rate(Bucket* bucket, object rate, int64_t now) except *:
    memset(bucket, 0, sizeof(Bucket))
    if rate is not None:
        bucket.rate = rate
        bucket.level = bucket.burst = max(1.0, bucket.rate * BURST_SECONDS)
        bucket.at_ns = now


cdef void fill(Bucket* bucket, int64_t now) noexcept:
    bucket.level = min(bucket.burst, bucket.level + (now - bucket.at_ns) * 1e-9 * bucket.rate)
    bucket.at_ns = now


cdef int64_t solvent_at(const Bucket* bucket, int64_t now) noexcept:
    # When it is out of debt.
    if bucket.rate == 0 or bucket.level >= 0:
        return now
    return now + <int64_t>(-bucket.level / bucket.rate * 1e9) + 1


# ---------------------------------------------------------------------------------- the scheduler

cdef class Scheduler(Timed):
    def __init__(self, Backend io, *, read_window_us, write_window_ms, max_held_bytes,
                 max_held_requests, max_iops, max_bytes_per_s, clock):
        self.io = io
        self.clock = clock
        self.generation = fork_generation()
        # After a fork it is whichever forked.
        self.main_thread = threading.main_thread().ident
        self.drivers = Drivers(self, MAX_DRIVERS)
        self.read_window_ns = <int64_t>(read_window_us * 1e3)
        self.write_window_ns = <int64_t>(write_window_ms * 1e6)
        self.max_held_bytes = max_held_bytes
        self.max_held_requests = max_held_requests
        set_rate(&self.operations_bucket, max_iops, self.now())
        set_rate(&self.bytes_bucket, max_bytes_per_s, self.now())
        self.is_shaped = max_iops is not None or max_bytes_per_s is not None
        if max_iops is not None:
            self.max_held_requests = min(max_held_requests,
                                         <Py_ssize_t>self.operations_bucket.burst)
        if max_bytes_per_s is not None:
            self.max_held_bytes = min(max_held_bytes, <int64_t>self.bytes_bucket.burst)
        self.desks = set()
        self.parked = collections.deque()
        self.sleepers = set()
        self.hubs = []

    cdef int64_t now(self) except -1:
        if self.clock is None:
            return iolift_now_ns()
        return self.clock()

    # ------------------------------------------------------------------------------------- bounds

    cdef bint is_full(self, Kind kind, int64_t size) noexcept:
        # Writes leave an eighth to reads, which somebody waits for: no flood keeps them out.
        cdef int64_t requests = self.max_held_requests, bytes = self.max_held_bytes
        if kind != READ:
            requests -= requests >> 3
            bytes -= bytes >> 3
        return self.held_requests > 0 and (
            self.held_requests >= requests or size > bytes - self.held_bytes)

    cdef bint has_no_room(self, Desk desk, Ticket ticket) noexcept:
        cdef int64_t size = ticket.end - ticket.offset
        return self.is_full(ticket.kind, size) or (ticket.kind == WRITE and desk.is_tight(size))

    cdef bint must_wait(self, Desk desk, Ticket ticket) noexcept:
        # In order, where it would have to see what is parked.
        return (self.has_no_room(desk, ticket)
                or (self.parked and (ticket.kind != READ or desk.parked_here > 0)))

    cdef int admit(self, Desk desk, Ticket ticket) except -1:
        # The ticket's request is held when this returns, or parked.
        cdef int64_t size = ticket.end - ticket.offset
        cdef bint is_patient
        while self.must_wait(desk, ticket):
            is_patient = is_on_a_loop() or self.drivers.is_driver() or is_nested()
            if not self.must_wait(desk, ticket):
                break                   # while we asked
            if is_patient:
                self.parked.append(ticket)
                desk.parked_here += 1
                ticket.state = PARKED
                if len(self.parked) == 1:
                    self.make_room()
                return 0
            self.make_room()
            if self.must_wait(desk, ticket):
                self.wait_for_landing(INT64_MAX)
        self.held_requests += 1
        self.held_bytes += size
        return desk.take(ticket)

    cdef int admit_parked(self) except -1:
        cdef Ticket ticket
        cdef Desk desk
        cdef int64_t size
        if self.is_admitting:
            return 0                    # what was taken has landed already; the loop below goes on
        self.is_admitting = True
        try:
            while self.parked:
                ticket = self.parked[0]
                size = ticket.end - ticket.offset
                desk = ticket.desk
                if ticket.state != CANCELLED and self.has_no_room(desk, ticket):
                    self.make_room()
                    if self.has_no_room(desk, ticket):
                        return 0
                    continue
                self.parked.popleft()
                desk.parked_here -= 1
                if ticket.state != CANCELLED:
                    self.held_requests += 1
                    self.held_bytes += size
                    desk.take(ticket)
        finally:
            self.is_admitting = False
        return 0

    cdef int make_room(self) except -1:
        # Somebody finds the bounds full: everything that is held goes.
        for desk in list(self.desks):
            (<Desk>desk).hurry()
        return 0

    cdef int freed(self, Ticket ticket) noexcept:
        self.held_requests -= 1
        self.held_bytes -= ticket.end - ticket.offset
        return 0

    # -------------------------------------------------------------------------------------- time

    cdef bint arm(self, int64_t when_ns) except -1:
        # False: nobody keeps the time (the interpreter ends, no thread can be had).
        return self.clock is not None or self.drivers.call_at(when_ns)

    cdef void disarm(self) noexcept:
        # After a window was emptied by hand.
        if len(self.desks) == 1:
            self.drivers.call_off()

    cdef void on_time(self) noexcept:
        cdef int64_t now, soonest = INT64_MAX
        now = self.now()
        for desk in list(self.desks):
            (<Desk>desk).go_on()            # shaping may have said later before
            soonest = min(soonest, (<Desk>desk).go_on_time(now))
            self.strike_off(<Desk>desk)
        if soonest != INT64_MAX:
            self.arm(soonest)

    def tick(self):
        begin_call()
        self.on_time()
        end_call()

    def end_turn(self):
        """On an event loop, at the end of a turn in which somebody awaited."""
        begin_call()
        try:
            for desk in list(self.desks):
                (<Desk>desk).end_turn()
            self.hubs = [hub for hub in self.hubs if (<Hub>hub).pending]
        finally:
            end_call()

    cdef Hub hub_of(self, object loop):
        cdef Hub hub
        for hub in self.hubs:
            if hub.loop is loop:
                return hub
        hub = Hub()
        hub.loop = loop
        hub.scheduler = self
        self.hubs.append(hub)
        return hub

    # ----------------------------------------------------------------------------------- shaping

    cdef int64_t ready_at(self) noexcept:
        # When the next batch may go.
        cdef int64_t now
        if not self.is_shaped:
            return 0
        now = self.now()
        fill(&self.operations_bucket, now)
        fill(&self.bytes_bucket, now)
        return max(solvent_at(&self.operations_bucket, now), solvent_at(&self.bytes_bucket, now))

    cdef bint may_go(self) except -1:
        cdef int64_t ready
        if not self.is_shaped:
            return True
        ready = self.ready_at()
        if ready <= self.now():
            return True
        self.arm(ready)
        return False

    cdef void charge(self, int64_t operations, int64_t bytes) noexcept:
        if self.is_shaped:
            self.operations_bucket.level -= operations
            self.bytes_bucket.level -= bytes

    # ---------------------------------------------------------------------------------- dispatch

    cdef bint has_room(self, Kind kind) noexcept:
        # However many writes are under way, a read that somebody waits for is not kept from them.
        return ((self.read_operations if kind == READ else self.operations) < self.io.depth
                and self.flights < MAX_DRIVERS)

    cdef int launch(self, Job flight, Kind kind, Py_ssize_t operations, bint here) except -1:
        # here: the caller waits for just this one, and is as good a thread as any other.
        self.flights += 1
        self.operations += operations
        if kind == READ:
            self.read_operations += operations
        if here or not self.drivers.push(flight):
            with nogil:
                flight.execute()
            flight.finish()
        return 0

    cdef int landed(self, Kind kind, Py_ssize_t operations) except -1:
        self.flights -= 1
        self.operations -= operations
        if kind == READ:
            self.read_operations -= operations
        return 0

    cdef int strike_off(self, Desk desk) except -1:
        if desk.is_empty():
            self.desks.discard(desk)
            desk.strike_off()
        return 0

    cdef int go_on(self) except -1:
        # Something has landed: there is room, and order may allow what it did not before.
        self.admit_parked()
        for desk in list(self.desks):
            (<Desk>desk).go_on()
            self.strike_off(<Desk>desk)
        return 0

    cdef int wait_for_landing(self, int64_t until_ns) except -1:
        # For a thread that waits for something of which any landing may be the end. The caller has
        # looked, and has not let go of the GIL since.
        return wait(self, &self.drivers.waiting, until_ns)

    cdef int wait_for_end(self, Ticket ticket, int64_t until_ns) except -1:
        # The same for a thread that waits for this ticket to end.
        return wait(self, &ticket.sleepers, until_ns)

    def stats(self):
        counters = self.counters
        return dict(
            held_requests=self.held_requests, held_bytes=self.held_bytes,
            batches_in_flight=self.flights, requests=counters.requests, reads=counters.reads,
            writes=counters.writes, batches=counters.batches, extents=counters.extents,
            duplicates=counters.duplicates, bytes_asked=counters.bytes_asked,
            bytes_moved=counters.bytes_moved, bytes_written=counters.bytes_written,
            bytes_superseded=counters.bytes_superseded, joins=counters.joins,
            overlay_hits=counters.overlay_hits, cancelled=counters.cancelled,
            syncs_asked=counters.syncs_asked, syncs_issued=counters.syncs_issued,
            hold_histogram_us=tuple([counters.hold_histogram[i] for i in range(HISTOGRAM_PLACES)]),
            service_histogram_us=tuple([counters.service_histogram[i]
                                        for i in range(HISTOGRAM_PLACES)]))

    def check(self):
        """Assert every invariant of the top of this file that can be seen from here."""
        assert self.held_requests >= 0 and self.held_bytes >= 0
        assert self.held_requests <= self.max_held_requests or self.max_held_requests < 1
        assert self.held_bytes <= self.max_held_bytes or self.held_requests == 1
        assert self.flights >= 0 and self.operations >= 0
        assert 0 <= self.read_operations <= self.operations
        assert self.flights or not self.operations


cdef int wait(Scheduler self, Sleeper** sleepers, int64_t until_ns) except -1:
    cdef unsigned long ident = PyThread_get_thread_ident()
    if ident == self.main_thread:       # the others need not wake up for signals
        until_ns = min(until_ns, iolift_now_ns() + SIGNAL_CHECK_NS)
    self.sleepers.add(ident)
    self.drivers.wait_among(sleepers, until_ns)
    self.sleepers.discard(ident)
    hear_signals()
    if self.generation != fork_generation():
        raise ForkedError("forked in the middle of a call, by a signal handler: in the child, "
                          "open the file again")
    return 0
