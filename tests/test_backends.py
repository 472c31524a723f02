"""Goal: one test for each pitfall of io_uring, and of what stands in for it, that bulk I/O meets.

The names are those of the table of pitfalls in the design facts. Where the kernel can be made to
misbehave for real it is: a size limit cuts writes short, a hole in /proc/self/mem is a bad sector,
a seccomp filter forbids io_uring, an exhausted descriptor table refuses further rings.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import random
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import child
import numpy as np
import pytest
from conftest import unavailable

import iolift

if TYPE_CHECKING:
    from collections.abc import Iterator

IOV_MAX = 1024
REAL = [
    pytest.param("posix"),
    pytest.param("uring", marks=pytest.mark.skipif(bool(unavailable("uring")), reason="no ring")),
]


def rows(content: bytes, offsets: Any, length: int) -> np.ndarray[Any, Any]:
    return np.array([list(content[int(o) : int(o) + length]) for o in offsets], np.uint8)


# ------------------------------------------------------------------------- short reads and writes

CUT_BY_A_SIZE_LIMIT = """
    import resource, sys, iolift
    path, backend = sys.argv[1:]
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, unlimited[1]))
    f = iolift.open(path, "w", backend=backend)         # SIGXFSZ is ignored by Python
    try:
        f.write_ranges(range(0, 20_000, 1000), bytes(range(1, 21)) * 1000, lengths=1000)
    except iolift.RangeError as error:
        print(error.index, error.errno, sorted(error.errnos))
    try:
        f.pwrite(bytes(6000), 5000)
    except OSError as error:
        print(type(error).__name__, error.errno)
    f.close()
    # At its end a process may have more to write, in a build that counts coverage for one.
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
"""


@pytest.mark.parametrize("backend_name", REAL)
def test_a_short_write_is_resubmitted_for_the_rest(tmp_path: Path, backend_name: str) -> None:
    # One merged write of 20 kB: 10 kB go in, the rest is refused, and only those ten requests.
    path = tmp_path / "limited"
    said = child.run(CUT_BY_A_SIZE_LIMIT, path, backend_name).splitlines()
    assert said == [f"10 {errno.EFBIG} {list(range(10, 20))}", f"OSError {errno.EFBIG}"]
    assert path.read_bytes() == (bytes(range(1, 21)) * 1000)[:5000] + bytes(5000)


def test_a_short_read_at_the_end_is_resubmitted_once(backend: Any, make_file: Any) -> None:
    path, content = make_file(10_000)
    out = bytearray(b"\xee" * 12_000)
    with backend.open(path) as f:
        with pytest.raises(iolift.ShortReadError) as caught:
            f.read_ranges(range(0, 12_000, 300), 300, out=out)
        assert (caught.value.index, caught.value.got) == (33, 100)
        assert f.preadv([bytearray(7000), bytearray(7000)], 0) == 10_000
    assert out == content + b"\xee" * 2000


@pytest.fixture
def bad_page() -> Iterator[tuple[int, int]]:
    """(address, page size) of four pages; the third can't be read: it lies past a file's end."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    page = mmap.PAGESIZE
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    address = libc.mmap(None, 4 * page, mmap.PROT_READ | mmap.PROT_WRITE, private, -1, 0)
    ctypes.memmove(address, b"ABCD" * page, 4 * page)
    empty = os.memfd_create("empty")
    fixed = 0x10 | mmap.MAP_SHARED
    libc.mmap(address + 2 * page, page, mmap.PROT_READ | mmap.PROT_WRITE, fixed, empty, 0)
    os.close(empty)
    yield address, page
    libc.munmap(address, 4 * page)


def open_memory(backend: str, mode: str) -> Any:
    try:
        return iolift.open("/proc/self/mem", mode, backend=backend)
    except OSError as error:
        pytest.skip(f"/proc/self/mem: {error}")


