"""Threads of C code that calls Python again and again, as nbdkit's do.

Such a thread gets a new Python thread state for each call, and the first Python frame on one maps
16 KiB, which are unmapped again when the call is over: with 16 threads that costs more than the
whole rest of a call. `keep` takes a second hold of the calling thread's state (PyGILState_Ensure
counts them), so that it outlives the call. `let_go`, when the threads have ended, deletes the
states: in a thread of its own, because CPython >= 3.12 makes who deletes a state forget its own.

Who may call: any thread, with the GIL.
"""

from __future__ import annotations

import ctypes
import os
import threading
from contextlib import suppress

PYGILSTATE_LOCKED = 0

_api = ctypes.pythonapi
_api.PyThreadState_Get.restype = ctypes.c_void_p
_api.PyThreadState_Clear.argtypes = [ctypes.c_void_p]
_api.PyThreadState_Delete.argtypes = [ctypes.c_void_p]

# `here` is set in a thread whose state is kept.
kept = threading.local()


def keep(states: list[int]) -> None:
    """Keep the calling thread's state, for `let_go(states)` to delete."""
    _api.PyGILState_Ensure()
    states.append(_api.PyThreadState_Get())
    kept.here = True


def let_go(states: list[int]) -> None:
    """Delete the states of threads that have ended; the caller's own goes when its call is over."""
    own = _api.PyThreadState_Get()
    ended = [state for state in states if state != own]
    if len(ended) < len(states):
        _api.PyGILState_Release(PYGILSTATE_LOCKED)
        del kept.here
    states.clear()
    if ended:
        deleter = threading.Thread(target=_delete, args=(ended,))
        deleter.start()
        deleter.join()


def _delete(states: list[int]) -> None:
    for state in states:
        _api.PyThreadState_Clear(state)
        _api.PyThreadState_Delete(state)


def preempt_nobody() -> None:
    """Schedule the threads that the caller starts from now on as SCHED_BATCH.

    A thread that wakes up then lets the one that runs go on, which mostly holds the GIL: a third
    less CPU time for each request of a busy server.
    """
    if os.sched_getscheduler(0) == os.SCHED_OTHER:
        with suppress(PermissionError):  # a sandbox that forbids it: slower, and as correct
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
