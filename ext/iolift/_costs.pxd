# What an I/O costs, and what a byte costs: from these, how wide a hole is worth reading through.

from libc.stdint cimport int64_t


cdef enum:
    LEVELS = 4
    GUESSES = 15


cdef struct Guess:
    # Of io / byte. Over the batches so far, of ln(ns / (ios + size / ratio)):
    double mean                 # ... so exp(mean) is what an I/O costs, if the guess is right
    double variance             # ... least where it is


cdef struct Level:
    double weight               # of the batches so far, in batches
    int best
    Guess[GUESSES] guesses


cdef class Costs:
    cdef Level[LEVELS] levels
    cpdef int64_t gap(self, Py_ssize_t requests) noexcept
    cpdef int learn(self, Py_ssize_t requests, Py_ssize_t ios, int64_t size,
                    int64_t ns) except -1
