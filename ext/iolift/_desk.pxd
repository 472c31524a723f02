# One file's place in the coalescer: what it holds, what of it flies, and in which order it goes.

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t

from ._backend cimport Kind
from ._batch cimport Target
from ._drivers cimport Job
from ._flight cimport Flight, SyncFlight
from ._scheduler cimport Scheduler
from ._ticket cimport Desk, Ticket
from ._window cimport Window


cdef struct Solo:
    # A read that its caller does itself, where it stands. Lives on the caller's stack.
    int64_t offset
    int64_t end
    char* memory
    PyObject* joined            # a list of Tickets, owned; NULL while nobody has joined
    Solo* next
    Solo** place                # what points here


cdef class FileDesk(Desk):
    cdef Scheduler scheduler
    cdef Window window
    cdef Target target
    cdef readonly object name
    cdef int64_t arm                # where the last batch ended: the elevator goes on from here
    cdef int poison                 # the errno of a failed sync, for good
    cdef Py_ssize_t pending         # tickets that have not ended
    cdef list flights               # reads under way
    cdef Solo* solos                # ... and those in their callers' threads
    cdef Py_ssize_t direct_writes   # in their callers' threads, past the window
    cdef uint64_t write_changes     # goes up when one of these begins or ends
    cdef str reads_due              # the hold has ended, for this reason, and they could not go
    cdef str writes_due
    cdef bint is_plain              # one system call may do what one request asks
    cdef bint asks_cache            # ... and tell whether the page cache has it
    cdef bint is_listed             # in scheduler.desks
    cdef bint reads_awaited         # on an event loop whose turn has not ended
    cdef bint writes_awaited
    cdef int64_t last_read_ns       # when the last one was submitted
    cdef int64_t last_write_ns
    cdef list syncs                 # tickets whose earlier writes are all in the file
    cdef bint sync_flying
    cdef object deferred            # the error of a write that nobody asked for

    cdef int submit(self, Ticket ticket) except -1
    cdef bint reads_go_straight(self) noexcept
    cdef bint writes_go_straight(self) noexcept
    cdef bint has_joinable(self, int64_t offset, int64_t end) noexcept
    cdef int demand(self, Ticket ticket) except -1
    cdef int dispatch_reads(self, str reason) except -1
    cdef int dispatch_writes(self, str reason) except -1
    cdef int launch_syncs(self, bint here) except -1
    cdef int settle_writes(self) except -1
    cdef int settle_reads(self) except -1
    cdef int drain(self) except -1
    cdef int raise_deferred(self) except -1
    cdef int64_t read_straight(self, char* memory, int64_t size, int64_t position) except? -1
    cdef int64_t move_straight(self, Kind kind, char* memory, int64_t size,
                               int64_t position) except? -1
    cdef int at_rest(self) except -1


cdef int64_t file_size(FileDesk self) except -1
cdef object poisoned(FileDesk self)
cdef Ticket new_ticket(FileDesk desk, Kind kind, int64_t offset, int64_t end, char* memory,
                       object owner)
