# The Python-facing core: a Coalescer and the files that are open on it.

from libc.stdint cimport int64_t, uint32_t

from ._arguments cimport Ranges
from ._backend cimport Backend, Kind
from ._batch cimport Batch, Target
from ._plan cimport Rule
from ._sort cimport Order


cdef class Coalescer:
    cdef Backend io
    cdef Order parsed_order
    cdef Rule rule
    cdef uint32_t generation        # of forks, when it was made
    cdef bint is_closed
    cdef object files               # weakref.WeakSet of FileCore
    cdef object trace               # list of int64[k, 3], or None
    cdef readonly str order
    cdef int enter(self) except -1


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
