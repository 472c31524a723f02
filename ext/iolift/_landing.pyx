"""LandingDesk: from what has landed to the tickets, and from there to whoever waits.

    flight -> outcomes of pieces -> tickets (joined ones too) -> ends -> syncs, the scheduler's
                                                                    turn, then whoever waits

1. A ticket ends once, in `end_one`: with what it got, an error, or an exception of the backend.
2. A read is short where the file ended; bytes before `zeros_until`, which held writes had promised,
   are zeros.
3. A read that joined another one which failed goes again, by itself: the fault may be in bytes
   that it never asked for. At once, as a write that came after it may be waiting for its end.
4. A write that failed and that nobody asked about before its ticket was dropped leaves its error in
   `deferred`, for the next flush, sync or close. So whoever ends tickets lets go of each before it
   ends the next: a flush is the ticket behind all those that it waits for.
5. When anybody hears of an end, the file's state is right already.

Who may call: any thread, with the GIL, which guards every field.
"""

import os

from cpython.ref cimport Py_DECREF
from libc.errno cimport EIO
from libc.stdint cimport int64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from ._backend cimport READ, SYNC, WRITE, Kind
from ._drivers cimport Job
from ._flight cimport Flight, SyncFlight, receive_all
from ._gil cimport give_way
from ._log cimport RECEIVED, error_of_receipt
from ._recorder cimport ENDED, FAILED, RequestRow, RowState, code_of
from ._scheduler cimport Scheduler, count_time
from ._system cimport iolift_now_ns
from ._ticket cimport (
    DONE, FLYING, FROM_DEVICE, HELD, Desk, Record, Ticket, end_ticket, tell,
)
from ._trace cimport Event
from ._window cimport Tickets, Window, Writes
from .errors import PoisonedError

cdef enum:
    # Tickets that end in a row before other threads get a chance.
    BREATH = 256


cdef class LandingDesk(Desk):
    def __cinit__(self, *args, **kwargs):
        self.window = Window()
        self.flights = []
        self.syncs = []
        self.unlanded = []

    cdef void strike_off(self) noexcept:
        self.is_listed = False

    cdef int remember(self, Ticket ticket) except -1:
        # It failed, and nobody was told, nor can be any more.
        if self.deferred is None:
            self.deferred = ticket.failure or self.describe(ticket, ticket.error)
        return 0

    cdef object describe(self, Ticket ticket, int error):
        if ticket.poisoned:
            return poisoned(self)
        return OSError(error, os.strerror(error), self.name)

    cdef int landed(self, Job job) except -1:
        cdef list heard = [], hubs = []
        cdef Flight flight
        if isinstance(job, SyncFlight):
            land_sync(self, <SyncFlight>job, heard, hubs)
        else:
            flight = <Flight>job
            flight.conclude()
            self.scheduler.landed(flight.kind, flight.launched_operations)
            if flight.kind == READ:
                land_reads(self, flight, heard, hubs)
            else:
                land_writes(self, flight, heard, hubs)
        try:
            self.launch_syncs(False)
            self.scheduler.go_on()
        finally:
            # Whatever becomes of those that go on: these have ended.
            self.scheduler.drivers.land()
            tell(heard, hubs)
        self.at_rest()
        return 0

    cdef int raise_deferred(self) except -1:
        error, self.deferred = self.deferred, None
        if error is not None:
            raise error
        return 0

    cdef int at_rest(self) except -1:
        # After anything has ended; the file closes here when it was left open for its tickets.
        return 0

    cdef int launch_syncs(self, bint here) except -1:
        raise NotImplementedError

    cdef int read_again(self, Ticket ticket) except -1:
        raise NotImplementedError

    cdef int64_t move_straight(self, Kind kind, char* memory, int64_t size,
                               int64_t position) except? -1:
        raise NotImplementedError


