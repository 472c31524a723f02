"""Costs: what gap="auto" knows of a device, learnt from the batches that it has served.

1. A batch of `ios` I/Os that moved `size` bytes took ios * io + size * byte nanoseconds, give or
   take. What is worth reading through is a hole that costs less than the I/O that it saves: one of
   at most io / byte bytes.
2. An I/O among many costs less than one alone, because the device works on several at once; so
   there is an estimate for each of LEVELS sizes of batch: the cost at the depth in use.
3. Each of GUESSES ratios, a factor of two apart, says of every batch what an I/O then cost. The
   right one says the same of all batches: what it says varies least. Noise is a share of what is
   measured, so it is the logarithms that are compared. What is old is forgotten.
4. I/Os of one size tell only the sum of the two. What the batches leave open is decided by what
   both cost on a common disk, of which the byte is the surer.
5. One batch, however late, moves an estimate by a bounded factor; several in a row that are far
   from what was expected make the past count for nothing.

No clock, no lock, no I/O; O(1) each. Who may call: any thread, with the GIL.
"""

from libc.math cimport exp, fabs, log
from libc.stdint cimport int64_t

cdef enum:
    LEAST_GAP = 1 << 9          # of the first guess; the last one is 8 MiB
    FIRST_GAP = 1 << 15         # before anything was measured
    FIRST_BEST = 6              # the guess that is FIRST_GAP

cdef double FIRST_IO = log(25000.0)                     # nanoseconds
cdef double FIRST_BYTE = FIRST_IO - log(<double>FIRST_GAP)
cdef double IO_VARIANCE = 1.5 * 1.5     # how sure these are
cdef double BYTE_VARIANCE = 0.7 * 0.7
cdef double NOISE = 0.3 * 0.3           # of one batch
cdef double MEMORY = 0.98               # of what is known, from a batch to the next
cdef double MOST_SURPRISE = 1.0


cdef inline int level_of(Py_ssize_t requests) noexcept:
    # Alone; fewer than a disk can work on at once; about as many; more.
    if requests <= 1:
        return 0
    return 1 if requests <= 8 else 2 if requests <= 32 else 3


cdef inline double ratio_of(int guess) noexcept:
    return <double>(<int64_t>LEAST_GAP << guess)


cdef class Costs:
    """The costs of an I/O and of a byte on one device, for batches of different sizes.

    requests, in each method: the size of the batch, which says how deep the device's queue is.
    """

    def __cinit__(self):
        cdef int i, k
        for i in range(LEVELS):
            self.levels[i].weight = 0
            self.levels[i].best = FIRST_BEST
            for k in range(GUESSES):
                self.levels[i].guesses[k] = Guess(FIRST_IO, 0)

    cpdef int64_t gap(self, Py_ssize_t requests) noexcept:
        """The widest hole, in bytes, that costs no more to read than the I/O that it saves."""
        return <int64_t>LEAST_GAP << self.levels[level_of(requests)].best

    cpdef int learn(self, Py_ssize_t requests, Py_ssize_t ios, int64_t size,
                    int64_t ns) except -1:
        """A batch of `ios` I/Os, all of them successful, moved `size` bytes in `ns` nanoseconds."""
        cdef Level* level = &self.levels[level_of(requests)]
        cdef double surprise
        cdef int k
        if ios <= 0 or size <= 0 or ns <= 0:
            return 0
        surprise = log(ns / (ios + size / ratio_of(level.best))) - level.guesses[level.best].mean
        level.weight = level.weight * (MEMORY if fabs(surprise) < MOST_SURPRISE else 0.5) + 1
        for k in range(GUESSES):
            follow(&level.guesses[k], log(ns / (ios + size / ratio_of(k))), level.weight)
        level.best = least_unlikely(level)
        return 0

    def estimate(self, requests):
        """(nanoseconds an I/O, nanoseconds a byte), as known so far."""
        cdef const Level* level = &self.levels[level_of(requests)]
        io = exp(level.guesses[level.best].mean)
        return io, io / ratio_of(level.best)


cdef inline void follow(Guess* guess, double value, double weight) noexcept:
    # An exponentially weighted mean and variance; `weight` counts this value already.
    cdef double surprise = value - guess.mean
    if weight > 1:
        surprise = min(max(surprise, -MOST_SURPRISE), MOST_SURPRISE)
    guess.mean += surprise / weight
    guess.variance += (surprise * surprise * (1 - 1 / weight) - guess.variance) / weight


cdef int least_unlikely(const Level* level) noexcept:
    # Minus the logarithm of the likelihood: of the batches, and of what either costs then.
    cdef int k, best = 0
    cdef double unlikely, least = 0, io, byte
    for k in range(GUESSES):
        io = level.guesses[k].mean - FIRST_IO
        byte = level.guesses[k].mean - log(ratio_of(k)) - FIRST_BYTE
        unlikely = (level.weight * level.guesses[k].variance / NOISE
                    + io * io / IO_VARIANCE + byte * byte / BYTE_VARIANCE)
        if k == 0 or unlikely < least:
            best, least = k, unlikely
    return best
