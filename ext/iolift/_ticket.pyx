"""Ticket: the caller's handle on a request.

                +--> PARKED --+                 +--> CANCELLED
        NEW ----+             +--> HELD --------+
                +-------------+     |           +--> FLYING --> DONE
                                    +--> DONE (the overlay had it all)

1. DONE and CANCELLED are for good: a ticket ends exactly once.
2. A ticket has no opinion: where its request is and when it goes is its desk's business.
3. The exception of a failed ticket is made anew for whoever asks, so that a ticket never is part of
   a cycle (exception, traceback, frame, ticket), and needs no garbage collection.

Who may call: any thread, with the GIL, which guards every field.
"""

import sys

cimport cython
from cpython.exc cimport PyErr_SetObject, PyErr_WriteUnraisable
from cpython.object cimport PyObject
from libc.stdint cimport int64_t
from libc.stdlib cimport free

from ._backend cimport READ, SYNC, WRITE, Kind
from ._batch cimport Batch
from ._calls cimport step_in, step_out
from ._drivers cimport Job
from ._log cimport RECEIVED
from ._report import Explanation

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(PyObject*)

cdef dict STATES = {NEW: "new", PARKED: "parked", HELD: "held", FLYING: "flying", DONE: "done",
                    CANCELLED: "cancelled"}
cdef dict KINDS = {READ: "read", WRITE: "write", SYNC: "sync"}
cdef dict SOURCES = {FROM_DEVICE: "device", FROM_OVERLAY: "overlay", FROM_JOIN: "joined"}

# asyncio is imported when the first ticket is awaited: it takes longer to load than iolift.
cdef object get_running_loop = None


cdef class Desk:
    cdef int check_process(self) except -1:
        raise NotImplementedError

    cdef int wait(self, Ticket ticket, object timeout) except -1:
        raise NotImplementedError

    cdef bint withdraw(self, Ticket ticket) except -1:
        raise NotImplementedError

    cdef int hasten(self, Ticket ticket) except -1:
        raise NotImplementedError

    cdef int wait_received(self, Ticket ticket, object timeout) except -1:
        raise NotImplementedError

    cdef bint is_checkpointed(self, Ticket ticket) except -1:
        raise NotImplementedError

    cdef bint is_tight(self, int64_t size) noexcept:
        return False

    cdef Hub hub_of(self, object loop):
        raise NotImplementedError

    cdef object describe(self, Ticket ticket, int error):
        raise NotImplementedError

    cdef int remember(self, Ticket ticket) except -1:
        raise NotImplementedError

    cdef Batch make_batch(self, Kind kind, Py_ssize_t n):
        raise NotImplementedError

    cdef int landed(self, Job flight) except -1:
        raise NotImplementedError

    cdef int take(self, Ticket ticket) except -1:
        raise NotImplementedError

    cdef int64_t go_on_time(self, int64_t now) except -1:
        raise NotImplementedError

    cdef int go_on(self) except -1:
        raise NotImplementedError

    cdef int end_turn(self) except -1:
        raise NotImplementedError

    cdef int hurry(self) except -1:
        raise NotImplementedError

    cdef bint is_empty(self):
        raise NotImplementedError

    cdef void strike_off(self) noexcept:
        pass


cdef class Record:
    pass


