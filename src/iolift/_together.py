"""Together: several files that have one journal, and one coalescer, in common."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, cast

from ._coalescer import Coalescer
from ._file import File
from ._opening import check_coalescer, parse_mode

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Files", "open_together"]


class Files(tuple[File, ...]):
    """The files of one journal, in the order in which they were given. A context manager."""

    __slots__ = ()

    def close(self) -> None:
        """Close all of them, and with the last one the journal. Idempotent.

        Raises the first error after having tried all.
        """
        first: BaseException | None = None
        for file in self:
            try:
                file.close()
            except BaseException as error:
                first = first or error
        if first is not None:
            raise first

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Share:
    """A file's share in a coalescer that several have for their own: the last one closes it."""

    def __init__(self, coalescer: Coalescer, holders: set[_Share]) -> None:
        self._coalescer, self._holders = coalescer, holders
        holders.add(self)

    def close(self) -> None:
        self._holders.discard(self)
        if not self._holders:
            self._coalescer.close()


def _check_distinct(files: Files) -> None:
    seen: dict[tuple[int, int], int] = {}
    for i, file in enumerate(files):
        status = os.fstat(file._file.fileno())
        first = seen.setdefault((status.st_dev, status.st_ino), i)
        if first < i:
            names = f"paths[{first}] = {files[first].name!r} and paths[{i}] = {file.name!r}"
            raise ValueError(f"{names} are the same file")


def open_together(
    paths: Iterable[str | bytes | os.PathLike[Any]],
    mode: str = "r+",
    *,
    journal: str | bytes | os.PathLike[Any],
    direct: bool = False,
    coalescer: Coalescer | None = None,
    journal_segment_bytes: int = 16 << 20,
    journal_max_bytes: int = 256 << 20,
    keep_segments: bool = False,
    **options: Any,
) -> Files:
    """Open several files with one journal for all of them: see File for the arguments.

    What is received of one file is received of all that was submitted before, to whichever of them:
    after a crash all files are as after one prefix of all requests. One commit is for all of them.
    Idempotency keys are the journal's, not a file's.

    The journal recovers all its files or none: after a crash each one that it has records for must
    be given. Others may join when it knows one of those given, 64 in all. To close one of them is a
    checkpoint of all; the last one closes the journal.

    Raises ForeignJournalError where a file is missing, or the journal is that of other files,
    ValueError for no path, or two of one file, and whatever iolift.open raises; then none is open.

    >>> import iolift, os, tempfile
    >>> home = tempfile.mkdtemp()
    >>> paths = [os.path.join(home, "data"), os.path.join(home, "index")]
    >>> with iolift.open_together(paths, "x+", journal=os.path.join(home, "journal")) as files:
    ...     data, index = files
    ...     _ = data.submit_pwrite(b"what", 0)
    ...     index.submit_pwrite(b"where", 0).received()     # so the data is received as well
    2
    """
    if isinstance(paths, str | bytes | os.PathLike):
        raise TypeError(f"paths must be several, not {paths!r}")
    paths = list(paths)
    if not paths:
        raise ValueError("paths is empty: a journal is for files")
    from ._journalled import JournalledCore, check_options, open_journal  # slow to import

    flags = parse_mode(mode)[1]
    check_coalescer(coalescer, options)
    check_options(mode, flags, journal_segment_bytes, journal_max_bytes)
    common = Coalescer(**options) if coalescer is None else coalescer
    holders: set[_Share] = set()
    files = Files(File.__new__(File) for _ in paths)
    try:
        for file, path in zip(files, paths, strict=True):
            owned = _Share(common, holders) if coalescer is None else None
            file._prepare(path, mode, True, None, direct, common, owned, JournalledCore)
        _check_distinct(files)
        opened = open_journal(
            [cast("JournalledCore", file._core) for file in files],
            journal,
            segment_bytes=journal_segment_bytes,
            max_bytes=journal_max_bytes,
            keep_segments=keep_segments,
        )
        for file in files:
            file._begin(opened)
    except BaseException:
        with contextlib.ExitStack() as stack:
            if coalescer is None:
                stack.callback(common.close)
            for file in files:
                stack.callback(file._abandon)
        raise
    return files
