"""Threads that are begun in the middle of something."""

from __future__ import annotations

import _thread
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def begin_aside(work: Callable[[], object], name: str) -> None:
    """Have a thread do it that the interpreter's end waits for. Raises RuntimeError: none is had.

    Thread.start waits for the thread to be there, which may collect garbage before it is, and come
    to a finalizer that waits for what the caller has in its hands. So another one waits for that.
    """
    _thread.start_new_thread(_begin, (work, name))


def close_aside(close: Callable[[], object]) -> None:
    """The same for what a finalizer closes. Nobody is told of its errors, but in dev mode: as of
    those that io.IOBase meets in a finalizer."""

    def work() -> None:
        try:
            close()
        except Exception:
            if sys.flags.dev_mode:
                raise

    begin_aside(work, "iolift close")


def _begin(work: Callable[[], object], name: str) -> None:
    # No daemon, as this thread and those of the core are: it must not be stopped with a lock in its
    # hands.
    thread = threading.Thread(target=work, name=name, daemon=False)
    try:
        thread.start()
    except RuntimeError:  # the interpreter ends, or there are as many as there may be
        work()
