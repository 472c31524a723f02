# A file's requests from submit until they are held, and those that need not be.

from libc.stdint cimport int64_t

from ._backend cimport Kind
from ._dispatch cimport DispatchDesk


cdef class FileDesk(DispatchDesk):
    cdef bint is_plain              # one system call may do what one request asks
    cdef bint asks_cache            # ... and tell whether the page cache has it

    cdef bint reads_go_straight(self) noexcept
    cdef bint writes_go_straight(self) noexcept
    cdef bint has_joinable(self, int64_t offset, int64_t end) noexcept
    cdef int64_t read_straight(self, char* memory, int64_t size, int64_t position) except? -1
