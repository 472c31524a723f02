# The state of a file's desk, and what becomes of its tickets when something has landed.

from cpython.object cimport PyObject
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from ._backend cimport Kind
from ._log cimport Log
from ._recorder cimport RequestRow, RowState
from ._scheduler cimport Scheduler
from ._ticket cimport Desk, Ticket
from ._window cimport Window


cdef struct Solo:
    # What its caller does itself, where it stands (_solo.pyx). Lives on the caller's stack.
    Kind kind
    int64_t offset              # of several ranges: from the first byte of any to the last
    int64_t end
    char* memory                # NULL: nobody can join
    PyObject* joined            # a list of Tickets, owned; NULL while nobody has joined
    unsigned long thread
    void* older                 # the Writes that it waits for, which were flying; NULL: none
    bint begun                  # it waits for nobody any more
    Solo* next                  # the one that came before
    Solo** place                # what points here


cdef class LandingDesk(Desk):
    cdef Scheduler scheduler
    cdef Window window
    cdef readonly object name
    cdef int32_t file_number        # in the recorder
    cdef int poison                 # the errno of a failed sync, for good
    cdef Py_ssize_t pending         # tickets that have not ended
    cdef list flights               # reads under way
    cdef Py_ssize_t again           # reads that went again, ever
    cdef Solo* solos                # what callers do themselves, the latest first
    cdef Py_ssize_t solo_writes     # ... those of them that write
    cdef Py_ssize_t solos_waiting   # ... and those that have not begun
    cdef str reads_due              # the hold has ended, for this reason, and they could not go
    cdef str writes_due
    cdef list syncs                 # tickets whose earlier writes are all in the file
    cdef bint sync_flying
    cdef bint is_listed             # in scheduler.desks
    cdef object deferred            # the error of a write that nobody asked for
    # of a file with a journal (_durable.pyx):
    cdef object journal             # iolift._journal.Journal, or None
    cdef Log log                    # its writing end
    cdef list sharers               # the desks of all open files of the journal, this one included
    cdef uint32_t target_number     # this file's, in the journal
    cdef uint64_t refusals_landed   # of the log's, all tickets have ended
    cdef list unlanded              # Receipts of truncates under way, and of writes that failed

    cdef int launch_syncs(self, bint here) except -1
    cdef int read_again(self, Ticket ticket) except -1
    cdef int raise_deferred(self) except -1
    cdef int at_rest(self) except -1
    cdef int64_t move_straight(self, Kind kind, char* memory, int64_t size,
                               int64_t position) except? -1


cdef object poisoned(LandingDesk self)
cdef int hold_read(LandingDesk self, Ticket ticket) except -1
cdef int enlist(LandingDesk self) except -1
cdef int refuse_held(LandingDesk self, list heard, list hubs) except -1
cdef void let_go(Ticket ticket) noexcept
cdef int end_now(LandingDesk self, Ticket ticket, int error) except -1
cdef void record_ticket(LandingDesk self, Ticket ticket, RowState state) noexcept
cdef RequestRow* record_call(LandingDesk self, Kind kind, int64_t offset, int64_t length,
                             int64_t began_ns, int64_t result) noexcept
cdef void record_io(LandingDesk self, Kind kind, int64_t offset, int64_t length, int64_t began_ns,
                    int64_t result, uint64_t batch) noexcept
cdef int end_joined(LandingDesk self, Ticket ticket, const char* memory, int64_t offset,
                    int64_t outcome, list heard, list hubs) except -1
