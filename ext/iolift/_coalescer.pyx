"""Coalescer: the options, the backend and the open files that share them.

1. An option is checked when the object is made, which then never changes.
2. After a fork the child can close what it inherited, and nothing else: rings, threads and locks
   are the parent's.

Who may call: any thread, with the GIL, which guards every field here.
"""

import os
import weakref

import numpy as np

from libc.stdint cimport INT64_MAX

from ._arguments cimport parse_int
from ._backend cimport Backend, fork_generation
from ._hosted cimport HostedBackend
from ._plan cimport Rule
from ._posix cimport PosixBackend
from ._sort cimport parse_order
from ._uring cimport UringBackend
from .errors import ForkedError

cdef enum:
    MAX_DEPTH = 4096


cdef Backend choose_backend(object wanted, Py_ssize_t depth):
    source = "backend"
    if wanted == "auto" and os.environ.get("IOLIFT_BACKEND"):
        wanted = os.environ["IOLIFT_BACKEND"]
        source = "$IOLIFT_BACKEND"
    if not isinstance(wanted, str):
        return HostedBackend(wanted, depth)
    if wanted == "posix":
        return PosixBackend(depth, f"asked for by {source}")
    if wanted == "uring":
        return UringBackend(depth)
    if wanted != "auto":
        raise ValueError(f"{source} must be 'auto', 'uring' or 'posix', not {wanted!r}")
    try:
        return UringBackend(depth)
    except OSError as error:
        return PosixBackend(depth, f"no io_uring: {error.strerror}")


cdef class Coalescer:
    """Merges and sorts the requests of the files that are open on it, and moves them in batches.

    backend: "auto" (io_uring where it works, else preadv/pwritev threads), "uring", "posix", or
    an object with `submit` and `reap` (help("iolift._hosted") says how). The environment
    variable IOLIFT_BACKEND takes the place of "auto".
    order: "elevator" (ascending from where the last batch ended, wrapping once) or "fifo".
    gap: the widest hole, in bytes, that a read goes through rather than around.
    max_io: no I/O is longer, in bytes, unless a single request is.
    depth: how many I/Os of one batch are in flight at once, 1 to 4096.

    Raises ValueError or TypeError for a bad option, OSError where backend="uring" is refused.
    Safe to use from any thread; a forked child gets ForkedError.
    """

    def __cinit__(self, *, backend="auto", order="elevator", gap=0, max_io=1 << 20, depth=128,
                  **unknown):
        if unknown:
            raise TypeError(f"{sorted(unknown)} are no options of a Coalescer: these are backend, "
                            f"order, gap, max_io and depth")
        self.generation = fork_generation()
        self.parsed_order = parse_order(order)
        self.order = order
        self.rule = Rule(parse_int(gap, "gap", 0, INT64_MAX),
                         parse_int(max_io, "max_io", 1, INT64_MAX), 1)
        self.io = choose_backend(backend, parse_int(depth, "depth", 1, MAX_DEPTH))
        self.files = weakref.WeakSet()

    def __del__(self):
        if self.io is not None:
            self.io.close()

    cdef int enter(self) except -1:
        if self.generation != fork_generation():
            raise ForkedError("this coalescer belongs to the parent process: "
                              "open the file again after a fork")
        if self.is_closed:
            raise ValueError("I/O operation on closed coalescer")
        return 0

    @property
    def gap(self):
        """The widest hole, in bytes, that a read goes through."""
        return self.rule.gap

    @property
    def max_io(self):
        """No I/O is longer, in bytes, unless a single request is."""
        return self.rule.max_io

    @property
    def depth(self):
        """How many I/Os of one batch are in flight at once."""
        return self.io.depth

    @property
    def backend(self):
        """The name of the backend in use: "uring", "posix" or "hosted"."""
        return self.io.name

    @property
    def backend_reason(self):
        """Why it is this backend, in words."""
        return self.io.reason

    @property
    def closed(self):
        """True after close()."""
        return self.is_closed

    def open(self, path, mode="r", *, direct=False):
        """Open a file on this coalescer; see iolift.open."""
        from ._file import File
        return File(path, mode, direct=direct, coalescer=self)

    def flush(self):
        """Flush every open file: all that was written is in the files."""
        self.enter()

    def sync(self):
        """Sync every open file that is writable: all that was written is on the device.

        Raises the first error after having tried all of them.
        """
        self.enter()
        failure = None
        for core in list(self.files):
            if core.writable and not core.closed:
                try:
                    core.sync()
                except OSError as error:
                    failure = failure or error
        if failure is not None:
            raise failure

    def close(self):
        """Close every file that is open on it and give back ring or threads. Idempotent."""
        if self.is_closed:
            return
        failure = None
        for core in list(self.files):
            try:
                core.close()
            except OSError as error:
                failure = failure or error
        self.is_closed = True
        self.io.close()
        if failure is not None:
            raise failure

    def __enter__(self):
        self.enter()
        return self

    def __exit__(self, *exception):
        self.close()

    def trace_start(self):
        """Begin to record each I/O that is handed to the backend."""
        self.enter()
        self.trace = []

    def trace_stop(self):
        """Stop recording; the I/Os since trace_start as int64[k, 3]: kind, offset, length.

        Kind is 0 for a read, 1 for a write, 2 for a sync; offset and length are bytes; dispatch
        order. What the kernel left over from an I/O and got again is not counted twice.
        """
        trace, self.trace = self.trace, None
        if trace is None:
            raise ValueError("trace_stop without trace_start")
        return np.concatenate([np.empty((0, 3), np.int64), *trace])

    def __repr__(self):
        state = " closed" if self.is_closed else ""
        return f"<iolift.Coalescer backend={self.io.name!r} order={self.order!r}{state}>"
