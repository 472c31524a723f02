"""Opening: from a path, a mode and what else was given to a descriptor that offsets work on.

What io.FileIO takes for a path, a descriptor, a mode or an opener is taken here; what a file of
this library can't be is refused before anything is held.
"""

from __future__ import annotations

import errno
import fcntl
import io
import operator
import os
import stat
from typing import TYPE_CHECKING, Any, NamedTuple

from ._coalescer import Coalescer

if TYPE_CHECKING:
    from collections.abc import Callable

MODES = {
    "r": os.O_RDONLY,
    "w": os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
    "x": os.O_WRONLY | os.O_CREAT | os.O_EXCL,
    "a": os.O_WRONLY | os.O_CREAT,
}


def parse_mode(mode: object) -> tuple[str, int]:
    if not isinstance(mode, str):
        raise TypeError(f"mode must be a string, not {mode!r}")
    letters = mode.replace("b", "", 1).replace("+", "", 1)
    if letters not in MODES:
        raise ValueError(f"mode must be one of r, w, x, a, with + or b or both, not {mode!r}")
    flags = MODES[letters]
    if "+" not in mode:
        return letters + "b", flags
    # As io.FileIO tells it: how the file was made is no property of it any more.
    return ("r" if letters == "w" else letters) + "b+", flags & ~os.O_ACCMODE | os.O_RDWR


def check_coalescer(coalescer: object, options: dict[str, Any]) -> None:
    """Raise TypeError where a coalescer is given and is none, or beside options for one."""
    if coalescer is not None and options:
        raise TypeError(f"{sorted(options)} can't be set: the coalescer given has its own")
    if coalescer is not None and not isinstance(coalescer, Coalescer):
        raise TypeError(f"coalescer must be an iolift.Coalescer, not {coalescer!r}")


class Descriptor(NamedTuple):
    """block_bytes: of one I/O that suits it. position: where it stands, bytes. is_ours: it was
    opened here, and is not one that the caller had."""

    fd: int
    name: Any
    is_ours: bool
    block_bytes: int
    position: int

    def give_back(self) -> None:
        """When nothing comes of it: one that was handed to us stays the caller's."""
        if self.is_ours:
            os.close(self.fd)


def open_descriptor(
    path: Any, flags: int, closefd: bool, opener: Callable[[Any, int], int] | None, direct: bool
) -> Descriptor:
    """Open a path, or take the descriptor that stands there. Raises OSError, ValueError, TypeError;
    then nothing stays open that was not open before."""
    if direct:
        flags |= getattr(os, "O_DIRECT", 0)
    handed, name = _as_descriptor(path), path
    if handed is not None:
        fd = handed
    elif not closefd:
        raise ValueError("closefd=False needs a file descriptor, not a path")
    elif opener is not None:
        fd = _call(opener, path, flags | os.O_CLOEXEC)
    else:
        name = os.fspath(path)
        fd = os.open(name, flags | os.O_CLOEXEC, 0o666)
    try:
        if handed is not None or opener is not None:
            _check_descriptor(fd, name, direct)
        return Descriptor(fd, name, handed is None, *_survey(fd, name))
    except BaseException:
        if handed is None:
            os.close(fd)
        raise


def _as_descriptor(path: object) -> int | None:
    """None: it is no integer, so a path."""
    if isinstance(path, bool):
        raise ValueError(f"path = {path!r} is no file descriptor")
    try:
        fd = operator.index(path)  # type: ignore[arg-type]
    except TypeError:
        return None
    if not -(2**31) <= fd < 2**31:
        raise TypeError(f"path = {path!r} is no file descriptor, and no path")
    if fd < 0:
        raise ValueError(f"path = {path!r} is no file descriptor")
    return fd


def _call(opener: Callable[[Any, int], int], path: Any, flags: int) -> int:
    fd = opener(path, flags)
    if isinstance(fd, bool) or not hasattr(fd, "__index__"):
        raise TypeError(f"opener must return a file descriptor, not {fd!r}")
    fd = operator.index(fd)
    if fd < 0:
        raise ValueError(f"opener returned {fd}")
    os.set_inheritable(fd, False)
    return fd


def _check_descriptor(fd: int, name: Any, direct: bool) -> None:
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    if flags & os.O_APPEND:
        raise ValueError(f"path = {name!r}: a descriptor with O_APPEND ignores offsets")
    if direct and not flags & getattr(os, "O_DIRECT", 0):
        raise ValueError(f"path = {name!r}: direct=True needs a descriptor with O_DIRECT")
    if not direct and flags & getattr(os, "O_DIRECT", 0):
        raise ValueError(f"path = {name!r}: a descriptor with O_DIRECT needs direct=True")


def _survey(fd: int, name: Any) -> tuple[int, int]:
    """Its preferred block size and its position, both in bytes."""
    status = os.fstat(fd)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    try:
        position = os.lseek(fd, 0, os.SEEK_CUR)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}: iolift needs offsets", name) from None
    return getattr(status, "st_blksize", 0) or io.DEFAULT_BUFFER_SIZE, position
