"""What does the journal cost in bytes, in calls to the device, and when it is read back?

Counts: bytes written to the journal for each byte asked, at 64 KiB and at 4 KiB in groups of 64;
writes and flushes of the device for each commit, as the kernel counts them for the disk that the
file is on, against those of os.pwrite + os.fdatasync within a file that is full already, which are
the fewest that there are (others who use that disk meanwhile are counted, too: the least of
several rounds).
Recovery: a journal of ten thousand records of 4 KiB into its file, against reading as many bytes
of a file from the disk, one MiB at a time.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from _measure import Ask, Count, Question, Side, Tally, benchmark_count, benchmark_side
from _work import MIB

import iolift
from iolift._journal import Journal
from iolift._storage import DirectoryStorage

if TYPE_CHECKING:
    from collections.abc import Callable

    from _work import Work

BLOCK, RECORDS, COMMITS = 4096, 10_000, 200
DATA = np.random.default_rng(46).bytes(64 << 10)


def amplification(size: int, group: int) -> Callable[[Work], Tally]:
    """Bytes written for each byte asked."""

    def count(work: Work) -> Tally:
        path = work.file(16 * MIB, "cost")
        with iolift.open(path, "r+", journal=work.root / "cost.journal") as f:
            for _ in range(20):
                tickets = [f.submit_pwrite(DATA[:size], i * size) for i in range(group)]
                tickets[-1].received()
            log = f._journal.log
            ratio = log.bytes_written / log.bytes_asked
            shown = f"{ratio:.3f}: {log.bytes_written} bytes in {log.commits} commits"
        return Tally(ratio, shown, f"asked: {log.bytes_asked} bytes")

    return count


def device_counters(path: Path) -> tuple[int, int]:
    """(writes, flushes) that the disk of a file has completed."""
    number = os.stat(path).st_dev
    fields = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat").read_text().split()
    return int(fields[4]), int(fields[15])


def count_device(work: Work) -> Tally:
    """Writes and flushes of the device for each commit, as multiples of the fewest."""
    path = work.file(16 * MIB, "device")

    def least(commit: Callable[[int], object]) -> tuple[float, float]:
        best = (1e9, 1e9)
        for turn in range(5):
            writes, flushes = device_counters(path)
            for i in range(COMMITS):
                commit(turn * COMMITS + i)
            more = device_counters(path)
            best = min(best, ((more[0] - writes) / COMMITS, (more[1] - flushes) / COMMITS))
        return best

    def bare(i: int) -> None:
        os.pwrite(fd, DATA[:BLOCK], i * BLOCK)
        os.fdatasync(fd)

    with iolift.open(path, "r+", journal=work.root / "device.journal") as f:
        fd = f.fileno()
        os.pwrite(fd, bytes(5 * COMMITS * BLOCK), 0)
        os.fsync(fd)
        fewest = least(bare)
        f.submit_pwrite(DATA[:BLOCK], 0).received()
        time.sleep(0.5)  # the next segment is being prepared: not what is counted
        ours = least(lambda i: f._journal.write(0, i * BLOCK, DATA[:BLOCK]).wait())
    ratio = max(ours[0] / fewest[0], ours[1] / fewest[1])
    peer = f"os.pwrite + os.fdatasync: {fewest[0]:.2f} and {fewest[1]:.2f}"
    return Tally(ratio, f"{ours[0]:.2f} writes, {ours[1]:.2f} flushes", peer)


def build(work: Work) -> dict[str, Side]:
    """What is recovered is compared with what was written."""
    path = work.file(64 * MIB, "recovery")
    kept, used = work.root / "recovery.kept", work.root / "recovery.journal"
    fd = os.open(path, os.O_RDWR)
    places = (np.random.default_rng(47).permutation(RECORDS) * BLOCK).tolist()
    journal = Journal(DirectoryStorage(kept), [fd], write_back=lambda: 0)
    for i, place in enumerate(places):
        last = journal.write(0, place, i.to_bytes(4, "little") * (BLOCK // 4))
    last.wait()
    journal._storage.close()  # as a process does that dies
    copy = work.root / "recovery.copy"
    segments = sorted(kept.glob("*.seg"))
    copy.write_bytes(b"".join(segment.read_bytes() for segment in segments))

    def lay_out() -> None:
        shutil.rmtree(used, ignore_errors=True)
        shutil.copytree(kept, used)
        os.sync()
        for segment in used.glob("*.seg"):
            work.drop(segment)

    def recover() -> None:
        again = Journal(DirectoryStorage(used), [fd], write_back=lambda: 0)
        assert again.recovered.records == RECORDS
        again.close()

    def read() -> None:
        handle = os.open(copy, os.O_RDONLY)
        while os.read(handle, MIB):
            pass
        os.close(handle)

    lay_out()
    recover()
    for i, place in enumerate(places):
        assert os.pread(fd, 4, place) == i.to_bytes(4, "little")
    return {
        "reading the same bytes": Side(RECORDS, read, before=lambda: work.drop(copy)),
        "iolift": Side(RECORDS, recover, before=lay_out),
    }


QUESTIONS = [
    Count(
        "journal_bytes_large",
        "bytes written to the journal for each byte asked, 64 KiB in groups of 8",
        amplification(64 << 10, 8),
        "<= 1.05",
        1.05,
    ),
    Count(
        "journal_bytes_small",
        "the same, 4 KiB in groups of 64",
        amplification(BLOCK, 64),
        "<= 1.25",
        1.25,
    ),
    Count(
        "journal_device",
        "the device's writes and flushes per commit",
        count_device,
        "as few as there are",
        1.1,
    ),
    Question(
        "journal_recovery",
        "recovery of 10,000 records of 4 KiB, cold",
        build,
        (Ask("reading the same bytes", at_least=0.5), Ask("reading the same bytes", within=1e-4)),
    ),
]


def test_journal_recovery(benchmark, side) -> None:
    """One side of the question."""
    benchmark_side(benchmark, side)


@pytest.mark.parametrize("question", QUESTIONS[:3], ids=lambda q: q.key)
def test_journal_counts(benchmark, work, question) -> None:
    """The number is in extra_info."""
    benchmark_count(benchmark, question, work)
