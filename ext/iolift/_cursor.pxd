# The position of a file object.

from libc.stdint cimport int64_t

from ._filecore cimport FileCore


cdef class Cursor:
    cdef FileCore core
    cdef object lock
    cdef int64_t position
    cdef bint appends, is_write_behind
    cdef Py_ssize_t written, flushed    # calls of write, and those of them that a flush came after
    cdef object error                   # was raised by `fileno`, which a caller may have swallowed
    cdef object at_position(self)
    cdef object read(self, object n)
    cdef object readinto(self, object buffer)
    cdef object readall(self)
    cdef object write(self, object data)
    cdef object seek(self, object offset, object whence)
    cdef object tell(self)
    cdef object truncate(self, object size)
    cdef object fileno(self)
    cdef object sync(self)
    cdef int64_t find_end(self) except -1
    cdef int flush_core(self) except -1
    cdef int raise_error(self) except -1
