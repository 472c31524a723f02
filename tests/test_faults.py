"""Goal: a request fails only because of its own bytes, and whatever a disk does, nothing hangs.

A fixed workload (merged extents with duplicates, overlaps and gaps, cut chains, singles) runs on
the simulated disk with each fault at every operation index, once and for ever. What must come
out is derived from the plan, which other tests prove, and from `FileOracle`:

- once: a merged I/O is split and every request retried alone, so only an I/O that carried one
  single request fails that request;
- for ever from operation k on: exactly the requests that extents k and later carry fail;
- bad sectors: exactly the requests that touch them fail, as if one by one.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from faulty import FaultyDisk
from oracle import SENTINEL, FileOracle, same_reads, same_writes

import iolift

if TYPE_CHECKING:
    from collections.abc import Callable

FOR_EVER = None
SIZE = 4000

# Requests in no order: adjacent, twice, thrice, inside, across; holes of 20 and of 500; singles.
OFFSETS = [1000, 0, 100, 1000, 60, 1150, 1120, 320, 2000, 2600, 2650, 2640, 2690, 2000, 3500, 3990]
LENGTHS = [100, 100, 100, 100, 80, 100, 100, 30, 200, 60, 60, 5, 60, 200, 50, 10]
# name -> options. "cut": chains of overlapping requests are carried by two extents.
SETUPS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gap": {"gap": 60},
    "cut": {"gap": 60, "max_io": 130},
    "fifo": {"order": "fifo", "gap": 60},
    "depth 1": {"depth": 1},
    "depth 2": {"depth": 2, "gap": 60},
}
# How the disk answers: at once, queued, late and shuffled, shy.
MANNERS: dict[str, dict[str, Any]] = {
    "inline": {"queue": 0.0},
    "queued": {},
    "shuffled": {"seed": 3, "queue": 0.7, "delay": 4, "reorder": True},
    "busy": {"seed": 4, "delay": 2, "capacity": 2, "busy_rate": 0.3},
}
ROWS = [bytes([i + 1]) * n for i, n in enumerate(LENGTHS)]


class Run:
    """One file on one faulty disk, and the plans that iolift must follow there."""

    def __init__(self, make_file: Any, setup: str, manner: str = "queued", **more: Any) -> None:
        self.path, content = make_file(SIZE)
        self.oracle = FileOracle(content)
        self.options = {"depth": 64, **SETUPS[setup]}
        self.disk = FaultyDisk(**{"depth": self.options["depth"], **MANNERS[manner], **more})
        self.file = iolift.open(self.path, "r+", backend=self.disk, **self.options)

    def carried(self) -> list[set[int]]:
        """Which requests each I/O of a read carries, by its index: those of the plan."""
        plan = iolift.plan(OFFSETS, LENGTHS, **without_depth(self.options))
        carried: list[set[int]] = [set() for _ in range(len(plan))]
        for i, (first, count) in enumerate(zip(plan.first, plan.count, strict=True)):
            for k in range(first, first + count):
                carried[k].add(i)
        return carried

    def finish(self) -> None:
        self.file.close()
        self.disk.check()
        assert self.path.read_bytes() == self.oracle.data

    def read(self, errnos: dict[int, int] | None = None) -> None:
        same_reads(self.file, self.oracle, OFFSETS, LENGTHS, errnos)

    def write(self, errnos: dict[int, int] | None = None) -> None:
        same_writes(self.file, self.oracle, OFFSETS, ROWS, errnos)


def without_depth(options: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in options.items() if k != "depth"}


def indices(setup: str) -> range:
    return range(len(iolift.plan(OFFSETS, LENGTHS, **without_depth(SETUPS[setup]))))


def carried_by_writes(make_file: Any, setup: str) -> list[set[int]]:
    """The same for a write, from a run without faults: what is overwritten is not in the plan."""
    run = Run(make_file, setup)
    run.write()
    run.finish()
    requests = [(i, o, o + n) for i, (o, n) in enumerate(zip(OFFSETS, LENGTHS, strict=True))]
    return [{i for i, a, b in requests if a < o + n and o < b} for _, o, n in run.disk.ops()]


def expected(carried: list[set[int]], k: int, error: int, times: int | None) -> dict[int, int]:
    """The errnos when operation k fails; once, or it and all that follow."""
    if times is FOR_EVER:
        failed = set().union(*carried[k:])
    else:
        failed = carried[k] if len(carried[k]) == 1 else set()
    return dict.fromkeys(sorted(failed), error)


# ------------------------------------------------------------------------------- without a fault


@pytest.mark.parametrize("manner", MANNERS)
@pytest.mark.parametrize("setup", SETUPS)
def test_no_fault_and_the_plan_is_what_runs(make_file: Any, setup: str, manner: str) -> None:
    run = Run(make_file, setup, manner)
    run.read()
    reads = len(run.disk.log)
    plan = iolift.plan(OFFSETS, LENGTHS, **without_depth(run.options))
    wanted = list(zip(plan.offsets.tolist(), plan.lengths.tolist(), strict=True))
    assert [(o, n) for _, o, n in run.disk.ops("read")] == wanted, "each byte once, in plan order"
    run.write()
    writes = run.disk.ops("write")
    assert len(writes) == len(run.disk.log) - reads
    touched = Counter(b for _, o, n in writes for b in range(o, o + n))
    asked = {b for o, n in zip(OFFSETS, LENGTHS, strict=True) for b in range(o, o + n)}
    assert set(touched) == asked, "not one byte of a hole is written"
    assert set(touched.values()) == {1}, "no byte is written twice"
    run.read()
    run.finish()


@pytest.mark.parametrize("setup", SETUPS)
def test_the_device_is_kept_as_deep_as_depth_allows(make_file: Any, setup: str) -> None:
    run = Run(make_file, setup, delay=1000)
    run.read()
    assert run.disk.deepest == min(len(run.carried()), run.options["depth"])
    run.finish()


# ------------------------------------------------------------------ errors at every operation index


errors = pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
times = pytest.mark.parametrize("times", [1, FOR_EVER], ids=["once", "for ever"])


@times
@errors
@pytest.mark.parametrize("setup", SETUPS)
def test_reads_fail_at_every_index(
    make_file: Any, setup: str, error: int, times: int | None
) -> None:
    for k in indices(setup):
        for manner in ("inline", "queued"):
            run = Run(make_file, setup, manner)
            run.disk.fail(error, at=k, times=times)
            run.read(expected(run.carried(), k, error, times))
            if times == 1:
                run.read()
            run.finish()


@times
@errors
@pytest.mark.parametrize("setup", SETUPS)
def test_writes_fail_at_every_index(
    make_file: Any, setup: str, error: int, times: int | None
) -> None:
    carried = carried_by_writes(make_file, setup)
    for k in range(len(carried)):
        for manner in ("inline", "queued"):
            run = Run(make_file, setup, manner)
            run.disk.fail(error, at=k, times=times)
            wanted = expected(carried, k, error, times)
            allowed = may_be(run.oracle, OFFSETS, ROWS, wanted)
            run.write(wanted)
            run.file.close()
            run.disk.check()
            within(run.path.read_bytes(), allowed)
            if not wanted:
                assert run.path.read_bytes() == run.oracle.data


def may_be(oracle: FileOracle, offsets: list[int], rows: list[bytes], failed: Any) -> Any:
    """For each byte, the values it may have: a failed write may have moved some of its bytes."""
    size = max([len(oracle.data), *(o + len(r) for o, r in zip(offsets, rows, strict=True))])
    allowed = [{b} for b in oracle.data] + [{0} for _ in range(size - len(oracle.data))]
    for i, (offset, row) in enumerate(zip(offsets, rows, strict=True)):
        for at, byte in enumerate(row, offset):
            allowed[at] = allowed[at] | {byte} if i in failed else {byte}
    return allowed


def within(content: bytes, allowed: Any) -> None:
    assert len(content) <= len(allowed)
    wrong = [at for at, byte in enumerate(content) if byte not in allowed[at]]
    assert not wrong, f"wrong bytes at {wrong[:10]}"


@pytest.mark.parametrize("error", [errno.EINTR, errno.EAGAIN], ids=errno.errorcode.get)
@pytest.mark.parametrize("burst", [1, 2, 50, 99])
def test_bursts_of_interruptions_are_not_seen(make_file: Any, error: int, burst: int) -> None:
    for k in indices("gap"):
        run = Run(make_file, "gap")
        run.disk.fail(error, at=k, times=burst)
        run.read()
        run.write()
        run.finish()


def test_eintr_is_resubmitted_however_often(make_file: Any) -> None:
    run = Run(make_file, "gap", max_ops=10_000)
    run.disk.fail(errno.EINTR, times=2000)
    run.read()
    run.write()
    run.finish()


@pytest.mark.parametrize("k", [0, 1])
@pytest.mark.parametrize("writing", [False, True], ids=["read", "write"])
def test_eagain_for_ever_ends(make_file: Any, writing: bool, k: int) -> None:
    """A few requests only, as iolift pauses between its attempts: 0, 1, 1 share an I/O, 3 not."""
    run = Run(make_file, "plain")
    run.disk.fail(errno.EAGAIN, at=k, times=FOR_EVER)
    offsets, wanted = [0, 9, 9, 500], dict.fromkeys(range(3 * k, 4), errno.EAGAIN)
    if writing:
        rows = [b"a" * 9, b"b" * 9, b"c" * 9, b"d" * 9]
        same_writes(run.file, run.oracle, offsets, rows, wanted)
    else:
        same_reads(run.file, run.oracle, offsets, [9] * 4, wanted)
    run.finish()


def test_eagain_for_ever_ends_single_calls_too(make_file: Any) -> None:
    run = Run(make_file, "plain")
    run.disk.fail(errno.EAGAIN, times=FOR_EVER)
    calls: list[Callable[[], object]] = [
        lambda: run.file.pread(10, 0),
        lambda: run.file.pwrite(b"1", 0),
    ]
    for call in calls:
        with pytest.raises(OSError, match=os.strerror(errno.EAGAIN)) as caught:
            call()
        assert caught.value.errno == errno.EAGAIN
    run.finish()


# ------------------------------------------------------------------------------------ short moves


@pytest.mark.parametrize("times", [1, 7, FOR_EVER])
@pytest.mark.parametrize("to", [1, "half", "random"])
@pytest.mark.parametrize("setup", SETUPS)
def test_short_results_are_completed(
    make_file: Any, setup: str, to: int | str, times: int | None
) -> None:
    for k in indices(setup):
        run = Run(make_file, setup, "shuffled" if times == 7 else "queued")
        run.disk.shorten(to, at=k, times=times)
        run.read()
        run.write()
        run.read()
        run.finish()


@pytest.mark.parametrize("times", [1, FOR_EVER], ids=["once", "for ever"])
@pytest.mark.parametrize("setup", SETUPS)
def test_a_read_of_nothing_is_the_end_of_the_file(
    make_file: Any, setup: str, times: int | None
) -> None:
    """Only the requests of such an I/O may come out short; their bytes before it are good."""
    for k in indices(setup):
        run = Run(make_file, setup)
        carried = run.carried()
        run.disk.shorten(0, at=k, times=times, kind="read")
        maybe = carried[k] if times == 1 else set().union(*carried[k:])
        out = np.full(sum(LENGTHS), SENTINEL, np.uint8)
        caught: Any = None
        try:
            run.file.read_ranges(OFFSETS, LENGTHS, out=out)
        except iolift.ShortReadError as error:
            caught = error
        ends = np.cumsum(LENGTHS).tolist()
        rows = [out[e - n : e].tobytes() for e, n in zip(ends, LENGTHS, strict=True)]
        good = [run.oracle.pread(n, o) for o, n in zip(OFFSETS, LENGTHS, strict=True)]
        short = [i for i in range(len(rows)) if rows[i] != good[i]]
        assert set(short) <= maybe
        assert (caught is not None) == bool(short)
        if caught is not None:
            i = caught.index
            assert i == short[0]
            untouched = bytes([SENTINEL]) * (LENGTHS[i] - caught.got)
            assert rows[i] == good[i][: caught.got] + untouched
        if times is FOR_EVER or len(carried[k]) == 1:
            assert short
            assert short[0] == min(maybe)
        run.finish()


def test_writes_that_move_nothing_end(make_file: Any) -> None:
    """POSIX does not say what it means; an error is right, to go on for ever is not."""
    run = Run(make_file, "plain", max_ops=20_000)
    run.disk.shorten(0, times=FOR_EVER, kind="write")
    with pytest.raises(iolift.RangeError) as caught:
        run.file.write_ranges(OFFSETS, b"".join(ROWS), lengths=LENGTHS)
    assert set(caught.value.errnos) == set(range(len(OFFSETS)))
    with pytest.raises(OSError):  # noqa: PT011 - which errno is iolift's choice
        run.file.pwrite(b"1", 0)
    run.finish()


# ----------------------------------------------------------------------------- late, shuffled, busy


@pytest.mark.parametrize("seed", range(25))
def test_delays_shuffles_and_busy_answers(make_file: Any, seed: int) -> None:
    manner = {"queue": 0.6, "delay": seed % 7, "reorder": True, "busy_rate": 0.1 * (seed % 5)}
    run = Run(make_file, list(SETUPS)[seed % 6], seed=seed, capacity=1 + seed % 4, **manner)
    if seed % 2:
        run.disk.shorten("random", times=FOR_EVER)
    for _ in range(4):
        run.read()
        run.write()
    run.finish()


@pytest.mark.parametrize("seed", range(25))
def test_shuffled_faults_over_bad_sectors(make_file: Any, seed: int) -> None:
    """Everything at once. Bad sectors and short moves decide; the order of completion may not."""
    run = Run(make_file, list(SETUPS)[seed % 6], "shuffled", seed=seed, busy_rate=0.2)
    begin = (seed * 173) % SIZE
    run.oracle.bad = [(begin, begin + 40)]
    run.disk.bad(begin, begin + 40)
    run.disk.fail(errno.EINTR, at=seed % 5, times=3)
    run.read()
    run.file.close()
    run.disk.check()


# -------------------------------------------------------------------------------------- bad sectors


@pytest.mark.parametrize("width", [1, 25])
@pytest.mark.parametrize("setup", SETUPS)
def test_reads_over_bad_sectors_at_every_place(make_file: Any, setup: str, width: int) -> None:
    run = Run(make_file, setup)
    for begin in [*range(0, 1300, 9), *range(1980, 2220, 19), *range(2590, 2760, 7), 3510, 3999]:
        run.disk.faults.clear()
        run.disk.bad(begin, begin + width)
        run.oracle.bad = [(begin, begin + width)]
        run.read()
    run.finish()


@pytest.mark.parametrize("width", [1, 25])
@pytest.mark.parametrize("setup", ["plain", "gap", "depth 1", "depth 2"])
def test_writes_over_bad_sectors_at_every_place(make_file: Any, setup: str, width: int) -> None:
    """No request is cut here, so the file is exactly what one by one leaves: where a younger
    overlapping write failed, the older one's bytes are there."""
    for begin in [*range(0, 220, 7), *range(990, 1260, 9), *range(1990, 2210, 39), 2655, 2720]:
        run = Run(make_file, setup)
        run.disk.bad(begin, begin + width)
        run.oracle.bad = [(begin, begin + width)]
        run.write()
        run.finish()


