# When what is held of a file goes, and in which order.

from libc.stdint cimport int64_t

from ._backend cimport Kind
from ._batch cimport Target
from ._landing cimport LandingDesk
from ._ticket cimport Ticket


cdef class DispatchDesk(LandingDesk):
    cdef Target target
    cdef int64_t arm                # where the last batch ended: the elevator goes on from here
    cdef bint reads_awaited         # on an event loop whose turn has not ended
    cdef bint writes_awaited
    cdef int64_t last_read_ns       # when the last one was submitted
    cdef int64_t last_write_ns

    cdef int submit(self, Ticket ticket) except -1
    cdef int demand(self, Ticket ticket) except -1
    cdef int dispatch_reads(self, str reason) except -1
    cdef int dispatch_writes(self, str reason) except -1
    cdef int settle_writes(self) except -1
    cdef int settle_reads(self) except -1
    cdef int drain(self) except -1


cdef int64_t file_size(DispatchDesk self) except -1
cdef Ticket new_ticket(DispatchDesk desk, Kind kind, int64_t offset, int64_t end, char* memory,
                       object owner)
