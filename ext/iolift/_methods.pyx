# cython: embedsignature=False
"""Methods of iolift.File that are one call of C.

Where a method is Python code, a signal handler may raise in it after the position has moved, and
the caller is without his bytes; and a small read takes a quarter longer.

They are functions that the class has for attributes, not methods of the core: whoever has `f.read`,
and be it for the length of a call, has the file.
"""

from ._cursor cimport Cursor
from ._filecore cimport FileCore


cdef FileCore core_of(object file):
    core = file._core
    if core is None:
        raise ValueError("I/O operation on uninitialized object")
    return core


cdef Cursor cursor_of(object file):
    cursor = file._cursor
    if cursor is None:
        raise ValueError("I/O operation on uninitialized object")
    return cursor


def pread(self, n, offset):
    """Read n bytes at offset; fewer at the end of the file, as os.pread does.

    Raises OSError, ValueError (negative, past 2**63-1, closed), TypeError.
    """
    return core_of(self).pread(n, offset)


def pwrite(self, data, offset):
    """Write all of data, any C-contiguous buffer, at offset; returns its size in bytes.

    Returns when the bytes are in the file (the page cache; the device if direct).
    Raises OSError, PoisonedError, ValueError, TypeError.
    """
    return core_of(self).pwrite(data, offset)


def submit_pwrite(self, data, offset, *, key=None):
    """Ask for data, any C-contiguous buffer, to be written at offset; returns at once.

    The buffer may be reused at once: bytes are kept, anything else is copied. Later reads
    see the bytes. The ticket ends when they are in the file (page cache; device if direct).

    key, with a journal: 1 to 255 bytes that are this write's alone. Where the journal knows it
    already, nothing is written, and the ticket has the first one's receipt: who never learnt
    what became of a write can ask again.
    """
    return core_of(self).submit_write(data, offset, key)


def submit_sync(self):
    """Ask for all that was submitted before to be on the device; returns at once.

    With a journal: in the journal.
    """
    return core_of(self).submit_sync()


def read(self, n=-1, /):
    """Read n bytes from the position, fewer at the end; all that follows if negative, None."""
    return cursor_of(self).read(n)


def readinto(self, buffer, /):
    """Read at the position into a writable buffer; returns the bytes read, 0 at the end."""
    return cursor_of(self).readinto(buffer)


def readall(self):
    """Read from the position to the end of the file."""
    return cursor_of(self).readall()


def write(self, data, /):
    """Write all of data at the position (mode "a": at the end); returns its size in bytes.

    Write-behind: data is held, merged with its neighbours, seen by this object's own reads at
    once, and on its way within the window. An error comes at flush, sync or close.
    """
    return cursor_of(self).write(data)


def seek(self, offset, whence=0, /):
    """Move the position; returns it, bytes from the beginning."""
    return cursor_of(self).seek(offset, whence)


def tell(self):
    """The position, in bytes from the beginning."""
    return cursor_of(self).tell()


def fileno(self):
    """Flush what write() holds; return the descriptor, whose own position is never used.

    Raises the errors of flush; the next flush, sync or close raises them again.
    """
    return cursor_of(self).fileno()


def sync(self):
    """Return when all that was written so far is on the device (fdatasync).

    Syncs that are asked for at once share one fdatasync. Raises OSError where that failed, and
    PoisonedError from then on: it is never retried; and the errors of flush.
    With a journal it returns when all that was written so far is received there.
    """
    return cursor_of(self).sync()


def truncate(self, size=None):
    """Set the size in bytes, to the position if not given; returns it."""
    return cursor_of(self).truncate(size)
