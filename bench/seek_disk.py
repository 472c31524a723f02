"""What is elevator order worth where there is an arm? A modelled disk, behind the real kernel.

`python bench/seek_disk.py [--plot seek.png] [--reads 1000]` mounts a FUSE file system whose one
file is the disk of _drive.py: 500 GB, 7200 rpm, one arm. Each side reads the same scattered 4 KiB
blocks through it, by the system calls that it would use on any file. What is measured is the
model's time, which depends on the order in which the reads reach the disk, and on nothing else of
this machine.

1. A file server process per side: the arm begins at cylinder 0, at time 0, with nothing known.
2. FUSE's direct_io: no page cache, no read-ahead, no merging. One pread is one request to the disk;
   the log is checked for it, and each block for its content, a function of its offset.
3. The disk serves one request after the other in the order in which the kernel hands them out: one
   thread takes them. A drive's own queue (NCQ) is left off, so that what is shown is the caller's
   order and not the drive's. `--ncq 32` turns it on: 32 threads take requests, and of those that
   they hold the one that the heads reach first is next, which no caller can know.
4. Time is counted, not slept: the host's part of a read is nothing, and a queue is full as soon as
   the callers have asked for enough. `--real` sleeps (`--speed 4`: a quarter of it) and lets the
   platter turn while the host thinks, which a busy machine does for long.

Needs Linux, /dev/fuse and the right to mount (root, or fusermount), mfusepy (PyPI), libfuse.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes.util
import errno
import importlib.util
import json
import math
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _drive
import numpy as np
from _work import UnavailableError

import iolift

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BLOCK = 4096
THREADS = 32
SEED = 7200
GRACE_S = 0.005  # real: as long may a queue that is not full be about to grow
MOST_READS = _drive.SIZE >> 20

# ------------------------------------------------------------------------------------- the server


@dataclass(eq=False)
class Request:
    """Somebody waits for the arm; no two are equal, whatever they ask for."""

    offset: int
    length: int
    arrived_ms: float
    done: threading.Event = field(default_factory=threading.Event)


class Disk:
    """The file system: /disk. Whoever is in `read` waits for `move_arm`, the arm's thread."""

    use_ns = True

    def __init__(self, speed: float | None, ncq: int) -> None:
        self.speed = speed  # of the model's clock over the real one; None: time is only counted
        self.ncq = ncq
        self.arm = _drive.Arm()
        self.served: list[_drive.Service] = []
        self.waiting: list[Request] = []
        self.change = threading.Condition()  # of waiting
        self.began = 0.0

    def init_with_config(self, connection: Any, _config: Any) -> None:
        """Mounted: from here on the client may come, with more than the 12 asynchronous reads."""
        connection.max_background = 128
        self.began = time.perf_counter()
        threading.Thread(target=self.move_arm, daemon=True).start()
        print("mounted", flush=True)

    def getattr(self, path: str, _handle: int | None = None) -> dict[str, int]:
        """Two names only."""
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
        if path != "/disk":
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return {"st_mode": stat.S_IFREG | 0o444, "st_nlink": 1, "st_size": _drive.SIZE}

    def open(self, _path: str, info: Any) -> int:
        """Past the page cache: one read of the client is one request."""
        info.direct_io = 1
        return 0

    def read(self, _path: str, size: int, offset: int, _info: Any) -> bytes:
        """Returns when the arm has been there."""
        size = max(min(size, _drive.SIZE - offset), 0)
        if size:
            request = Request(offset, size, self.real_ms())
            with self.change:
                self.waiting.append(request)
                self.change.notify()
            request.done.wait()
        return _drive.content(offset, size)

    def move_arm(self) -> None:
        """Serves one request after the other; sleeps as long as that takes if time is real."""
        while True:
            request = self.take()
            self.arm.now_ms = max(self.arm.now_ms, request.arrived_ms)
            service = self.arm.serve(request.offset, request.length)
            self.served.append(service)
            if self.speed is not None:
                time.sleep(max(service.ended_ms - self.real_ms(), 0) / 1e3 / self.speed)
            request.done.set()

    def take(self) -> Request:
        """Waits for a request; of those that are there, the one that the arm reaches first."""
        with self.change:
            self.change.wait_for(lambda: self.waiting)
            if self.speed is None:
                # No time passes while the host brings more of what it has.
                self.change.wait_for(lambda: len(self.waiting) >= self.ncq, GRACE_S)
            offsets = [request.offset for request in self.waiting]
            return self.waiting.pop(self.arm.nearest(offsets))

    def real_ms(self) -> float:
        """The model's time by the real clock; 0 where only the arm's work counts."""
        return 0.0 if self.speed is None else (time.perf_counter() - self.began) * 1e3 * self.speed


