"""Goal: any sequence of calls leaves what the same calls leave on a bytearray, on every backend.

Hypothesis makes up sequences of bulk and single reads and writes, truncations and syncs, in small
files, so that ranges touch, overlap, contain each other and pass the end; buffered, and with
O_DIRECT, where requests are mostly not aligned. On the simulated disk completions come late,
shuffled and short.
"""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from faulty import FaultyDisk
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import FileOracle, same_reads, same_writes

import iolift

if TYPE_CHECKING:
    from collections.abc import Callable

# Blocks of a direct file are 512 or 4096 bytes: let edges fall on, beside and far from them.
EDGES = [0, 1, 511, 512, 513, 1024, 4095, 4096, 4097, 8192, 12_288]
near = st.builds(lambda e, d: max(0, e + d), st.sampled_from(EDGES), st.integers(-3, 3))
offset = st.one_of(st.integers(0, 300), near, st.integers(0, 14_000))
length = st.one_of(st.integers(0, 40), st.sampled_from([0, 1, 511, 512, 513, 4096, 5000]))
ranges = st.lists(st.tuples(offset, length), max_size=12)
shifts = st.sampled_from([0, 1, 8, 496, 511, 512, 2048])

steps = st.lists(
    st.one_of(
        st.tuples(st.just("read_ranges"), ranges, shifts),
        st.tuples(st.just("write_ranges"), ranges, shifts),
        st.tuples(st.just("pread"), offset, length),
        st.tuples(st.just("pwrite"), offset, length),
        st.tuples(st.just("preadv"), offset, st.lists(length, max_size=5)),
        st.tuples(st.just("pwritev"), offset, st.lists(length, max_size=5)),
        st.tuples(st.just("truncate"), offset),
        st.tuples(st.just("sync")),
    ),
    max_size=12,
)
options = st.fixed_dictionaries(
    {
        "gap": st.sampled_from([0, 1, 100, 4096]),
        "max_io": st.sampled_from([1, 100, 512, 1000, 4096, 1 << 20]),
        "order": st.sampled_from(["elevator", "fifo"]),
        "depth": st.sampled_from([1, 2, 64]),
    }
)


def supports_direct(path: Any) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


def take(f: Any, oracle: FileOracle, step: tuple[Any, ...], number: int) -> None:
    """One step on both; what comes back is compared at once."""
    chance = random.Random(number)
    kind, *rest = step
    if kind in ("read_ranges", "write_ranges"):
        offsets, lengths = [o for o, _ in rest[0]], [n for _, n in rest[0]]
        if kind == "read_ranges":
            same_reads(f, oracle, offsets, lengths, shift=rest[1])
        else:
            same_writes(f, oracle, offsets, [chance.randbytes(n) for n in lengths], shift=rest[1])
    elif kind == "pread":
        at, n = rest
        assert f.pread(n, at) == oracle.pread(n, at)
    elif kind == "pwrite":
        at, n = rest
        data = chance.randbytes(n)
        assert f.pwrite(data, at) == oracle.pwrite(data, at)
    elif kind == "preadv":
        at, sizes = rest
        rows = [bytearray(n) for n in sizes]
        wanted = oracle.pread(sum(sizes), at)
        assert f.preadv(rows, at) == len(wanted)
        assert b"".join(rows)[: len(wanted)] == wanted
        assert not any(b"".join(rows)[len(wanted) :])
    elif kind == "pwritev":
        at, sizes = rest
        new = [chance.randbytes(n) for n in sizes]
        assert f.pwritev(new, at) == oracle.pwrite(b"".join(new), at)
    elif kind == "truncate":
        assert f.truncate(rest[0]) == rest[0]
        oracle.truncate(rest[0])
    else:
        f.sync()


def play(f: Any, path: Any, content: bytes, script: list[tuple[Any, ...]]) -> None:
    oracle = FileOracle(content)
    with f:
        for number, step in enumerate(script):
            take(f, oracle, step, number)
            assert path.read_bytes() == oracle.data, step
    assert path.read_bytes() == oracle.data


@pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])
@settings(max_examples=70)
@given(script=steps, chosen=options, size=st.sampled_from([0, 1, 1000, 4096, 10_000]))
def test_any_sequence_on_every_backend(
    backend: Any, make_file: Callable[..., Any], direct: bool, script: Any, chosen: Any, size: int
) -> None:
    path, content = make_file(size)
    if direct and not supports_direct(path):
        pytest.skip("no O_DIRECT here")
    play(backend.open(path, "r+", direct=direct, **chosen), path, content, script)


@pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])
@settings(max_examples=150)
@given(
    script=steps,
    chosen=options,
    size=st.sampled_from([0, 1, 1000, 4096, 10_000]),
    seed=st.integers(0, 2**16),
    shorten=st.booleans(),
    capacity=st.sampled_from([1, 3, 100]),
)
def test_any_sequence_on_a_disk_that_is_late_shuffled_and_short(
    make_file: Any,
    direct: bool,
    script: Any,
    chosen: Any,
    size: int,
    seed: int,
    shorten: bool,
    capacity: int,
) -> None:
    path, content = make_file(size)
    if direct and not supports_direct(path):
        pytest.skip("no O_DIRECT here")
    disk = FaultyDisk(
        seed=seed,
        queue=0.8,
        delay=seed % 6,
        reorder=True,
        capacity=capacity,
        busy_rate=0.1 * (seed % 4),
        align=4096 if direct else 1,
        depth=chosen["depth"],
    )
    if shorten:
        disk.shorten("random", times=None)
    f = iolift.open(path, "r+", backend=disk, direct=direct, **chosen)
    play(f, path, content, script)
    disk.check()


@pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])
def test_many_random_ranges(backend: Any, make_file: Any, direct: bool) -> None:
    """Large enough for every path: many extents, deep queues, long chains, wide rows."""
    path, content = make_file(3_000_000)
    if direct and not supports_direct(path):
        pytest.skip("no O_DIRECT here")
    oracle, rng = FileOracle(content), np.random.default_rng(7)
    with backend.open(path, "r+", direct=direct, gap=500, max_io=100_000, depth=8) as f:
        for n, longest in ((5000, 40), (2000, 3000), (30, 300_000)):
            offsets = rng.integers(0, 2_900_000, n).tolist()
            lengths = rng.integers(0, longest, n).tolist()
            same_reads(f, oracle, [min(o, 2_600_000) for o in offsets], lengths)
            rows = [rng.bytes(k) for k in lengths]
            same_writes(f, oracle, offsets, rows)
    assert path.read_bytes() == oracle.data
