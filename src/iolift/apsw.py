"""A VFS for SQLite, through apsw: its files are read, written, synced and truncated by iolift.

Each open file is two: SQLite's own, which keeps the locks, the shared memory of a WAL and the
names, and an iolift.File of the same inode, through which the bytes go.

1. A POSIX lock goes when the process closes *any* descriptor of the file. Therefore all files of
   an inode that are open through here share one descriptor, which is closed with the last of them.
2. A write is in the file when xWrite returns, so that what SQLite's locks guard is there for every
   other connection and process. Nothing is held.
3. xSync is fdatasync, also of the directory where the file is new. After a failed one that file
   takes no more writes until all its connections are closed.
4. Whatever fails, SQLite hears that it was I/O, or that the disk is full: then it rolls back.

SQLite asks for one thing at a time, so this is correct, and not faster: see docs/sqlite.md.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from ._coalescer import Coalescer
from ._file import File
from ._opening import check_coalescer

try:
    import apsw
except ImportError as error:
    raise ImportError("iolift.apsw needs apsw: pip install 'iolift[apsw]'") from error

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["VFS", "VFSFile"]

TEMPORARY = apsw.SQLITE_OPEN_DELETEONCLOSE


class VFS(apsw.VFS):
    """Registers a VFS with SQLite: apsw.Connection(path, vfs=name).

    name: how connections ask for it. base: the VFS that locks, names and deletes; "" is the
    default one. coalescer: to share; otherwise one of its own, made with **options.
    All connections of a process to one database must use VFSs of this class: see docs/sqlite.md.

    Raises TypeError or ValueError for a bad option.

    >>> import apsw, iolift.apsw, os, tempfile
    >>> vfs = iolift.apsw.VFS()
    >>> db = apsw.Connection(os.path.join(tempfile.mkdtemp(), "a.db"), vfs="iolift")
    >>> db.execute("create table t(x); insert into t values (1), (2); select sum(x) from t").get
    3
    >>> db.close()
    >>> vfs.close()
    """

    def __init__(
        self,
        name: str = "iolift",
        base: str = "",
        *,
        coalescer: Coalescer | None = None,
        **options: Any,
    ) -> None:
        check_coalescer(coalescer, options)
        self._owns_coalescer = coalescer is None
        self.coalescer = Coalescer(**options) if coalescer is None else coalescer
        self.base = base
        self._asked = threading.local()  # whether the last path that a thread named has links
        super().__init__(name, base)

    def xFullPathname(self, name: str) -> str:  # noqa: N802
        # Of a path with links the base says SQLITE_OK_SYMLINK, which apsw takes for an error.
        try:
            self._asked.has_links = _has_links(os.path.join(os.getcwd(), name))
            return os.path.realpath(name)
        except OSError as error:  # the working directory is gone
            raise _failure(apsw.SQLITE_CANTOPEN, f"{name}: {error.strerror}") from error

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        # What has no name can't be opened twice; it needs no sync, and nobody else sees it.
        if name is None or flags[0] & TEMPORARY:
            return apsw.VFSFile(self.base, name, flags)
        if flags[0] & apsw.SQLITE_OPEN_NOFOLLOW and self._asked.has_links:
            raise _failure(
                apsw.SQLITE_CANTOPEN_SYMLINK, f"{_path_of(name)}: there was a link on the way"
            )
        return VFSFile(self, name, flags)

    def close(self) -> None:
        """Unregister it, and close its coalescer if that is its own. Close connections before."""
        self.unregister()
        if self._owns_coalescer:
            self.coalescer.close()


def _path_of(name: Any) -> str:
    return name if isinstance(name, str) else name.filename()


def _has_links(path: str) -> bool:
    # As it stands there: what `..` means after a link, the link says.
    parts = path.split("/")
    return any(os.path.islink("/".join(parts[: i + 1])) for i in range(1, len(parts)))


def _failure(code: int, message: str) -> Exception:
    failure: Exception = apsw.exception_for(code)
    failure.args = (message,)
    return failure


class VFSFile(apsw.VFSFile):
    """A database, a journal or a WAL. Made by VFS.xOpen."""

    def __init__(self, vfs: VFS, name: Any, flags: list[int]) -> None:
        super().__init__(vfs.base, name, flags)
        self._inode: _Inode | None = None
        self._knows_directory = False
        self._path = _path_of(name)
        try:
            with self._heard_as(apsw.SQLITE_CANTOPEN):
                readonly = bool(flags[1] & apsw.SQLITE_OPEN_READONLY)
                self._inode, self._file = _take(vfs.coalescer, self._path, readonly)
        except BaseException:
            super().xClose()
            raise

    @contextlib.contextmanager
    def _heard_as(self, code: int) -> Iterator[None]:
        # Of any other error, also a KeyboardInterrupt, SQLite would not learn that it was I/O.
        try:
            yield
        except BaseException as error:
            why = repr(error)
            if isinstance(error, OSError):
                code = apsw.SQLITE_FULL if error.errno in (errno.ENOSPC, errno.EDQUOT) else code
                why = error.strerror or why
            raise _failure(code, f"{self._path}: {why}") from error

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        with self._heard_as(apsw.SQLITE_IOERR_READ):
            return self._file.pread(amount, offset)

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802
        with self._heard_as(apsw.SQLITE_IOERR_WRITE):
            self._file.pwrite(data, offset)

    def xTruncate(self, size: int) -> None:  # noqa: N802
        with self._heard_as(apsw.SQLITE_IOERR_TRUNCATE):
            self._file.truncate(size)

    def xFileSize(self) -> int:  # noqa: N802
        with self._heard_as(apsw.SQLITE_IOERR_FSTAT):
            return self._file.seek(0, os.SEEK_END)

    def xSync(self, flags: int) -> None:  # noqa: N802
        with self._heard_as(apsw.SQLITE_IOERR_FSYNC):
            self._file.sync()
        if not self._knows_directory:
            # The base knows whether the file is new, and then syncs the directory, once.
            super().xSync(flags)
            self._knows_directory = True

    def xDeviceCharacteristics(self) -> int:  # noqa: N802
        # A batch that the file system makes atomic would be one of the base's descriptor.
        return super().xDeviceCharacteristics() & ~apsw.SQLITE_IOCAP_BATCH_ATOMIC

    def xClose(self) -> None:  # noqa: N802
        inode, self._inode = self._inode, None
        try:
            super().xClose()  # first: with it go its locks
        finally:
            if inode is not None:
                _release(inode)


# ------------------------------------------------------------------------- what shares an inode


class _Inode:
    """An inode's descriptors and files, for as long as anything here uses it."""

    def __init__(self, key: tuple[int, int]) -> None:
        self.key = key
        self.users = 0
        self.descriptors: list[int] = []
        self.files: dict[tuple[int, bool], File] = {}