@cython.final
@cython.no_gc
@cython.freelist(64)
cdef class Ticket:
    """A receipt for one request, from submit_pread, submit_pwrite or submit_sync.

    Behaves as a concurrent.futures.Future, and can be awaited on any asyncio event loop (elsewhere,
    as with trio, use add_done_callback). A read's result is bytes, or a count where it was given
    `into`; a write's the number of bytes written; a sync's None.
    """

    def __init__(self):
        raise TypeError("tickets come from submit_pread, submit_pwrite and submit_sync")

    def __dealloc__(self):
        free(self.holes)
        if (self.error or self.failure is not None) and not self.is_heard and self.kind != READ:
            self.desk.remember(self)

    @property
    def state(self):
        """"parked", "held", "flying", "done" or "cancelled".

        Of a write to a file with a journal also "received" (its record is on the device), and then
        "written" (it is in the file) and "checkpointed" (and on the device there) in place of
        "done".
        """
        if self.receipt is None or self.kind != WRITE or self.receipt.state != RECEIVED:
            return STATES[self.state]
        if self.state < DONE:
            return "received"
        if self.state == CANCELLED or self.error or self.failure is not None:
            return STATES[self.state]
        return "checkpointed" if self.desk.is_checkpointed(self) else "written"

    @property
    def receipt(self):
        """Of a write to a file with a journal: its iolift.Receipt, which can be awaited.

        None where there is no journal, nothing to write, or the ticket is parked still.
        """
        return self.receipt

    def received(self, timeout=None):
        """Wait for the record to be on the device in the journal, at most `timeout` seconds.

        Returns its sequence. From here on the write is safe, though it may be long before it is in
        the file. Raises TimeoutError; OutcomeUnknownError where the journal failed under it;
        PoisonedError or OSError where it was never written; concurrent.futures.CancelledError;
        io.UnsupportedOperation for a file without a journal and for what is no write.
        """
        self.desk.wait_received(self, timeout)
        return 0 if self.receipt is None else self.receipt.sequence

    def done(self):
        """Whether it has ended: with a result, an error, or cancelled."""
        return self.state >= DONE

    def cancelled(self):
        """Whether it was cancelled."""
        return self.state == CANCELLED

    def running(self):
        """Whether it was dispatched and has not ended."""
        return self.state == FLYING

    def result(self, timeout=None):
        """Wait for the end, at most `timeout` seconds; the result.

        Who waits ends the hold. Raises TimeoutError; concurrent.futures.CancelledError; the
        OSError that the kernel answered to this request, PoisonedError, or what a hosted backend
        raised.
        """
        if self.state < DONE:
            self.desk.wait(self, timeout)
        note_asked(self)
        return outcome(self)

    def exception(self, timeout=None):
        """Wait for the end, at most `timeout` seconds; the exception, None where all went well.

        Raises TimeoutError and concurrent.futures.CancelledError.
        """
        if self.state < DONE:
            self.desk.wait(self, timeout)
        if self.state == CANCELLED:
            raise cancelled_error()
        return error_of(self)

    def cancel(self):
        """Withdraw the request: True where that is done, as if it had never been made.

        False once it was dispatched, and for a write whose bytes a later read has already seen.
        """
        if self.state >= DONE:
            return self.state == CANCELLED
        self.desk.check_process()
        return self.desk.withdraw(self)

    def add_done_callback(self, fn):
        """Call fn(ticket) when it has ended, in whichever thread that is; now if it has already.

        fn must be quick. What it raises goes to sys.unraisablehook.
        """
        if not callable(fn):
            raise TypeError(f"fn must be callable, not {fn!r}")
        watchers = []                   # before the look at the state: see _dispatch.pyx
        if self.state >= DONE:
            call_back(fn, self)
            return
        self.desk.check_process()
        if self.watchers is None:
            self.watchers = watchers
        self.watchers.append(fn)

    def __await__(self):
        cdef Awaiter awaiter = Awaiter.__new__(Awaiter)
        awaiter.ticket = self
        note_asked(self)
        return awaiter

    def explain(self):
        """What became of it: an iolift.Explanation, which prints as a sentence."""
        cdef Record record = self.record
        landed = self.state == DONE and record is not None
        size = self.end - self.offset
        shared = 0.0
        if landed and record.bytes_asked and self.source == FROM_DEVICE and self.kind == READ:
            shared = max(0, record.bytes_moved - record.bytes_asked) * size / record.bytes_asked
        return Explanation(
            kind=KINDS[self.kind],
            offset=self.offset,
            length=size,
            state=STATES[self.state],
            source=SOURCES[self.source],
            superseded=self.superseded,
            batch=None if record is None else record.number,
            hold_ended_by=None if record is None else record.reason,
            requests=None if record is None else record.requests,
            extents=record.extents if landed else None,
            extent_offset=self.extent_offset if self.extent_end else None,
            extent_length=self.extent_end - self.extent_offset if self.extent_end else None,
            companions=self.companions if self.extent_end else None,
            held_us=None if record is None else
            max(0, record.dispatched_ns - self.submitted_ns) / 1000,
            queued_us=(record.started_ns - record.dispatched_ns) / 1000 if landed else None,
            served_us=(record.landed_ns - record.started_ns) / 1000 if landed else None,
            waste_share=shared,
        )

    def __repr__(self):
        what = KINDS[self.kind]
        if self.kind != SYNC:
            what += f" of {self.end - self.offset} bytes at {self.offset}"
        return f"<iolift.Ticket {what}: {STATES[self.state]}>"


