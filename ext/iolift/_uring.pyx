"""The io_uring backend: one ring a lane, one system call a batch where possible, no thread.

1. No more operations are in flight than the completion queue can hold, so it never overflows.
2. A ring has one owner at a time (the batch that acquired its lane) and is idle when given back.
3. Nothing is chained and nothing is ordered by the ring: the batch waits where order matters.
4. The kernel may refuse a ring at any time (containers, old kernels, limits). The first refusal
   is an OSError that says why, later ones give a lane that works in place.

Interface: io_uring_setup(2), io_uring_enter(2), by the kernel's ABI (_system.h).
"""

import errno as errno_names

from libc.errno cimport EAGAIN, EBUSY, EINTR, ETIME
from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memset
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from posix.unistd cimport close as close_descriptor

from ._backend cimport (
    BUSY, QUEUED, READ, SYNC, Answer, Backend, Lane, Operation,
)
from ._system cimport (
    IOLIFT_ENTER_EXT_ARG, IOLIFT_ENTER_GETEVENTS, IOLIFT_FEATURE_EXT_ARG, IOLIFT_FEATURE_NODROP,
    IOLIFT_FEATURE_SINGLE_MMAP, IOLIFT_FSYNC_DATASYNC, IOLIFT_OFFSET_SQ_RING, IOLIFT_OFFSET_SQES,
    IOLIFT_OP_FSYNC, IOLIFT_OP_READ, IOLIFT_OP_READV, IOLIFT_OP_WRITE, IOLIFT_OP_WRITEV,
    IOLIFT_SETUP_COOP_TASKRUN, iolift_cqe, iolift_getevents, iolift_load_acquire, iolift_pause_ns,
    iolift_ring_enter, iolift_ring_params, iolift_ring_setup, iolift_sqe, iolift_store_release,
    iolift_timespec,
)

cdef enum:
    MAX_REFUSALS = 100          # EAGAIN from io_uring_enter with nothing in flight to wait for
    PAUSE_NS = 1000000

REFUSALS = {
    errno_names.EPERM: "forbidden here (a seccomp filter, as in containers, or "
                       "kernel.io_uring_disabled)",
    errno_names.ENOSYS: "not in this kernel, or hidden by a seccomp filter",
    errno_names.ENOMEM: "not enough memory that may be locked (RLIMIT_MEMLOCK)",
    errno_names.EMFILE: "too many open files (RLIMIT_NOFILE)",
    errno_names.ENFILE: "too many open files in the system",
    errno_names.ENOTSUP: "this kernel's io_uring may drop completions or can't time out "
                         "(before Linux 5.11)",
}