@pytest.mark.parametrize("setup", ["cut", "fifo"])
def test_cut_writes_over_bad_sectors(make_file: Any, setup: str) -> None:
    """A request over two I/Os may be half there when it fails, as with os.pwrite; no other is."""
    for begin in range(0, 2800, 23):
        run = Run(make_file, setup)
        run.disk.bad(begin, begin + 10)
        probe = FileOracle(bytes(run.oracle.data), [(begin, begin + 10)])
        failed = probe.write_ranges(OFFSETS, ROWS)
        allowed = may_be(run.oracle, OFFSETS, ROWS, failed)
        run.write(failed)
        run.file.close()
        run.disk.check()
        within(run.path.read_bytes(), allowed)


def test_two_bad_sectors_with_different_errnos(make_file: Any) -> None:
    run = Run(make_file, "gap")
    run.disk.bad(0, 10, errno.EIO)
    run.disk.bad(3500, 3501, errno.ENOSPC)
    with pytest.raises(iolift.RangeError) as caught:
        run.file.read_ranges(OFFSETS, LENGTHS)
    assert caught.value.errnos == {1: errno.EIO, 14: errno.ENOSPC}
    error = caught.value
    assert (error.index, error.errno, error.offset, error.length) == (1, errno.EIO, 0, 100)
    assert error.strerror == os.strerror(errno.EIO)
    assert os.fspath(error.filename) == os.fspath(run.path)
    run.finish()


