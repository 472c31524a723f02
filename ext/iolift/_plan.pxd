# Pure planning: requests -> extents. No clock, no lock, no I/O, no Python objects.

from libc.stdint cimport int64_t

from ._request cimport Extent, Request


cdef struct Rule:
    # What may become one I/O.
    int64_t gap             # the widest hole, in bytes, that is read through
    int64_t max_io          # no extent is longer, in bytes, unless a single request is
    int64_t alignment       # extents begin and end at multiples of it, a power of two


cdef struct ExtentArray:
    Extent* items           # owned: free_extents
    Py_ssize_t size
    Py_ssize_t room


cdef struct Merger:
    # A merge under way. Zero but for rule and start, then any number of merge_block.
    Rule rule
    int64_t start           # where the elevator is
    ExtentArray extents
    Py_ssize_t pivot        # place of the extent to be dispatched first; == all when none yet
    Py_ssize_t run          # place of the first extent that a request to come may still share
    Py_ssize_t drained      # extents that were here and were taken away
    Py_ssize_t seen         # requests so far
    int64_t previous        # where the last request began
    bint pivot_found


# Requests in planning order. first and count, by request index, may be NULL; count holds ones.
# 0, or -1: out of memory.
cdef int merge_block(Merger* merger, const Request* requests, Py_ssize_t n, int64_t* first,
                     int64_t* count) noexcept nogil
cdef void end_merge(Merger* merger) noexcept nogil
cdef int open_extent(ExtentArray* extents, int64_t offset, int64_t end,
                     Py_ssize_t lo) noexcept nogil
cdef void free_extents(ExtentArray* extents) noexcept nogil
