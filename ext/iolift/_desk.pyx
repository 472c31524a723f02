"""FileDesk: a file's requests from submit until they are held, and those that need not be.

    submit -> (parked) -> take: overlay -> join -> window -> whether the hold ends at once

1. A read looks at the overlay first. What is left of it joins a read that is under way and has all
   of it: by the order of dispatch (_dispatch.pyx, _solo.pyx) no write of these bytes can have gone
   in between.
2. Who waits for the one read that is held does it where it stands, and a read that is alone and in
   the page cache is answered at once: to hand either to a driver would cost twenty times as much.
   Alone is who comes after a window's time without others, or after its answer to the last one was
   looked at: a caller that asks and waits, asks and waits. Who only asks is held, for company.
3. A ticket is withdrawn while it is held and nobody has seen its bytes.

Who may call: any thread, with the GIL, which guards every field.
"""

import io

from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from libc.errno cimport EAGAIN, EINTR, EIO
from libc.stdint cimport INT64_MAX, int64_t

from ._arguments cimport parse_timeout
from ._backend cimport READ, SYNC, WRITE, fork_generation
from ._calls cimport begin_call, end_call
from ._dispatch cimport DispatchDesk, file_size
from ._durable cimport hold_sync, hold_write
from ._flight cimport Flight
from ._landing cimport Solo, end_now, enlist, hold_read, let_go, record_io, record_ticket
from ._recorder cimport WITHDRAWN
from ._scatter cimport MAX_CHUNK_BYTES
from ._scheduler cimport Scheduler
from ._solo cimport begin_solo, end_solo, is_behind_solo, joinable_solo, meets_solo
from ._system cimport iolift_now_ns, iolift_read_cached
from ._ticket cimport (
    CANCELLED, DONE, FLYING, FROM_JOIN, FROM_OVERLAY, HELD, PARKED, Hub, Record, Ticket,
    cancelled_error, end_ticket, outcome, tell,
)
from ._window cimport Reads, Window, Writes
from .errors import ForkedError, PoisonedError


cdef class FileDesk(DispatchDesk):
    # ------------------------------------------------------------------------------ for tickets

    cdef int check_process(self) except -1:
        if self.scheduler.generation != fork_generation():
            raise ForkedError("this ticket belongs to the parent process: "
                              "open the file again after a fork")
        return 0

    cdef int wait(self, Ticket ticket, object timeout) except -1:
        self.check_process()
        begin_call()
        try:
            wait_for_ticket(self, ticket, timeout, parse_timeout(timeout))
        finally:
            end_call()
        return 0

    cdef bint withdraw(self, Ticket ticket) except -1:
        begin_call()
        try:
            return withdraw_ticket(self, ticket)
        finally:
            end_call()

    cdef int hasten(self, Ticket ticket) except -1:
        if ticket.kind == READ:
            self.reads_awaited = True
        else:
            self.writes_awaited = True
        return 0

    cdef int wait_received(self, Ticket ticket, object timeout) except -1:
        cdef int64_t until
        self.check_process()
        if self.log is None or ticket.kind != WRITE:
            raise io.UnsupportedOperation("only writes to a file with a journal have a receipt")
        until = parse_timeout(timeout)
        while ticket.state == PARKED:
            if iolift_now_ns() >= until:
                raise TimeoutError(f"{ticket!r} after {timeout} seconds")
            self.scheduler.wait_for_landing(until)
        if ticket.state == CANCELLED:
            raise cancelled_error()
        if ticket.receipt is not None:
            try:
                return self.log.wait(ticket.receipt, until)
            except TimeoutError:
                raise
            except OSError:
                self.wait(ticket, timeout)  # who was told of it does not see it any more
                ticket.is_heard = True
                raise
        if ticket.state == DONE and (ticket.error or ticket.failure is not None):
            outcome(ticket)
        return 0

    cdef bint is_checkpointed(self, Ticket ticket) except -1:
        return self.journal.checkpointed >= ticket.receipt.sequence

    cdef Hub hub_of(self, object loop):
        return self.scheduler.hub_of(loop)

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
        if ticket.awaiter is not None:
            # Awaited while it was parked: the turn of the loop that would end the hold is over.
            if ticket.kind == READ:
                self.reads_due = self.reads_due or "demand"
            else:
                self.writes_due = self.writes_due or "demand"
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
        except PoisonedError as error:
            ticket.failure = error          # the journal has failed since it was parked
            return end_now(self, ticket, 0)

    cdef bint reads_go_straight(self) noexcept:
        # Whether a caller may read the file itself: nothing is held or flying that it must see.
        return not (self.window.has_writes() or self.scheduler.is_shaped or self.parked_here)

    cdef bint writes_go_straight(self) noexcept:
        return not (self.log is not None or self.window.has_writes()
                    or self.window.reads.tickets.size or self.flights or self.solos != NULL
                    or self.scheduler.is_shaped or self.parked_here)

    cdef bint has_joinable(self, int64_t offset, int64_t end) noexcept:
        cdef Py_ssize_t piece
        return (self.solos != NULL or len(self.flights) > 0) and may_join(self, offset, end) and (
            joinable_solo(self, offset, end) != NULL
            or joinable_flight(self, offset, end, &piece) is not None)

    # ---------------------------------------------------------------------- past the window

    cdef int64_t read_straight(self, char* memory, int64_t size, int64_t position) except? -1:
        # By the caller itself, and others may join. Only if reads_go_straight. The bytes read, or
        # -errno.
        cdef Solo solo
        cdef int64_t got = -EIO
        begin_solo(self, &solo, READ, position, position + size, memory)
        try:
            got = self.move_straight(READ, memory, size, position)
        finally:
            end_solo(self, &solo, got)
        return got

    def _check(self):
        """Assert every invariant that can be seen from here."""
        check(self)