cdef inline void note_asked(Ticket ticket) noexcept:
    # Who asks at once is served at once the next time, too.
    if ticket.is_unasked:
        ticket.is_unasked = ticket.desk.is_unasked = False


cdef object error_of(Ticket ticket):
    ticket.is_heard = True
    if ticket.failure is not None:
        return ticket.failure
    if ticket.error:
        return ticket.desk.describe(ticket, ticket.error)
    return None


cdef object cancelled_error():
    from concurrent.futures import CancelledError
    return CancelledError()


cdef object outcome(Ticket ticket):
    if ticket.state == CANCELLED:
        raise cancelled_error()
    if ticket.error or ticket.failure is not None:
        raise error_of(ticket)
    if ticket.kind == SYNC:
        return None
    if ticket.kind == READ and not ticket.is_into:
        return ticket.owner
    return ticket.got


# ------------------------------------------------------------------------------------------- ends

cdef bint is_observed(PyObject* ticket) noexcept:
    # Whether anybody but the window, which has one reference, can ask it for its outcome.
    return (Py_REFCNT(ticket) > 1 or (<Ticket>ticket).awaiter is not None
            or (<Ticket>ticket).watchers is not None)


cdef int end_ticket(Ticket ticket, list heard, list hubs) except -1:
    cdef Awaiter awaiter = ticket.awaiter
    if awaiter is not None:
        ticket.awaiter = None
        hear(awaiter, hubs)
    if ticket.watchers is not None:
        watchers, ticket.watchers = ticket.watchers, None
        for watcher in watchers:
            if isinstance(watcher, Awaiter):
                hear(<Awaiter>watcher, hubs)
            else:
                heard.append((watcher, ticket))
    return 0


cdef int hear(Awaiter awaiter, list hubs) except -1:
    cdef Hub hub = awaiter.hub
    hub.ready.append(awaiter)
    if not hub.is_woken:
        hub.is_woken = True
        hubs.append(hub)
    return 0


cdef void tell(list heard, list hubs) noexcept:
    cdef int calls = step_out()
    cdef Hub hub
    for hub in hubs:
        try:
            hub.wake()
        except BaseException as error:
            report(error, hub.loop)
    for fn, ticket in heard:
        call_back(fn, ticket)
    step_in(calls)


cdef void call_back(object fn, Ticket ticket) noexcept:
    try:
        fn(ticket)
    except BaseException as error:
        report(error, fn)


cdef void report(object error, object place) noexcept:
    # To sys.unraisablehook, as the interpreter does with what nobody can catch.
    PyErr_SetObject(type(error), error)
    PyErr_WriteUnraisable(place)


# ---------------------------------------------------------------------------------------- asyncio

cdef object running_loop():
    global get_running_loop
    if get_running_loop is None:
        from asyncio import get_running_loop as found
        get_running_loop = found
    return get_running_loop()


cdef bint is_on_a_loop() except -1:
    # Whether the caller is a coroutine, or a callback: then it must not be kept waiting.
    if "asyncio" not in sys.modules:
        return False
    from asyncio import _get_running_loop
    return _get_running_loop() is not None