cdef class UringLane(Lane):
    cdef int descriptor
    cdef uint32_t depth
    cdef uint32_t in_kernel             # submitted, not yet reaped
    cdef uint32_t unsubmitted           # in the submission ring, not yet seen by the kernel
    cdef void* rings
    cdef size_t rings_size
    cdef iolift_sqe* sqes
    cdef size_t sqes_size
    cdef uint32_t sq_mask
    cdef uint32_t cq_mask
    cdef uint32_t* sq_head
    cdef uint32_t* sq_tail
    cdef uint32_t* cq_head
    cdef uint32_t* cq_tail
    cdef iolift_cqe* cqes

    def __cinit__(self, uint32_t depth):
        cdef iolift_ring_params params
        cdef int status
        self.descriptor = -1
        memset(&params, 0, sizeof(params))
        # Completions wait for our next call instead of interrupting us (Linux 5.19).
        params.flags = IOLIFT_SETUP_COOP_TASKRUN
        status = iolift_ring_setup(depth, &params)
        if status == -errno_names.EINVAL:
            memset(&params, 0, sizeof(params))
            status = iolift_ring_setup(depth, &params)
        if status < 0:
            raise refusal(-status)
        self.descriptor = status
        if (~params.features) & (IOLIFT_FEATURE_NODROP | IOLIFT_FEATURE_SINGLE_MMAP
                                 | IOLIFT_FEATURE_EXT_ARG):
            raise refusal(errno_names.ENOTSUP)
        self.depth = min(depth, params.cq_entries)
        map_ring(self, &params)

    def __dealloc__(self):
        unmap_ring(self)

    cdef void close(self) noexcept:
        unmap_ring(self)

    cdef Answer submit(self, Operation* operation) noexcept nogil:
        cdef uint32_t tail = self.sq_tail[0]
        cdef iolift_sqe* sqe
        if self.in_kernel + self.unsubmitted >= self.depth:
            return BUSY
        sqe = &self.sqes[tail & self.sq_mask]
        memset(sqe, 0, sizeof(iolift_sqe))
        sqe.fd = operation.fd
        sqe.off = <uint64_t>operation.offset
        sqe.user_data = <uint64_t><uintptr_t>operation
        if operation.kind == SYNC:
            sqe.opcode = IOLIFT_OP_FSYNC
            sqe.op_flags = IOLIFT_FSYNC_DATASYNC
            sqe.off = 0
        elif operation.segment_count == 1:
            sqe.opcode = IOLIFT_OP_READ if operation.kind == READ else IOLIFT_OP_WRITE
            sqe.addr = <uint64_t><uintptr_t>operation.segments.iov_base
            sqe.len = <uint32_t>operation.segments.iov_len
        else:
            sqe.opcode = IOLIFT_OP_READV if operation.kind == READ else IOLIFT_OP_WRITEV
            sqe.addr = <uint64_t><uintptr_t>operation.segments
            sqe.len = operation.segment_count
        # The kernel reads the tail in our next io_uring_enter: the sqe must be visible before it.
        iolift_store_release(self.sq_tail, tail + 1)
        self.unsubmitted += 1
        return QUEUED

    cdef void push(self) noexcept nogil:
        # Whatever the kernel answers now, reap finds it again.
        if self.unsubmitted:
            enter(self, 0, 0)

    cdef Py_ssize_t reap(self, Operation** finished, Py_ssize_t room, Py_ssize_t wanted,
                         int64_t timeout_ns) noexcept nogil:
        cdef Py_ssize_t n = harvest(self, finished, room)
        cdef int status = 0, refusals = 0
        wanted = min(wanted, room, n + self.in_kernel + self.unsubmitted)
        while self.unsubmitted or n < wanted:
            status = enter(self, <uint32_t>max(0, wanted - n), timeout_ns)
            n += harvest(self, finished + n, room - n)
            if status == -ETIME or status == -EINTR:
                break
            if status < 0 and n < wanted:
                # With operations in the kernel their completion ends the shortage; without any,
                # waiting would be for ever (liburing#281), so the rest is given back.
                if self.in_kernel:
                    iolift_pause_ns(PAUSE_NS)
                elif (status == -EAGAIN or status == -EBUSY) and refusals < MAX_REFUSALS:
                    refusals += 1
                    iolift_pause_ns(PAUSE_NS)
                else:
                    return n + withdraw(self, finished + n, room - n, status)
            elif status < 0:
                break
        return n


cdef int enter(UringLane self, uint32_t complete, int64_t timeout_ns) noexcept nogil:
    cdef iolift_timespec limit
    cdef iolift_getevents argument
    cdef int status
    limit.seconds = timeout_ns // 1000000000
    limit.nanoseconds = timeout_ns % 1000000000
    memset(&argument, 0, sizeof(argument))
    argument.timespec = <uint64_t><uintptr_t>&limit
    status = iolift_ring_enter(self.descriptor, self.unsubmitted, complete,
                               IOLIFT_ENTER_GETEVENTS | IOLIFT_ENTER_EXT_ARG,
                               &argument, sizeof(argument))
    # What the kernel took is what its head says, whatever the call answered.
    cdef uint32_t left = self.sq_tail[0] - iolift_load_acquire(self.sq_head)
    self.in_kernel += self.unsubmitted - left
    self.unsubmitted = left
    return status


