"""Coalescer: the options, the backend, the scheduler and the open files that share them.

1. An option is checked when the object is made, which then never changes.
2. After a fork the child can close what it inherited, and nothing else: rings, threads and locks
   are the parent's.
3. At interpreter exit everything that is held goes, and what can't is said on standard error.

Who may call: any thread, with the GIL, which guards every field here.
"""

import atexit
import math
import os
import sys
import weakref

import numpy as np

from libc.stdint cimport INT64_MAX

from ._arguments cimport parse_int
from ._backend cimport Backend, fork_generation
from ._costs cimport Costs
from ._hosted cimport HostedBackend
from ._plan cimport Rule
from ._posix cimport PosixBackend
from ._recorder cimport Recorder
from ._scheduler cimport Scheduler
from ._sort cimport parse_order
from ._uring cimport UringBackend
from ._calls import is_in_call
from ._report import Stats
from ._threads import close_aside
from .errors import ForkedError

cdef enum:
    MAX_DEPTH = 4096
    AUTO_DEPTH = 128            # no device seen so far gains from more
    AUTO_TRACE = 1 << 16
    MAX_REQUESTS = 1 << 30

# Those that are open, for the end of the interpreter.
cdef object LIVE = weakref.WeakSet()


cdef double parse_number(object value, str name, double lowest, double highest) except? -1:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, not {value!r}")
    if not lowest <= value <= highest:      # also not a number
        raise ValueError(f"{name} = {value} must be between {lowest} and {highest}")
    return value


cdef Py_ssize_t parse_depth(object value) except -1:
    if isinstance(value, str) and value == "auto":
        return AUTO_DEPTH
    return parse_int(value, "depth", 1, MAX_DEPTH)


cdef Recorder make_recorder(Coalescer coalescer, object trace):
    cdef Py_ssize_t capacity = 0
    if trace is not None and trace is not False:
        capacity = AUTO_TRACE if trace is True else parse_int(trace, "trace", 1, MAX_REQUESTS)
    if trace is not False and os.environ.get("IOLIFT_RECORD"):
        from . import recording
        recorder = Recorder(max(capacity, <Py_ssize_t>recording.capacity()))
        coalescer.is_attached = True
        recording.attach(coalescer)
        return recorder
    return Recorder(capacity) if capacity else None


cdef int keep_recording(Coalescer self) except -1:
    # For `iolift record`, which gets it when the process ends.
    if self.is_attached and not sys.is_finalizing():    # by then it has it
        self.is_attached = False
        from .recording import keep
        keep(self)
    return 0


