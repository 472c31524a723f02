"""Goal: any number of threads on any number of files, with a close in the middle: right or refused.

A descriptor is closed when the last call that uses it has left, and never leaked.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import child
import numpy as np
import pytest
from conftest import unavailable

import iolift

if TYPE_CHECKING:
    from pathlib import Path

REAL = [
    pytest.param("posix"),
    pytest.param("uring", marks=pytest.mark.skipif(bool(unavailable("uring")), reason="no ring")),
]


def rows(content: bytes, offsets: Any, length: int) -> np.ndarray[Any, Any]:
    return np.array([list(content[int(o) : int(o) + length]) for o in offsets], np.uint8)


def open_descriptors() -> list[str]:
    gc.collect()
    return sorted(os.listdir("/proc/self/fd"))


def share(backend: Any) -> None:
    """The simulated disk watches over one batch: its depth, its order. Here are many batches."""
    for disk in backend.disks:
        disk.depth, disk.hazards = disk.capacity, False


def in_threads(count: int, work: Any) -> None:
    """Runs work(k) in `count` threads at once; raises the first exception of any."""
    barrier = threading.Barrier(count)
    failures: list[BaseException] = []

    def run(k: int) -> None:
        try:
            barrier.wait()
            work(k)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(k,)) for k in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_many_threads_on_one_file(backend: Any, make_file: Any) -> None:
    # More threads than any pool or ring of depth 4 serves at once; each writes its own stripe.
    path, content = make_file(40 * 4096)
    with backend.open(path, "r+", depth=4, max_io=512) as f:
        share(backend)

        def work(k: int) -> None:
            stripe = np.random.default_rng(k).permutation(128) * 32 + k * 4096
            for turn in range(5):
                fresh = np.full((128, 32), (k + turn) % 256, np.uint8)
                everywhere = np.random.default_rng(turn).integers(0, 40 * 128, 100) * 32
                f.read_ranges(everywhere, 32)
                f.write_ranges(stripe, fresh)
                assert (f.read_ranges(stripe, 32) == fresh).all()
                assert f.pread(4096, k * 4096) == fresh.tobytes()
            f.write_ranges(stripe, rows(content, stripe, 32))

        in_threads(40, work)
    assert path.read_bytes() == content


def test_many_files_on_one_coalescer_from_many_threads(backend: Any, make_file: Any) -> None:
    files = [make_file(20_000, seed=k, name=f"file{k}") for k in range(20)]
    with backend.coalescer(depth=8) as c:
        share(backend)

        def work(k: int) -> None:
            path, content = files[k]
            with c.open(path, "r+") as f:
                for turn in range(8):
                    offsets = np.random.default_rng(turn).integers(0, 19_990, 200)
                    assert (f.read_ranges(offsets, 10) == rows(content, offsets, 10)).all()
                    f.write_ranges([turn], b"x")
                    f.write_ranges([turn], content[turn : turn + 1])
                    f.sync()

        in_threads(20, work)
    assert all(path.read_bytes() == content for path, content in files)


def test_a_ring_goes_from_thread_to_thread(backend: Any, make_file: Any) -> None:
    # SINGLE_ISSUER and DEFER_TASKRUN would refuse the second one.
    path, content = make_file(64_000)
    with backend.open(path) as f:
        offsets = range(0, 64_000, 640)
        for _ in range(10):
            in_threads(1, lambda _: f.read_ranges(offsets, 64))
        assert (f.read_ranges(offsets, 64) == rows(content, offsets, 64)).all()


class Gate:
    """Holds each read until `opened`, and says when the first one has arrived."""

    def __init__(self) -> None:
        self.arrived = threading.Event()
        self.opened = threading.Event()

    def submit(self, token: int, kind: str, fd: int, offset: int, buffers: list[Any]) -> int:
        self.arrived.set()
        self.opened.wait()
        return os.preadv(fd, buffers, offset)

    def reap(self, wait: bool) -> list[tuple[int, int]]:
        return []


@pytest.mark.parametrize("closer", ["file", "coalescer"])
def test_close_waits_for_the_call_that_uses_the_descriptor(make_file: Any, closer: str) -> None:
    path, content = make_file(1000)
    gate = Gate()
    c = iolift.Coalescer(backend=gate)
    f = c.open(path)
    fd = f.fileno()
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(f.read_ranges([500, 0], 100)))
    thread.start()
    gate.arrived.wait()
    (f if closer == "file" else c).close()
    assert os.path.samestat(os.fstat(fd), path.stat())  # still open, still ours
    with pytest.raises(ValueError, match="closed"):
        f.pread(1, 0)
    gate.opened.set()
    thread.join()
    assert bytes(results[0]) == content[500:600] + content[:100]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    c.close()


def test_close_in_the_middle_of_many_threads(backend: Any, make_file: Any, tmp_path: Path) -> None:
    # A descriptor closed under a running call would show the bytes of the file that gets its
    # number next.
    path, content = make_file(64_000)
    other = tmp_path / "other"
    other.write_bytes(bytes(64_000))
    offsets = range(0, 64_000, 640)
    expected = rows(content, offsets, 64)
    for turn in range(10):
        f = backend.open(path, depth=4, max_io=640)
        share(backend)
        running = threading.Semaphore(0)

        def work(_: int, f: Any = f, running: Any = running) -> None:
            def forever() -> None:
                while True:
                    assert (f.read_ranges(offsets, 64) == expected).all()
                    running.release()

            with pytest.raises(ValueError, match="closed"):
                forever()

        def close(f: Any = f, running: Any = running, turn: int = turn) -> None:
            for _ in range(turn * 3):
                running.acquire()
            (f if turn % 2 else f.coalescer).close()
            taken = [os.open(other, os.O_RDONLY) for _ in range(8)]
            for fd in taken:
                os.close(fd)

        in_threads(7, lambda k, work=work, close=close: work(k) if k else close())
        f.close()


CLOSERS = """
    import sys, threading, iolift
    path, backend = sys.argv[1:]
    for _ in range(100):
        c = iolift.Coalescer(backend=backend)
        files = [c.open(path) for _ in range(8)]
        files[0].read_ranges(range(0, 64 << 16, 1 << 16), 1 << 15)
        barrier = threading.Barrier(3)
        def close():
            barrier.wait()
            c.close()
        threads = [threading.Thread(target=close) for _ in range(3)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
"""


@pytest.mark.parametrize("backend_name", REAL)
def test_two_threads_close_one_coalescer(make_zeros: Any, backend_name: str) -> None:
    path = make_zeros(64 << 16)
    child.run(CLOSERS, path, backend_name)


# ------------------------------------------------------------------------------------ descriptors


def test_descriptors_are_not_leaked(backend: Any, make_file: Any, tmp_path: Path) -> None:
    path, _ = make_file(1000)
    os.mkfifo(tmp_path / "fifo")
    backend.open(path).close()
    before = open_descriptors()
    for _ in range(30):
        with backend.open(path) as f:
            share(backend)
            f.read_ranges([0, 500], 10)
            in_threads(4, lambda _, f=f: f.read_ranges(range(0, 900, 9), 3))
        with contextlib.suppress(OSError):
            backend.open(path, direct=True).close()
        with pytest.raises(FileNotFoundError):
            backend.open(tmp_path / "missing")
        with pytest.raises(IsADirectoryError):
            backend.open(tmp_path)
        fifo = os.open(tmp_path / "fifo", os.O_RDWR)
        with pytest.raises(OSError, match="offsets"):
            backend.open(fifo)
        os.close(fifo)  # still the caller's
    assert open_descriptors() == before


class Refusing:
    """Does everything at once (iolift._hosted), but writes from 200,000 on."""

    def submit(self, token: int, kind: str, fd: int, offset: int, buffers: Any) -> int:
        if kind == "write":
            return -errno.EIO if offset >= 200_000 else os.pwritev(fd, buffers, offset)
        return os.preadv(fd, buffers, offset)

    def reap(self, wait: bool) -> list[tuple[int, int]]:
        return []


def test_no_flush_comes_between_a_failure_and_its_report(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(1 << 20))
    with (
        iolift.open(path, "r+", backend=Refusing(), write_window_ms=60_000) as f,
        iolift.open(path) as other,
    ):
        for _ in range(60):
            # Many others end before the one that fails, and whose ticket nobody has.
            tickets = [f.submit_pwrite(b"A", 2 * i) for i in range(600)]
            f.submit_pwrite(b"B", 300_000)
            last = threading.Thread(target=tickets[-1].result)
            last.start()
            while not tickets[0].done():
                other.pread(1, 5)  # which lets the others go on
            with pytest.raises(OSError, match="Input/output"):
                f.flush()
            last.join()


def test_no_batch_outlives_the_close(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(1000))
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with iolift.Coalescer(backend=Refusing(), read_window_us=200) as c:
            for i in range(1000):
                f = c.open(path)
                f.submit_pread(1, 0)
                # Held for company, and withdrawn: its batch, which the clock begins, has nothing.
                f.submit_pread(1, 100).cancel()
                until = time.perf_counter_ns() + i % 50 * 10_000
                while time.perf_counter_ns() < until:
                    pass
                f.close()
                assert c.stats().batches_in_flight == 0
    finally:
        sys.setswitchinterval(before)
