# The caller's handle on a request, and what the request needs on its way.

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t

from ._backend cimport Kind
from ._batch cimport Batch
from ._drivers cimport Job, Sleeper
from ._log cimport Receipt


cdef enum State:
    NEW = 0                     # being made
    PARKED = 1                  # the bounds are full: waits to be held, in order
    HELD = 2                    # in the window
    FLYING = 3                  # in a batch that was dispatched, or joined to one
    DONE = 4                    # has its result or its error, for good
    CANCELLED = 5               # as if it had never been made, for good


cdef enum Source:
    FROM_DEVICE = 0
    FROM_OVERLAY = 1            # every byte came from held or flying writes
    FROM_JOIN = 2               # from a read that was under way already


cdef struct Span:
    int64_t begin
    int64_t end


cdef class Record:
    # What the tickets of a batch know of it. Shared by them; written once it has landed.
    cdef readonly uint64_t number
    cdef readonly str reason            # that ended the hold
    cdef readonly Py_ssize_t requests, extents
    cdef readonly int64_t dispatched_ns, started_ns, landed_ns
    cdef readonly int64_t bytes_asked, bytes_moved


cdef class Ticket:
    cdef Desk desk              # the file; keeps it alive
    cdef Kind kind
    cdef State state
    cdef Source source
    cdef bint seen              # of a write: a later read has bytes of it
    cdef bint is_into           # of a read: `owner` is the caller's buffer, the result a count
    cdef bint is_waited         # of a read: who submits it waits for it, and ends the hold
    cdef bint is_unasked        # of a read: answered where it was submitted, not looked at yet
    cdef bint superseded        # of a write: none of its bytes was moved
    cdef bint poisoned
    cdef bint is_heard          # somebody was told of its error
    cdef int error              # errno, 0: none
    cdef int64_t offset
    cdef int64_t end
    cdef int64_t got            # bytes
    cdef char* memory           # of `end - offset` bytes, kept alive by `owner`
    cdef object owner           # bytes, or a Buffer
    cdef object failure         # an exception that is no OSError of the kernel
    cdef Receipt receipt        # of a write to a file with a journal: of its record
    cdef bytes key              # ... that makes it known again; None
    # of a read that the overlay has a part of: what is left to be read. hole_count 1 and holes
    # NULL: all of it
    cdef Span* holes
    cdef Py_ssize_t hole_count
    cdef Py_ssize_t piece       # of the flight that it has joined
    cdef int64_t zeros_until    # bytes before it that the file does not have are zeros
    cdef int64_t submitted_ns
    cdef Record record
    cdef int64_t extent_offset
    cdef int64_t extent_end
    cdef uint32_t companions
    # who wants to hear of the end
    cdef Sleeper* sleepers      # threads
    cdef Awaiter awaiter
    cdef list watchers          # more Awaiters, and callables


cdef class Desk:
    # A file that holds requests, as its tickets, flights and scheduler see it (_desk.pyx is it).
    # for tickets:
    cdef int check_process(self) except -1
    cdef int wait(self, Ticket ticket, object timeout) except -1
    cdef bint withdraw(self, Ticket ticket) except -1
    cdef int hasten(self, Ticket ticket) except -1
    cdef int wait_received(self, Ticket ticket, object timeout) except -1
    cdef bint is_checkpointed(self, Ticket ticket) except -1
    cdef Hub hub_of(self, object loop)
    cdef object describe(self, Ticket ticket, int error)
    cdef int remember(self, Ticket ticket) except -1
    # for flights:
    cdef Batch make_batch(self, Kind kind, Py_ssize_t n)
    cdef int landed(self, Job flight) except -1
    # Whether the last read was answered where it was submitted, and whether its caller has looked.
    cdef bint answers_at_once
    cdef bint is_unasked
    # for the scheduler:
    cdef Py_ssize_t parked_here
    cdef bint is_tight(self, int64_t size) noexcept
    cdef int take(self, Ticket ticket) except -1
    cdef int64_t go_on_time(self, int64_t now) except -1
    cdef int go_on(self) except -1
    cdef int end_turn(self) except -1
    cdef int hurry(self) except -1
    cdef bint is_empty(self)
    cdef void strike_off(self) noexcept


cdef class Hub:
    # Where the tickets awaited on one event loop meet: one call into the loop for many of them.
    cdef object loop
    cdef list ready
    cdef Py_ssize_t pending         # Awaiters that have not fired
    cdef bint is_woken
    cdef bint ends_turn
    cdef object scheduler           # told at the end of a turn
    cdef int wake(self) except -1


cdef class Awaiter:
    cdef Ticket ticket
    cdef Hub hub
    cdef public object _asyncio_future_blocking
    cdef object callback
    cdef object context
    cdef bint fired
    cdef object cancel_message
    cdef bint is_cancelled
    cdef object cancellation(self)


# Ends: the state is set already. Appends to `heard` what must be told: Awaiters go to their hubs,
# callables are called by `tell`, after all that the end of the ticket changes is done.
cdef int end_ticket(Ticket ticket, list heard, list hubs) except -1
cdef void tell(list heard, list hubs) noexcept
cdef bint is_on_a_loop() except -1
cdef object outcome(Ticket ticket)
cdef object cancelled_error()
cdef bint is_observed(PyObject* ticket) noexcept
