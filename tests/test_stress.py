"""Goal: hundreds of random batches a backend, each held against files that do one thing at a time.

A round opens a file with options by chance (order, gap, max_io, depth, O_DIRECT) and sends bulk
and single reads and writes to it: heaps of overlaps, duplicates, empty ranges, ranges past the
end; on the simulated disk also bad sectors, short and late and shuffled results. After each batch:

1. Every request's outcome is the oracle's: bytes, short, errno; and so is the file. Where a write
   failed, a byte is what the last write that succeeded left, or what a later, failed one brought.
2. By the trace, what was asked was moved, and of writes nothing else; holes are not wider than
   gap, I/Os not longer than max_io or the longest request; in elevator order they ascend, wrapping
   once, and no byte is moved twice.

A failure names its round; for longer runs: python tests/test_stress.py --batches 20000 --seed 7
"""

from __future__ import annotations

import argparse
import errno
import itertools
import os
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import unavailable
from faulty import FaultyDisk
from oracle import SENTINEL, FileOracle, same_reads, same_writes

import iolift

BACKENDS = ["uring", "posix", "disk"]
BATCHES = 300
BATCHES_A_ROUND = 6
BLOCK = 4096
READ, WRITE = 0, 1
LONG = [BLOCK, 3 * BLOCK, 100, 70_000]


class Oracle(FileOracle):
    """A request for nothing touches nothing, be it in the middle of a bad sector."""

    def _touch(self, n: int, offset: int) -> None:
        if n:
            super()._touch(n, offset)


@dataclass
class Round:
    """One open file, its double, and what was chosen for it."""

    chance: random.Random
    path: Path
    oracle: Oracle
    options: dict[str, Any]
    direct: bool
    disk: FaultyDisk | None

    def __str__(self) -> str:
        options = {k: v for k, v in self.options.items() if k != "backend"}
        return f"{options}, direct={self.direct}, bad={self.oracle.bad}"

    def hits(self, offset: int, n: int) -> bool:
        return any(a < offset + n and offset < b for a, b in self.oracle.bad)


class Face:
    """Passes one length for all as an int, with rows; and sees that no byte of a read's memory
    that the file has nothing for is touched, each of them different from the others."""

    def __init__(self, r: Round, f: Any, one_length: bool, errnos: dict[int, int]) -> None:
        self.r, self.f, self.one_length, self.errnos = r, f, one_length, errnos

    def read_ranges(self, offsets: list[int], lengths: list[int], out: Any) -> Any:
        before = np.frombuffer(self.r.chance.randbytes(len(out)), np.uint8)
        out[:] = before
        try:
            if self.one_length:
                rows = out.reshape(len(offsets), lengths[0])
                assert self.f.read_ranges(offsets, lengths[0], out=rows) is rows
            else:
                assert self.f.read_ranges(offsets, lengths, out=out) is out
        finally:
            at, size = 0, len(self.r.oracle.data)
            for i, (offset, n) in enumerate(zip(offsets, lengths, strict=True)):
                past = slice(at + max(0, min(n, size - offset)), at + n)
                if i not in self.errnos:
                    assert (out[past] == before[past]).all(), f"request {i}, past the end"
                out[past] = SENTINEL
                at += n
        return out

    def write_ranges(self, offsets: list[int], data: Any, lengths: list[int]) -> int:
        if self.one_length:
            return int(self.f.write_ranges(offsets, data.reshape(len(offsets), lengths[0])))
        return int(self.f.write_ranges(offsets, data, lengths=lengths))


# ---------------------------------------------------------------------------------- what is asked


