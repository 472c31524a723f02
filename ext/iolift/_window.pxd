# The requests of one file that are held now, and the overlay: held and flying writes as later
# reads must see them. No I/O, no clock, no lock.

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t

from ._log cimport Receipt
from ._overlay cimport PageIndex
from ._ticket cimport Span, Ticket


cdef struct Tickets:
    # References that the array owns; NULL where one was dropped. In the order of submission.
    PyObject** items
    Py_ssize_t size
    Py_ssize_t room


cdef struct Spans:
    Span* items
    Py_ssize_t size
    Py_ssize_t room


cdef class Reads:
    # Reads that go together.
    cdef Tickets tickets
    cdef int64_t bytes
    cdef int64_t since_ns           # when the oldest was submitted


cdef class Writes:
    # Writes and syncs that go together: a generation. Held until it is taken as a whole, then
    # flying until it has landed as a whole.
    cdef Tickets tickets
    cdef PageIndex index
    cdef int64_t bytes
    cdef int64_t since_ns
    cdef int64_t end                # one past the last byte of any
    cdef int64_t seen_from          # somebody has seen a file size that counts on writes past it
    cdef Py_ssize_t syncs
    cdef Receipt first_receipt      # of a file with a journal; None: of no record yet
    cdef bint has_records


cdef class Window:
    cdef Reads reads
    cdef Writes writes
    cdef Writes flying              # None: no write is under way
    cdef Spans left                 # scratch of `cover`

    cdef bint has_writes(self) noexcept
    cdef int64_t writes_end(self, bint with_flying) noexcept
    cdef void see_size_beyond(self, int64_t size) noexcept
    cdef int cover(self, Ticket ticket, bint with_flying) except -1
    cdef int add_read(self, Ticket ticket) except -1
    cdef int add_write(self, Ticket ticket) except -1
    cdef int64_t supersede(self, Ticket ticket, Py_ssize_t* count) except -1
    cdef int withdraw(self, Ticket ticket) except -1
    cdef Reads take_reads(self, Reads fresh)
    cdef void drop_reads(self) noexcept
    cdef Writes take_writes(self, Writes fresh)


cdef int append(Tickets* tickets, Ticket ticket) except -1
cdef void release(Tickets* tickets) noexcept
