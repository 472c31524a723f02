"""Replays a trace twice on the same data - one by one, and coalesced - and compares.

1. Both runs do the same thing: each request as if it came alone, in the order of the trace. What
   was read (in the order of the requests) and what the file holds afterwards are hashed, and the
   two hashes of one run must equal those of the other.
2. Coalesced means: `window` requests are taken together. All their reads go first, in one
   `read_ranges`, then all their writes, in one `write_ranges`. Bytes that a read of the window gets
   from an older write of the same window are copied from that write; a read made up of such bytes
   alone does no I/O. As the reads go first, none sees a younger write. A sync ends its window.
3. Every figure is what happened: I/Os, bytes and head travel come from the calls made (one by one)
   and from `Coalescer.trace_stop` (coalesced), never from a plan.
4. Timed is what has to be done to get the I/O done: the calls, the look for overlaps, the copies,
   the syncs, and a last sync of everything. Not timed: making data, hashing, progress.
5. Memory is bounded by the window: 256 MiB of requests, or a single request if it is longer.
6. Before each run the file is as it was, on the device, and out of the page cache where the file
   system has one to drop it from.
"""

from __future__ import annotations

import errno
import hashlib
import os
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ._replay_data import (
    AddressMap,
    PreparedFile,
    Progress,
    ReplayError,
    filesystem,
    prepared,
    union,
)
from ._replay_sides import Coalesced, OneByOne, Side
from ._replay_window import Window, windows
from .traces import SYNC, WRITE, Trace

__all__ = ["Options", "ReplayError", "Result", "Run", "replay"]

MIB = 1 << 20
MAX_REQUEST_BYTES = 1 << 30
MAX_WINDOW = 1 << 16

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Options:
    """How to replay. Sizes are in bytes, `window` in requests."""

    file: str | None = None
    overwrite: bool = False
    compact: bool = True
    window: int = 1024
    order: Literal["elevator", "fifo"] = "elevator"
    gap: int = 16384
    max_io: int = MIB
    depth: int = 128
    backend: Literal["auto", "uring", "posix"] = "auto"
    direct: bool = False


@dataclass(frozen=True, eq=False)
class Run:
    """What one of the two runs did. `ios` has kind, offset (in the trace) and length of each I/O,
    `at` the request index at which it was made (those of a window spread evenly over it)."""

    requests: int
    syncs: int
    ios: Ints
    at: NDArray[np.float64]
    duplicates: int
    bytes_asked: int
    bytes_moved: int
    head_travel: int
    seconds: float
    read_hash: str
    file_hash: str


@dataclass(frozen=True, eq=False)
class Result:
    """Both runs, and under what circumstances."""

    trace: Trace
    options: Options
    one_by_one: Run
    coalesced: Run
    backend: str
    backend_reason: str
    filesystem: str
    cold: bool
    alignment: tuple[int, int]
    file_bytes: int
    data_bytes: int

    @property
    def reads_agree(self) -> bool:
        return self.one_by_one.read_hash == self.coalesced.read_hash

    @property
    def files_agree(self) -> bool:
        return self.one_by_one.file_hash == self.coalesced.file_hash

    @property
    def agree(self) -> bool:
        return self.reads_agree and self.files_agree


def replay(trace: Trace, options: Options, progress: Progress) -> Result:
    """Replay `trace` both ways. ReplayError and OSError say what can't be done."""
    _check(trace, options)
    moves = trace.kind != SYNC
    addresses = AddressMap.of(trace.offset, trace.length, gap=options.gap, compact=options.compact)
    offset = np.where(moves, addresses.to_file(trace.offset), 0)
    writes = trace.kind == WRITE
    written = union(offset[writes], trace.length[writes])
    given = prepared(
        options.file, addresses, written, overwrite=options.overwrite, progress=progress
    )
    with given as file:
        todo = list(windows(trace, offset, options.window))
        probe = _probe(file, options)
        backend, reason, alignment = probe.backend, probe.reason, probe.alignment
        probe.close()
        cold = file.chill()
        single = OneByOne(file, options.direct, alignment)
        first = _run(single, todo, file, "one by one", progress)
        file.restore(progress)
        second = _run(Coalesced(file, options), todo, file, "coalesced", progress)
        return Result(
            trace,
            options,
            first,
            second,
            backend,
            reason,
            filesystem(file.path),
            cold,
            alignment,
            file.size,
            addresses.bytes,
        )


