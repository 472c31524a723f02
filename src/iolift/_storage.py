"""Storage: the seam through which everything goes that the journal does to a disk.

    journal -> Storage -> a directory (DirectoryStorage), or a model of a disk that can crash

1. One call here is one system call: nothing is retried, completed or forgiven. A short write says
   how much it wrote, an error is the OSError of the kernel.
2. A name is never a path: it comes from this library or from a listing of the directory, and is
   refused where it has a slash in it.
3. What is opened is a regular file of this user, with one link, by a name that is no symbolic link.
4. A handle is a file descriptor where the storage is a directory, so that the commit of a group can
   go on without the GIL; elsewhere it is whatever the storage likes.

Who may call: any thread. Calls on different handles may be under way at once.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import sys
import weakref
from typing import Any, Protocol

O_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
F_OFD_SETLK = getattr(fcntl, "F_OFD_SETLK", 37)  # Linux; Python names it since 3.9
FS_IOC_GETVERSION = 0x80087601  # Linux, on machines of 64 bits
LOCK = "lock"


class Storage(Protocol):
    """What the journal needs of a disk. Every method may raise OSError."""

    def lock(self, shared: bool = False) -> None:
        """Exclude every other opener, until close(). BlockingIOError where there is one."""

    def close(self) -> None:
        """Let go of the lock. Idempotent."""

    def names(self) -> list[str]:
        """The files that there are."""

    def create(self, name: str) -> int:
        """A handle on a new, empty file. FileExistsError where there is one."""

    def open(self, name: str) -> int:
        """A handle on a file that exists."""

    def shut(self, handle: int) -> None:
        """Give a handle back. Says nothing about what was written."""

    def size(self, handle: int) -> int:
        """Bytes."""

    def read(self, handle: int, n: int, offset: int) -> bytes:
        """At most n bytes."""

    def write(self, handle: int, data: Any, offset: int) -> int:
        """Returns how many bytes were written, perhaps fewer than given."""

    def truncate(self, handle: int, size: int) -> None:
        """Set the size of a target."""

    def sync(self, handle: int) -> None:
        """Everything written to the handle's file is on the device when this returns."""

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, in place of whatever has it."""

    def unlink(self, name: str) -> None:
        """Remove a file."""

    def sync_directory(self) -> None:
        """Names made, changed and removed so far are on the device when this returns."""

    def identity(self, handle: int) -> bytes:
        """32 bytes that tell a target from every other file, also after a restart."""


def _checked(name: str) -> str:
    if not name or "/" in name or "\0" in name or name in (".", ".."):
        raise ValueError(f"{name!r} is no name of a file in a journal")
    return name


# Of this process. A forked child lets go of its copies: else the lock would outlive the parent.
_LOCKED: weakref.WeakSet[DirectoryStorage] = weakref.WeakSet()


def _after_fork() -> None:
    for storage in list(_LOCKED):
        storage.close()


os.register_at_fork(after_in_child=_after_fork)


class DirectoryStorage:
    """A directory of this user, by system calls.

    path: made, with mode 0700, where there is none and `create` says so; its parent is synced.
    read_only: nothing is made or changed, not even the lock file.
    Raises PermissionError where it belongs to somebody else or others may write to it, and
    NotADirectoryError where it is something else, a symbolic link included.
    """

    def __init__(
        self, path: str | bytes | os.PathLike[Any], *, create: bool = True, read_only: bool = False
    ) -> None:
        self.path = os.fspath(path)
        self._access = os.O_RDONLY if read_only else os.O_RDWR
        self._lock_fd = -1
        self._fd = -1
        flags = os.O_RDONLY | os.O_DIRECTORY | O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._fd = os.open(self.path, flags)
        except FileNotFoundError:
            if not create or read_only:
                raise
            os.mkdir(self.path, 0o700)
            self._fd = os.open(self.path, flags)
        try:
            if not read_only:
                # Also of one that is there: who made it may have been killed before this.
                sync_parent(self.path)
            self._check(os.fstat(self._fd), stat.S_ISDIR, os.fsdecode(self.path))
        except BaseException:
            self.close()
            raise
        _LOCKED.add(self)

    def _check(self, status: os.stat_result, is_right: Any, name: str) -> None:
        if not is_right(status.st_mode):
            raise PermissionError(errno.EPERM, "not a regular file", name)
        if status.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, f"belongs to user {status.st_uid}", name)
        if status.st_mode & 0o022:
            raise PermissionError(errno.EPERM, "others may write to it", name)
        if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
            raise PermissionError(errno.EPERM, f"has {status.st_nlink} links", name)

    def lock(self, shared: bool = False) -> None:
        create = os.O_CREAT if self._access == os.O_RDWR else 0
        flags = self._access | create | O_NOFOLLOW | os.O_CLOEXEC
        self._lock_fd = os.open(LOCK, flags, 0o600, dir_fd=self._fd)
        self._check(os.fstat(self._lock_fd), stat.S_ISREG, LOCK)
        # Of the open file description: a second opener in this process is excluded, too, and a
        # fork or the close of another descriptor does not let go of it.
        kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
        request = struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0)
        try:
            fcntl.fcntl(self._lock_fd, F_OFD_SETLK, request)
        except OSError as error:
            os.close(self._lock_fd)
            self._lock_fd = -1
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise BlockingIOError(
                    errno.EAGAIN, "the journal is open already", os.fsdecode(self.path)
                ) from None
            raise

    def close(self) -> None:
        lock, self._lock_fd = self._lock_fd, -1
        directory, self._fd = self._fd, -1
        for fd in (lock, directory):
            if fd >= 0:
                os.close(fd)

    def names(self) -> list[str]:
        return os.listdir(self._fd)

    def create(self, name: str) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | O_NOFOLLOW | os.O_CLOEXEC
        return os.open(_checked(name), flags, 0o600, dir_fd=self._fd)

    def open(self, name: str) -> int:
        # O_NONBLOCK: a fifo in the place of a file must not keep us waiting.
        flags = self._access | O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        fd = os.open(_checked(name), flags, dir_fd=self._fd)
        try:
            self._check(os.fstat(fd), stat.S_ISREG, name)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def shut(self, handle: int) -> None:
        os.close(handle)

    def size(self, handle: int) -> int:
        return os.fstat(handle).st_size

    def read(self, handle: int, n: int, offset: int) -> bytes:
        return os.pread(handle, n, offset)

    def write(self, handle: int, data: Any, offset: int) -> int:
        return os.pwrite(handle, data, offset)

    def truncate(self, handle: int, size: int) -> None:
        os.ftruncate(handle, size)

    def sync(self, handle: int) -> None:
        os.fdatasync(handle)

    def rename(self, old: str, new: str) -> None:
        os.rename(_checked(old), _checked(new), src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def unlink(self, name: str) -> None:
        os.unlink(_checked(name), dir_fd=self._fd)

    def sync_directory(self) -> None:
        os.fsync(self._fd)

    def identity(self, handle: int) -> bytes:
        # The device number may be another one after a restart; the file system's own seldom is.
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISBLK(status.st_mode):
            raise OSError(errno.EINVAL, "a journal is for regular files and block devices")
        system = os.fstatvfs(handle).f_fsid & (1 << 64) - 1
        number = status.st_rdev if stat.S_ISBLK(status.st_mode) else status.st_ino
        return struct.pack("<QQI12x", system, number, _generation(handle))


def sync_parent(path: Any) -> None:
    """The name is there after a crash, too."""
    parent = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def _generation(handle: int) -> int:
    """Tells a file from an older one that had its inode; 0 where the file system keeps none."""
    generation = bytearray(8)
    try:
        fcntl.ioctl(handle, FS_IOC_GETVERSION, generation)
    except OSError:
        return 0
    return int.from_bytes(generation[:4], sys.byteorder)


# What a caller does with a seam that may stop halfway. A write that was interrupted, or that the
# system has no room for just now, has not happened; one that was short goes on from there.

MAX_REFUSALS = 100
# At once. The kernel reads ahead meanwhile, and what it has copied is still in the CPU's cache.
READ_BYTES = 1 << 17


def write_all(storage: Storage, handle: int, data: Any, offset: int) -> None:
    """All of data, or OSError. O(n)."""
    view = memoryview(data).cast("B")
    refusals = 0
    while len(view):
        try:
            written = storage.write(handle, view, offset)
        except (InterruptedError, BlockingIOError):
            refusals += 1
            if refusals > MAX_REFUSALS:
                raise
            continue
        if not 0 < written <= len(view):
            raise OSError(errno.EIO, f"a write of {len(view)} bytes wrote {written}")
        view = view[written:]
        offset += written


def read_into(storage: Storage, handle: int, view: memoryview, offset: int) -> int:
    """Fill view, or as much of it as there is; returns the bytes. O(n)."""
    done = refusals = 0
    while done < len(view):
        try:
            part = storage.read(handle, min(len(view) - done, READ_BYTES), offset + done)
        except (InterruptedError, BlockingIOError):
            refusals += 1
            if refusals > MAX_REFUSALS:
                raise
            continue
        if not part:
            break
        view[done : done + len(part)] = part
        done += len(part)
    return done


class Room:
    """Memory that is used again: pages that the system has to find first cost as much as reading
    what goes into them."""

    def __init__(self) -> None:
        self._memory = memoryview(b"")

    def take(self, size: int) -> memoryview:
        """`size` bytes, with anything in them. What was taken before is no longer the caller's."""
        if len(self._memory) < size:
            self._memory = memoryview(bytearray(size))
        return self._memory[:size]
