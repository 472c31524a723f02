# A batch on its way for tickets: what a window let go of, until it has landed.

from libc.stdint cimport int64_t, uint32_t, uint64_t

from ._backend cimport Kind, Lane, Operation
from ._batch cimport Batch
from ._drivers cimport Job
from ._request cimport Request
from ._ticket cimport Desk, Record, Ticket
from ._window cimport Reads, Window, Writes


cdef class Flight(Job):
    cdef Desk desk
    cdef Batch batch
    cdef Kind kind
    cdef Reads reads                # one of the two
    cdef Writes writes
    cdef Record record
    # The pieces that its tickets are moved in: where in the file, and in memory, and whose.
    cdef Py_ssize_t n
    cdef char** pointers
    cdef int64_t* offsets
    cdef int64_t* lengths
    cdef uint32_t* owners           # places among the tickets
    cdef bint is_planned            # `batch` may be looked at
    cdef bint has_io
    cdef bint is_down               # landed
    cdef object failure             # of the batch as a whole
    cdef bint is_journalled         # it begins with the receipts of its records
    cdef bint journal_failed        # ... of which one never came: nothing was moved
    # The pieces by offset, and how far any of those up to one reaches.
    cdef const Request* sorted
    cdef Request* sorted_copy       # where the plan is in another order
    cdef Py_ssize_t sorted_count
    cdef int64_t* reach
    cdef list joined                # tickets that joined; each knows its piece
    # counted after the flight
    cdef int64_t bytes_moved
    cdef Py_ssize_t duplicates

    cdef Py_ssize_t launched_operations

    cdef Py_ssize_t operations(self) noexcept
    cdef int64_t bytes_asked(self) noexcept
    cdef int64_t bytes_planned(self) noexcept
    cdef int plan(self, int64_t start) except -1
    cdef Py_ssize_t find(self, int64_t offset, int64_t end) noexcept
    cdef bint overlaps(self, int64_t offset, int64_t end) except -1
    cdef int64_t end(self) noexcept
    cdef int conclude(self) except -1
    cdef int64_t piece_outcome(self, Py_ssize_t piece) noexcept
    cdef int count_plan(self) except -1


cdef Flight new_flight(Desk desk, Kind kind, str reason, int64_t now)
# What is held becomes the flight's. Nothing in here fails: what can't be had fails the tickets.
cdef int take_reads(Flight self, Window window, uint64_t number) except -1
cdef int take_writes(Flight self, Window window, uint64_t number) except -1
cdef bint receive_all(Writes writes) except -1


cdef class SyncFlight(Job):
    cdef Desk desk
    cdef list tickets
    cdef Lane lane
    cdef Operation operation
    cdef int64_t dispatched_ns
    cdef object failure
