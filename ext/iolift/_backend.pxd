# The seam: what moves bytes. A batch hands Operations to a Lane and reaps them again.
#
# Backend   one a coalescer; any thread may call it, with the GIL. `acquire` lends a lane to a
#           batch, `release` takes it back.
# Lane      one batch's way to the device; one owner at a time, so it needs no lock of its own.
#
# submit answers with one of three words:
#   DONE      finished, operation.result is set
#   QUEUED    accepted: the operation and its buffers must live until reap returns it
#   BUSY      not accepted: reap first
# A result is the number of bytes moved, or -errno. A short result is an answer like another one:
# to go on with the rest is the business of the batch.
#
# Everything here is `noexcept nogil`. A backend written in Python (HostedBackend) takes the GIL
# itself, and keeps an exception until its lane's `raise_pending` is called.

from libc.stdint cimport int64_t, uint32_t

from ._system cimport iovec


cdef enum Kind:
    READ = 0
    WRITE = 1
    SYNC = 2


cdef enum Answer:
    DONE = 0
    QUEUED = 1
    BUSY = 2


cdef enum:
    # UIO_MAXIOV of Linux and of every BSD: more segments in one call are EINVAL.
    MAX_SEGMENTS = 1024


cdef struct Operation:
    # One I/O in flight. Owned by the batch; lent to the lane from submit until reap.
    Kind kind
    int fd
    int64_t offset          # file position of the first byte
    iovec* segments         # memory to fill or to write, in file order; unused by SYNC
    uint32_t segment_count
    int64_t result          # set by the lane: bytes moved, or -errno
    Operation* next         # the lane's own, while queued


cdef class Lane:
    cdef bint failed            # an exception is pending: submit no more, drain, raise_pending
    cdef int raise_pending(self) except -1
    cdef Answer submit(self, Operation* operation) noexcept nogil
    cdef void push(self) noexcept nogil
    cdef Py_ssize_t reap(self, Operation** finished, Py_ssize_t room, Py_ssize_t wanted,
                         int64_t timeout_ns) noexcept nogil
    cdef void close(self) noexcept


cdef class Backend:
    cdef readonly str name
    cdef readonly str reason
    cdef readonly Py_ssize_t depth
    cdef list idle_lanes
    cdef bint closed
    cdef Lane make_lane(self)
    cdef Lane acquire(self, bint alone)
    cdef void release(self, Lane lane) noexcept
    cdef void close(self) noexcept


cdef void run_in_place(Operation* operation) noexcept nogil

# A number that changes with each fork: what was made under another one belongs to a parent process.
cdef uint32_t fork_generation() noexcept nogil