cdef object parse_rate(object value, str name):
    return None if value is None else parse_number(value, name, 1e-3, 1e18)


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
    """Holds, merges and sorts the requests of the files that are open on it.

    backend: "auto" (io_uring where it works, else preadv/pwritev threads), "uring", "posix", or
    an object with `submit` and `reap` (help("iolift._hosted") says how). The environment
    variable IOLIFT_BACKEND takes the place of "auto".
    order: "elevator" (ascending from where the last batch ended, wrapping once) or "fifo".
    gap: the widest hole, in bytes, that a read goes through rather than around; "auto": what an I/O
    costs of the device, in bytes of transfer, learnt from the batches as they land (32 KiB before
    the first), and 0 for what the page cache has, and for a backend of your own unless direct.
    max_io: no I/O is longer, in bytes, unless a single request is.
    max_waste: bytes read for gaps, at most, for each byte that a batch was asked for.
    depth: how many I/Os of one batch are in flight at once, 1 to 4096; "auto": 128.
    read_window_us, write_window_ms: how long a read (microseconds) or a write (milliseconds) is
    held for company, at most. Nothing is held while somebody waits for it and the device has room.
    max_held_bytes, max_held_requests: bounds of what is submitted and has not ended, of which
    writes leave an eighth to reads. Who finds them full waits: a thread in the call, a ticket made
    on an event loop in state "parked".
    max_iops, max_bytes_per_s: I/Os and bytes a second, at most, on average over more than a tenth
    of a second; None: no limit. For users that must leave room for others.
    trace: record what happens: the last so many requests and I/Os (True: 65536 of each, 88 and 72
    bytes), for `recording()`; None: only where the command `iolift record` runs the program;
    False: not even there.
    clock: for tests: a function that returns nanoseconds. No timer runs then; tick() looks at it.

    Raises ValueError or TypeError for a bad option, OSError where backend="uring" is refused.
    Safe to use from any thread; a forked child gets ForkedError.
    """

    def __cinit__(self, *, backend="auto", order="elevator", gap="auto", max_io=1 << 20,
                  max_waste=0.25, depth="auto", read_window_us=100, write_window_ms=10,
                  max_held_bytes=1 << 26, max_held_requests=1 << 17, max_iops=None,
                  max_bytes_per_s=None, trace=None, clock=None, **unknown):
        if unknown:
            raise TypeError(f"{sorted(unknown)} are no options of a Coalescer: "
                            f"help(iolift.Coalescer) names them")
        self.generation = fork_generation()
        self.parsed_order = parse_order(order)
        self.order = order
        self.rule = Rule(-1 if isinstance(gap, str) and gap == "auto"
                         else parse_int(gap, "gap", 0, INT64_MAX),
                         parse_int(max_io, "max_io", 1, INT64_MAX), 1)
        self.max_waste = parse_number(max_waste, "max_waste", 0, math.inf)
        if clock is not None and not callable(clock):
            raise TypeError(f"clock must be callable, not {clock!r}")
        options = dict(
            read_window_us=parse_number(read_window_us, "read_window_us", 0, 1e12),
            write_window_ms=parse_number(write_window_ms, "write_window_ms", 0, 1e9),
            max_held_bytes=parse_int(max_held_bytes, "max_held_bytes", 1, INT64_MAX),
            max_held_requests=parse_int(max_held_requests, "max_held_requests", 1, MAX_REQUESTS),
            max_iops=parse_rate(max_iops, "max_iops"),
            max_bytes_per_s=parse_rate(max_bytes_per_s, "max_bytes_per_s"),
            clock=clock)
        self.io = choose_backend(backend, parse_depth(depth))
        self.scheduler = Scheduler(self.io, **options)
        self.scheduler.recorder = make_recorder(self, trace)
        self.costs = {}
        self.files = weakref.WeakSet()
        LIVE.add(self)

    def __del__(self):
        keep_recording(self)
        if self.scheduler is not None:
            self.scheduler.drivers.stop()
        if self.io is not None:
            self.io.close()

    cdef int enter(self) except -1:
        if self.generation != fork_generation():
            raise ForkedError("this coalescer belongs to the parent process: "
                              "open the file again after a fork")
        if self.is_closed:
            raise ValueError("I/O operation on closed coalescer")
        return 0

    cdef Costs costs_of(self, int descriptor, bint direct):
        # Files of one device share what is known of it. A hosted backend reads what it is asked.
        if self.rule.gap >= 0 or (self.io.name == "hosted" and not direct):
            return None
        key = os.fstat(descriptor).st_dev, direct
        if key not in self.costs:
            self.costs[key] = Costs()
        return self.costs[key]

    @property
    def gap(self):
        """The widest hole, in bytes, that a read goes through, or "auto"."""
        return "auto" if self.rule.gap < 0 else self.rule.gap

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

    def open(self, path, mode="r", *, direct=False, journal=None, **journal_options):
        """Open a file on this coalescer; see iolift.open."""
        from ._file import File
        return File(path, mode, direct=direct, coalescer=self, journal=journal, **journal_options)

    def flush(self):
        """Flush every open file: all that was written so far is in the files.

        Raises the first error after having tried all of them.
        """
        self.enter()
        each_file(self, "flush")

    def sync(self):
        """Sync every open file that is writable: all that was written so far is on the device.

        Raises the first error after having tried all of them.
        """
        self.enter()
        each_file(self, "sync")

    def stats(self):
        """Counters since it was made, and what is held now: an iolift.Stats."""
        return Stats(**self.scheduler.stats())

    def recording(self):
        """What was recorded so far: an iolift.recording.Recording. Needs the option `trace`."""
        if self.scheduler.recorder is None:
            raise ValueError("nothing is recorded: Coalescer(trace=True) does")
        from .recording import IO, REQUEST, Recording
        return Recording(*self.scheduler.recorder.rows(REQUEST, IO), self.io.name, os.getpid(),
                         self.scheduler.recorder.began_ns, self.scheduler.recorder.began_at)

    def tick(self):
        """Dispatch what is due by the clock, as a timer does where no `clock` was given."""
        self.enter()
        self.scheduler.tick()

    def _check(self):
        """Assert the invariants of the scheduler and of every open file."""
        self.scheduler.check()
        for core in list(self.files):
            core._check()

    def close(self):
        """Close every file that is open on it and give back ring or threads. Idempotent.

        A finalizer that comes in the middle of another call leaves it to a thread.
        """
        if self.is_closed:
            return
        if is_in_call():
            close_aside(self.close)
            return
        failure = None
        for core in list(self.files):
            try:
                core.close()
            except OSError as error:
                failure = failure or error
        self.is_closed = True
        keep_recording(self)
        self.scheduler.drivers.stop()
        self.io.close()
        if failure is not None:
            raise failure

    def __enter__(self):
        self.enter()
        return self

    def __exit__(self, *exception):
        self.close()

    async def __aenter__(self):
        return self.__enter__()

    async def __aexit__(self, *exception):
        self.close()

    def trace_start(self):
        """Begin to record each I/O that is handed to the backend."""
        self.enter()
        self.scheduler.trace = []

    def trace_stop(self):
        """Stop recording; the I/Os since trace_start as int64[k, 3]: kind, offset, length.

        Kind is 0 for a read, 1 for a write, 2 for a sync; offset and length are bytes; dispatch
        order. What the kernel left over from an I/O and got again is not counted twice.
        """
        trace, self.scheduler.trace = self.scheduler.trace, None
        if trace is None:
            raise ValueError("trace_stop without trace_start")
        return np.concatenate([np.empty((0, 3), np.int64), *trace])

    def __repr__(self):
        state = " closed" if self.is_closed else ""
        return f"<iolift.Coalescer backend={self.io.name!r} order={self.order!r}{state}>"


cdef int each_file(Coalescer self, str call) except -1:
    failure = None
    for core in list(self.files):
        if core.writable and not core.closed:
            try:
                getattr(core, call)()
            except OSError as error:
                failure = failure or error
    if failure is not None:
        raise failure
    return 0


def _at_exit():
    """What is held goes while there are threads to do it; from then on nothing is held."""
    for coalescer in list(LIVE):
        if (<Coalescer?>coalescer).generation != fork_generation() or coalescer.closed:
            continue
        for core in list((<Coalescer>coalescer).files):
            try:
                core.drain_at_exit()
            except Exception as error:
                print(f"iolift: at exit, some of what was written to {core.name!r} was lost: "
                      f"{error}", file=sys.stderr)
        (<Coalescer>coalescer).scheduler.drivers.stop()


atexit.register(_at_exit)