cdef object poisoned(LandingDesk self):
    if self.log is not None:
        return PoisonedError(
            self.poison, f"the file refused a change that the journal has "
            f"({os.strerror(self.poison)}): nothing more is accepted, the next open makes it good",
            self.name)
    return PoisonedError(
        self.poison, f"a sync failed before ({os.strerror(self.poison)}): what was written "
        f"may be lost, and no further write or sync is accepted", self.name)


cdef int hold_read(LandingDesk self, Ticket ticket) except -1:
    self.window.add_read(ticket)
    enlist(self)
    return 0


cdef int enlist(LandingDesk self) except -1:
    # It holds something: the scheduler looks at it when time has passed or something has landed.
    if not self.is_listed:
        self.scheduler.desks.add(self)
        self.is_listed = True
    return 0


cdef int refuse_held(LandingDesk self, list heard, list hubs) except -1:
    # After a sync has failed: held writes and syncs learn it, and never go. What the journal has of
    # them it keeps, as their buffers are the callers' again.
    cdef Writes writes
    cdef Ticket ticket
    cdef Py_ssize_t i
    if self.window.writes.has_records:
        receive_all(self.window.writes)         # no others come any more
    writes = self.window.take_writes(Writes())
    self.writes_due = None
    for i in range(writes.tickets.size):
        if writes.tickets.items[i] == NULL:
            continue
        ticket = take_out(&writes.tickets, i)
        if ticket.state == HELD:
            ticket.poisoned = ticket.end > ticket.offset or ticket.kind == SYNC
            ticket.error = self.poison if ticket.poisoned else 0
            end_one(self, ticket, heard, hubs)
    return 0


cdef void let_go(Ticket ticket) noexcept:
    ticket.memory = NULL
    free(ticket.holes)
    ticket.holes = NULL


cdef int end_now(LandingDesk self, Ticket ticket, int error) except -1:
    # One ticket that ends by itself.
    cdef list heard = None, hubs = None
    if ticket.awaiter is not None or ticket.watchers is not None:
        heard, hubs = [], []
    ticket.error = error
    end_one(self, ticket, heard, hubs)
    if self.scheduler.parked:
        self.scheduler.go_on()
    self.scheduler.drivers.land()
    if heard is not None:
        tell(heard, hubs)
    self.at_rest()
    return 0


cdef int end_one(LandingDesk self, Ticket ticket, list heard, list hubs) except -1:
    cdef Record record = ticket.record
    cdef bint failed = ticket.error != 0 or ticket.failure is not None
    let_go(ticket)
    if ticket.kind != READ or ticket.is_into or failed:
        ticket.owner = None
    elif ticket.got < ticket.end - ticket.offset:
        ticket.owner = ticket.owner[:ticket.got]        # a copy: the rest is not kept alive
    ticket.state = DONE
    if self.scheduler.recorder is not None:
        record_ticket(self, ticket, FAILED if failed else ENDED)
    self.scheduler.drivers.wake_at_landing(&ticket.sleepers)
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


cdef void record_ticket(LandingDesk self, Ticket ticket, RowState state) noexcept:
    cdef RequestRow* row
    cdef Record record = ticket.record
    if ticket.kind == WRITE and ticket.end == ticket.offset:
        return                          # a barrier of ours, or nothing
    row = self.scheduler.recorder.next_request()
    row.file = self.file_number
    row.kind, row.source, row.state = ticket.kind, ticket.source, state
    row.error = ticket.error or (EIO if state == FAILED else 0)
    row.offset, row.length = ticket.offset, ticket.end - ticket.offset
    row.submitted_ns = ticket.submitted_ns
    row.companions = ticket.companions
    row.extent_offset, row.extent_length = ticket.extent_offset, max(
        <int64_t>0, ticket.extent_end - ticket.extent_offset)
    if record is not None:
        row.batch, row.reason = record.number, code_of(record.reason)
        row.dispatched_ns, row.started_ns = record.dispatched_ns, record.started_ns
        row.ended_ns = record.landed_ns
    if row.ended_ns == 0:
        row.ended_ns = iolift_now_ns()


