"""File: the raw file object over FileCore.

Opening, closing and what a file says of itself are here; the calls that move bytes go straight to
the core (_methods.pyx), those of the position by way of _cursor.pyx. All of it follows io.FileIO,
whose own tests it passes (tests/surfaces/test_fileio.py has the deviations), but for these:
1. The position is the object's own; the descriptor's says only where it starts.
2. Append mode finds the end itself: the kernel's O_APPEND ignores the offsets that this library
   lives by, and descriptors that have it are refused, as is what can't be seeked.
3. write() is write-behind. Whoever asks for the descriptor looks past this object, so `fileno`
   flushes it first: os.fsync, os.fstat and mmap see all that write() was given until then.
"""

from __future__ import annotations

import contextlib
import io
import operator
import os
import warnings
from typing import TYPE_CHECKING, Any, cast

from . import _methods
from ._calls import is_in_call
from ._coalescer import Coalescer
from ._cursor import Cursor
from ._filecore import FileCore
from ._opening import check_coalescer, open_descriptor, parse_mode
from ._threads import close_aside
from .errors import ForkedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import ArrayLike

    from ._journal import Journal
    from ._journalcore import JournalledCore
    from ._ticket import Ticket


class File(io.RawIOBase):
    """A file whose reads and writes are merged, sorted and moved in batches.

    path: a path, or an open descriptor (an int), which stays open on close unless closefd. The
    position starts where the descriptor's is.
    mode: "r", "w", "x" or "a", with "+" for both ways; "b" may stand in it.
    opener: called with (path, flags) in place of os.open; returns a descriptor, which is ours then.
    direct: with O_DIRECT, past the page cache. Aligned requests go straight, others through
    bounce buffers, the ragged ends of writes through the page cache.
    coalescer: a Coalescer to share; otherwise one of its own, made with **options.

    journal: a directory for a journal of every change, made where there is none: a write is then
    safe when it is received there (Ticket.received), `sync` waits for just that, and opening brings
    the file to its last received state. Mode "r+", "a" or "x", with or without "+". One opener.
    journal_segment_bytes: of a new journal, a multiple of 4096. journal_max_bytes: of all its
    segments, at least four; who finds it full waits for a checkpoint. keep_segments: as history.

    Raises OSError where the file can't be opened (EINVAL: no direct I/O on this file system;
    ESPIPE: it is no seekable file), ValueError or TypeError for a bad mode or option.
    Safe to use from any thread.
    """

    name: Any
    """What it was opened with: a path or a descriptor. May be set, as io.FileIO's."""

    # Also of an object that __init__ has not seen.
    _core: FileCore | None = None
    _cursor: Cursor | None = None
    _coalescer: Coalescer
    _owned: Any = None  # closed with the file: its coalescer, or a share in one
    _journal: Journal | None = None
    _closed, _closefd, _mode = True, True, "wb"
    _finalizing = False  # io.IOBase sets it when the object goes unclosed
    _is_write_behind = True

    def __init__(
        self,
        path: str | bytes | os.PathLike[Any] | int,
        mode: str = "r",
        closefd: bool = True,
        opener: Callable[[Any, int], int] | None = None,
        *,
        direct: bool = False,
        coalescer: Coalescer | None = None,
        journal: str | bytes | os.PathLike[Any] | None = None,
        journal_segment_bytes: int = 16 << 20,
        journal_max_bytes: int = 256 << 20,
        keep_segments: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        self._start_anew()
        flags = parse_mode(mode)[1]
        check_coalescer(coalescer, options)
        kind = FileCore
        if journal is not None:
            from ._journalled import JournalledCore, check_options, open_journal

            kind = JournalledCore
            check_options(mode, flags, journal_segment_bytes, journal_max_bytes)
        common = Coalescer(**options) if coalescer is None else coalescer
        owned = common if coalescer is None else None
        try:
            self._prepare(path, mode, closefd, opener, direct, common, owned, kind)
            opened = None
            if journal is not None:
                opened = open_journal(
                    [cast("JournalledCore", self._core)],
                    journal,
                    segment_bytes=journal_segment_bytes,
                    max_bytes=journal_max_bytes,
                    keep_segments=keep_segments,
                )
            self._begin(opened)
        except BaseException:
            self._abandon()
            if owned is not None:
                owned.close()
            raise

    def _prepare(
        self,
        path: Any,
        mode: str,
        closefd: bool,
        opener: Any,
        direct: bool,
        coalescer: Coalescer,
        owned: Any,
        kind: type[FileCore],
    ) -> None:
        """The descriptor is open after this, the file is not."""
        self._mode, flags = parse_mode(mode)
        # Before there is anything to close: a subclass may refuse it.
        self.name = path
        self._closefd = bool(closefd)
        self._coalescer, self._owned = coalescer, owned
        self._core = self._open(path, flags, opener, bool(direct), kind)

    def _begin(self, journal: Journal | None) -> None:
        core = self._file
        self._journal = journal
        appends = self._mode.startswith("a")
        self._cursor = Cursor(
            core,
            core.size() if appends else self._start,
            appends=appends,
            is_write_behind=self._is_write_behind,
        )
        core.own_descriptor(self._closefd)
        self._closed = False

    def _abandon(self) -> None:
        if self._core is not None:
            self._core.close()

    def _start_anew(self) -> None:
        # io.FileIO, too, may be initialised again: closed first, if it is open, and opened then.
        if not self._closed:
            self.close()
        vars(self).pop("__IOBase_closed", None)
        self._core = self._cursor = self._journal = None

    def _open(
        self, path: Any, flags: int, opener: Any, direct: bool, kind: type[FileCore]
    ) -> FileCore:
        found = open_descriptor(path, flags, self._closefd, opener, direct)
        try:
            self._blksize, self._start = found.block_bytes, found.position
            return kind(
                self._coalescer,
                found.fd,
                found.name,
                readable=flags & os.O_ACCMODE != os.O_WRONLY,
                writable=flags & os.O_ACCMODE != os.O_RDONLY,
                direct=direct,
                # One that was handed to us is the caller's until all is well.
                owns_descriptor=found.is_ours,
            )
        except BaseException:
            found.give_back()
            raise

    @property
    def _file(self) -> FileCore:
        if self._core is None:
            raise ValueError("I/O operation on uninitialized object")
        return self._core

    # ------------------------------------------------------------------------------- positional

    pread = _methods.pread
    pwrite = _methods.pwrite

    def preadv(self, buffers: Iterable[Any], offset: int) -> int:
        """Fill writable buffers, one after the other, from offset; returns the bytes read.

        Any number of buffers; short only at the end of the file. Errors as pread.
        """
        return self._file.preadv(buffers, offset)

    def pwritev(self, buffers: Iterable[Any], offset: int) -> int:
        """Write buffers one after the other from offset; returns the bytes written.

        Any number of buffers. Errors as pwrite.
        """
        return self._file.pwritev(buffers, offset)

    def read_ranges(self, offsets: ArrayLike, lengths: ArrayLike, *, out: Any = None) -> Any:
        """Read many ranges at once: deduplicated, merged, sorted, straight into their rows.

        offsets: int64[n], bytes. lengths: one int for all, or int64[n], bytes.
        out: a writable, C-contiguous buffer of exactly as many bytes as are asked for; made if
        not given. Must not be touched during the call.
        Returns out: uint8[n, length] for one length, else uint8[sum(lengths)], back to back.

        Raises ShortReadError where the file ends too early and RangeError where the kernel
        refused, both after all other requests were served; ValueError or TypeError, naming
        argument, index and value, before anything is read.
        O(n) time, 48 bytes of memory a request beside `out`; the GIL is released meanwhile.
        """
        return self._file.read_ranges(offsets, lengths, out)

    def write_ranges(
        self, offsets: ArrayLike, data: Any, *, lengths: ArrayLike | None = None
    ) -> int:
        """Write many ranges at once, as if one by one in index order.

        offsets: int64[n], bytes. data: a C-contiguous buffer; without lengths its rows (the first
        axis, or n equal parts) are what goes to the offsets, else lengths, an int or int64[n] in
        bytes, says how much of it, back to back.
        Of overlapping ranges only the last one's bytes are written. Returns the bytes asked.

        Raises RangeError where the kernel refused, after all other requests were served;
        PoisonedError; ValueError or TypeError before anything is written.
        O(n) time where few overlap, 48 to 96 bytes of memory a request.
        """
        return self._file.write_ranges(offsets, data, lengths)

    # ------------------------------------------------------------------------------------- tickets

    def submit_pread(self, n: int, offset: int, *, into: Any = None) -> Ticket:
        """Ask for n bytes at offset; returns at once with a Ticket for them.

        into: a writable, C-contiguous buffer of n bytes to read to, not to be touched before the
        ticket ends; the result is then the count. Without it the result is bytes.
        Errors as pread: of the arguments here, of the kernel in the ticket.
        """
        return self._file.submit_pread(n, offset, into)

    submit_pwrite = _methods.submit_pwrite
    submit_sync = _methods.submit_sync

    # ------------------------------------------------------------------------------ the whole file

    def flush(self) -> None:
        """Return when all that was written so far is in the file.

        Raises the first error of a write that nobody holds the ticket of, as of write().
        """
        if self._cursor is None or self._file.closed:
            return super().flush()
        return self._cursor.flush()

    sync = _methods.sync

    def checkpoint(self) -> None:
        """With a journal: flush, sync the file itself, and let go of what the journal has of it.

        It is made by itself before the journal is full, and on close. Raises OSError, and
        io.UnsupportedOperation for a file without a journal.
        """
        core = self._file
        if self._journal is None:
            raise io.UnsupportedOperation("the file has no journal")
        cast("JournalledCore", core).checkpoint()

    truncate = _methods.truncate

    def close(self) -> None:
        """Close the file, and its coalescer if that is its own. Idempotent.

        A finalizer that comes in the middle of another call leaves it to a thread.
        """
        if self._closed:
            return
        if is_in_call():
            # It may be that call that this would wait for.
            close_aside(self.close)
            return
        if self._finalizing:
            self._dealloc_warn(self)
        with contextlib.ExitStack() as stack:  # whatever fails, the rest is closed, too
            if self._owned is not None:
                stack.callback(self._owned.close)
            if self._core is not None:
                stack.callback(self._core.close)
            # In a forked child there is nothing to flush, and closing is all that it may do.
            try:
                with contextlib.suppress(ForkedError):
                    super().close()
            finally:
                self._closed = True

    def _dealloc_warn(self, source: object) -> None:
        # The buffered layers call it, too, with themselves for a source.
        if self._core is not None and not self._core.closed and self._closefd:
            _LastWords(source)

    # --------------------------------------------------------------------------- as an io.RawIOBase

    read = _methods.read
    readinto = _methods.readinto
    readall = _methods.readall
    write = _methods.write
    seek = _methods.seek
    tell = _methods.tell
    fileno = _methods.fileno

    def isatty(self) -> bool:
        """Whether it is a terminal, which a seekable file is not."""
        return os.isatty(self._file.fileno())

    def readable(self) -> bool:
        """Whether the mode allows reading."""
        self._file.check()
        return self._file.readable

    def writable(self) -> bool:
        """Whether the mode allows writing."""
        self._file.check()
        return self._file.writable

    def seekable(self) -> bool:
        """True: others are refused when opened."""
        self._file.check()
        return True

    @property
    def mode(self) -> str:
        """The mode, as io.FileIO tells it: rb, wb, xb, ab, rb+ (also of w+), xb+, ab+."""
        return self._mode

    if TYPE_CHECKING:

        @property
        def closed(self) -> bool: ...

    else:
        # As the calls of the cursor: an exception in it would tell a BufferedWriter of a closed
        # file.
        closed = property(operator.attrgetter("_closed"), doc="Whether close was called.")

    @property
    def closefd(self) -> bool:
        """Whether close closes the descriptor."""
        return self._closefd

    @property
    def direct(self) -> bool:
        """Whether the page cache is passed by."""
        return self._file.direct

    @property
    def alignment(self) -> tuple[int, int]:
        """What goes straight with O_DIRECT: multiples of (memory, offset) bytes."""
        return self._file.alignment

    @property
    def coalescer(self) -> Coalescer:
        """The coalescer that the file is open on."""
        return self._coalescer

    def __reduce__(self) -> Any:
        raise TypeError(f"cannot pickle {type(self).__qualname__!r} object")

    def __repr__(self) -> str:
        kind = "iolift.File" if type(self) is File else type(self).__qualname__
        if self._core is None or self.closed:
            return f"<{kind} [closed]>"
        try:
            name = f"name={self.name!r}"
        except AttributeError:
            name = f"fd={self._core.fileno()}"
        direct = " direct=True" if self.direct else ""
        return f"<{kind} {name} mode={self._mode!r} closefd={self._closefd}{direct}>"


class _LastWords:
    """Warns as it goes: where a filter makes an error of it, it is told and stops nobody."""

    def __init__(self, source: object) -> None:
        self.source = source

    def __del__(self) -> None:
        warnings.warn(f"unclosed file {self.source!r}", ResourceWarning, 2, source=self.source)


def open(
    path: str | bytes | os.PathLike[Any] | int,
    mode: str = "r",
    *,
    closefd: bool = True,
    opener: Callable[[Any, int], int] | None = None,
    direct: bool = False,
    coalescer: Coalescer | None = None,
    journal: str | bytes | os.PathLike[Any] | None = None,
    **options: Any,
) -> File:
    """Open a file for merged I/O: see File, and Coalescer for the options.

    journal: a directory for a journal of every change; see File.

    >>> import iolift, os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "data")
    >>> with iolift.open(path, "w+") as f:
    ...     f.write_ranges([4, 0], b"datasome", lengths=4)
    ...     f.read_ranges([4, 0, 4], 4).tobytes()
    8
    b'datasomedata'
    """
    return File(
        path,
        mode,
        closefd,
        opener,
        direct=direct,
        coalescer=coalescer,
        journal=journal,
        **options,
    )
