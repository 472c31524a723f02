# The plan of many blocks that lie close together. Pure: no clock, no lock, no I/O, no Python
# objects.

from libc.stdint cimport int64_t

from ._even cimport EvenPlan
from ._plan cimport Rule
from ._sort cimport Packing


cdef enum:
    MAX_MAP_BITS = 25           # a larger map leaves the caches: no faster than sorting


cdef inline bint is_dense(const Packing* packing, Py_ssize_t n) noexcept nogil:
    # At least every 32nd block is asked for, and the map is not too large.
    return packing.key_bits <= MAX_MAP_BITS and <int64_t>1 << packing.key_bits <= 32 * n


# As plan_even, for requests that are dense and disjoint.
cdef int plan_dense(const int64_t* offsets, int64_t length, Py_ssize_t n, const Packing* packing,
                    const Rule* rule, int64_t start, EvenPlan* plan) noexcept nogil
