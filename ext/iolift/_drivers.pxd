# The threads that move batches nobody stands waiting for, and the one clock of the hold.

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t

from ._posix cimport pthread_cond_t, pthread_mutex_t


cdef enum:
    # How often who waits, and may be the main thread, looks for signals.
    SIGNAL_CHECK_NS = 50000000


cdef class Job:
    # Something to do without the GIL, then to finish with it. Owned by the queue until a driver
    # has it.
    cdef PyObject* next         # in the queue; borrowed from it
    cdef void execute(self) noexcept nogil
    cdef void finish(self) noexcept


cdef class Timed:
    # Who is told when the time has come. The drivers hold it weakly: they must not keep it alive.
    cdef object __weakref__
    cdef void on_time(self) noexcept


cdef struct Sleeper:
    # A thread that waits for one ticket, or for anything to land. Lives on its stack. The links are
    # guarded by the GIL.
    pthread_cond_t woken_up
    bint woken                  # guarded by the roster's mutex
    Sleeper* next
    Sleeper** place             # what points here


cdef struct Roster:
    # Guarded by its mutex, which is never held while waiting for the GIL.
    pthread_mutex_t mutex
    pthread_cond_t work
    PyObject* first             # Jobs, each a reference that the list owns; the oldest first
    PyObject* last
    Py_ssize_t queued
    int live                    # threads that run
    int idle                    # ... and sleep on `work`
    int64_t wake_at             # the keeper's alarm; INT64_MAX: none
    int64_t due_at              # when on_time is to be called; INT64_MAX: never
    bint keeper                 # one of the idle is awake for wake_at
    bint stopping
    pthread_cond_t gone         # a thread is


cdef class Drivers:
    cdef Roster* roster
    cdef object timed               # weakref
    cdef set idents                 # of the threads
    cdef uint32_t generation        # of forks
    cdef int max_threads
    cdef Sleeper* waiting           # for anything to land
    cdef Sleeper* due               # for what has come: they are woken at the next landing
    cdef bint push(self, Job job) except -1
    cdef bint is_busy(self) noexcept
    cdef bint call_at(self, int64_t when_ns) except -1
    cdef void call_off(self) noexcept
    cdef bint is_driver(self)
    cdef void wake_at_landing(self, Sleeper** sleepers) noexcept
    cdef void land(self) noexcept
    cdef int wait_among(self, Sleeper** sleepers, int64_t until_ns) except -1
    cdef int stop(self) except -1
