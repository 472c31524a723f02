# What open files share: options and backend.

from libc.stdint cimport uint32_t

from ._backend cimport Backend
from ._costs cimport Costs
from ._plan cimport Rule
from ._scheduler cimport Scheduler
from ._sort cimport Order


cdef class Coalescer:
    cdef Backend io
    cdef Order parsed_order
    cdef Rule rule
    cdef uint32_t generation        # of forks, when it was made
    cdef bint is_closed
    cdef bint is_attached           # what it records is saved at exit
    cdef object files               # weakref.WeakSet of FileCore
    cdef Scheduler scheduler
    cdef double max_waste
    cdef dict costs                 # of gap="auto": by (device, whether it is direct)
    cdef object __weakref__
    cdef readonly str order
    cdef int enter(self) except -1
    cdef Costs costs_of(self, int descriptor, bint direct)