def serve(mountpoint: str, speed: float | None, ncq: int) -> None:
    """The server process: mounts, serves until stdin is closed, prints what was served."""
    os.environ["FUSE_LIBRARY_NAME"] = "fuse3"  # libfuse 2 has no asynchronous direct reads
    import mfusepy

    def unmount_at_end() -> None:
        sys.stdin.read()
        subprocess.run([*unmounter(), mountpoint], check=True)

    threading.Thread(target=unmount_at_end, daemon=True).start()
    disk = Disk(speed, ncq)
    queue = {"nothreads": True} if ncq == 1 else {"max_threads": ncq}
    mfusepy.FUSE(disk, mountpoint, raw_fi=True, foreground=True, fsname="seek_disk", **queue)
    print(json.dumps([asdict(service) for service in disk.served]), flush=True)


def unmounter() -> list[str]:
    """The command that takes a mount away even where it is in use."""
    for name, option in (("fusermount3", "-uz"), ("fusermount", "-uz"), ("umount", "-l")):
        if found := shutil.which(name):
            return [found, option]
    raise UnavailableError("neither fusermount nor umount is on this machine")


# -------------------------------------------------------------------------------------- the client


def require_fuse() -> None:
    """Raises UnavailableError with the reason why nothing can be mounted here, if so."""
    if not os.path.exists("/dev/fuse"):
        raise UnavailableError(
            "FUSE is not available: no /dev/fuse (load the kernel's fuse module)"
        )
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise UnavailableError("FUSE is not available: no permission to open /dev/fuse")
    if not ctypes.util.find_library("fuse3"):
        raise UnavailableError("FUSE is not available: no libfuse 3 (Debian: fuse3)")
    if importlib.util.find_spec("mfusepy") is None:
        raise UnavailableError("FUSE is not available: pip install mfusepy")
    unmounter()


@dataclass
class Mounted:
    """A disk that is mounted: where, and after the end, what it did."""

    path: str
    served: list[_drive.Service]


@contextlib.contextmanager
def mounted(speed: float | None = None, ncq: int = 1) -> Iterator[Mounted]:
    """A disk with its heads at the beginning; what it `served` is known when the block is left."""
    require_fuse()
    with tempfile.TemporaryDirectory(prefix="seek-disk-") as place:
        command = [sys.executable, __file__, "--serve", place, "--ncq", str(ncq)]
        if speed is not None:
            command += ["--real", "--speed", str(speed)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        # A session of its own: Ctrl-C stops the client, which then lets go of the disk.
        server = subprocess.Popen(command, text=True, start_new_session=True, **pipes)
        try:
            if server.stdout.readline() != "mounted\n":
                why = server.communicate()[1].strip().partition("\n")[0]
                raise UnavailableError(f"FUSE is not available: {why}")
            disk = Mounted(os.path.join(place, "disk"), [])
            yield disk
            output, errors = server.communicate()
            if server.returncode:
                raise RuntimeError(f"the disk's server: {errors.strip()}")
            disk.served += [_drive.Service(**service) for service in json.loads(output)]
        finally:
            if server.poll() is None:
                server.communicate()


# --------------------------------------------------------------------------------------- the sides


def one_by_one(path: str, offsets: list[int]) -> list[bytes]:
    """os.pread, in order of arrival."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return [os.pread(fd, BLOCK, offset) for offset in offsets]
    finally:
        os.close(fd)


def threads(path: str, offsets: list[int]) -> list[bytes]:
    """os.pread by a pool of threads: as many requests wait at the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(lambda offset: os.pread(fd, BLOCK, offset), offsets))
    finally:
        os.close(fd)


def ranges(path: str, offsets: list[int], **options: Any) -> list[bytes]:
    """iolift, all at once."""
    with iolift.open(path, direct=True, **options) as f:
        return [row.tobytes() for row in f.read_ranges(offsets, BLOCK)]


def tickets(path: str, offsets: list[int], **options: Any) -> list[bytes]:
    """iolift, one ticket after the other on an event loop, awaited together."""

    async def main() -> list[bytes]:
        with iolift.open(path, direct=True, **options) as f:
            return await asyncio.gather(*[f.submit_pread(BLOCK, offset) for offset in offsets])

    return asyncio.run(main())


