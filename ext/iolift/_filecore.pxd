# An open file and the calls on it.

from libc.stdint cimport int64_t

from ._backend cimport Kind
from ._batch cimport Batch, Target
from ._coalescer cimport Coalescer


cdef class FileCore:
    cdef readonly Coalescer coalescer
    cdef readonly object name
    cdef readonly bint readable, writable, direct
    cdef bint is_closed
    cdef bint owns_descriptor
    cdef Py_ssize_t active          # calls under way; the last one out closes the descriptor
    cdef Target target
    cdef int64_t arm                # where the last batch ended: the elevator goes on from here
    cdef int poison                 # the errno of a failed sync, for good
    cdef object __weakref__
    cdef int enter(self, Kind kind) except -1
    cdef int leave(self) except -1
    cdef Batch batch(self, Kind kind, Py_ssize_t n)
