# The plan of many requests of one length. Pure: no clock, no lock, no I/O, no Python objects.

from libc.stdint cimport int64_t

from ._plan cimport Rule
from ._sort cimport Packing


cdef enum:
    EVEN_FROM = 2048            # fewer are planned as fast without it


cdef struct EvenPlan:
    # The arrays to fill, owned by the caller, and what is known at the end.
    int64_t* places             # room for n + 1: where the extents begin, ascending
    int64_t* sizes              # room for n + 1: how long they are
    int64_t* first              # room for n: by request, the extent that has its first byte
    int64_t* count              # n ones: by request, its extents. NULL when are_disjoint
    Py_ssize_t size             # extents
    Py_ssize_t pivot            # place of the extent to be dispatched first
    int64_t unique              # bytes of the union of the requests
    int64_t duplicates          # requests equal to an earlier one
    int64_t moved               # bytes of all extents


cdef inline bint are_disjoint(const Packing* packing, int64_t length) noexcept nogil:
    # Requests at multiples of at least their length: equal or disjoint, one extent for each.
    return packing.shift < 63 and length <= <int64_t>1 << packing.shift


# For n > 0 requests whose packing is exact, and 0 < length <= rule.max_io; rule.alignment is not
# looked at. 0, or -1: out of memory.
cdef int plan_even(const int64_t* offsets, int64_t length, Py_ssize_t n, const Packing* packing,
                   const Rule* rule, int64_t start, EvenPlan* plan) noexcept nogil
