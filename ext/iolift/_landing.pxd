# The state of a file's desk, and what becomes of its tickets when something has landed.

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t

from ._scheduler cimport Scheduler
from ._ticket cimport Desk, Ticket
from ._window cimport Window


cdef struct Solo:
    # A read that its caller does itself, where it stands. Lives on the caller's stack.
    int64_t offset
    int64_t end
    char* memory
    uint64_t write_changes      # of its desk, when it began
    PyObject* joined            # a list of Tickets, owned; NULL while nobody has joined
    Solo* next
    Solo** place                # what points here


cdef class LandingDesk(Desk):
    cdef Scheduler scheduler
    cdef Window window
    cdef readonly object name
    cdef int poison                 # the errno of a failed sync, for good
    cdef Py_ssize_t pending         # tickets that have not ended
    cdef list flights               # reads under way
    cdef Solo* solos                # ... and those in their callers' threads
    cdef Py_ssize_t direct_writes   # in their callers' threads, past the window
    cdef uint64_t write_changes     # goes up when one of these begins or ends
    cdef str reads_due              # the hold has ended, for this reason, and they could not go
    cdef str writes_due
    cdef list syncs                 # tickets whose earlier writes are all in the file
    cdef bint sync_flying
    cdef bint is_listed             # in scheduler.desks
    cdef object deferred            # the error of a write that nobody asked for

    cdef int launch_syncs(self, bint here) except -1
    cdef int raise_deferred(self) except -1
    cdef int at_rest(self) except -1


cdef object poisoned(LandingDesk self)
cdef int hold_read(LandingDesk self, Ticket ticket) except -1
cdef int enlist(LandingDesk self) except -1
cdef int refuse_held(LandingDesk self, list heard, list hubs) except -1
cdef void let_go(Ticket ticket) noexcept
cdef int end_now(LandingDesk self, Ticket ticket, int error) except -1
cdef int land_solo(LandingDesk self, Solo* solo, int64_t got) except -1
