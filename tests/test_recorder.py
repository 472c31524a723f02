"""Goal: a recording has every request and every I/O, with what became of each, and nothing else.

The model is the program itself: what it asked for, in order, and what the counters say.
"""

from __future__ import annotations

import asyncio
import os
import random
from errno import EIO, EROFS

import child
import numpy as np
import pytest
from faulty import FaultyDisk

import iolift
from iolift.recording import IO, REASONS, REQUEST, Recording

READ, WRITE, SYNC = 0, 1, 2
ENDED, FAILED, WITHDRAWN = 0, 1, 2
DEVICE, OVERLAY, JOINED = 0, 1, 2
BLOCK = 4096


def asked(recording):
    """(kind, offset, length) of each request, by the time of its submit."""
    rows = np.sort(recording.requests, order="submitted_ns", kind="stable")
    return [tuple(int(v) for v in row) for row in rows[["kind", "offset", "length"]]]


def check(recording, stats):
    """What holds of every recording."""
    requests, ios = recording.requests, recording.ios
    assert requests.dtype == REQUEST
    assert ios.dtype == IO
    assert (requests["ended_ns"] >= requests["submitted_ns"]).all()
    dispatched = requests[requests["dispatched_ns"] > 0]
    assert (dispatched["dispatched_ns"] <= dispatched["ended_ns"]).all()
    assert (requests["submitted_ns"] >= recording.began_ns).all()
    assert (ios["done_ns"] >= ios["submitted_ns"]).all()
    assert (ios["in_flight"] >= 1).all()
    reads = ios[ios["kind"] == READ]
    assert (reads["asked"] <= reads["length"]).all()
    assert (ios["length"] == ios["asked"])[ios["kind"] != READ].all()
    if not recording.lost_ios:
        assert reads["length"].sum() == stats.bytes_moved
        assert ios[ios["kind"] == WRITE]["length"].sum() == stats.bytes_written
        assert (ios["kind"] == SYNC).sum() == stats.syncs_issued
    if not recording.lost_requests:
        kinds = requests[requests["kind"] != SYNC]
        assert len(kinds) == stats.requests
        assert (requests["source"] == OVERLAY).sum() == stats.overlay_hits
        assert (requests["source"] == JOINED).sum() == stats.joins
        assert (requests["state"] == WITHDRAWN).sum() == stats.cancelled
        assert (requests["kind"] == SYNC).sum() == stats.syncs_asked
    # Each I/O that carried a request is there, with the batch that it names.
    carried = requests[(requests["extent_length"] > 0) & (requests["batch"] > 0)]
    batches = set(ios["batch"].tolist())
    assert not carried.size or recording.lost_ios or set(carried["batch"].tolist()) <= batches


def test_ranges_know_what_carried_them(backend, make_file):
    path, _ = make_file(64 * BLOCK)
    for capacity in (100, 3):
        with backend.open(path, "r+", trace=capacity, gap=0) as f:
            f.read_ranges([9 * BLOCK, 0, 7, 50, 0], [5, 7, 8, 0, 7])
            f.write_ranges([40, 40, 44], b"abcdefgh1234", lengths=4)
            rows = f.coalescer.recording().requests
        carried = [
            tuple(row[name] for name in ("offset", "extent_offset", "extent_length", "companions"))
            for row in rows
        ]
        if capacity == 3:
            assert carried == [(40, 0, 0, 0), (40, 40, 8, 1), (44, 40, 8, 1)]
        else:
            assert carried[:5] == [
                (9 * BLOCK, 9 * BLOCK, 5, 0), (0, 0, 15, 2), (7, 0, 15, 2), (50, 0, 0, 0),
                (0, 0, 15, 2),
            ]  # fmt: skip
            assert carried[5:] == [(40, 0, 0, 0), (40, 40, 8, 1), (44, 40, 8, 1)]


