"""The seam's base classes, and the one way to do an operation in the calling thread.

The base Lane does each operation where it stands: it is what a batch of one gets (a system call
is cheaper than any hand-off), and what takes over when no further ring can be had.
"""

from libc.errno cimport errno
from libc.stdint cimport int64_t, uint32_t
from posix.unistd cimport pread, pwrite

from ._system cimport iolift_datasync, iolift_generation, iolift_watch_forks, iovec

cdef extern from "<sys/uio.h>" nogil:
    ssize_t preadv(int fd, const iovec* segments, int count, int64_t offset)
    ssize_t pwritev(int fd, const iovec* segments, int count, int64_t offset)


cdef void run_in_place(Operation* operation) noexcept nogil:
    cdef ssize_t moved
    cdef iovec* first = operation.segments
    if operation.kind == SYNC:
        operation.result = iolift_datasync(operation.fd)
        return
    if operation.kind == READ:
        if operation.segment_count == 1:
            moved = pread(operation.fd, first.iov_base, first.iov_len, operation.offset)
        else:
            moved = preadv(operation.fd, first, operation.segment_count, operation.offset)
    elif operation.segment_count == 1:
        moved = pwrite(operation.fd, first.iov_base, first.iov_len, operation.offset)
    else:
        moved = pwritev(operation.fd, first, operation.segment_count, operation.offset)
    operation.result = moved if moved >= 0 else -errno


cdef class Lane:
    cdef Answer submit(self, Operation* operation) noexcept nogil:
        run_in_place(operation)
        return DONE

    cdef void push(self) noexcept nogil:
        # What is queued begins, if it has not begun: there is more to prepare meanwhile.
        pass

    cdef Py_ssize_t reap(self, Operation** finished, Py_ssize_t room, Py_ssize_t wanted,
                         int64_t timeout_ns) noexcept nogil:
        # Moves up to `room` finished operations to `finished`; returns as soon as `wanted` are
        # there, the time is over or a signal came, with how many.
        return 0

    cdef int raise_pending(self) except -1:
        return 0

    cdef void close(self) noexcept:
        pass


cdef enum:
    # More than so many batches at once are rare; their lanes go when they are done.
    MAX_IDLE_LANES = 16


cdef Lane IN_PLACE = Lane()


cdef class Backend:
    def __cinit__(self, *args):
        self.idle_lanes = []
        self.closed = False

    cdef Lane make_lane(self):
        return Lane()

    cdef Lane acquire(self, bint alone):
        # alone: the batch is one operation, which is nowhere done sooner than here.
        if alone:
            return IN_PLACE
        return self.idle_lanes.pop() if self.idle_lanes else self.make_lane()

    cdef void release(self, Lane lane) noexcept:
        if lane is IN_PLACE:
            return
        if self.closed or len(self.idle_lanes) >= MAX_IDLE_LANES:
            lane.close()
        else:
            self.idle_lanes.append(lane)

    cdef void close(self) noexcept:
        # Lanes that are lent now are closed when they come back.
        cdef Lane lane
        self.closed = True
        for lane in self.idle_lanes:
            lane.close()
        self.idle_lanes.clear()


cdef uint32_t fork_generation() noexcept nogil:
    return iolift_generation()


iolift_watch_forks()
