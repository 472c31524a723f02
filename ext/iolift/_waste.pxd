# How wide a hole may be for all that is read in vain to stay within its bound. Pure.

from libc.stdint cimport int64_t

from ._plan cimport Rule
from ._request cimport Request


# requests: in planning order. At most rule.gap, 0 where it would bridge no hole; -1: out of
# memory.
cdef int64_t affordable_gap(const Request* requests, Py_ssize_t n, const Rule* rule,
                            double max_waste) noexcept nogil