def make_round(seed: str, backend: str, directory: Path) -> Round:
    chance = random.Random(seed)
    size = chance.choice([0, 1, 1000, BLOCK, 30_000, 200_000, 200_000, 1 << 20])
    path = directory / "data"
    content = chance.randbytes(size)
    path.write_bytes(content)
    direct = chance.random() < 0.4 and takes_direct(path)
    depth = chance.choice([1, 2, 3, 8, 64])
    options: dict[str, Any] = {
        "backend": backend,
        "order": chance.choice(["elevator", "elevator", "fifo"]),
        "gap": chance.choice([0, 0, 1, 7, 100, BLOCK, 5000, 100_000]),
        "max_io": chance.choice([1, 100, 1000, BLOCK, 10_000, 100_000, 1 << 20]),
        "depth": depth,
    }
    disk, bad = None, []
    if backend == "disk":
        disk = options["backend"] = FaultyDisk(
            seed=chance.randrange(1 << 30),
            queue=chance.choice([0.0, 0.5, 1.0]),
            delay=chance.randint(0, 5),
            reorder=chance.random() < 0.7,
            capacity=chance.choice([1, 3, 1000]),
            busy_rate=chance.choice([0, 0, 0.2]),
            align=BLOCK if direct else 1,
            depth=depth,
        )
        unit = BLOCK if direct else 1
        for _ in range(chance.choice([0, 0, 1, 4]) if size > 2 * unit else 0):
            begin = chance.randrange(0, size - unit) // unit * unit
            end = min(begin + unit * chance.choice([1, 1, 3]), size // unit * unit)
            bad.append((begin, end))
            disk.bad(begin, end, partial=chance.random() < 0.5)
        if chance.random() < 0.5:
            disk.shorten("random", times=chance.choice([3, 50]))
        if chance.random() < 0.2:
            disk.fail(errno.EINTR, at=chance.randrange(20), times=5)
            disk.fail(errno.EAGAIN, at=chance.randrange(20), times=5)
    return Round(chance, path, Oracle(content, bad), options, direct, disk)


def takes_direct(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


def make_ranges(r: Round, kind: int) -> tuple[list[int], list[int]]:
    """Ranges of one shape: spread, crowded, one after the other, copies, nested, on edges."""
    chance, size = r.chance, len(r.oracle.data)
    n = chance.choice([1, 2, 5, 20, 60, 65, 200] if r.direct else [1, 2, 5, 20, 64, 65, 300, 1500])
    # Past the end, sometimes; a write there makes the file longer, so not by much.
    top = size + chance.choice([0, 1, 5000] if kind == READ else [0, 0, 0, 300])
    longest = max(1, min(chance.choice([1, 40, 700, BLOCK, 6000]), 1_000_000 // n))
    base, width = chance.randint(0, top), chance.choice([10, 1000, 20_000])
    shape = chance.choice(["spread", "crowded", "row", "copies", "nested", "edges"])
    ranges: list[tuple[int, int]] = []
    at = base
    for i in range(n):
        length = chance.randint(0, longest)
        if shape == "spread":
            offset = chance.randint(0, top)
        elif shape == "row":
            offset, at = at, at + length + chance.choice([0, 0, 0, 1, 7, 8, 100, 101])
        elif shape == "copies" and ranges and chance.random() < 0.7:
            offset, length = chance.choice(ranges)
        elif shape == "nested":
            offset, length = base + i, max(0, 2 * (n - i) + chance.randint(-3, 3))
        elif shape == "edges":
            offset = max(0, chance.randint(0, top) // BLOCK * BLOCK + chance.choice([-1, 0, 0, 1]))
            length = chance.choice([0, 1, BLOCK - 1, BLOCK, BLOCK, BLOCK + 1])
        else:
            offset = base + chance.randint(0, width)
        ranges.append((offset, length))
    if chance.random() < 0.15:
        ranges.append((chance.randint(0, top), chance.choice(LONG)))
    if shape == "row":
        chance.shuffle(ranges)
    if chance.random() < 0.35:
        ranges = [(offset, longest) for offset, _ in ranges]
    if kind == WRITE:
        ranges = [(min(offset, size + 300), length) for offset, length in ranges]
    return [o for o, _ in ranges], [k for _, k in ranges]


# ------------------------------------------------------------------------------- what is expected


def run_batch(r: Round, f: Any) -> None:
    """One bulk call: outcomes, file and trace."""
    kind = r.chance.choice([READ, WRITE])
    offsets, lengths = make_ranges(r, kind)
    shift = r.chance.choice([0, 0, 1, 512])
    errnos = {
        i: errno.EIO
        for i, (o, n) in enumerate(zip(offsets, lengths, strict=True))
        if n and r.hits(o, n)
    }
    face = Face(r, f, len(set(lengths)) == 1 and r.chance.random() < 0.8, errnos)
    f.coalescer.trace_start()
    try:
        if kind == READ:
            same_reads(face, r.oracle, offsets, lengths, errnos, shift)
        else:
            before = bytes(r.oracle.data)
            rows = [r.chance.randbytes(n) for n in lengths]
            same_writes(face, r.oracle, offsets, rows, errnos, shift)
            same_file(r, before, offsets, rows, errnos)
    finally:
        trace = f.coalescer.trace_stop()
    check_trace(r, f, kind, offsets, lengths, trace)


def run_single(r: Round, f: Any) -> None:
    """One of the calls that succeed or fail as a whole."""
    chance, oracle = r.chance, r.oracle
    offset = chance.randint(0, len(oracle.data))
    if oracle.bad and chance.random() < 0.6:
        offset = max(0, chance.choice(oracle.bad)[0] - chance.choice([0, 1, 100]))
    sizes = [chance.choice([0, 1, 100, BLOCK, 5000]) for _ in range(chance.randint(1, 5))]
    if chance.random() < 0.5:
        sizes = [sum(sizes)]
    bad = r.hits(offset, sum(sizes)) and sum(sizes) > 0
    is_read = chance.random() < 0.5
    before, rows = bytes(oracle.data), [chance.randbytes(n) for n in sizes]
    memory = [bytearray(n) for n in sizes]
    try:
        if is_read:
            got = f.preadv(memory, offset)
            data = b"".join(memory)
            if len(sizes) == 1 and not bad:
                assert f.pread(sizes[0], offset) == data[:got]
        elif len(sizes) == 1:
            got = f.pwrite(rows[0], offset)
        else:
            got = f.pwritev(rows, offset)
    except OSError as error:
        if not bad or error.errno != errno.EIO:
            raise
    else:
        assert not bad
        if is_read:
            wanted = oracle.pread(sum(sizes), offset)
            assert got == len(wanted)
            assert data == wanted + bytes(sum(sizes) - got)
        else:
            assert got == oracle.pwrite(b"".join(rows), offset) == sum(sizes)
    if not is_read:
        begin = -(-offset // f.alignment[1]) * f.alignment[1]
        end = (offset + sum(sizes)) // f.alignment[1] * f.alignment[1]
        if f.direct and begin < end and r.hits(begin, end - begin):
            found = r.path.read_bytes()  # it has ended there: the ragged ends would come later
            assert found[offset:begin] == before[offset:begin]
            assert found[end : offset + sum(sizes)] == before[end : offset + sum(sizes)]
        same_file(r, before, [offset], [b"".join(rows)], {0: errno.EIO} if bad else {})


def same_file(
    r: Round, before: bytes, offsets: list[int], rows: list[bytes], errnos: dict[int, int]
) -> None:
    """The file is the oracle's, but for the bytes that only writes that failed may have brought."""
    found, wanted = r.path.read_bytes(), r.oracle.data
    if not errnos:
        assert found == wanted, f"from byte {first_difference(found, wanted)}"
        return
    ends = [o + len(row) for o, row in zip(offsets, rows, strict=True)]
    assert len(wanted) <= len(found) <= max(len(wanted), *ends)
    actual = np.frombuffer(found, np.uint8)
    value = np.zeros(len(found), np.uint8)
    value[: len(before)] = np.frombuffer(before, np.uint8)
    right = value == actual
    for i, (offset, row) in enumerate(zip(offsets, rows, strict=True)):
        here = slice(offset, min(offset + len(row), len(found)))
        brought = np.frombuffer(row, np.uint8)[: max(0, here.stop - here.start)] == actual[here]
        right[here] = (right[here] | brought) if i in errnos else brought
    assert right.all(), f"byte {np.argmin(right)} is nobody's"
    for a, b in r.oracle.bad:
        assert found[a:b] == before[a:b], "bad sectors took a write"
    r.oracle.data[:] = found


def first_difference(a: bytes, b: bytes) -> int:
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def check_trace(
    r: Round, f: Any, kind: int, offsets: list[int], lengths: list[int], trace: Any
) -> None:
    """Guarantee 2, and the limits, from what was really done."""
    unit = f.alignment[1] if kind == READ else 1
    asked = [(o // unit * unit, -(-(o + n) // unit) * unit)
             for o, n in zip(offsets, lengths, strict=True) if n]  # fmt: skip
    moved = [(int(o), int(o + n)) for _, o, n in trace]
    if any(r.hits(a, b - a) for a, b in moved):
        return  # taken apart: a request's I/O came after the one that it failed in
    assert all(k == kind for k in trace[:, 0])
    if not asked:
        assert not moved
        return
    begin, end = min(a for a, _ in asked), max(b for _, b in asked)
    wanted, done = np.zeros(end - begin, np.int32), np.zeros(end - begin, np.int32)
    for a, b in asked:
        wanted[a - begin : b - begin] = 1
    for a, b in moved:
        assert begin <= a < b <= end, f"nobody asked for [{a}, {b})"
        done[a - begin : b - begin] += 1
        assert widest_run(wanted[a - begin : b - begin] == 0) <= r.options["gap"]
    assert (done >= wanted).all(), "not all was moved"
    if kind == WRITE:
        assert (done <= wanted).all(), "written twice, or not asked for"
        unit = f.alignment[1]
        ragged = [a % unit > 0 or b % unit > 0 for a, b in moved]
        assert ragged == sorted(ragged), "the page cache, and then the device below it"
    longest = max(b - a for a, b in asked)
    assert max(b - a for a, b in moved) <= max(r.options["max_io"], longest)
    if r.options["order"] == "elevator":
        assert done.max() == 1, "moved twice"
        back = sum(b[0] < a[0] for a, b in itertools.pairwise(moved))
        assert back <= (1 if kind == READ or unit == 1 else 2)  # ragged ends come last


def widest_run(flags: Any) -> int:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flags.astype(np.int8), [0]))))
    return int((edges[1::2] - edges[::2]).max(initial=0))


# --------------------------------------------------------------------------------------- the runs


def play(backend: str, seed: int, number: int, directory: Path) -> int:
    r = make_round(f"{seed}/{number}", backend, directory)
    batches = 0
    try:
        with iolift.open(r.path, "r+", direct=r.direct, **r.options) as f:
            for _ in range(BATCHES_A_ROUND):
                run_batch(r, f)
                batches += 1
                if r.chance.random() < 0.3:
                    run_single(r, f)
        if r.disk is not None:
            r.disk.check()
    except BaseException as error:
        error.add_note(f"{r}, batch {batches}; again: python tests/test_stress.py "
                       f"--backend {backend} --seed {seed} --round {number}")  # fmt: skip
        raise
    return batches


@pytest.mark.parametrize("backend", BACKENDS)
def test_random_batches(backend: str, tmp_path: Path) -> None:
    if reason := unavailable(backend):
        pytest.skip(reason)
    for number in range(BATCHES // BATCHES_A_ROUND):
        play(backend, 1, number, tmp_path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=BATCHES, help="a backend")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--backend", choices=BACKENDS, action="append")
    parser.add_argument("--round", type=int, help="only this one")
    chosen = parser.parse_args()
    rounds = range(-(-chosen.batches // BATCHES_A_ROUND))
    if chosen.round is not None:
        rounds = range(chosen.round, chosen.round + 1)
    with tempfile.TemporaryDirectory(dir=".") as directory:
        for backend in chosen.backend or BACKENDS:
            begin, done = time.monotonic(), 0
            for number in rounds:
                done += play(backend, chosen.seed, number, Path(directory))
            took = time.monotonic() - begin
            sys.stdout.write(f"{backend}: {done} batches, seed {chosen.seed}, {took:.1f} s\n")


if __name__ == "__main__":
    main()
