"""Where the benches work: a temporary directory on a real disk, data files, the C peer.

1. Everything lies under one temporary directory, removed when the `with` block is left, also by
   Ctrl-C and SIGTERM.
2. The directory is on a file system that has a disk under it: tmpfs would turn "cold" into
   "warm" and refuses O_DIRECT.
3. A data file is full of random bytes, written once, synced: no hole, nothing dirty, nothing
   that a disk could compress.
4. `drop()` empties the file's page cache and `resident()` proves it (mincore): a cold figure
   that isn't cold is an error.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import mmap
import os
import shutil
import signal
import subprocess
import tempfile
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIB = 1 << 20
NO_DISK = {"tmpfs", "ramfs", "devtmpfs", "rootfs", "hugetlbfs"}
DROPS = 20
COLD_ENOUGH = 0.001  # the share of a file's pages that may stay resident after drop()


class UnavailableError(Exception):
    """A peer or a file that this machine does not have; the text is the reason to print."""


def filesystem_of(path: Path) -> str:
    """The file system type ("ext4") that holds `path`: the longest mount point above it."""
    best, kind = "", "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, fstype, *_ = line.split()
        inside = path.resolve().is_relative_to(mount.replace("\\040", " "))
        if inside and len(mount) >= len(best):
            best, kind = mount, fstype
    return kind


def page_aligned(n: int, length: int, shift: int = 0) -> np.ndarray[Any, Any]:
    """A touched uint8[n, length] that begins `shift` bytes after a page boundary.

    The place matters: a large `numpy.empty` begins 16 bytes after one, and on some CPUs (AMD Zen 3)
    the kernel's copy to such a place runs at a third of its speed.
    """
    memory = mmap.mmap(-1, n * length + mmap.PAGESIZE)
    rows = np.frombuffer(memory, np.uint8, n * length, shift)
    rows[:] = 0
    return rows.reshape(n, length)


class Work:
    """The temporary directory and what is in it. Made by `work()`."""

    def __init__(self, root: Path, say: Callable[[str], None]) -> None:
        self.root = root
        self.filesystem = filesystem_of(root)
        self._say = say

    def file(self, size: int, name: str = "data") -> Path:
        """A file of `size` random bytes, on the disk; made at the first call."""
        path = self.root / f"{name}-{size // MIB}MiB"
        if not path.exists():
            self._say(f"writing {size // MIB} MiB of random data")
            rng = np.random.default_rng(size)
            with path.open("wb") as f:
                for at in range(0, size, 32 * MIB):
                    f.write(rng.bytes(min(32 * MIB, size - at)))
                f.flush()
                os.fsync(f.fileno())
        return path

    def warm(self, path: Path) -> None:
        """Reads the file once, so that its pages are in the cache."""
        with path.open("rb", buffering=0) as f:
            while f.read(8 * MIB):
                pass

    def drop(self, path: Path) -> None:
        """Drops the file's pages from the cache and makes sure that they are gone."""
        with path.open("rb") as f:
            for _ in range(DROPS):  # pages that the kernel reads ahead just now stay
                os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                share = self.resident(path)
                if share <= COLD_ENOUGH:
                    return
        raise RuntimeError(f"{path.name}: {share:.1%} still cached after DONTNEED: not cold")

    def resident(self, path: Path) -> float:
        """The share of the file's pages that is in the page cache."""
        with path.open("r+b") as f, mmap.mmap(f.fileno(), 0) as pages:
            view = np.frombuffer(pages, np.uint8)
            seen = np.zeros(-(-len(pages) // mmap.PAGESIZE), np.uint8)
            mincore = ctypes.CDLL(None, use_errno=True).mincore
            mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
            if mincore(view.ctypes.data, len(pages), seen.ctypes.data):
                raise OSError(ctypes.get_errno(), "mincore")
            del view
        return float((seen & 1).mean())

    @cached_property
    def sorted_preadv(self) -> Callable[[int, np.ndarray[Any, Any], np.ndarray[Any, Any]], None]:
        """`sorted_preadv.c` by `cc -O2`: (fd, int64[n] offsets, uint8[n, length] rows)."""
        library = self.root / "sorted_preadv.so"
        source = Path(__file__).with_name("sorted_preadv.c")
        command = ["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except FileNotFoundError:
            raise UnavailableError("no C compiler (cc)") from None
        kernel = ctypes.CDLL(str(library)).sorted_preadv
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        kernel.argtypes = [ctypes.c_int, pointer, size, size, pointer]

        def call(fd: int, offsets: np.ndarray[Any, Any], rows: np.ndarray[Any, Any]) -> None:
            if kernel(fd, offsets.ctypes.data, len(offsets), rows.shape[1], rows.ctypes.data):
                raise OSError("sorted_preadv: short read or no memory")

        return call


@contextlib.contextmanager
def work(say: Callable[[str], None] = lambda text: None) -> Iterator[Work]:
    """The temporary directory, in $IOLIFT_BENCH_DIR or the system's; gone afterwards."""
    parent = Path(os.environ.get("IOLIFT_BENCH_DIR") or tempfile.gettempdir())
    if filesystem_of(parent) in NO_DISK:
        kind = filesystem_of(parent)
        raise SystemExit(f"bench: {parent} is {kind}: set IOLIFT_BENCH_DIR to a disk's directory")
    previous = signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    root = Path(tempfile.mkdtemp(prefix="iolift-bench-", dir=parent))
    # Where a pytest plugin fails at the end, fixtures are not torn down: then this is what is left.
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    try:
        yield Work(root, say)
    finally:
        shutil.rmtree(root, ignore_errors=True)
        signal.signal(signal.SIGTERM, previous)