# ------------------------------------------------------------------------------ from submit on

cdef int take_read(FileDesk self, Ticket ticket) except -1:
    cdef Scheduler scheduler = self.scheduler
    cdef bint with_flying
    scheduler.counters.requests += 1
    scheduler.counters.reads += 1
    scheduler.counters.bytes_asked += ticket.end - ticket.offset
    if ticket.end == ticket.offset:
        return end_now(self, ticket, 0)
    if self.window.has_writes():
        with_flying = not is_behind_solo(self, ticket.offset, ticket.end)
        self.window.cover(ticket, with_flying)
        look_past_the_end(self, ticket, with_flying)
    if ticket.hole_count == 0:
        scheduler.counters.overlay_hits += 1
        ticket.source = FROM_OVERLAY
        return end_now(self, ticket, 0)
    if (ticket.holes == NULL and ticket.zeros_until == 0
            and (self.solos != NULL or len(self.flights) > 0) and join(self, ticket)):
        return 0
    hold_read(self, ticket)
    return end_hold_of_reads(self, ticket)


cdef int look_past_the_end(FileDesk self, Ticket ticket, bint with_flying) except -1:
    # Held and flying writes may reach past the end of the file: a hole before their end is zeros
    # there, and whoever is told so has seen them.
    cdef int64_t limit = min(ticket.end, self.window.writes_end(with_flying)), first, size
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


cdef inline bint may_join(FileDesk self, int64_t offset, int64_t end) noexcept:
    return self.solo_writes == 0 or not meets_solo(self, READ, offset, end)


cdef Flight joinable_flight(FileDesk self, int64_t offset, int64_t end, Py_ssize_t* piece):
    # Reads that are under way and have all these bytes.
    cdef Flight flight
    for flight in self.flights:
        piece[0] = flight.find(offset, end)
        if piece[0] >= 0:
            return flight
    return None


cdef int join(FileDesk self, Ticket ticket) except -1:
    cdef Flight flight
    cdef Solo* solo
    cdef list company = [ticket]            # objects first: see _dispatch.pyx
    cdef Record record = Record.__new__(Record)
    if not may_join(self, ticket.offset, ticket.end):
        return False
    solo = joinable_solo(self, ticket.offset, ticket.end)
    if solo != NULL:
        if solo.joined == NULL:
            Py_INCREF(company)
            solo.joined = <PyObject*>company
        else:
            (<list>solo.joined).append(ticket)
        ticket.record = record
    else:
        flight = joinable_flight(self, ticket.offset, ticket.end, &ticket.piece)
        if flight is None:
            return False
        if flight.joined is None:
            flight.joined = company
        else:
            flight.joined.append(ticket)
        ticket.record = flight.record
    ticket.source = FROM_JOIN
    ticket.state = FLYING
    self.scheduler.counters.joins += 1
    return True


