# What the open files of a coalescer share while requests are held and under way.

from libc.stdint cimport int64_t, uint32_t, uint64_t

from ._backend cimport Backend, Kind
from ._drivers cimport Drivers, Job, Timed
from ._recorder cimport Recorder
from ._ticket cimport Desk, Hub, Ticket


cdef enum:
    HISTOGRAM_PLACES = 32


cdef struct Counters:
    # iolift.Stats says what each is.
    int64_t requests, reads, writes, batches, extents, duplicates
    int64_t bytes_asked, bytes_moved, bytes_written, bytes_superseded
    int64_t joins, overlay_hits, cancelled, syncs_asked, syncs_issued
    int64_t[HISTOGRAM_PLACES] hold_histogram
    int64_t[HISTOGRAM_PLACES] service_histogram


cdef struct Bucket:
    # A token bucket that may go into debt: what costs more than is there goes, and the next waits.
    double rate                 # tokens a second; 0: no limit
    double burst                # tokens, at most
    double level
    int64_t at_ns               # when the level was right


cdef class Scheduler(Timed):
    cdef Backend io
    cdef Drivers drivers
    cdef Counters counters
    cdef int64_t read_window_ns
    cdef int64_t write_window_ns
    cdef int64_t max_held_bytes
    cdef Py_ssize_t max_held_requests
    cdef int64_t held_bytes             # of tickets that have not ended
    cdef Py_ssize_t held_requests
    cdef Py_ssize_t flights             # dispatched, not landed
    cdef Py_ssize_t operations          # their extents
    cdef Py_ssize_t read_operations     # ... of reads
    cdef uint64_t batch_number
    cdef Bucket operations_bucket
    cdef Bucket bytes_bucket
    cdef bint is_shaped
    cdef object clock                   # the tests' clock, or None
    cdef set desks                      # those that hold something
    cdef object trace                   # list of int64[k, 3], or None
    cdef Recorder recorder              # or None
    cdef object parked                  # collections.deque of Tickets
    cdef bint is_admitting              # them
    cdef set sleepers                   # idents of threads in wait_for_landing and wait_for_end
    cdef unsigned long main_thread      # the one that hears signals
    cdef list hubs
    cdef uint32_t generation            # of forks

    cdef int64_t now(self) except -1
    cdef bint arm(self, int64_t when_ns) except -1
    cdef void disarm(self) noexcept
    cdef bint has_room(self, Kind kind) noexcept
    cdef bint is_full(self, Kind kind, int64_t size) noexcept
    cdef bint has_no_room(self, Desk desk, Ticket ticket) noexcept
    cdef bint must_wait(self, Desk desk, Ticket ticket) noexcept
    cdef int64_t ready_at(self) noexcept
    cdef void charge(self, int64_t operations, int64_t bytes) noexcept
    cdef bint may_go(self) except -1
    cdef int admit(self, Desk desk, Ticket ticket) except -1
    cdef int admit_parked(self) except -1
    cdef int make_room(self) except -1
    cdef int launch(self, Job flight, Kind kind, Py_ssize_t operations, bint here) except -1
    cdef int landed(self, Kind kind, Py_ssize_t operations) except -1
    cdef int freed(self, Ticket ticket) noexcept
    cdef int strike_off(self, Desk desk) except -1
    cdef int go_on(self) except -1
    cdef Hub hub_of(self, object loop)
    cdef int wait_for_landing(self, int64_t until_ns) except -1
    cdef int wait_for_end(self, Ticket ticket, int64_t until_ns) except -1


cdef void count_time(int64_t* histogram, int64_t ns) noexcept nogil