@pytest.mark.parametrize("backend_name", REAL)
def test_a_really_bad_sector_fails_only_whom_it_belongs_to(
    bad_page: tuple[int, int], backend_name: str
) -> None:
    address, page = bad_page
    with open_memory(backend_name, "r+") as f:
        offsets = np.arange(address, address + 4 * page, page // 4)
        random.Random(1).shuffle(offsets)
        bad = [i for i, o in enumerate(offsets) if 2 * page <= o - address < 3 * page]
        out = np.full((16, page // 4), 7, np.uint8)
        with pytest.raises(iolift.RangeError) as caught:
            f.read_ranges(offsets, page // 4, out=out)
        assert caught.value.errnos == dict.fromkeys(bad, errno.EIO)
        good = [i for i in range(16) if i not in bad]
        assert (out[good] == np.frombuffer(b"ABCD" * (page // 16), np.uint8)).all()
        # What is written is refused the same way.
        with pytest.raises(iolift.RangeError) as caught:
            f.write_ranges(offsets, np.full((16, page // 4), 5, np.uint8))
        assert caught.value.errnos == dict.fromkeys(bad, errno.EIO)
        assert f.pread(2 * page, address) == b"\5" * (2 * page)
        assert f.pread(page, address + 3 * page) == b"\5" * page


@pytest.mark.parametrize("backend_name", REAL)
def test_a_bad_sector_in_a_gap_fails_nobody(bad_page: tuple[int, int], backend_name: str) -> None:
    # The kernel moves all before the bad page, then refuses the rest: neighbours must not pay.
    address, page = bad_page
    with iolift.Coalescer(backend=backend_name, gap=4 * page) as c:
        open_memory(backend_name, "r").close()
        with c.open("/proc/self/mem") as f:
            got = f.read_ranges([address, address + 3 * page], page)
            assert bytes(got) == b"ABCD" * (page // 2)


# ---------------------------------------------------------------------------------- queue limits


def ring_entries_left_over() -> list[str]:
    """What /proc says about overflown completions of this process's rings."""
    left = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if "io_uring" in os.readlink(f"/proc/self/fd/{fd}"):
                text = Path(f"/proc/self/fdinfo/{fd}").read_text()
                left += re.findall(r"^\s*user_data=.*", text.partition("CqOverflowList:")[2], re.M)
    return left


@pytest.mark.parametrize("depth", [1, 2, 64, 4096])
def test_more_extents_than_queue_entries(backend: Any, make_file: Any, depth: int) -> None:
    n = 500 if backend.name == "hosted" else 9000  # the simulated disk is slow when deep
    path, content = make_file(n * 48)
    offsets = np.random.default_rng(depth).permutation(n) * 48
    with backend.open(path, "r+", depth=depth) as f:
        assert (f.read_ranges(offsets, 16) == rows(content, offsets, 16)).all()
        fresh = np.random.default_rng(7).integers(0, 256, (n, 16), np.uint8)
        assert f.write_ranges(offsets, fresh) == n * 16
        assert ring_entries_left_over() == []
        assert (f.read_ranges(offsets, 16) == fresh).all()
    expected = np.frombuffer(content, np.uint8).reshape(-1, 48).copy()
    expected[offsets // 48, :16] = fresh
    assert path.read_bytes() == expected.tobytes()


@pytest.mark.parametrize("count", [IOV_MAX - 1, IOV_MAX, IOV_MAX + 1, 3 * IOV_MAX])
def test_iov_max_segments_in_one_extent(backend: Any, make_file: Any, count: int) -> None:
    path, content = make_file(count * 5)
    order = np.random.default_rng(count).permutation(count) * 5
    with backend.open(path, "r+") as f:
        assert (f.read_ranges(order, 5) == rows(content, order, 5)).all()
        # Every other byte: each second segment of the I/O is a hole.
        with backend.open(path, gap=1) as g:
            odd = order[order < count * 5 - 2]
            assert (g.read_ranges(odd, 4) == rows(content, odd, 4)).all()
        buffers = [bytearray(5) for _ in range(count)]
        assert f.preadv(buffers, 0) == count * 5
        assert b"".join(buffers) == content
        turned = content[::-1]
        assert f.pwritev([turned[i : i + 5] for i in range(0, count * 5, 5)], 0) == count * 5
        assert path.read_bytes() == turned
        assert f.write_ranges(order, np.frombuffer(content, np.uint8).reshape(-1, 5)[order // 5])
    assert path.read_bytes() == content


# ------------------------------------------------------------------------------- EAGAIN and EINTR


def test_a_storm_of_signals_changes_nothing(backend: Any, make_file: Any) -> None:
    path, content = make_file(1 << 20)
    offsets = np.random.default_rng(3).permutation(4096) * 256
    heard = []
    before = signal.signal(signal.SIGALRM, lambda *_: heard.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        with backend.open(path, "r+", max_io=1024) as f:
            while len(heard) < 20:
                got = f.read_ranges(offsets, 256)
                assert f.write_ranges(offsets, got) == 1 << 20
                assert f.pread(1 << 20, 0) == content
                f.sync()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert path.read_bytes() == content


class Refusing:
    """Answers each operation with EAGAIN or EINTR first, from submit or from reap."""

    def __init__(self, queue: bool) -> None:
        self.queue = queue
        self.waiting: list[Any] = []
        self.refused: set[tuple[str, int, int]] = set()

    def run(self, kind: str, fd: int, offset: int, buffers: list[Any]) -> int:
        key = (kind, offset, len(buffers))
        if key not in self.refused:
            self.refused.add(key)
            return -errno.EAGAIN if len(self.refused) % 2 else -errno.EINTR
        move = os.preadv if kind == "read" else os.pwritev
        return move(fd, buffers, offset)

    def submit(self, token: int, *operation: Any) -> int | str:
        if not self.queue:
            return self.run(*operation)
        self.waiting.append((token, operation))
        return "queued"

    def reap(self, wait: bool) -> list[tuple[int, int]]:
        ready, self.waiting = self.waiting, []
        return [(token, self.run(*operation)) for token, operation in ready]


@pytest.mark.parametrize("queue", [False, True])
def test_eagain_and_eintr_in_completions_are_resubmitted(make_file: Any, queue: bool) -> None:
    path, content = make_file(6400)
    disk = Refusing(queue)
    with iolift.open(path, "r+", backend=disk, depth=4) as f:
        assert (
            f.read_ranges(range(0, 6400, 64), 32) == rows(content, range(0, 6400, 64), 32)
        ).all()
        assert f.write_ranges(range(0, 6400, 64), bytes(3200)) == 3200
    assert len(disk.refused) == 200


# -------------------------------------------------------------------------------- buffer lifetime


def test_buffers_are_held_until_their_completion(make_file: Any) -> None:
    path, content = make_file(100)
    refused = []

    class Grower(Refusing):
        def run(self, kind: str, fd: int, offset: int, buffers: list[Any]) -> int:
            with pytest.raises(BufferError):
                out.extend(b"more")
            refused.append(kind)
            return super().run(kind, fd, offset, buffers)

    out = bytearray(60)
    with iolift.open(path, "r+", backend=Grower(True)) as f:
        f.read_ranges([40, 0], 30, out=out)
        assert out == content[40:70] + content[:30]
        f.preadv([out], 10)
        f.write_ranges([0], out)
        f.pwrite(out, 40)
    assert set(refused) == {"read", "write"}
    out.extend(b"free again")


def test_the_array_of_offsets_may_be_the_output(backend: Any, tmp_path: Path) -> None:
    # Following pointers in place: with duplicates, the rows are looked at after they were filled.
    table = np.random.default_rng(5).integers(0, 5000, 5000) * 8
    path = tmp_path / "pointers"
    table.tofile(path)
    pointers = table.copy()
    with backend.open(path, gap=64) as f:
        f.read_ranges(pointers, 8, out=pointers)
    assert (pointers == table[table // 8]).all()


# -------------------------------------------------------------------------------- O_APPEND


def test_append_descriptors_are_refused_and_left_alone(backend: Any, make_file: Any) -> None:
    path, content = make_file(100)
    fd = os.open(path, os.O_RDWR | os.O_APPEND)
    with pytest.raises(ValueError, match="O_APPEND"):
        backend.open(fd, "r+")
    os.write(fd, b"still open")
    os.close(fd)
    assert path.read_bytes() == content + b"still open"


# ------------------------------------------------------------------------------- far ends of files

FAR = """
    import contextlib, os, sys, iolift
    path, backend = sys.argv[1:]
    fd = os.open(path, os.O_RDONLY)
    for back in 1, 17, 511, 4096, 4097, 1 << 24, (1 << 24) + 1, 1 << 31:
        offset = 2**63 - 1 - back
        try:
            expected = os.pread(fd, 1, offset)
        except OSError as error:
            expected = error.errno
        for direct in False, True:
            try:
                f = iolift.open(path, direct=direct, backend=backend)
            except OSError:
                continue                                # no direct I/O here
            try:
                got = f.pread(1, offset)
            except OSError as error:
                got = error.errno
            assert got == expected or direct, (back, got, expected)
            try:
                f.read_ranges([offset, 0], [1, 50])
                raise AssertionError("there is nothing to read")
            except iolift.RangeError as error:
                assert list(error.errnos) == [0]
            except iolift.ShortReadError as error:
                assert (error.index, error.got) == (0, 0)
            assert len(f.pread(100, 50)) == 50
            f.close()
"""


@pytest.mark.parametrize("backend_name", REAL)
def test_the_last_bytes_that_an_offset_can_name(make_file: Any, backend_name: str) -> None:
    # The end of the file or the kernel's EINVAL, as os.pread has it: no overflow, no hang.
    path, _ = make_file(100)
    child.run(FAR, path, backend_name)