cdef Py_ssize_t harvest(UringLane self, Operation** finished, Py_ssize_t room) noexcept nogil:
    cdef uint32_t head = self.cq_head[0]
    # Acquire: the entries before the tail are complete when we see it.
    cdef uint32_t tail = iolift_load_acquire(self.cq_tail)
    cdef Py_ssize_t n = 0
    cdef iolift_cqe* cqe
    while head != tail and n < room:
        cqe = &self.cqes[head & self.cq_mask]
        finished[n] = <Operation*><uintptr_t>cqe.user_data
        finished[n].result = cqe.res
        head += 1
        n += 1
    # Release: the kernel may reuse the entries only after we have read them.
    iolift_store_release(self.cq_head, head)
    self.in_kernel -= <uint32_t>n
    return n


cdef Py_ssize_t withdraw(UringLane self, Operation** finished, Py_ssize_t room,
                         int status) noexcept nogil:
    # Takes back what the kernel never accepted, each with the kernel's answer.
    cdef uint32_t tail = self.sq_tail[0]
    cdef Py_ssize_t n = 0
    while self.unsubmitted and n < room:
        tail -= 1
        finished[n] = <Operation*><uintptr_t>self.sqes[tail & self.sq_mask].user_data
        finished[n].result = status
        self.unsubmitted -= 1
        n += 1
    iolift_store_release(self.sq_tail, tail)
    return n


cdef object refusal(int error):
    why = REFUSALS.get(error, "")
    return OSError(error, f"io_uring_setup: {errno_names.errorcode.get(error, error)}"
                          f"{': ' + why if why else ''}")


cdef int map_ring(UringLane self, iolift_ring_params* params) except -1:
    cdef char* rings
    cdef uint32_t* array
    cdef uint32_t i
    self.rings_size = max(
        params.sq_off.array + params.sq_entries * sizeof(uint32_t),
        params.cq_off.cqes + params.cq_entries * sizeof(iolift_cqe))
    self.rings = mmap(NULL, self.rings_size, PROT_READ | PROT_WRITE, MAP_SHARED,
                      self.descriptor, IOLIFT_OFFSET_SQ_RING)
    if self.rings == MAP_FAILED:
        self.rings = NULL
        raise refusal(errno_names.ENOMEM)
    self.sqes_size = params.sq_entries * sizeof(iolift_sqe)
    self.sqes = <iolift_sqe*>mmap(NULL, self.sqes_size, PROT_READ | PROT_WRITE, MAP_SHARED,
                                  self.descriptor, IOLIFT_OFFSET_SQES)
    if <void*>self.sqes == MAP_FAILED:
        self.sqes = NULL
        raise refusal(errno_names.ENOMEM)
    rings = <char*>self.rings
    self.sq_head = <uint32_t*>(rings + params.sq_off.head)
    self.sq_tail = <uint32_t*>(rings + params.sq_off.tail)
    self.sq_mask = (<uint32_t*>(rings + params.sq_off.ring_mask))[0]
    self.cq_head = <uint32_t*>(rings + params.cq_off.head)
    self.cq_tail = <uint32_t*>(rings + params.cq_off.tail)
    self.cq_mask = (<uint32_t*>(rings + params.cq_off.ring_mask))[0]
    self.cqes = <iolift_cqe*>(rings + params.cq_off.cqes)
    array = <uint32_t*>(rings + params.sq_off.array)
    for i in range(params.sq_entries):
        array[i] = i                    # entry i of the ring is always sqe i
    return 0


cdef void unmap_ring(UringLane self) noexcept:
    # Also right in a forked child: it has its own mappings and its own descriptor.
    if self.sqes != NULL:
        munmap(self.sqes, self.sqes_size)
    if self.rings != NULL:
        munmap(self.rings, self.rings_size)
    if self.descriptor >= 0:
        close_descriptor(self.descriptor)
    self.sqes = NULL
    self.rings = NULL
    self.descriptor = -1


cdef class UringBackend(Backend):
    """Raises OSError, with the reason, where no ring can be had."""

    def __init__(self, Py_ssize_t depth):
        self.name = "uring"
        self.depth = depth
        self.idle_lanes.append(UringLane(depth))
        self.reason = "io_uring is available"

    cdef Lane make_lane(self):
        try:
            return UringLane(self.depth)
        except OSError:
            # Out of descriptors or lockable memory by now. Slower, and the same results.
            return Lane()