cdef RequestRow* record_call(LandingDesk self, Kind kind, int64_t offset, int64_t length,
                             int64_t began_ns, int64_t result) noexcept:
    # One that passed the window by. result: bytes, or -errno.
    cdef RequestRow* row = self.scheduler.recorder.next_request()
    row.file = self.file_number
    row.kind, row.state = kind, FAILED if result < 0 else ENDED
    row.reason = code_of("call")
    row.error = <int>-result if result < 0 else 0
    row.offset = row.extent_offset = offset
    row.length = row.extent_length = length
    row.submitted_ns = row.dispatched_ns = row.started_ns = began_ns
    row.ended_ns = iolift_now_ns()
    return row


cdef void record_io(LandingDesk self, Kind kind, int64_t offset, int64_t length, int64_t began_ns,
                    int64_t result, uint64_t batch) noexcept:
    # One that no batch has in its log.
    cdef Event event = Event(offset, length, length, result, began_ns, iolift_now_ns(), kind, 1)
    self.scheduler.recorder.add_io(self.file_number, batch, &event)


cdef Ticket take_out(Tickets* tickets, Py_ssize_t place):
    ticket = <Ticket>tickets.items[place]
    tickets.items[place] = NULL
    Py_DECREF(ticket)
    return ticket


cdef int end_all(LandingDesk self, Tickets* tickets, list heard, list hubs,
                 bint breathes) except -1:
    cdef Ticket ticket
    cdef Py_ssize_t i
    for i in range(tickets.size):
        if tickets.items[i] == NULL:
            continue
        ticket = take_out(tickets, i)
        if ticket.state == FLYING:
            if ticket.kind == SYNC and self.log is None:
                ticket.state = HELD
                self.syncs.append(ticket)
                continue
            if ticket.kind == SYNC:         # to which no receipt is left, but what was refused
                ticket.failure, self.deferred = self.deferred, None
            end_one(self, ticket, heard, hubs)
        if breathes and i % BREATH == BREATH - 1:
            ticket = None
            give_way()
    return 0


cdef int count(LandingDesk self, Flight flight) except -1:
    cdef Scheduler scheduler = self.scheduler
    if not flight.has_io:
        return 0
    scheduler.counters.batches += 1
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
    if flight.failure is not None:
        for p in range(tickets.size):
            if tickets.items[p] != NULL:
                ticket = <Ticket>tickets.items[p]
                if ticket.state == FLYING and ticket.end > ticket.offset:
                    ticket.failure = flight.failure
        return 0
    for p in range(flight.n):
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


cdef int land_reads(LandingDesk self, Flight flight, list heard, list hubs) except -1:
    cdef Ticket ticket
    cdef Py_ssize_t piece
    cdef int64_t outcome
    self.flights.remove(flight)
    if flight.failure is None:
        count(self, flight)
    take_outcomes(flight, &flight.reads.tickets)
    for ticket in flight.joined or ():
        piece = ticket.piece
        outcome = -EIO if flight.failure is not None else flight.piece_outcome(piece)
        end_joined(self, ticket, flight.pointers[piece], flight.offsets[piece], outcome, heard,
                   hubs)
    flight.joined = None
    return end_all(self, &flight.reads.tickets, heard, hubs, True)


cdef int end_joined(LandingDesk self, Ticket ticket, const char* memory, int64_t offset,
                    int64_t outcome, list heard, list hubs) except -1:
    # outcome: the bytes at `memory`, from `offset` in the file, or -errno.
    if outcome < 0:
        # The fault may be in bytes that this one never asked for.
        ticket.record = None
        ticket.source = FROM_DEVICE
        return self.read_again(ticket)
    ticket.got = min(ticket.got, max(<int64_t>0, offset + outcome - ticket.offset))
    memcpy(ticket.memory, memory + (ticket.offset - offset), ticket.got)
    return end_one(self, ticket, heard, hubs)


