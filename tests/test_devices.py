"""Goal: a device that fails says so to whom it concerns, and keeps saying so.

A full disk fails exactly the requests that did not fit; a failed sync poisons its file for good.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import child
import pytest
from conftest import unavailable

import iolift

if TYPE_CHECKING:
    from pathlib import Path

REAL = [
    pytest.param("posix"),
    pytest.param("uring", marks=pytest.mark.skipif(bool(unavailable("uring")), reason="no ring")),
]

FULL_DISK = """
    import ctypes, os, sys, numpy as np, iolift
    place, backend = sys.argv[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    # A mount namespace of our own: what we mount goes away with us.
    if libc.unshare(0x20000) or libc.mount(b"none", b"/", None, 0x44000, None) or libc.mount(
            b"none", place.encode(), b"tmpfs", 0, b"size=64k"):
        print("no mount here")
        sys.exit()
    path = place + "/data"
    with iolift.open(path, "w+", backend=backend) as f:
        data = np.arange(24, dtype=np.uint8).repeat(4096).reshape(24, 4096)
        order = np.random.default_rng(3).permutation(24)
        try:
            f.write_ranges(order * 4096, data)
            print("it all fitted")
        except iolift.RangeError as error:
            print(error.errno, error.index == min(error.errnos), len(error.errnos),
                  set(error.errnos.values()))
            bad = set(error.errnos)
        good = [i for i in range(24) if i not in bad]
        assert (f.read_ranges(order[good] * 4096, 4096) == data[good]).all()
        assert f.pwrite(b"fits", int(order[good[0]]) * 4096) == 4
        try:
            f.pwrite(bytes(1 << 20), 0)
        except OSError as error:
            print(type(error).__name__, error.errno, error.filename == path)
        f.truncate(4096)
        f.sync()
"""


@pytest.mark.parametrize("backend_name", REAL)
def test_a_full_disk_fails_exactly_the_requests_that_do_not_fit(
    tmp_path: Path, backend_name: str
) -> None:
    said = child.run(FULL_DISK, tmp_path, backend_name).splitlines()
    if said == ["no mount here"]:
        pytest.skip(said[0])
    # 64 KiB hold 16 of the 24 pages.
    assert said[0] == f"{errno.ENOSPC} True 8 {{{errno.ENOSPC}}}"
    assert said[1] == f"OSError {errno.ENOSPC} True"


class FailingSync:
    """An honest disk whose sync fails once."""

    syncs = 0

    def submit(self, token: int, kind: str, fd: int, offset: int, buffers: list[Any]) -> int:
        if kind != "sync":
            return (os.preadv if kind == "read" else os.pwritev)(fd, buffers, offset)
        self.syncs += 1
        return -errno.EIO if self.syncs == 1 else 0

    def reap(self, wait: bool) -> list[tuple[int, int]]:
        return []


def test_a_failed_sync_is_for_good_and_for_that_file_only(make_file: Any) -> None:
    (path, _), (other, _) = make_file(100), make_file(100, name="other")
    disk = FailingSync()
    with iolift.Coalescer(backend=disk) as c:
        f, g = c.open(path, "r+"), c.open(other, "r+")
        f.pwrite(b"doubtful", 0)
        with pytest.raises(OSError, match="Input/output") as caught:
            f.sync()
        assert not isinstance(caught.value, iolift.PoisonedError)
        writes = [
            lambda: f.pwrite(b"x", 0),
            lambda: f.pwritev([b"x"], 0),
            lambda: f.write_ranges([0], b"x"),
            lambda: f.write(b"x"),
            lambda: f.truncate(0),
            f.sync,
            c.sync,
        ]
        for write in writes:
            with pytest.raises(iolift.PoisonedError) as poisoned:
                write()
            assert (poisoned.value.errno, poisoned.value.filename) == (errno.EIO, str(path))
        assert f.pread(8, 0) == b"doubtful"  # reads are served
        assert disk.syncs == 2  # never retried: only g's, by c.sync()
        g.pwrite(b"fine", 0)
        g.sync()
    with iolift.open(path, "r+") as f:  # a new descriptor knows nothing
        f.sync()


def test_a_busy_host_does_not_poison(make_file: Any) -> None:
    path, _ = make_file(100)

    class Busy(FailingSync):
        def submit(self, token: int, kind: str, *rest: Any) -> Any:
            self.syncs += 1
            return "busy" if self.syncs < 5 else 0

    with iolift.open(path, "r+", backend=Busy()) as f:
        f.sync()
        assert f.pwritev([], 0) == 0