cdef class Hub:
    def __cinit__(self):
        self.ready = []

    cdef int wake(self) except -1:
        try:
            self.loop.call_soon_threadsafe(self.drain)
        except RuntimeError:
            # The loop is closed: nobody can await there any more.
            self.is_woken = False
            self.pending -= len(self.ready)
            self.ready = []
        return 0

    def drain(self):
        """In the loop: wake the tasks whose tickets have ended."""
        cdef Awaiter awaiter
        self.is_woken = False
        ready, self.ready = self.ready, []
        for awaiter in ready:
            fire(awaiter)

    def end_turn(self):
        """In the loop, after all tasks that were ready had their turn."""
        self.ends_turn = False
        self.scheduler.end_turn()


cdef int fire(Awaiter self) except -1:
    if self.fired:
        return 0
    self.fired = True
    self.hub.pending -= 1
    if self.callback is not None:
        self.hub.loop.call_soon(self.callback, self, context=self.context)
        self.callback = self.context = None
    return 0


cdef class Awaiter:
    """One `await` of a ticket: iterator for the coroutine, future for the task that runs it.

    Speaks the protocol that asyncio documents for foreign futures (_asyncio_future_blocking), and
    saves the future, the callback and the handle that an asyncio.Future would cost per request.
    """

    def __iter__(self):
        return self

    def __await__(self):
        return self

    def __next__(self):
        cdef Ticket ticket = self.ticket
        cdef Hub hub
        if ticket.state >= DONE or self.hub is not None:
            if ticket.state < DONE:
                raise RuntimeError("await wasn't used with future")
            raise StopIteration(self.result())
        ticket.desk.check_process()
        # Objects first (see _dispatch.pyx): it may have ended meanwhile.
        hub = ticket.desk.hub_of(running_loop())
        watchers = []
        if ticket.state >= DONE:
            raise StopIteration(self.result())
        self.hub = hub
        hub.pending += 1
        if ticket.awaiter is None:
            ticket.awaiter = self
        else:
            if ticket.watchers is None:
                ticket.watchers = watchers
            ticket.watchers.append(self)
        try:
            ticket.desk.hasten(ticket)
        except BaseException:
            forget(self)
            raise
        if not hub.ends_turn:
            hub.ends_turn = True
            hub.loop.call_soon(hub.end_turn)
        self._asyncio_future_blocking = True
        return self

    def get_loop(self):
        return self.hub.loop

    def add_done_callback(self, fn, *, context=None):
        if self.fired:
            self.hub.loop.call_soon(fn, self, context=context)
        else:
            self.callback, self.context = fn, context

    def remove_done_callback(self, fn):
        found = self.callback is not None and self.callback == fn
        if found:
            self.callback = self.context = None
        return int(found)

    def done(self):
        return self.fired

    def cancelled(self):
        return self.is_cancelled or self.ticket.state == CANCELLED

    def cancel(self, msg=None):
        """The task is cancelled: so is the ticket, unless somebody else waits for it."""
        cdef Ticket ticket = self.ticket
        if self.fired or self.is_cancelled:
            return False
        self.is_cancelled = True
        self.cancel_message = msg
        forget(self)
        if ticket.state < DONE and ticket.awaiter is None and not ticket.watchers:
            ticket.desk.withdraw(ticket)
        fire(self)
        return True

    def result(self):
        if self.cancelled():
            raise self.cancellation()
        return outcome(self.ticket)

    def exception(self):
        if self.cancelled():
            raise self.cancellation()
        return error_of(self.ticket)

    cdef object cancellation(self):
        from asyncio import CancelledError
        return CancelledError() if self.cancel_message is None \
            else CancelledError(self.cancel_message)


cdef void forget(Awaiter self) noexcept:
    # The ticket has no more to tell it.
    cdef Ticket ticket = self.ticket
    if ticket.awaiter is self:
        ticket.awaiter = None
    elif ticket.watchers is not None and self in ticket.watchers:
        ticket.watchers.remove(self)
        if not ticket.watchers:
            ticket.watchers = None
