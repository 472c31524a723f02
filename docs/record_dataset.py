"""A dataset of records for a training loop: a batch of random records is one batch of I/O.

A record file is two files: NAME, the records back to back, and NAME.index.npy, int64[n + 1]: where
each begins, in bytes, and where the last one ends.

1. `__getitems__` is what torch's DataLoader calls with the indices of a batch, where a dataset has
   it; nothing here needs torch.
2. Each process opens the file itself when it first reads, so a dataset may be handed to workers
   that are forked or spawned.
3. A dataset only reads, and any thread may.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

import iolift

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path


def write_records(path: str | Path, records: Iterable[bytes]) -> int:
    """Write a record file; returns how many records it has."""
    ends = [0]
    with open(path, "wb") as f:
        for record in records:
            ends.append(ends[-1] + f.write(record))
    np.save(f"{path}.index.npy", np.array(ends, np.int64))
    return len(ends) - 1


class RecordDataset:
    """The records of a file, by index; negative ones count from the end.

    decode: what makes a sample of a record, a read-only uint8[length]; the default gives the array
    itself, which is a view of its batch's: copy what is to outlive the others.
    **options: of iolift.open, such as direct=True, where the data are read once and would only
    push other things out of the page cache, or depth.
    """

    def __init__(
        self, path: str | Path, decode: Callable[[Any], Any] | None = None, **options: Any
    ) -> None:
        self._files: dict[int, iolift.File] = {}  # by process: a forked worker opens its own
        self.path, self.decode, self.options = os.fspath(path), decode, options
        self.ends = np.load(f"{path}.index.npy")

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """The samples of `indices`, in that order; IndexError for one that is not there.

        One batch: each byte is read once, in elevator order, neighbours together.
        """
        chosen = self._check(indices)
        begins = self.ends[chosen]
        lengths = self.ends[chosen + 1] - begins
        data = self._file().read_ranges(begins, lengths)
        data.flags.writeable = False
        places = np.cumsum(lengths)
        records = [
            data[begin:end]
            for begin, end in zip((places - lengths).tolist(), places.tolist(), strict=True)
        ]
        return records if self.decode is None else [self.decode(record) for record in records]

    def _check(self, indices: Sequence[int]) -> Any:
        chosen = np.asarray(indices, np.int64)
        bad = (chosen < -len(self)) | (chosen >= len(self))
        if bad.any():
            raise IndexError(f"record {chosen[bad][0]} of {len(self)}")
        return np.where(chosen < 0, chosen + len(self), chosen)

    def _file(self) -> iolift.File:
        file = self._files.get(os.getpid())
        if file is None:
            opened = iolift.open(self.path, **self.options)
            file = self._files.setdefault(os.getpid(), opened)
            if file is not opened:  # another thread was faster
                opened.close()
        return file

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        while self._files:
            self._files.popitem()[1].close()

    __del__ = close

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": {}}
