"""Durable: where the requests of a file with a journal meet the log.

    submit -> hold_write: record gathers | ticket is held
                             |                  |
              a commit, of whoever waits        |  the hold ends as ever: a generation flies
                             |                  v
                         received ------> the flight begins with the receipt of its last record
                                                |
                                             landed -> landed_through -> a checkpoint may pass it

1. A write's record gathers in the moment in which its ticket is held, so that records are in the
   order of submission; a truncate's, in the moment in which it takes its place before others.
2. A generation of writes reaches the file only when every record of it is received. What was not
   received when the journal failed never does; what was, does.
3. What a checkpoint may pass is what has landed of every write before, to whichever file of the
   journal; a write that its file refused holds it back for good.
4. Admission keeps room in the journal for all that has gathered: a flight never waits for space
   that only its own landing would make.

Who may call: any thread, with the GIL.
"""

from libc.stdint cimport int64_t, uint64_t

from ._landing cimport LandingDesk, end_now, enlist
from ._log cimport COMMIT_BYTES, RECEIVED, Log, Receipt, error_of_receipt
from ._records cimport WRITE_RECORD
from ._ticket cimport FLYING, HELD, Ticket
from ._window cimport Writes

cdef int hold_write(LandingDesk self, Ticket ticket) except -1:
    cdef Receipt receipt = None
    cdef Writes writes
    if ticket.end > ticket.offset:
        receipt = self.log.add(WRITE_RECORD, self.target_number, ticket.offset, ticket.key or b"",
                               ticket.owner, ticket.memory, ticket.end - ticket.offset)
        if self.log.was_known:
            # It was written before: what is left of it is to wait for that.
            self.scheduler.held_bytes -= ticket.end - ticket.offset
            ticket.end = ticket.offset
            ticket.receipt, receipt = receipt, None
            self.window.writes.has_records = True
    try:
        self.window.add_write(ticket)
    except BaseException:
        if receipt is not None:
            self.log.withdraw(receipt)
        raise
    if receipt is None:
        return 0
    writes = self.window.writes
    writes.has_records = True
    ticket.receipt = receipt
    if writes.first_receipt is None:
        writes.first_receipt = receipt if receipt.head is None else receipt.head
    if self.log.gathered_bytes >= COMMIT_BYTES:
        self.log.commit_aside(self.scheduler.drivers, False)
    return 0


cdef bint is_journal_tight(LandingDesk self, int64_t size) noexcept:
    # Whether the journal has no room for one more write until something lands. Lets nobody in.
    cdef Log log = self.log
    if log.poison is not None or log.has_room(size, len(log.segments)):
        return False
    if log.gathered_bytes == 0 and not any_writes(self.sharers):
        return False                        # who is alone has nobody to wait for
    return not log.has_room(size, log.needed_segments(landed_through(self)))


cdef bint any_writes(list desks) noexcept:
    cdef LandingDesk desk
    for desk in desks:
        if desk.window.has_writes() or desk.solo_writes:    # or a truncate is under way
            return True
    return False


cdef uint64_t landed_through(LandingDesk self) noexcept:
    # Every record up to here is in its file. O(files).
    cdef uint64_t through = self.log.chain.durable
    cdef LandingDesk desk
    for desk in self.sharers:
        if desk.window.flying is not None:
            through = before(through, desk.window.flying.first_receipt)
        through = before(through, desk.window.writes.first_receipt)
        for receipt in desk.unlanded:
            through = before(through, receipt)
    return through


cdef inline uint64_t before(uint64_t through, Receipt receipt) noexcept:
    # One without a place comes later than all that are durable.
    if receipt is None or receipt.place == 0:
        return through
    return min(through, receipt.place - 1)


cdef bint has_unheard_refusals(LandingDesk self) noexcept:
    # Whether a ticket that is held or flying may be of a record that was refused.
    return self.log.refusals != self.refusals_landed and self.window.has_writes()


cdef int hold_sync(LandingDesk self, Ticket ticket) except -1:
    # It ends when all that was submitted before is received, to whichever file of the journal.
    cdef Receipt last = self.log.youngest
    if last is None or last.state >= RECEIVED:
        return end_sync(self, ticket, last)
    ticket.receipt = last
    ticket.state = FLYING

    def end(receipt):
        end_sync(self, ticket, receipt)

    last.add_done_callback(end)
    return 0


cdef int end_sync(LandingDesk self, Ticket ticket, Receipt last) except -1:
    # What was refused for want of room is told on its own ticket, or comes with this one.
    ticket.receipt = None
    if last is not None and self.log.poison is not None:
        ticket.failure = error_of_receipt(last)
    if ticket.failure is None and has_unheard_refusals(self):
        ticket.state = HELD
        self.window.add_write(ticket)       # it follows them, and those before
        enlist(self)
        self.writes_due = self.writes_due or "flush"
        return self.scheduler.go_on()
    if ticket.failure is None:
        ticket.failure, self.deferred = self.deferred, None
    return end_now(self, ticket, 0)
