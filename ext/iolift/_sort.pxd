# Requests in planning order. Pure: no clock, no lock, no I/O, no Python objects.

from libc.stdint cimport int64_t

from ._request cimport Request


cdef enum Order:
    ORDER_ELEVATOR = 0      # ascending by offset
    ORDER_FIFO = 1          # as they came


# Fills `requests` (room for n) with those that ask for bytes. lengths may be NULL: `length` serves
# all. Returns how many, or -1: out of memory.
cdef Py_ssize_t load_requests(const int64_t* offsets, const int64_t* lengths, int64_t length,
                              Py_ssize_t n, Order order, Request* requests) noexcept nogil
cdef void sort_by_index(Request* requests, Py_ssize_t n) noexcept nogil


# The same a block at a time, for who looks at each request once: most of what a large plan costs
# is memory that is touched for the first time. next_block returns 0 at the end; the block is valid
# until the next call. open_stream returns NULL when out of memory.
cdef struct Stream
cdef Stream* open_stream(const int64_t* offsets, const int64_t* lengths, int64_t length,
                         Py_ssize_t n, Order order) noexcept nogil
cdef Py_ssize_t next_block(Stream* stream, const Request** block) noexcept nogil
cdef void close_stream(Stream* stream) noexcept nogil


cdef Order parse_order(object name) except *