_inodes: dict[tuple[int, int], _Inode] = {}
_lock = threading.RLock()  # of the above, and of all in it but the files
# Let go of by a finalizer or a handler that came into the middle of what the lock guards.
_late: deque[_Inode] = deque()


def _take(coalescer: Coalescer, path: str, readonly: bool) -> tuple[_Inode, File]:
    with _lock:
        inode, kind = _inodes.get(_key(os.stat(path))), (id(coalescer), readonly)
        if inode is None or kind not in inode.files:
            flags = os.O_CLOEXEC | (os.O_RDONLY if readonly else os.O_RDWR)
            fd = os.open(path, flags)
            key = _key(os.fstat(fd))
            inode = _inodes.setdefault(key, _Inode(key))
            inode.descriptors.append(fd)  # from here on it is closed with the others only
            try:
                mode = "r" if readonly else "r+"
                inode.files[kind] = File(fd, mode, closefd=False, coalescer=coalescer)
            except BaseException:
                _close_unused(inode)
                raise
        inode.users += 1
        file = inode.files[kind]
    with contextlib.suppress(OSError):  # of others, whose owners have gone
        _let_go_of_late_ones()
    return inode, file


def _release(inode: _Inode) -> None:
    _late.append(inode)
    _let_go_of_late_ones()


def _let_go_of_late_ones() -> None:
    # Of those that come while this thread has the lock, whoever of it let go of the lock sees to.
    while _late and not _lock._is_owned():  # type: ignore[attr-defined]
        with _lock:
            while _late:
                inode = _late.popleft()
                inode.users -= 1
                _close_unused(inode)


def _close_unused(inode: _Inode) -> None:
    if inode.users:
        return
    del _inodes[inode.key]
    with contextlib.ExitStack() as stack:
        for fd in inode.descriptors:
            stack.callback(os.close, fd)
        for file in inode.files.values():
            stack.callback(file.close)


def _key(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
