"""Goal: whatever single call to the disk fails, once or for ever: no false receipt, and no hang.

A fixed workload is run on the model of a disk; the call with a certain index fails. Then the power
goes and takes everything with it that was not synced, and the journal is opened on a disk that is
well again. What was received must be there, as some prefix of what was asked.
"""

from __future__ import annotations

import errno
import os
import random
from typing import Any

import pytest
from crashing import Told, check, open_journal
from modeldisk import ModelDisk

from iolift._storage import write_all

FAULTS = {
    "EIO": errno.EIO,
    "ENOSPC": errno.ENOSPC,
    "EINTR": errno.EINTR,
    "EAGAIN": errno.EAGAIN,
    "short": 0,
    "nothing": -1,
}


class Faulty(ModelDisk):
    """Calls are counted; from index `at` on `times` of them go wrong."""

    def __init__(self, at: int, error: int, times: float) -> None:
        super().__init__(1)
        self.at, self.error, self.times = at, error, times
        self.calls = 0
        self.is_well = False

    def _goes_wrong(self) -> bool:
        self.calls += 1
        if self.is_well or self.calls <= self.at or self.times <= 0:
            return False
        self.times -= 1
        return True

    def _happens(self, operation: tuple[Any, ...]) -> None:
        super()._happens(operation)
        if self.error > 0 and self._goes_wrong():
            raise OSError(self.error, os.strerror(self.error))

    def write(self, handle: int, data: Any, offset: int) -> int:
        if self.error <= 0 and self._goes_wrong():
            if self.error < 0:
                return 0
            data = data[: max(1, len(data) // 2)]
        return super().write(handle, data, offset)

    def open(self, name: str) -> int:
        self._happens(("read",))
        return super().open(name)

    def crash_hard(self) -> ModelDisk:
        """What was not synced is gone, all of it."""
        after = ModelDisk(0)
        for inode in {*self.names_durable.values(), *self.targets}:
            inode.content[:] = inode.durable
            inode.pending.clear()
        after.names_now = after.names_durable = self.names_durable
        after.targets = self.targets
        after.handles = dict(enumerate(after.targets))
        return after


def work(disk: ModelDisk) -> Told:
    """What was asked and received; an error ends the run, or the request, as it would a user's."""
    chance = random.Random(1)
    content = bytearray()
    told = Told([(b"",)], 0, [], [])
    pending: list[Any] = []
    written = 0

    def write_back() -> int:
        nonlocal written
        while pending and pending[0][0].state == "received":
            receipt, offset, data = pending.pop(0)
            write_all(disk, 0, data, offset)
            written = receipt.sequence
        return written

    received = 0
    try:
        journal = open_journal(disk, write_back)
        written = journal.checkpointed
        for turn in range(8):
            group = []
            for _ in range(3):
                offset, data = chance.randrange(20000), chance.randbytes(chance.randrange(1, 6000))
                group.append(journal.write(0, offset, data))
                pending.append((group[-1], offset, data))
                content.extend(bytes(max(0, offset + len(data) - len(content))))
                content[offset : offset + len(data)] = data
                told.asked.append((bytes(content),))
            for receipt in group:
                receipt.wait()
                received += 1
            if turn % 3 == 2:
                journal.checkpoint(write_back())
        journal.close()
    except OSError:
        pass
    return told._replace(received=received)


def calls_of_a_good_run() -> int:
    disk = Faulty(1 << 30, errno.EIO, 0)
    told = work(disk)
    assert told.received == 24
    return disk.calls


@pytest.mark.parametrize("times", [1, float("inf")], ids=["once", "for ever"])
@pytest.mark.parametrize("fault", FAULTS)
def test_every_call_fails(fault: str, times: float) -> None:
    calls = calls_of_a_good_run()
    assert calls > 60
    whole = 0
    for at in range(calls + 1):
        disk = Faulty(at, FAULTS[fault], times)
        told = work(disk)
        whole += told.received == 24
        disk.is_well = True
        after = disk.crash_hard()
        open_journal(after, lambda: 0)
        check(after, told)
    if times == 1 and fault == "short":
        # What was short goes on.
        assert whole == calls + 1
    if fault == "EIO":
        # Reads apart, an error ends the run, unless it comes after the end.
        assert whole < calls
