# An open file and the calls on it.

from libc.stdint cimport int64_t

from ._backend cimport Kind
from ._batch cimport Batch
from ._coalescer cimport Coalescer
from ._desk cimport FileDesk


cdef class FileCore(FileDesk):
    cdef readonly Coalescer coalescer
    cdef readonly bint readable, writable, direct
    cdef bint is_closed
    cdef bint is_draining           # close waits for the last ticket, and closes the descriptor
    cdef bint owns_descriptor
    cdef Py_ssize_t active          # calls under way; the last one out closes the descriptor
    cdef object __weakref__
    cdef int enter(self, Kind kind) except -1
    cdef int leave(self) except -1