def blocking(path: str, offsets: list[int], **options: Any) -> list[bytes]:
    """iolift, by a pool of threads that wait for each read: few requests are known at a time."""
    with (
        iolift.open(path, direct=True, **options) as f,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        return list(pool.map(lambda offset: f.pread(BLOCK, offset), offsets))


@dataclass
class Side:
    """A way of reading; `run(path, offsets)` returns the blocks. None: the model alone."""

    name: str
    run: Callable[[str, list[int]], list[bytes]] | None
    drawn: bool = True
    real_only: bool = False  # what it knows at a time depends on how long a read takes
    alone: bool = False  # asks for one at a time: a drive's queue has nothing to choose


PEER = "one by one (os.pread)"
POOL = f"{THREADS} threads (os.pread)"
ELEVATOR = "iolift, elevator"
IDEAL = "ideal: SPTF, all known"
SIDES = (
    Side(PEER, one_by_one, alone=True),
    Side(POOL, threads),
    Side("iolift, fifo", partial(ranges, order="fifo")),
    Side(ELEVATOR, ranges),
    Side("iolift, elevator, tickets", tickets, drawn=False),
    Side(f"iolift, {THREADS} threads (f.pread)", blocking, drawn=False, real_only=True),
    Side(IDEAL, None),
)


@dataclass
class Outcome:
    """What a side made the disk do."""

    side: Side
    served: list[_drive.Service]

    @property
    def seconds(self) -> float:
        """The model's time until the last block was read."""
        return max(service.ended_ms for service in self.served) / 1e3

    def mean_ms(self, part: str) -> float:
        """Of a read: seek_ms, rotation_ms or transfer_ms."""
        return float(np.mean([getattr(service, part) for service in self.served]))

    @property
    def turned_back(self) -> int:
        """How often the arm went back."""
        return int((np.diff([service.offset for service in self.served]) < 0).sum())


def scattered(reads: int) -> list[int]:
    """Blocks all over the disk, in random order, the same ones every time.

    No two lie within 64 KiB: what is measured is order, and not merging.
    """
    chance = np.random.default_rng(SEED)
    cells = chance.choice(MOST_READS, reads, replace=False)
    return ((cells << 20) + chance.integers(0, 240, reads) * BLOCK).tolist()


def measure(side: Side, offsets: list[int], speed: float | None, ncq: int) -> Outcome:
    """One side on a disk of its own, its blocks and the disk's log checked."""
    if side.run is None:
        return Outcome(side, _drive.shortest_positioning_first(offsets, BLOCK))
    with mounted(speed, 1 if side.alone else ncq) as disk:
        blocks = side.run(disk.path, offsets)
    for block, offset in zip(blocks, offsets, strict=True):
        if block != _drive.content(offset, BLOCK):
            raise AssertionError(f"{side.name}: wrong bytes at {offset}")
    asked = sorted((service.offset, service.length) for service in disk.served)
    if asked != sorted((offset, BLOCK) for offset in offsets):
        raise AssertionError(f"{side.name}: the disk saw {len(asked)} other requests than asked")
    return Outcome(side, disk.served)


# ---------------------------------------------------------------------------------- what is shown


def markdown(outcomes: list[Outcome]) -> str:
    """The table. backwards: reads that lay before the one that the disk had served just before."""
    peer = outcomes[0].seconds
    head = "| order of the reads | time | speed | per read: seek | rotation | backwards |"
    lines = [head, "|---|---|---|---|---|---|"]
    for outcome in outcomes:
        seek, rotation = outcome.mean_ms("seek_ms"), outcome.mean_ms("rotation_ms")
        lines.append(
            f"| {outcome.side.name} | {outcome.seconds:.2f} s | {peer / outcome.seconds:.2f}x |"
            f" {seek:.2f} ms | {rotation:.2f} ms | {outcome.turned_back} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Parses, measures, prints."""
    parser = argparse.ArgumentParser(
        description="Elevator order on a modelled 7200 rpm disk, served through FUSE.",
        epilog="How the disk is modelled: bench/_drive.py.",
    )
    parser.add_argument("--reads", type=int, default=1000, help="blocks of 4 KiB (default 1000)")
    parser.add_argument("--plot", metavar="PATH", help="a picture, offset over the model's time")
    parser.add_argument("--real", action="store_true", help="sleep as long as the disk would take")
    parser.add_argument("--speed", type=float, help="of the disk's clock, with --real (default 1)")
    parser.add_argument("--ncq", type=int, default=1, metavar="N", help="the drive's own queue")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.speed is not None and not options.real:
        parser.error("--speed needs --real: otherwise nothing is slept")
    speed = (1.0 if options.speed is None else options.speed) if options.real else None
    if options.reads < 1 or options.ncq < 1 or not (speed is None or 0 < speed < math.inf):
        parser.error("--reads, --ncq and --speed must be positive")
    if options.reads > MOST_READS:
        parser.error(f"--reads: no more than {MOST_READS} are scattered, one to a MiB")
    if options.serve:
        serve(options.serve, speed, options.ncq)
        return
    if options.plot:
        try:
            from _seek_plot import draw, formats
        except ModuleNotFoundError as why:
            parser.error(f"--plot: {why} (pip install 'iolift[plot]')")
        if Path(options.plot).suffix[1:].lower() not in formats():
            parser.error(f"--plot {options.plot}: its ending must be one of {sorted(formats())}")
    try:
        require_fuse()
        offsets = scattered(options.reads)
        outcomes = []
        for side in SIDES:
            if side.real_only and speed is None:
                continue
            print(f"bench: {side.name}", file=sys.stderr, flush=True)
            outcomes.append(measure(side, offsets, speed, options.ncq))
    except UnavailableError as why:
        raise SystemExit(f"bench: {why}") from None
    except KeyboardInterrupt:
        raise SystemExit("\nbench: stopped") from None
    print(markdown(outcomes))
    if options.plot:
        drive = f"NCQ {options.ncq}" if options.ncq > 1 else "served in order of arrival"
        title = f"{options.reads} scattered 4 KiB reads of a modelled 7200 rpm disk, {drive}"
        draw([outcome for outcome in outcomes if outcome.side.drawn], title, Path(options.plot))


if __name__ == "__main__":
    main()