cdef int land_writes(LandingDesk self, Flight flight, list heard, list hubs) except -1:
    if flight.failure is None:
        count(self, flight)
    if flight.journal_failed:
        write_what_was_received(self, &flight.writes.tickets)
    else:
        take_outcomes(flight, &flight.writes.tickets)
        mark_superseded(flight)
    if self.log is not None:
        hold_back_checkpoints(self, &flight.writes.tickets)
    failed = any_failed(&flight.writes.tickets)
    # Until now reads had to see them, and no others could go.
    self.window.flying = None
    # Who comes in between must find in `deferred` what nobody else hears of.
    end_all(self, &flight.writes.tickets, heard, hubs, not failed)
    if self.log is not None and not self.window.has_writes():
        self.refusals_landed = self.log.refusals
    return 0


cdef int write_what_was_received(LandingDesk self, const Tickets* tickets) except -1:
    # The journal has failed under a generation: what it received before goes into the file, one by
    # one; the others learn what became of them.
    cdef Py_ssize_t i
    cdef Ticket ticket
    cdef int64_t size, got
    for i in range(tickets.size):
        if tickets.items[i] == NULL:
            continue
        ticket = <Ticket>tickets.items[i]
        if ticket.state != FLYING or ticket.receipt is None:
            continue
        if ticket.receipt.state != RECEIVED:
            ticket.failure = error_of_receipt(ticket.receipt)
            continue
        if ticket.end == ticket.offset:
            continue                    # its bytes came with another one, that had its key first
        size = ticket.end - ticket.offset
        got = self.move_straight(WRITE, ticket.memory, size, ticket.offset)
        if got != size:
            ticket.error = <int>-got if got < 0 else EIO
    return 0


cdef int hold_back_checkpoints(LandingDesk self, const Tickets* tickets) except -1:
    # For good, where the file has refused what the journal has: the next open writes it again.
    cdef Py_ssize_t i
    cdef Ticket ticket
    for i in range(tickets.size):
        if tickets.items[i] == NULL or self.poison:
            continue
        ticket = <Ticket>tickets.items[i]
        if ((ticket.error or ticket.failure is not None) and ticket.receipt is not None
                and ticket.receipt.state == RECEIVED):
            self.unlanded.append(ticket.receipt if ticket.receipt.head is None
                                 else ticket.receipt.head)
            self.poison = ticket.error or EIO
    return 0


cdef bint any_failed(const Tickets* tickets) noexcept:
    cdef Ticket ticket
    cdef Py_ssize_t i
    for i in range(tickets.size):
        if tickets.items[i] != NULL:
            ticket = <Ticket>tickets.items[i]
            if ticket.error or ticket.failure is not None:
                return True
    return False


cdef void mark_superseded(Flight flight) noexcept:
    cdef Ticket ticket
    cdef Py_ssize_t p
    if not flight.has_io or flight.failure is not None:
        return
    for p in range(flight.n):
        ticket = <Ticket>flight.writes.tickets.items[flight.owners[p]]
        # The ragged ends of direct writes are in no extent.
        ticket.superseded = ticket.extent_end == 0 and flight.batch.ragged.size == 0


cdef int land_sync(LandingDesk self, SyncFlight flight, list heard, list hubs) except -1:
    cdef Ticket ticket
    cdef int error = <int>-flight.operation.result if flight.operation.result < 0 else 0
    self.sync_flying = False
    self.scheduler.landed(SYNC, 1)
    failure = None
    try:
        flight.lane.raise_pending()
    except BaseException as raised:
        failure = raised
    self.scheduler.io.release(flight.lane)
    if self.scheduler.recorder is not None:
        record_io(self, SYNC, 0, 0, flight.dispatched_ns, flight.operation.result, 0)
    if error:
        self.poison = error
    elif failure is None:
        failure, self.deferred = self.deferred, None
    for ticket in flight.tickets:
        ticket.error = error
        ticket.failure = failure
        end_one(self, ticket, heard, hubs)
    if self.poison:
        refuse_held(self, heard, hubs)
    return 0
