"""Journalled: files that have just been opened get a journal under them.

Apart from the file object, because most files have none, and what a journal consists of takes a
while to import.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING, Any

from ._journal import Journal, check_sizes
from ._journalcore import JournalledCore
from ._storage import DirectoryStorage, sync_parent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["JournalledCore", "check_options", "open_journal"]


def check_options(mode: str, flags: int, segment_bytes: int, max_bytes: int) -> None:
    """Raise ValueError or TypeError for a mode or sizes that a file with a journal can't have."""
    check_sizes(segment_bytes, max_bytes)
    if flags & os.O_ACCMODE == os.O_RDONLY or flags & os.O_TRUNC:
        raise ValueError(f"a journal needs the mode r+, a, a+, x or x+, not {mode!r}")


def open_journal(cores: Sequence[JournalledCore], path: Any, **options: Any) -> Journal:
    """Recovers: from here on the files, all on one coalescer, are as they were last received."""
    for core in cores:
        if not isinstance(core.name, int):
            sync_parent(core.name)  # a file that is new is there after a crash, too
    # A storage of a test's own may stand in for the directory.
    directory = isinstance(path, str | bytes | os.PathLike)
    storage = DirectoryStorage(path) if directory else path
    journal = None
    try:
        with contextlib.ExitStack() as stack:
            for core in cores:
                stack.enter_context(_through_the_page_cache(core.fileno()))
            journal = Journal(
                storage,
                [core.fileno() for core in cores],
                write_back=cores[0].landed_sequence,
                commit_aside=cores[0].commit_aside,
                extend=len(cores) > 1,
                **options,
            )
        sharers = list(cores)
        for core in cores:
            core.attach(journal, sharers)
    except BaseException:
        if journal is not None:
            journal.close()
        raise
    return journal


@contextlib.contextmanager
def _through_the_page_cache(fd: int) -> Iterator[None]:
    """Recovery writes what is in no way aligned, also where the file is open with O_DIRECT."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~getattr(os, "O_DIRECT", 0))
    try:
        yield
    finally:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)
