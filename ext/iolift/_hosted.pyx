"""A backend that is a Python object: how the tests' simulated disk, or yours, takes part.

The object has two methods:

submit(token, kind, fd, offset, buffers) -> int | str
    kind is "read", "write" or "sync"; buffers is a list of memoryviews, at most 1024. An int is
    the result at once (bytes moved, or a negative errno); "queued" means that reap will report
    it; "busy" that nothing was accepted. The buffers are valid until the completion is reported.
reap(wait) -> list[tuple[int, int]]
    Completions as (token, result); with wait=True at least one, unless nothing is queued.

It may be called from several threads, one at a time: under its own `lock`, if it has one, which is
taken with `with`. A reap that waits on a condition of that lock lets others submit meanwhile.
What it raises is raised again by the call that it served, and its operation counts as failed with
EIO.
"""

import errno
import threading

from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.buffer cimport PyBUF_READ, PyBUF_WRITE
from libc.stdint cimport int64_t, uintptr_t

from ._backend cimport (
    BUSY, DONE, QUEUED, READ, SYNC, WRITE, Answer, Backend, Lane, Operation,
)

cdef enum:
    MAX_EMPTY_REAPS = 1000

KINDS = {READ: "read", WRITE: "write", SYNC: "sync"}


cdef class HostedLane(Lane):
    cdef HostedBackend backend
    cdef list done                  # (address of the operation, result)
    cdef Py_ssize_t queued
    cdef object pending             # the exception that the host raised

    def __cinit__(self, HostedBackend backend):
        self.backend = backend
        self.done = []
        self.queued = 0

    cdef Answer submit(self, Operation* operation) noexcept nogil:
        with gil:
            return submit_hosted(self, operation)

    cdef Py_ssize_t reap(self, Operation** finished, Py_ssize_t room, Py_ssize_t wanted,
                         int64_t timeout_ns) noexcept nogil:
        with gil:
            return reap_hosted(self, finished, room, wanted)

    cdef int raise_pending(self) except -1:
        error, self.pending = self.pending, None
        self.failed = False
        if error is not None:
            raise error
        return 0


cdef Answer submit_hosted(HostedLane self, Operation* operation) noexcept:
    cdef HostedBackend backend = self.backend
    cdef int access = PyBUF_WRITE if operation.kind == READ else PyBUF_READ
    try:
        buffers = [] if operation.kind == SYNC else [
            PyMemoryView_FromMemory(<char*>operation.segments[i].iov_base,
                                    operation.segments[i].iov_len, access)
            for i in range(operation.segment_count)]
        with backend.lock:
            backend.token += 1
            token = backend.token
            backend.owners[token] = (self, <uintptr_t>operation)
            answer = backend.host.submit(token, KINDS[operation.kind], operation.fd,
                                         operation.offset, buffers)
            if answer == "queued":
                self.queued += 1
                return QUEUED
            del backend.owners[token]
        if answer == "busy":
            return BUSY
        operation.result = parse_result(answer)
    except BaseException as error:
        note_exception(self, error)
        operation.result = -errno.EIO
    return DONE


cdef Py_ssize_t reap_hosted(HostedLane self, Operation** finished, Py_ssize_t room,
                            Py_ssize_t wanted) noexcept:
    cdef HostedBackend backend = self.backend
    cdef Py_ssize_t n = 0, empty = 0
    wanted = min(wanted, room, self.queued)
    # What the host raises does not end the wait: it may still write to the buffers that it has.
    while len(self.done) < wanted and empty < MAX_EMPTY_REAPS:
        try:
            with backend.lock:
                # A lane may reap what another one submitted: it goes to its owner.
                completions = backend.host.reap(len(self.done) < wanted)
                for token, result in completions:
                    owner, address = backend.owners.pop(token)
                    # Answered it is, whatever with.
                    answer = -errno.EIO
                    try:
                        answer = parse_result(result)
                    finally:
                        (<HostedLane?>owner).done.append((address, answer))
            empty = 0 if completions else empty + 1
        except BaseException as error:
            note_exception(self, error)
            empty += 1
    if empty >= MAX_EMPTY_REAPS:
        abandon(self)
    while self.done and n < room:
        address, result = self.done.pop()
        finished[n] = <Operation*><uintptr_t>address
        finished[n].result = result
        n += 1
    self.queued -= n
    return n


cdef int64_t parse_result(object answer) except? -1:
    if not isinstance(answer, int) or not -4095 <= answer < 2 ** 63:
        raise TypeError(f"a hosted backend's result must be a number of bytes or a negative "
                        f"errno, not {answer!r}")
    return answer


cdef void abandon(HostedLane self) noexcept:
    # The host is broken or lost them: whoever waits gets an answer all the same.
    cdef HostedBackend backend = self.backend
    for token, (owner, address) in list(backend.owners.items()):
        if owner is self:
            del backend.owners[token]
            self.done.append((address, -errno.EIO))
    note_exception(self, RuntimeError("the hosted backend lost operations that it had queued"))


cdef void note_exception(HostedLane self, object error) noexcept:
    # The first one is raised, by the call whose lane this is.
    if self.pending is None:
        self.pending = error
        self.failed = True


cdef class HostedBackend(Backend):
    def __init__(self, object host, Py_ssize_t depth):
        for method in ("submit", "reap"):
            if not callable(getattr(host, method, None)):
                raise TypeError(f"backend must be 'auto', 'uring', 'posix' or an object with "
                                f"submit and reap, not {host!r}")
        self.host = host
        self.lock = getattr(host, "lock", None) or threading.RLock()
        self.owners = {}
        self.token = 0
        self.name = "hosted"
        self.reason = f"given by the caller: {type(host).__name__}"
        self.depth = depth

    cdef Lane acquire(self, bint alone):
        return self.idle_lanes.pop() if self.idle_lanes else HostedLane(self)
