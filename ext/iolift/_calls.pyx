"""Calls: whether this thread is in the middle of one.

Where the core makes an object, a garbage collection may begin, and a finalizer with it that closes
a file: on this very thread, which may have that file's requests in its hands. To wait for them
would be for ever, so such a close is another thread's (File.close); other calls that wait are not
for finalizers (docs/guarantees.md). A signal handler and a callback come in where nothing is in
hand: for them the thread is in no call.

Who may call: any thread; each has a count of its own.
"""

from cpython.exc cimport PyErr_CheckSignals

cdef extern from *:
    """
    static _Thread_local int iolift_calls;
    """
    int iolift_calls


cdef void begin_call() noexcept nogil:
    global iolift_calls
    iolift_calls += 1


cdef void end_call() noexcept nogil:
    global iolift_calls
    iolift_calls -= 1


cdef bint is_nested() noexcept nogil:
    return iolift_calls > 1


cdef int step_out() noexcept nogil:
    global iolift_calls
    cdef int calls = iolift_calls
    iolift_calls = 0
    return calls


cdef void step_in(int calls) noexcept nogil:
    global iolift_calls
    iolift_calls = calls


cdef int hear_signals() except -1:
    cdef int calls = step_out()
    try:
        PyErr_CheckSignals()
    finally:
        step_in(calls)
    return 0


def is_in_call():
    """Whether the caller was called by something that a call of the core does."""
    return iolift_calls > 0


def in_call(work):
    """Call `work`, a part of the core in Python, as such."""
    begin_call()
    try:
        work()
    finally:
        end_call()