def test_every_way_of_asking_is_there(backend, make_file):
    path, _ = make_file(64 * BLOCK)
    with backend.open(path, "r+", trace=True, read_window_us=1e9, write_window_ms=1e6) as f:
        c = f.coalescer
        f.pread(10, 5)
        f.pwrite(b"x" * 20, 100)
        f.read_ranges([0, 8192, 300], [7, 8, 0])
        f.write_ranges([40, 50], b"12345678", lengths=4)
        f.preadv([bytearray(3), bytearray(4)], 11)
        f.pwritev([b"ab", b"cd"], 900)
        tickets = [f.submit_pread(5, 2000), f.submit_pwrite(b"held", 2000)]
        late = f.submit_pread(4, 2000)
        gone = f.submit_pread(1, 3000)
        assert gone.cancel()
        c.flush()
        f.sync()
        assert late.result() == b"held"
        assert [t.result() is not None for t in tickets] == [True, True]
        recording = c.recording()
        check(recording, c.stats())
        assert sorted(asked(recording)) == sorted(
            [
                *((READ, 5, 10), (WRITE, 100, 20), (READ, 0, 7), (READ, 8192, 8), (READ, 300, 0)),
                *((WRITE, 40, 4), (WRITE, 50, 4), (READ, 11, 7), (WRITE, 900, 4)),
                *((READ, 2000, 5), (WRITE, 2000, 4), (READ, 2000, 4), (READ, 3000, 1)),
                (SYNC, 0, 0),
            ]
        )
        assert recording.files == (str(path),)
        assert set(recording.requests["file"]) == set(recording.ios["file"]) == {0}
        reasons = {REASONS[code] for code in recording.requests["reason"]}
        assert "call" in reasons
        assert reasons & {"alone", "flush", "demand", "turn"}
        assert recording.backend == c.backend
        assert (recording.lost_requests, recording.lost_ios) == (0, 0)


def test_waste_is_what_nobody_asked_for(backend, make_file):
    path, _ = make_file(64 * BLOCK)
    with backend.open(path, trace=True, gap=BLOCK, max_waste=10, max_io=1 << 20) as f:
        offsets = [0, 2 * BLOCK, 2 * BLOCK, 100 + 2 * BLOCK, 30 * BLOCK]
        f.read_ranges(offsets, BLOCK)
        ios = f.coalescer.recording().ios
        check(f.coalescer.recording(), f.coalescer.stats())
    assert sorted(map(tuple, ios[["offset", "length", "asked"]].tolist())) == [
        (0, 3 * BLOCK + 100, 2 * BLOCK + 100),
        (30 * BLOCK, BLOCK, BLOCK),
    ]


def test_direct_too(backend, make_file):
    path, _ = make_file(64 * BLOCK)
    try:
        f = backend.open(path, "r+", direct=True, trace=True, gap=0)
    except OSError as error:
        pytest.skip(f"no O_DIRECT: {error}")
    with f:
        f.pread(10, 5)
        f.submit_pwrite(b"z" * 5000, 10).result()
        f.read_ranges([100, 9000], 700)
        f.pread(1 << 17, 0)
        recording = f.coalescer.recording()
        assert len(recording.requests) == 5
        assert (recording.ios["asked"] <= recording.ios["length"]).all()
        assert recording.ios[recording.ios["kind"] == WRITE]["length"].sum() == 5000


@pytest.mark.parametrize("capacity", [1, 7, 100, 1 << 16])
def test_the_ring_has_the_last_ones(make_file, capacity):
    path, _ = make_file(256 * BLOCK)
    rng = np.random.default_rng(capacity)
    every = []
    with iolift.open(path, trace=capacity) as f:
        for _ in range(60):
            if rng.random() < 0.5:
                offsets = rng.integers(0, 255 * BLOCK, rng.integers(1, 20))
                f.read_ranges(offsets, 10)
                every += [(READ, int(offset), 10) for offset in offsets]
            else:
                offset = int(rng.integers(0, 255 * BLOCK))
                f.pread(11, offset)
                every.append((READ, offset, 11))
            recording = f.coalescer.recording()
            kept = recording.requests[["kind", "offset", "length"]].tolist()
            assert kept == every[-capacity:]
            assert recording.lost_requests == max(0, len(every) - capacity)
            assert len(recording.ios) <= capacity
            check(recording, f.coalescer.stats())


def test_errors_are_there(make_file):
    path, _ = make_file(64 * BLOCK)
    disk = FaultyDisk(seed=0)
    with iolift.open(path, "r+", backend=disk, trace=True) as f:
        disk.bad(5000, 5001, EIO)
        disk.fail(EROFS, kind="write", times=None)
        held = f.submit_pread(10, 4999)
        with pytest.raises(OSError, match="Input/output"):
            held.result()
        with pytest.raises(iolift.RangeError):
            f.read_ranges([0, 4999], 10)
        with pytest.raises(OSError, match="Read-only"):
            f.pwrite(b"x", 0)
        with pytest.raises(OSError, match="Read-only"):
            f.submit_pwrite(b"x", 0).result()
        recording = f.coalescer.recording()
    failed = recording.requests[recording.requests["state"] == FAILED]
    expected = [(4999, EIO), (4999, EIO), (0, EROFS), (0, EROFS)]
    assert failed[["offset", "errno"]].tolist() == expected
    assert (recording.requests["state"] == ENDED).sum() == 1
    assert set(recording.ios["result"].tolist()) >= {-EIO, -EROFS}


