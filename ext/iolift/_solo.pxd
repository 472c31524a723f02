# What passes the window by: its caller does it itself, where it stands.

from libc.stdint cimport int64_t

from ._backend cimport Kind
from ._landing cimport LandingDesk, Solo


cdef int begin_solo(LandingDesk self, Solo* solo, Kind kind, int64_t offset, int64_t end,
                    char* memory) except -1
cdef int end_solo(LandingDesk self, Solo* solo, int64_t got) except -1
cdef bint is_behind_solo(LandingDesk self, int64_t offset, int64_t end) noexcept
cdef bint meets_solo(LandingDesk self, Kind kind, int64_t offset, int64_t end) noexcept
# Its thread is in the middle of it, and in a signal handler's call: it can't be waited for.
cdef bint is_interrupted(LandingDesk self, const Solo* solo) noexcept
cdef Solo* joinable_solo(LandingDesk self, int64_t offset, int64_t end) noexcept
