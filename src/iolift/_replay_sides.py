"""The two ways of doing a window: one by one with the os module, and coalesced through iolift.

Both have the same five calls. `ready` makes the data and the buffers, `go` does the I/O and is all
that is timed, `reads` gives what was read in the order of the requests, `ios` what was moved.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

import iolift

from ._replay_data import PreparedFile, WriteData
from ._replay_window import Window, overlaps
from .traces import READ, SYNC, WRITE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .replay import Options

MIB = 1 << 20

Ints = NDArray[np.int64]


class Buffer:
    """Page-aligned memory that grows and is reused; its pages are touched before they are timed."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, mmap.PAGESIZE)
        self.view = memoryview(self._map)

    def need(self, size: int) -> None:
        if size > len(self.view):
            self._map = mmap.mmap(-1, -(-size // MIB) * MIB)
            self.view = memoryview(self._map)
            np.frombuffer(self._map, np.uint8)[:: mmap.PAGESIZE] = 1


def packed(length: Ints, align: int = 1) -> tuple[Ints, int]:
    """Where things of these lengths lie back to back (each aligned), and how long that is."""
    room = length + -length % align
    ends = np.cumsum(room)
    return ends - room, int(ends[-1]) if len(ends) else 0


class Side(Protocol):
    """One way of doing a window. Only `go` is timed."""

    def ready(self, window: Window) -> None: ...
    def go(self) -> None: ...
    def reads(self) -> Iterator[Any]: ...
    def ios(self) -> Ints: ...
    def sync(self) -> None: ...
    def close(self) -> None: ...


class OneByOne:
    """os.pread and os.pwrite (os.preadv and os.pwritev of aligned memory when direct).

    When direct, a request that isn't aligned goes through a second, buffered descriptor.
    """

    def __init__(self, file: PreparedFile, direct: bool, alignment: tuple[int, int]) -> None:
        self._data, self._in, self._out = WriteData(), Buffer(), Buffer()
        self._align = alignment if direct else (1, 1)
        self._fds: list[int] = []
        flags = (os.O_RDWR if file.writable else os.O_RDONLY) | os.O_CLOEXEC
        self._fds.append(os.open(file.path, flags))
        if direct:
            self._fds.append(os.open(file.path, flags | os.O_DIRECT))
        self._direct = direct

    def ready(self, window: Window) -> None:
        self._window = window
        memory, unit = self._align
        reads, writes = window.of(READ), window.of(WRITE)
        at = np.zeros(len(window.kind), np.int64)
        at[writes], size = packed(window.length[writes], memory)
        self._out.need(size)
        self._data.put(self._out.view, window.index[writes], at[writes], window.length[writes])
        if self._direct:
            at[reads], size = packed(window.length[reads], memory)
            self._in.need(size)
        whole = (window.offset % unit == 0) & (window.length % unit == 0) & self._direct
        columns = (window.kind, whole, window.offset, window.length, at)
        self._steps = [
            (kind, self._fds[direct], offset, self._target(kind, length, at))
            for kind, direct, offset, length, at in zip(
                *(column.tolist() for column in columns), strict=True
            )
        ]
        self._got: list[Any] = []
        self._moved: list[int] = []

    def _target(self, kind: int, length: int, at: int) -> Any:
        if kind == WRITE:
            return self._out.view[at : at + length]
        return self._in.view[at : at + length] if self._direct else length

    def go(self) -> None:
        (self._go_direct if self._direct else self._go_buffered)()
        if self._window.sync:
            self.sync()

    def _go_buffered(self) -> None:
        pread, pwrite, got, moved = os.pread, os.pwrite, self._got, self._moved
        for kind, fd, offset, target in self._steps:
            if kind:
                done = pwrite(fd, target, offset)
                moved.append(done)
                if done != len(target):
                    self._rest(fd, target, offset, done)
            else:
                data = pread(fd, target, offset)
                got.append(data)
                moved.append(len(data))

    def _go_direct(self) -> None:
        preadv, pwritev, got, moved = os.preadv, os.pwritev, self._got, self._moved
        for kind, fd, offset, target in self._steps:
            if kind:
                done = pwritev(fd, (target,), offset)
                moved.append(done)
                if done != len(target):
                    self._rest(fd, target, offset, done)
            else:
                done = preadv(fd, (target,), offset)
                got.append(target[:done])
                moved.append(done)

    def _rest(self, fd: int, target: Any, offset: int, done: int) -> None:
        """A write came back short (a disk about to be full, say): try the rest."""
        while done < len(target):
            more = os.pwrite(self._fds[0], target[done:], offset + done)
            self._moved[-1] += more
            done += more

    def reads(self) -> Iterator[Any]:
        return iter(self._got)

    def ios(self) -> Ints:
        window = self._window
        moved = np.array(self._moved, np.int64)
        rows: Ints = np.stack((window.kind, window.offset, moved), axis=1, dtype=np.int64)
        return rows[window.length > 0]

    def sync(self) -> None:
        os.fdatasync(self._fds[0])

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)


class Coalesced:
    """A window's reads in one read_ranges, then its writes in one write_ranges."""

    def __init__(self, file: PreparedFile, options: Options) -> None:
        self._data, self._in, self._out = WriteData(), Buffer(), Buffer()
        self._coalescer = iolift.Coalescer(
            backend=options.backend,
            order=options.order,
            gap=options.gap,
            max_io=options.max_io,
            depth=options.depth,
        )
        self._size = file.size
        self._fd = file.fd
        mode = "r+" if file.writable else "r"
        try:
            self._file = self._coalescer.open(file.path, mode, direct=options.direct)
        except BaseException:
            self._coalescer.close()
            raise
        self.backend, self.reason = self._coalescer.backend, self._coalescer.backend_reason
        self.alignment = self._file.alignment

    def ready(self, window: Window) -> None:
        self._window = window
        writes = window.of(WRITE)
        length = window.length[writes]
        self._at_out, self._out_size = packed(length)
        self._out.need(self._out_size)
        self._in.need(int(window.length.sum()) - self._out_size)
        self._data.put(self._out.view, window.index[writes], self._at_out, length)
        self._coalescer.trace_start()

    def go(self) -> None:
        window = self._window
        reads, writes = window.of(READ), window.of(WRITE)
        if len(reads):
            self._read(reads, writes)
        if len(writes):
            data = self._out.view[: self._out_size]
            length = window.length[writes]
            self._file.write_ranges(window.offset[writes], data, lengths=length)
        if window.sync:
            self._file.sync()

    def _read(self, reads: Ints, writes: Ints) -> None:
        window = self._window
        r, w, covered = overlaps(window)
        offset, length = window.offset[reads], window.length[reads]
        # Those that need I/O lie back to back at the front, the covered ones behind them.
        if len(r) and covered.any():
            order = np.argsort(covered, kind="stable")
            fetched = order[: len(order) - int(covered.sum())]
            self._at_in = np.empty(len(reads), np.int64)
            self._at_in[order], _ = packed(length[order])
        else:
            fetched = np.arange(len(reads))
            self._at_in, _ = packed(length)
        self._length = length
        end = offset + length
        if int(end.max()) > self._size:
            self._length = self._cut(reads, writes, offset, length)
        if len(fetched):
            size = int(length[fetched].sum())
            with contextlib.suppress(iolift.ShortReadError):
                out = self._in.view[:size]
                self._file.read_ranges(offset[fetched], length[fetched], out=out)
        if len(r):
            self._patch(r, w, offset, end, writes)

    def _patch(self, r: Ints, w: Ints, offset: Ints, end: Ints, writes: Ints) -> None:
        """Copy what reads get from older writes, oldest first."""
        begin = self._window.offset[writes][w]
        low = np.maximum(begin, offset[r])
        size = np.minimum(begin + self._window.length[writes][w], end[r]) - low
        to = (self._at_in[r] + (low - offset[r])).tolist()
        source = (self._at_out[w] + (low - begin)).tolist()
        into, out = self._in.view, self._out.view
        for a, b, n in zip(to, source, size.tolist(), strict=True):
            into[a : a + n] = out[b : b + n]

    def _cut(self, reads: Ints, writes: Ints, offset: Ints, length: Ints) -> Ints:
        """Reads past the end of the file: their true lengths.

        The file may be longer by the time of a read than before the window, through older writes of
        the window; what they leave unwritten below their ends reads as zeros.
        """
        size = os.fstat(self._fd).st_size
        grown = np.full(len(self._window.kind), size)
        grown[writes] = self._window.offset[writes] + self._window.length[writes]
        grown[writes] = np.where(self._window.length[writes] > 0, grown[writes], size)
        true = np.clip(np.maximum.accumulate(grown)[reads] - offset, 0, length)
        for i in np.flatnonzero(offset + length > size).tolist():
            at = int(self._at_in[i])
            zeros = min(int(length[i]), int(offset[i] + length[i]) - size)
            into = self._in.view[at + int(length[i]) - zeros : at + int(length[i])]
            into[:] = bytes(zeros)
        return true

    def reads(self) -> Iterator[Any]:
        if not len(self._window.of(READ)):
            return
        at, stop = self._at_in, self._at_in + self._length
        breaks = np.flatnonzero(at[1:] != stop[:-1]) + 1
        firsts = np.append(0, breaks)
        lasts = np.append(breaks, len(at)) - 1
        for first, last in zip(at[firsts].tolist(), stop[lasts].tolist(), strict=True):
            yield self._in.view[first:last]

    def ios(self) -> Ints:
        log = self._coalescer.trace_stop()
        moves: Ints = log[log[:, 0] != SYNC]
        return moves

    def sync(self) -> None:
        self._file.sync()

    def close(self) -> None:
        self._file.close()
        self._coalescer.close()
