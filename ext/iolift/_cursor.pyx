"""Cursor: the position of a file object, and the calls that move it.

    read, readinto, readall, write -> bytes from the position on are claimed -> FileCore

1. The position and the bytes move in one call of C. So an exception of a signal handler finds both
   moved or neither, and the layers of `io`, which try again what has failed, lose and double
   nothing. (Of a write that is not write-behind some may be in the file.)
2. What a call will move is claimed before it is moved: a handler that comes in between, and reads
   or writes itself, goes on behind it.
3. An error of a write is told once to whoever flushes. `fileno` flushes as well, but many take any
   error of it for "there is none": it is told again.

Who may call: any thread, with the GIL. The lock keeps threads apart that share the position; a
handler's call on the thread that has it comes in.
"""

import errno
import operator
import os
import threading

from libc.stdint cimport INT64_MAX, int64_t

from ._arguments cimport Buffer, parse_position, take_buffer
from ._backend cimport SYNC
from ._filecore cimport FileCore, keep

cdef enum:
    # Are read at a time of a file that does not say how many it has.
    UNKNOWN_BYTES = 1 << 16


cdef class Cursor:
    # What File has of these it has by way of _methods.pyx.

    def __cinit__(self, FileCore core not None, int64_t position, *, bint appends,
                  bint is_write_behind):
        self.core = core
        self.position = position
        self.appends = appends
        self.is_write_behind = is_write_behind
        self.lock = threading.RLock()

    cdef object at_position(self):
        # Asked first: in a forked child the lock may be held by a thread that is not there.
        self.core.enter(SYNC)
        self.core.leave()
        return self.lock

    # -------------------------------------------------------------------------------- reading

    cdef object read(self, object n):
        cdef int64_t size = -1 if n is None else operator.index(n)
        cdef int64_t begin, claimed, got = 0
        if size < 0:
            return self.readall()
        with self.at_position():
            begin = self.position
            claimed = self.position = begin + min(size, INT64_MAX - begin)
            try:
                data = self.core.pread(claimed - begin, begin)
                got = len(data)
            finally:
                if self.position == claimed:
                    self.position = begin + got
        return data

    cdef object readinto(self, object buffer):
        cdef Buffer memory = take_buffer(buffer, "buffer", True)
        cdef int64_t begin, claimed, got = 0
        with self.at_position():
            begin = self.position
            claimed = self.position = begin + min(memory.view.len, INT64_MAX - begin)
            try:
                got = self.core.read_into(memory, begin)
            finally:
                if self.position == claimed:
                    self.position = begin + got
        return got

    cdef object readall(self):
        cdef int64_t begin, at, left, claimed, size
        cdef list parts = []
        with self.at_position():
            begin = at = claimed = self.position
            try:
                while True:
                    # One byte more than the size says: a file that grows is read on. Some say
                    # nothing, as those of /proc.
                    left = self.core.size() - at
                    size = min(left + 1 if left > 0 else UNKNOWN_BYTES, INT64_MAX - at)
                    if self.position == claimed:
                        claimed = self.position = at + max(left, <int64_t>0)
                    part = self.core.pread(size, at)
                    parts.append(part)
                    at += len(part)
                    if self.position == claimed:
                        claimed = self.position = at
                    if not part:
                        return b"".join(parts)
            except BaseException:
                if self.position == claimed:
                    self.position = begin
                raise

    # -------------------------------------------------------------------------------- writing

    cdef object write(self, object data):
        cdef int64_t size, before, begin
        with self.at_position():
            data = keep(data) if self.is_write_behind else take_buffer(data, "data", False)
            size = len(data) if self.is_write_behind else (<Buffer>data).view.len
            begin = self.find_end() if self.appends else self.position
            before = self.position
            parse_position(begin, size)
            if size:
                self.position = begin + size
            try:
                # Once for a handler that comes in between, and once for a flush that does.
                self.written += 1
                if self.is_write_behind:
                    self.core.submit_write(data, begin, None)
                else:
                    self.core.write_from(<Buffer>data, begin)
                self.written += 1
            except BaseException:
                if self.position == begin + size:
                    self.position = before
                raise
        return size

    cdef int64_t find_end(self) except -1:
        # Where a handler has not written meanwhile.
        cdef Py_ssize_t written = -1
        cdef int64_t end = 0
        while written != self.written:
            written = self.written
            end = self.core.size()
        return end

    def flush(self):
        self.flush_core()
        self.raise_error()

    cdef int flush_core(self) except -1:
        # Counted before, and only what has come to an end: others write and flush meanwhile.
        cdef Py_ssize_t written = self.written
        try:
            self.core.flush()
        except OSError:
            self.flushed = max(self.flushed, written)
            raise
        self.flushed = max(self.flushed, written)
        return 0

    cdef object sync(self):
        self.core.sync()
        self.raise_error()

    cdef int raise_error(self) except -1:
        error, self.error = self.error, None
        if error is not None:
            raise error
        return 0

    cdef object fileno(self):
        if self.written != self.flushed and not self.core.is_closed:
            try:
                self.flush_core()
            except OSError as error:
                self.error = error
                raise
        return self.core.fileno()

    # ------------------------------------------------------------------------------ the position

    cdef object tell(self):
        with self.at_position():
            return self.position

    cdef object seek(self, object offset, object whence):
        offset, whence = operator.index(offset), operator.index(whence)
        with self.at_position():
            if whence == os.SEEK_SET:
                position = offset
            elif whence == os.SEEK_CUR:
                position = self.position + offset
            elif whence == os.SEEK_END:
                position = self.core.size() + offset
            else:
                # Of a hole or of data the kernel must know what is held.
                position = os.lseek(self.fileno(), offset, whence)
            if position < 0 or position > INT64_MAX:
                raise OSError(errno.EINVAL, f"position {position} is outside of any file")
            self.position = position
        return position

    cdef object truncate(self, object size):
        with self.at_position():
            size = self.position if size is None else int(operator.index(size))
            self.core.truncate(size)
        return size
