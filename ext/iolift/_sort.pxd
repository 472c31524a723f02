# Requests in planning order. Pure: no clock, no lock, no I/O, no Python objects.

from libc.stdint cimport int64_t, uint32_t, uint64_t

from ._request cimport Request


cdef enum Order:
    ORDER_ELEVATOR = 0      # ascending by offset
    ORDER_FIFO = 1          # as they came


# Fills `requests` (room for n) with those that ask for bytes. lengths may be NULL: `length` serves
# all. Returns how many, or -1: out of memory.
cdef Py_ssize_t load_requests(const int64_t* offsets, const int64_t* lengths, int64_t length,
                              Py_ssize_t n, Order order, Request* requests) noexcept nogil
cdef void sort_by_index(Request* requests, Py_ssize_t n) noexcept nogil


cdef enum:
    MAX_PASSES = 8


# Sorts words by their bits [low_bit, high_bit), stable. The result is in words[0]; it and spare[0]
# may be swapped. counts: room for MAX_PASSES << choose_digit(n), not on the stack, which may be
# small.
cdef int radix_sort(uint64_t** words, uint64_t** spare, uint32_t* counts, Py_ssize_t n,
                    int low_bit, int high_bit) noexcept nogil
cdef int choose_digit(Py_ssize_t n) noexcept nogil


cdef struct Packing:
    # How a request becomes a word: (offset - base) >> shift, above index_bits of index. Low bits
    # that are the same in all offsets are not stored; if the rest is too wide, more low bits go,
    # and `exact` says whether that was so, and equal words must be looked at again.
    int64_t base
    int shift
    int index_bits
    int key_bits
    bint exact


# For n > 0.
cdef Packing choose_packing(const int64_t* offsets, Py_ssize_t n) noexcept nogil


cdef Order parse_order(object name) except *
