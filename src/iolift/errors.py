"""What iolift raises.

    OSError                     the kernel said no: errno and file name as it gave them
     +-- RangeError             ... to some requests of read_ranges or write_ranges
     +-- PoisonedError          the file refuses writes, because an earlier sync failed
     |    +-- OutcomeUnknownError   the journal failed under this one: it may be there, or not
     +-- JournalError           the journal can't be used
          +-- JournalDamagedError   acknowledged records can't be read any more
          +-- ForeignJournalError   it belongs to other files
    EOFError
     +-- ShortReadError         read_ranges past the end of the file
    ValueError
     +-- TraceError             a trace file that can't be read (iolift.traces)
    RuntimeError
     +-- ForkedError            used in a forked child

A bad argument is a ValueError or a TypeError that names it, raised at the call, before anything
is moved. A closed file is a ValueError and a wrong mode an io.UnsupportedOperation, as in `io`.
"""

from __future__ import annotations

import errno
import os
from typing import Any


class RangeError(OSError):
    """The kernel refused the bytes of some requests; all others were served.

    errno, strerror, filename: of the first request (by index) that failed.
    index, offset, length: that request; offset and length in bytes.
    errnos: every request that failed, index -> errno.
    """

    def __init__(
        self, error: int, name: Any, index: int, offset: int, length: int, errnos: dict[int, int]
    ) -> None:
        super().__init__(error, os.strerror(error), name)
        self.index = index
        self.offset = offset
        self.length = length
        self.errnos = errnos

    def __str__(self) -> str:
        more = f" ({len(self.errnos)} requests failed)" if len(self.errnos) > 1 else ""
        where = f"request {self.index}, {self.length} bytes at offset {self.offset}{more}"
        return f"{super().__str__()}: {where}"

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = (self.errno, self.filename, self.index, self.offset, self.length, self.errnos)
        return type(self), arguments


class ShortReadError(EOFError):
    """The file ends inside or before a request; all others were served.

    filename: the file. index, offset, length: the first such request (by index), in bytes.
    got: how many of its bytes there are; the rest of its row is untouched.
    """

    def __init__(self, name: Any, index: int, offset: int, length: int, got: int) -> None:
        super().__init__(
            f"{name!r} ends within request {index}: {got} of {length} bytes at offset {offset}"
        )
        self.filename = name
        self.index = index
        self.offset = offset
        self.length = length
        self.got = got

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.filename, self.index, self.offset, self.length, self.got)


class PoisonedError(OSError):
    """A sync of this file failed. What was written before may be lost, and no retry can tell.

    errno: that of the failed sync. Close the file, and bring it back to a state that you know.
    """


class ForkedError(RuntimeError):
    """A file or coalescer of the parent process was used in a forked child."""


class OutcomeUnknownError(PoisonedError):
    """The journal failed while this was on its way: it may be there after the next open, or not.

    errno: that of the failed write or sync. Look it up by its idempotency key, or read it back.
    """


class JournalError(OSError):
    """The journal can't be used. errno says what kind of no it is, where the kernel said it."""


class JournalDamagedError(JournalError):
    """Acknowledged records can't be read any more. Nothing was touched.

    filename: the segment. offset: the first byte that can't be believed. lost: the sequence of the
    record that should be there. witness: who says that it was durable. `iolift journal salvage`
    takes out what is left.
    """

    def __init__(self, name: str, offset: int, lost: int, reason: str, witness: str) -> None:
        super().__init__(
            errno.EIO,
            f"record {lost} was durable ({witness} says so) and can't be read at offset {offset}: "
            f"{reason}. Nothing was touched; see: iolift journal salvage",
            name,
        )
        self.offset = offset
        self.lost = lost
        self.reason = reason
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.filename, self.offset, self.lost, self.reason, self.witness)


class ForeignJournalError(JournalError):
    """The journal belongs to other files than the one it was given for."""