def test_range_error_wins_over_short_read(make_file: Any) -> None:
    run = Run(make_file, "gap")
    run.disk.bad(500, 501)
    run.oracle.bad = [(500, 501)]
    same_reads(run.file, run.oracle, [SIZE - 5, 490, 0, SIZE + 5], [50, 20, 10, 1])
    run.finish()


@pytest.mark.parametrize("setup", SETUPS)
def test_a_short_move_up_to_a_bad_sector(make_file: Any, setup: str) -> None:
    """As a kernel answers: the good part first, then, asked for the rest, the error."""
    for begin in range(0, 1250, 31):
        run = Run(make_file, setup)
        run.disk.bad(begin, begin + 5, partial=True)
        run.oracle.bad = [(begin, begin + 5)]
        run.read()
        failed = FileOracle(bytes(SIZE), run.oracle.bad).write_ranges(OFFSETS, ROWS)
        allowed = may_be(run.oracle, OFFSETS, ROWS, failed)
        run.write(failed)
        run.file.close()
        run.disk.check()
        within(run.path.read_bytes(), allowed)


# --------------------------------------------------------------------------------- single calls


@pytest.mark.parametrize("manner", MANNERS)
def test_single_calls(make_file: Any, manner: str) -> None:
    run = Run(make_file, "plain", manner)
    run.disk.bad(2000, 2100)
    run.disk.shorten("random", times=FOR_EVER)
    f, oracle = run.file, run.oracle
    assert f.pread(500, 100) == oracle.pread(500, 100)
    assert f.pwrite(b"x" * 300, 50) == oracle.pwrite(b"x" * 300, 50)
    rows = [bytearray(7), bytearray(90)]
    assert f.preadv(rows, 40) == 97
    assert b"".join(rows) == oracle.pread(97, 40)
    assert f.pwritev([b"12", b"345"], SIZE) == oracle.pwrite(b"12345", SIZE)
    calls: list[Callable[[], object]] = [
        lambda: f.pread(10, 1995),
        lambda: f.preadv([bytearray(3), bytearray(90)], 2050),
        lambda: f.pwrite(b"12", 2099),
        lambda: f.pwritev([b"1", b"2"], 2099),
    ]
    for call in calls:
        with pytest.raises(OSError, match=os.strerror(errno.EIO)) as caught:
            call()
        assert caught.value.errno == errno.EIO
        assert not isinstance(caught.value, iolift.RangeError)
        assert os.fspath(caught.value.filename) == os.fspath(run.path)
    run.finish()