def _probe(file: PreparedFile, options: Options) -> Coalesced:
    """The coalesced side, opened once before anything is timed: what it can't have shows here."""
    try:
        return Coalesced(file, options)
    except OSError as error:
        if options.direct and error.errno == errno.EINVAL:
            where = f"{filesystem(file.path)} under {file.path}"
            raise ReplayError(f"--direct: {where} has no O_DIRECT") from None
        raise
    except (ValueError, RuntimeError) as error:
        raise ReplayError(str(error)) from None


def _check(trace: Trace, options: Options) -> None:
    if not 1 <= options.window <= MAX_WINDOW:
        raise ReplayError(f"--window must be 1 to {MAX_WINDOW}, not {options.window}")
    for what, least in (("gap", 0), ("max_io", 1), ("depth", 1)):
        value = getattr(options, what)
        if value < least:
            raise ReplayError(f"--{what.replace('_', '-')} must be at least {least}, not {value}")
    longest = int(trace.length.max(initial=0))
    if longest > MAX_REQUEST_BYTES:
        i = int(trace.length.argmax())
        raise ReplayError(
            f"request {i} has {longest} bytes; replay takes requests of up to {MAX_REQUEST_BYTES}"
        )
    if options.direct and not hasattr(os, "O_DIRECT"):
        raise ReplayError("--direct: this system has no O_DIRECT")


def _run(side: Side, todo: list[Window], file: PreparedFile, stage: str, progress: Progress) -> Run:
    """Do all windows, and tell what was done."""
    total = sum(len(window.kind) for window in todo)
    digest = hashlib.blake2b(digest_size=16)
    logs: list[Ints] = []
    seconds, duplicates = 0.0, 0
    try:
        for window in todo:
            side.ready(window)
            begin = perf_counter()
            side.go()
            seconds += perf_counter() - begin
            for piece in side.reads():
                digest.update(piece)
            logs.append(side.ios())
            duplicates += repeats(logs[-1])
            progress(stage, window.first + len(window.kind), total, "requests")
        begin = perf_counter()
        side.sync()
        seconds += perf_counter() - begin
    finally:
        side.close()
    ios = np.concatenate(logs) if logs else np.zeros((0, 3), np.int64)
    start = file.addresses.to_trace(ios[:, 1])
    return Run(
        requests=total,
        syncs=sum(window.sync for window in todo),
        ios=np.stack((ios[:, 0], start, ios[:, 2]), axis=1),
        at=np.concatenate([_spread(w, len(log)) for w, log in zip(todo, logs, strict=True)]),
        duplicates=duplicates,
        bytes_asked=sum(int(window.length.sum()) for window in todo),
        bytes_moved=int(ios[:, 2].sum()),
        head_travel=travel(start, file.addresses.to_trace(ios[:, 1] + ios[:, 2])),
        seconds=seconds,
        read_hash=digest.hexdigest(),
        file_hash=file.hash(f"checking, {stage}", progress),
    )


def travel(start: Ints, end: Ints) -> int:
    """The sum of the distances from the end of each I/O to the start of the next."""
    distance = np.abs(start[1:] - end[:-1])
    if float(distance.sum(dtype=np.float64)) < 2**62:
        return int(distance.sum())
    return sum(distance.tolist())


def repeats(ios: Ints) -> int:
    """How many of these I/Os have the kind, offset and length of an earlier one."""
    return len(ios) - len(np.unique(ios, axis=0)) if len(ios) else 0


def _spread(window: Window, ios: int) -> NDArray[np.float64]:
    at = np.arange(0.5, ios, dtype=np.float64)
    return window.first + at * (len(window.kind) / max(ios, 1))