def test_what_superseded_writes_asked_is_there(make_file):
    path, _ = make_file(64 * BLOCK)
    with iolift.open(path, "r+", trace=True, write_window_ms=1e6) as f:
        for k in range(100):
            f.write(b"%03d" % k)
            f.seek(0)
        f.flush()
        recording = f.coalescer.recording()
        assert asked(recording) == [(WRITE, 0, 3)] * 100
        assert len(recording.ios) == f.coalescer.stats().batches


@pytest.mark.parametrize("seed", range(4))
def test_many_tasks(backend, make_file, seed):
    path, _ = make_file(1 << 20)
    rng = random.Random(seed)

    async def task(f, every):
        for _ in range(20):
            offset, length = rng.randrange(1 << 20), rng.randrange(1, 5000)
            what = rng.random()
            if what < 0.6:
                every.append((READ, offset, min(length, (1 << 20) - offset)))
                await f.submit_pread(every[-1][2], offset)
            elif what < 0.9:
                every.append((WRITE, offset, min(length, (1 << 20) - offset)))
                await f.submit_pwrite(b"w" * every[-1][2], offset)
            else:
                every.append((SYNC, 0, 0))
                await f.submit_sync()

    async def main(f, every):
        await asyncio.gather(*(task(f, every) for _ in range(30)))

    with backend.open(path, "r+", trace=True) as f:
        every = []
        asyncio.run(main(f, every))
        recording = f.coalescer.recording()
        check(recording, f.coalescer.stats())
        assert sorted(asked(recording)) == sorted(every)


def test_files_have_their_names(make_file):
    path, _ = make_file(BLOCK)
    with iolift.Coalescer(trace=10) as c:
        fd = os.open(path, os.O_RDONLY)  # theirs to close
        with c.open(path) as f, c.open(bytes(path)) as g, c.open(fd) as h:
            for i, file in enumerate((h, f, g)):
                file.pread(1, i)
            recording = c.recording()
    names = [recording.files[k] for k in recording.requests["file"]]
    assert names == [f"descriptor {fd}", str(path), str(path)]


def test_nothing_is_recorded_unless_asked(make_file):
    with iolift.open(make_file(BLOCK)[0]) as f:
        f.pread(1, 0)
        with pytest.raises(ValueError, match=r"Coalescer\(trace=True\)"):
            f.coalescer.recording()


@pytest.mark.parametrize("trace", [0, -1, 2**31, 1.5, "yes", b""])
def test_a_bad_capacity_is_named(trace):
    with pytest.raises((ValueError, TypeError), match="trace"):
        iolift.Coalescer(trace=trace)


def test_a_recording_is_a_copy(make_file):
    with iolift.open(make_file(BLOCK)[0], trace=5) as f:
        f.pread(1, 0)
        recording = f.coalescer.recording()
        for k in range(20):
            f.pread(2, k)
        assert asked(recording) == [(READ, 0, 1)]
    assert len(f.coalescer.recording().requests) == 5  # also of a closed one


@pytest.mark.parametrize(("trace", "saved"), [(None, 1), (5, 1), (True, 1), (False, 0)])
def test_the_environment_records_whoever_does_not_refuse(tmp_path, make_file, trace, saved):
    path, _ = make_file(BLOCK)
    code = """
        import sys
        import iolift
        with iolift.open(sys.argv[1], trace=eval(sys.argv[2])) as f:
            f.pread(1, 0)
    """
    child.run(code, path, trace, IOLIFT_RECORD=str(tmp_path))
    found = [Recording.load(name) for name in tmp_path.glob("*.npz")]
    assert sum(len(recording.requests) for recording in found) == saved


def test_names_are_told_apart_however_short_the_rings_are(make_file):
    path, _ = make_file(BLOCK)
    with iolift.Coalescer(trace=2) as c:
        for k in range(5):
            name = f"{path}-{k}"
            with open(name, "wb") as f:
                f.write(b"x")
            with c.open(name) as f:
                f.pread(1, 0)
        recording = c.recording()
    assert [recording.files[k][-2:] for k in recording.requests["file"]] == ["-3", "-4"]
