# A file with a journal: where its requests meet the log, and what has landed of it.

from libc.stdint cimport int64_t, uint64_t

from ._landing cimport LandingDesk
from ._ticket cimport Ticket


cdef int hold_write(LandingDesk self, Ticket ticket) except -1
cdef bint is_journal_tight(LandingDesk self, int64_t size) noexcept
cdef uint64_t landed_through(LandingDesk self) noexcept
cdef bint has_unheard_refusals(LandingDesk self) noexcept
cdef int hold_sync(LandingDesk self, Ticket ticket) except -1