cdef int end_hold_of_reads(FileDesk self, Ticket ticket) except -1:
    # After it was added: whether the hold ends here and now.
    cdef Scheduler scheduler = self.scheduler
    cdef Reads reads = self.window.reads
    cdef int64_t before = self.last_read_ns, now = ticket.submitted_ns
    self.last_read_ns = now
    if reads.bytes > scheduler.max_held_bytes // 2:
        return self.dispatch_reads("bytes")
    if reads.tickets.size > scheduler.max_held_requests // 2:
        return self.dispatch_reads("count")
    if ticket.is_waited:
        return 0
    if (reads.tickets.size == 1 and scheduler.flights == 0 and self.solos == NULL
            and (now - before > scheduler.read_window_ns
                 or (self.answers_at_once and not self.is_unasked))):
        if self.asks_cache and read_cached(self):
            return 0
        if now - before > scheduler.read_window_ns:
            return self.dispatch_reads("alone")
    if not scheduler.arm(reads.since_ns + scheduler.read_window_ns):
        return self.dispatch_reads("alone")
    return 0


cdef bint read_cached(FileDesk self) except -1:
    # Whether the one read that is held could be had from the page cache, here and now: to hand it
    # to a driver would cost twenty times as much.
    cdef Ticket ticket = <Ticket>self.window.reads.tickets.items[0]
    cdef int64_t size = ticket.end - ticket.offset, got
    if (ticket.holes != NULL or size > MAX_CHUNK_BYTES or self.scheduler.is_shaped
            or self.solo_writes):
        return False
    got = iolift_read_cached(self.target.descriptor, ticket.memory, size, ticket.offset)
    self.answers_at_once = got == size
    if got != size:
        # Also where the file ends: that is for a batch to find out.
        self.asks_cache = got >= 0 or got == -EAGAIN or got == -EINTR
        return False
    if not take_lone(self, ticket, "alone"):
        return False
    ticket.is_unasked = self.is_unasked = True
    # What it took was the read, not the hold.
    ticket.record.dispatched_ns = ticket.record.started_ns = ticket.submitted_ns
    if self.scheduler.recorder is not None:
        record_io(self, READ, ticket.offset, size, ticket.record.started_ns, got,
                  ticket.record.number)
    ticket.record.landed_ns = self.scheduler.now()
    return end_now(self, ticket, 0) == 0


cdef bint take_lone(FileDesk self, Ticket ticket, str reason) except -1:
    # The one read that is held leaves the window, to be done where the caller stands. False: it
    # is not, any more.
    cdef Scheduler scheduler = self.scheduler
    cdef Record record = Record.__new__(Record)
    record.dispatched_ns = record.started_ns = scheduler.now()
    if ticket.state != HELD or self.window.reads.tickets.size != 1:
        return False
    self.window.drop_reads()
    self.reads_due = None
    if self.is_empty():
        scheduler.disarm()
    scheduler.batch_number += 1
    record.number = scheduler.batch_number
    record.reason = reason
    record.requests = record.extents = 1
    record.bytes_asked = record.bytes_moved = ticket.end - ticket.offset
    scheduler.counters.batches += 1
    scheduler.counters.extents += 1
    scheduler.counters.bytes_moved += record.bytes_moved
    ticket.state = FLYING
    ticket.record = record
    ticket.extent_offset, ticket.extent_end = ticket.offset, ticket.end
    return True


cdef int take_write(FileDesk self, Ticket ticket) except -1:
    cdef Scheduler scheduler = self.scheduler
    cdef Py_ssize_t count = 0
    cdef int64_t size = 0
    # With a journal what is covered is kept: the one that covers it may be refused yet. So it is
    # where each request is recorded.
    if self.log is None and scheduler.recorder is None:
        size = self.window.supersede(ticket, &count)
    if ticket.end > ticket.offset:          # else a barrier of ours, or nothing to count
        scheduler.counters.requests += 1
        scheduler.counters.writes += 1
    scheduler.counters.bytes_superseded += size
    scheduler.held_bytes -= size
    scheduler.held_requests -= count
    self.pending -= count
    if self.log is None:
        self.window.add_write(ticket)
    else:
        hold_write(self, ticket)
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
    if self.log is not None:
        return hold_sync(self, ticket)
    if self.window.has_writes():
        self.window.add_write(ticket)       # it follows those before it
        enlist(self)
        return end_hold_of_writes(self, ticket.submitted_ns)
    self.syncs.append(ticket)
    return self.launch_syncs(False)


