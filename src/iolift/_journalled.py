"""Journalled: a file that has just been opened gets a journal under it.

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
from ._storage import DirectoryStorage

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["JournalledCore", "check_sizes", "open_journal"]


def open_journal(core: JournalledCore, path: Any, **options: Any) -> Journal:
    """Recovers: from here on the file is as it was last received."""
    # A storage of a test's own may stand in for the directory.
    directory = isinstance(path, str | bytes | os.PathLike)
    storage = DirectoryStorage(path) if directory else path
    with _through_the_page_cache(core.fileno()):
        journal = Journal(
            storage,
            [core.fileno()],
            write_back=core.landed_sequence,
            commit_aside=core.commit_aside,
            **options,
        )
    core.attach(journal)
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