# ------------------------------------------------------------------------ waiting, withdrawing

cdef int wait_for_ticket(FileDesk self, Ticket ticket, object timeout, int64_t until) except -1:
    if ticket.state == HELD or ticket.state == PARKED:
        if timeout is None and leads(self, ticket):
            return 0
        self.demand(ticket)
    if ticket.kind == SYNC and ticket.receipt is not None:
        self.log.wait_until(ticket.receipt, until)
    while ticket.state < DONE:
        if until != INT64_MAX and iolift_now_ns() >= until:
            raise TimeoutError(f"{ticket!r} after {timeout} seconds")
        if ticket.state == PARKED:
            self.scheduler.wait_for_landing(until)
            self.demand(ticket)
        else:
            self.scheduler.wait_for_end(ticket, until)
    return 0


cdef bint withdraw_ticket(FileDesk self, Ticket ticket) except -1:
    cdef Writes writes = self.window.writes
    cdef list heard = [], hubs = []
    if ticket.state == HELD:
        if ticket.kind == WRITE and (
                ticket.seen or (ticket.end > ticket.offset and ticket.end > writes.seen_from)):
            return False
        if (ticket.receipt is not None and ticket.end > ticket.offset
                and not self.log.withdraw(ticket.receipt)):
            return False
        self.window.withdraw(ticket)
        self.scheduler.freed(ticket)
    elif ticket.state == PARKED:
        ticket.state = CANCELLED
    else:
        return ticket.state == CANCELLED
    self.scheduler.counters.cancelled += 1
    if self.scheduler.recorder is not None:
        record_ticket(self, ticket, WITHDRAWN)
    self.pending -= 1
    let_go(ticket)
    ticket.owner = None
    self.scheduler.drivers.wake_at_landing(&ticket.sleepers)
    end_ticket(ticket, heard, hubs)
    self.scheduler.go_on()
    self.scheduler.drivers.land()
    tell(heard, hubs)
    self.at_rest()
    return True


cdef bint leads(FileDesk self, Ticket ticket) except -1:
    # Whether the caller, who waits for a read that is alone in the window, may and did do it.
    cdef Scheduler scheduler = self.scheduler
    cdef int64_t got = -EIO
    if (ticket.kind != READ or ticket.state != HELD or self.window.reads.tickets.size != 1
            or ticket.holes != NULL or ticket.zeros_until or scheduler.is_shaped
            or ticket.end - ticket.offset > MAX_CHUNK_BYTES or not scheduler.has_room(READ)):
        return False
    if not take_lone(self, ticket, "demand"):
        return False
    try:
        if not reads_in_place(self, ticket, &got):
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


cdef bint reads_in_place(FileDesk self, Ticket ticket, int64_t* got) noexcept:
    # From the page cache, without letting go of the GIL: among threads that are busy with writes
    # it would take longer to get it back than to read.
    cdef int64_t size = ticket.end - ticket.offset
    if (not self.asks_cache or not self.window.has_writes()
            or meets_solo(self, READ, ticket.offset, ticket.end)):
        return False
    got[0] = iolift_read_cached(self.target.descriptor, ticket.memory, size, ticket.offset)
    if got[0] == size and self.scheduler.recorder is not None:
        record_io(self, READ, ticket.offset, size, ticket.record.started_ns, size,
                  ticket.record.number)
    return got[0] == size


# -------------------------------------------------------------------------------------- checking

cdef int check(FileDesk self) except -1:
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
    assert self.pending >= 0 and self.parked_here >= 0
    check_solos(self)
    self.scheduler.check()
    return 0


cdef int check_solos(FileDesk self) except -1:
    cdef const Solo* solo = self.solos
    cdef Py_ssize_t writes = 0, waiting = 0
    while solo != NULL:
        assert solo.place[0] == solo
        writes += solo.kind == WRITE
        waiting += not solo.begun
        solo = solo.next
    assert writes == self.solo_writes
    assert self.solos_waiting <= waiting
    return 0
