"""Goal: iolift.plan is the rule of the specification, for every input, and touches nothing else.

A table of cases opens the file. Then hypothesis against the naive plan, seeded stress at the
sizes where the sort changes its method against a fast oracle, invariants that hold whatever the
rule is, fsspec's merge as an independent peer, and every kind of input, good and bad.
"""

from __future__ import annotations

import array
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import MAX_OFFSET, fast_plan, naive_plan, union_size

import iolift

COUNTERS = ("bytes_asked", "bytes_unique", "bytes_moved", "duplicates")
ARRAYS = ("offsets", "lengths", "first", "count")

# name, offsets, lengths, options, [extent (offset, length)], [request's (first, count)]
# fmt: off
CASES: list[tuple[str, list[int], Any, dict[str, Any], list[Any], list[Any] | None]] = [
    ("2,3,4,1 elevator", [2, 3, 4, 1], 1, {}, [(1, 4)], [(0, 1)] * 4),
    ("2,3,4,1 fifo", [2, 3, 4, 1], 1, {"order": "fifo"},
     [(2, 3), (1, 1)], [(0, 1), (0, 1), (0, 1), (1, 1)]),
    ("none", [], [], {}, [], []),
    ("none, one length", [], 7, {}, [], []),
    ("one", [5], [3], {}, [(5, 3)], [(0, 1)]),
    ("adjacent", [0, 4], 4, {}, [(0, 8)], [(0, 1), (0, 1)]),
    ("apart by one byte", [0, 5], 4, {}, [(0, 4), (5, 4)], [(0, 1), (1, 1)]),
    ("gap - 1", [0, 13], 4, {"gap": 10}, [(0, 17)], [(0, 1), (0, 1)]),
    ("gap", [0, 14], 4, {"gap": 10}, [(0, 18)], [(0, 1), (0, 1)]),
    ("gap + 1", [0, 15], 4, {"gap": 10}, [(0, 4), (15, 4)], [(0, 1), (1, 1)]),
    ("a gap counts for max_io", [0, 14], 4, {"gap": 10, "max_io": 18}, [(0, 18)], [(0, 1)] * 2),
    ("a gap over max_io is not read", [0, 14], 4, {"gap": 10, "max_io": 17},
     [(0, 4), (14, 4)], [(0, 1), (1, 1)]),
    ("max_io cuts neighbours", [0, 4, 8, 12], 4, {"max_io": 8},
     [(0, 8), (8, 8)], [(0, 1), (0, 1), (1, 1), (1, 1)]),
    ("max_io one byte short", [0, 4, 8], 4, {"max_io": 7},
     [(0, 4), (4, 4), (8, 4)], [(0, 1), (1, 1), (2, 1)]),
    ("a chain of overlaps is cut", [0, 3, 6, 9], 5, {"max_io": 8},
     [(0, 8), (8, 6)], [(0, 1), (0, 1), (0, 2), (1, 1)]),
    ("one request over three extents", [0, 1, 2], [10, 19, 28], {"max_io": 10},
     [(0, 10), (10, 10), (20, 10)], [(0, 1), (0, 2), (0, 3)]),
    ("inside an extent before the current one", [0, 1, 2], [10, 19, 3], {"max_io": 10},
     [(0, 10), (10, 10)], [(0, 1), (0, 2), (0, 1)]),
    ("longer than max_io alone", [0, 4, 104], [4, 100, 4], {"max_io": 10},
     [(0, 4), (4, 100), (104, 4)], [(0, 1), (1, 1), (2, 1)]),
    ("longer than max_io carries what it has", [0, 5], [100, 7], {"max_io": 10}, [(0, 100)], None),
    ("duplicates", [8, 8, 8], 4, {}, [(8, 4)], [(0, 1)] * 3),
    ("same offset, other lengths", [8, 8, 8], [1, 9, 4], {}, [(8, 9)], [(0, 1)] * 3),
    ("the longest of the same offset goes first", [0, 0], [2, 5], {"max_io": 3}, [(0, 5)], None),
    ("containment", [2, 0], [3, 10], {}, [(0, 10)], [(0, 1)] * 2),
    ("zero-length", [5, 5, 0], [0, 3, 0], {}, [(5, 3)], [(0, 0), (0, 1), (0, 0)]),
    ("all zero-length", [5, 0], 0, {}, [], [(0, 0)] * 2),
    ("zero-length does not bridge", [0, 4, 8], [4, 0, 4], {}, [(0, 4), (8, 4)], None),
    ("the last byte there is", [MAX_OFFSET - 1, 0], 1, {}, [(0, 1), (MAX_OFFSET - 1, 1)], None),
    ("everything there is", [0], [MAX_OFFSET], {"gap": MAX_OFFSET}, [(0, MAX_OFFSET)], None),
    ("end + gap past 2**63", [0, MAX_OFFSET - 4], 4, {"gap": MAX_OFFSET, "max_io": MAX_OFFSET},
     [(0, MAX_OFFSET)], [(0, 1)] * 2),
    ("zero-length at the very end", [MAX_OFFSET], 0, {}, [], [(0, 0)]),
    ("start wraps once", [0, 100, 200], 4, {"start": 50},
     [(100, 4), (200, 4), (0, 4)], [(2, 1), (0, 1), (1, 1)]),
    ("start at an extent", [0, 100], 4, {"start": 100}, [(100, 4), (0, 4)], [(1, 1), (0, 1)]),
    ("start inside an extent", [0, 100], 4, {"start": 101}, [(0, 4), (100, 4)], None),
    ("start after all", [0, 100], 4, {"start": 1000}, [(0, 4), (100, 4)], [(0, 1), (1, 1)]),
    ("start inside a cut chain", [0, 3, 6, 9, 50], [5, 5, 5, 5, 4], {"max_io": 8, "start": 5},
     [(50, 4), (0, 8), (8, 6)], [(1, 1), (1, 1), (1, 2), (2, 1), (0, 1)]),
    ("start inside a cut chain and nothing after", [0, 3, 6, 9], 5, {"max_io": 8, "start": 5},
     [(0, 8), (8, 6)], None),
    ("start at a clean cut", [0, 4, 8, 12], 4, {"max_io": 8, "start": 5},
     [(8, 8), (0, 8)], [(1, 1), (1, 1), (0, 1), (0, 1)]),
    ("fifo ignores start", [0, 100], 4, {"start": 50, "order": "fifo"}, [(0, 4), (100, 4)], None),
    ("fifo moves a distant duplicate twice", [8, 0, 8], 4, {"order": "fifo"},
     [(8, 4), (0, 4), (8, 4)], [(0, 1), (1, 1), (2, 1)]),
    ("fifo merges a repeated one", [8, 8], 4, {"order": "fifo"}, [(8, 4)], [(0, 1)] * 2),
    ("fifo never goes back, not even within the extent", [0, 5, 2], [10, 2, 2], {"order": "fifo"},
     [(0, 10), (2, 2)], [(0, 1), (0, 1), (1, 1)]),
    ("fifo cuts a chain", [0, 3, 6, 9], 5, {"order": "fifo", "max_io": 8},
     [(0, 8), (8, 6)], [(0, 1), (0, 1), (0, 2), (1, 1)]),
    ("fifo, zero-length in between is not there", [8, 0, 12], [4, 0, 4], {"order": "fifo"},
     [(8, 8)], [(0, 1), (0, 0), (0, 1)]),
]
# fmt: on


def pairs(plan: Any) -> list[tuple[int, int]]:
    return list(zip(plan.offsets.tolist(), plan.lengths.tolist(), strict=True))


@pytest.mark.parametrize(
    ("offsets", "lengths", "options", "extents", "carried"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)
def test_table(offsets: list[int], lengths: Any, options: Any, extents: Any, carried: Any) -> None:
    plan = iolift.plan(offsets, lengths, **options)
    assert pairs(plan) == extents
    assert len(plan) == len(extents)
    if carried is not None:
        got = list(zip(plan.first.tolist(), plan.count.tolist(), strict=True))
        assert got == carried
    same(plan, naive_plan(offsets, lengths, **options))


def same(plan: Any, answer: Any) -> None:
    """All four arrays and all counters."""
    for name in ARRAYS:
        found = getattr(plan, name)
        assert isinstance(found, np.ndarray)
        assert found.dtype == np.int64
        wanted = answer[name] if isinstance(answer, dict) else getattr(answer, name)
        np.testing.assert_array_equal(found, np.asarray(wanted, dtype=np.int64), name)
    for name in COUNTERS:
        wanted = answer[name] if isinstance(answer, dict) else getattr(answer, name)
        found = getattr(plan, name)
        assert type(found) is int
        assert (name, found) == (name, wanted)


def invariants(plan: Any, offsets: np.ndarray, lengths: np.ndarray, max_io: int) -> None:
    """What holds for every elevator plan, whatever the rule."""
    a, n = plan.offsets, plan.lengths
    assert (n > 0).all()
    assert int((np.diff(a) < 0).sum()) <= 1, "ascending, with one wrap"
    turn = np.argsort(a, kind="stable")
    ends = a[turn] + n[turn]
    assert (ends[:-1] <= a[turn][1:]).all(), "disjoint"
    assert (n <= max(max_io, int(lengths.max(initial=0)))).all()
    assert plan.bytes_moved == int(n.sum())
    real = lengths > 0
    assert (plan.count[~real] == 0).all()
    assert (plan.first[~real] == 0).all()
    first, last = plan.first[real], (plan.first + plan.count)[real] - 1
    assert (plan.count[real] >= 1).all()
    s, e = offsets[real], (offsets + lengths)[real]
    assert (a[first] <= s).all()
    assert (s < (a + n)[first]).all(), "the first carrier has the first byte"
    assert (a[last] < e).all()
    assert (e <= (a + n)[last]).all(), "and the last carrier the last byte"
    joined = np.concatenate(([0], np.cumsum((a + n)[:-1] != a[1:]))) if len(a) else a
    assert (joined[first] == joined[last]).all(), "with no hole between the carriers"


# ---------------------------------------------------------------------------------- hypothesis

narrow = st.tuples(st.integers(0, 60), st.integers(0, 20))
wide = st.tuples(st.integers(0, MAX_OFFSET - 2**40), st.integers(0, 2**40))
edge = st.tuples(st.integers(MAX_OFFSET - 40, MAX_OFFSET - 20), st.integers(0, 20))
requests = st.one_of(
    st.lists(narrow, max_size=12),
    st.lists(narrow, max_size=80),
    st.lists(st.one_of(narrow, wide, edge), max_size=40),
)


@settings(max_examples=800)
@given(
    requests,
    st.integers(0, 12),
    st.one_of(st.integers(1, 50), st.integers(1, 2**41)),
    st.sampled_from(["elevator", "fifo"]),
    st.one_of(st.just(0), st.integers(0, 70), st.integers(0, MAX_OFFSET)),
)
def test_as_the_naive_plan(
    asked: list[tuple[int, int]], gap: int, max_io: int, order: str, start: int
) -> None:
    offsets, lengths = [o for o, _ in asked], [n for _, n in asked]
    plan = iolift.plan(offsets, lengths, gap=gap, max_io=max_io, order=order, start=start)
    same(plan, naive_plan(offsets, lengths, gap, max_io, order, start))
    if order == "elevator":
        invariants(plan, np.array(offsets, np.int64), np.array(lengths, np.int64), max_io)


@settings(max_examples=300)
@given(st.lists(narrow, max_size=40), st.integers(0, 12), st.integers(1, 50))
def test_moves_what_is_asked_once_and_holes_up_to_the_gap(
    asked: list[tuple[int, int]], gap: int, max_io: int
) -> None:
    """By sets of bytes, with no rule in it at all."""
    plan = iolift.plan([o for o, _ in asked], [n for _, n in asked], gap=gap, max_io=max_io)
    wanted = {b for o, n in asked for b in range(o, o + n)}
    moved = [b for o, n in pairs(plan) for b in range(o, o + n)]
    assert len(moved) == len(set(moved)), "no byte twice"
    assert wanted <= set(moved)
    assert plan.bytes_unique == len(wanted)
    holes = sorted(set(moved) - wanted)
    for hole in holes:
        assert any(b in wanted for b in range(hole - gap, hole))
        assert any(b in wanted for b in range(hole + 1, hole + gap + 1))
    if gap == 0:
        assert not holes


@settings(max_examples=300)
@given(st.lists(narrow, min_size=1, max_size=40), st.integers(0, 12), st.integers(1, 50))
def test_one_length_for_all_is_that_length_repeated(
    asked: list[tuple[int, int]], gap: int, length: int
) -> None:
    offsets = [o for o, _ in asked]
    same(
        iolift.plan(offsets, length, gap=gap, max_io=30),
        naive_plan(offsets, [length] * len(offsets), gap, 30),
    )


# -------------------------------------------------------------------------------------- stress

AROUND_THE_SORTS_THRESHOLDS = (1, 2, 63, 64, 65, 255, 256, 4095, 4096, 4097, 8191, 8192, 70_000)


def stress_offsets(kind: str, n: int, rng: np.random.Generator) -> np.ndarray:
    if kind == "narrow":
        return rng.integers(0, 4 * n, n)
    if kind == "blocks":
        return rng.integers(0, 1 << 19, n) * 4096
    if kind == "wide":
        return rng.integers(0, MAX_OFFSET - 2**20, n)
    if kind == "outlier":
        offsets = rng.integers(0, 4 * n, n)
        offsets[rng.integers(0, n)] = MAX_OFFSET - 2**20
        return offsets
    if kind == "few offsets":
        return rng.integers(0, max(n // 50, 1), n) * 1000
    if kind == "sorted":
        return np.sort(rng.integers(0, 40 * n, n))
    if kind == "reversed":
        return np.arange(n)[::-1] * 10
    assert kind == "all the same"
    return np.full(n, 12345)


STRESS = ("narrow", "blocks", "wide", "outlier", "few offsets", "sorted", "reversed")


@pytest.mark.parametrize("kind", [*STRESS, "all the same"])
@pytest.mark.parametrize("n", AROUND_THE_SORTS_THRESHOLDS)
def test_stress(kind: str, n: int) -> None:
    rng = np.random.default_rng([n, len(kind)])
    offsets = stress_offsets(kind, n, rng)
    for lengths in (rng.integers(0, 25, n), np.full(n, 7), rng.integers(1, 3, n) * 4096):
        gap, max_io = int(rng.integers(0, 12)), int(rng.integers(1, 20_000))
        start = int(rng.choice(offsets))
        for options in ({}, {"gap": gap, "max_io": max_io, "start": start}):
            plan = iolift.plan(offsets, lengths, **options)
            same(plan, fast_plan(offsets, lengths, **options))
            invariants(plan, offsets, lengths, options.get("max_io", 1 << 20))


@pytest.mark.parametrize("kind", STRESS)
def test_stress_many(kind: str) -> None:
    n = 300_000
    rng = np.random.default_rng(n)
    offsets, lengths = stress_offsets(kind, n, rng), rng.integers(0, 5000, n)
    plan = iolift.plan(offsets, lengths, gap=100, max_io=30_000, start=int(offsets[0]))
    same(plan, fast_plan(offsets, lengths, 100, 30_000, int(offsets[0])))
    invariants(plan, offsets, lengths, 30_000)


@pytest.mark.parametrize(
    ("n", "spread"),
    [
        *itertools.product((2047, 2048, 2049, 40_000), (1, 2, 31, 32, 33, 5000)),
        *itertools.product((100_000,), (1, 32, 5000)),
    ],
)
def test_stress_one_length(n: int, spread: int) -> None:
    """Blocks and overlapping rows, close together and far apart: three ways to the same plan."""
    rng = np.random.default_rng([n, spread])
    keys = rng.integers(0, max(n * spread, 2), n)
    keys[: n // 10] = n * spread + np.arange(n // 10)  # a run that max_io has to cut
    for unit, length in ((4096, 4096), (4096, 100), (1, 1), (64, 160), (3, 3)):
        offsets = keys * unit + int(rng.integers(0, 1 << 40)) * unit
        for gap, max_io in ((0, 1 << 20), (2 * unit, 5 * length), (unit, length), (0, 1 << 62)):
            start = int(rng.choice(offsets))
            plan = iolift.plan(offsets, length, gap=gap, max_io=max_io, start=start)
            sizes = np.full(n, length)
            same(plan, fast_plan(offsets, sizes, gap, max_io, start))
            invariants(plan, offsets, sizes, max_io)
    assert plan.count is plan.count


def test_one_length_where_one_bucket_has_almost_all() -> None:
    """No distribution makes it slow or wrong: outliers leave everything else in one bucket."""
    rng = np.random.default_rng(9)
    n = 100_000
    for offsets in (
        np.r_[rng.integers(0, 1 << 20, n), MAX_OFFSET - 8],
        np.r_[rng.integers(0, 1 << 20, n) * 512, 1 << 42],
        np.r_[np.full(n, 7), 1 << 42],
        np.r_[(1 << 40) + rng.integers(-9000, 9000, n)],
    ):
        plan = iolift.plan(offsets, 5, gap=1, max_io=300)
        same(plan, fast_plan(offsets, np.full(len(offsets), 5), 1, 300))


@pytest.mark.parametrize("kind", STRESS)
def test_stress_fifo_of_sorted_requests_is_the_elevator(kind: str) -> None:
    rng = np.random.default_rng(5)
    offsets = np.unique(stress_offsets(kind, 20_000, rng))
    lengths = rng.integers(1, 50, len(offsets))
    plan = iolift.plan(offsets, lengths, gap=3, max_io=500, order="fifo")
    same(plan, fast_plan(offsets, lengths, 3, 500))


@settings(max_examples=300)
@given(requests, st.integers(0, 12), st.integers(1, 50), st.integers(0, 70))
def test_the_two_oracles_agree(
    asked: list[tuple[int, int]], gap: int, max_io: int, start: int
) -> None:
    offsets, lengths = [o for o, _ in asked], [n for _, n in asked]
    fast = fast_plan(np.array(offsets, np.int64), np.array(lengths, np.int64), gap, max_io, start)
    naive = naive_plan(offsets, lengths, gap, max_io, "elevator", start)
    for name in ARRAYS:
        assert fast[name].tolist() == getattr(naive, name)
    for name in COUNTERS:
        assert fast[name] == getattr(naive, name)


# -------------------------------------------------------------------------------------- a peer


@settings(max_examples=300)
@given(st.lists(narrow, min_size=1, max_size=40), st.integers(0, 12), st.integers(1, 60))
def test_against_fsspec(asked: list[tuple[int, int]], gap: int, max_io: int) -> None:
    """fsspec 2026.9: the same rule, but what a cut chain overlaps it reads twice; it keeps
    zero-length ranges. Without max_block, or where nothing overlaps, the ranges are the same."""
    merge = pytest.importorskip("fsspec.utils").merge_offset_ranges
    asked = [(o, n) for o, n in asked if n] or [(0, 1)]
    offsets, lengths = [o for o, _ in asked], [n for _, n in asked]

    def peer(max_block: int | None, offsets: list[int], ends: list[int]) -> list[tuple[int, int]]:
        paths = ["p"] * len(offsets)
        _, begins, ends = merge(paths, offsets, ends, max_gap=gap, max_block=max_block)
        return [(a, b - a) for a, b in zip(begins, ends, strict=True)]

    ends = [o + n for o, n in asked]
    assert pairs(iolift.plan(offsets, lengths, gap=gap, max_io=10_000)) == peer(None, offsets, ends)
    cut = iolift.plan(offsets, lengths, max_io=max_io)
    theirs = [(a, a + n) for a, n in peer(max_io, offsets, ends)]
    if gap == 0:
        assert cut.bytes_moved == union_size(theirs)
    apart = sorted(set(offsets))
    tail = [*apart[1:], apart[-1] + 5]
    ends = [min(a + 5, b) for a, b in zip(apart, tail, strict=True)]
    sizes = [b - a for a, b in zip(apart, ends, strict=True)]
    ours = pairs(iolift.plan(apart, sizes, gap=gap, max_io=max_io))
    assert ours == peer(max_io, apart, ends)


# -------------------------------------------------------------------------------------- inputs

GOOD = [
    ([4, 0, 9], [4, 4, 1]),
    ((4, 0, 9), (4, 4, 1)),
    (range(0, 30, 10), range(1, 4)),
    (array.array("q", [4, 0, 9]), array.array("i", [4, 4, 1])),
    (memoryview(array.array("q", [4, 0, 9])), [4, 4, 1]),
    ([np.int64(4), np.uint8(0), True + 8], [4, 4, 1]),
    *[
        (np.array([4, 0, 9], dtype=a), np.array([4, 4, 1], dtype=b))
        for a in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", ">i8")
        for b in ("int64", "uint8", "int32", "uint64")
    ],
    (np.arange(12)[::4], np.arange(9).reshape(3, 3)[:, 1]),
    (np.arange(12)[::-4], np.arange(3)[::-1]),
    ([4, 0, 9], 4),
    *[([4, 0, 9], kind(4)) for kind in (np.int8, np.uint8, np.int32, np.int64, np.uint64)],
]


@pytest.mark.parametrize(("offsets", "lengths"), GOOD)
def test_good_inputs(offsets: Any, lengths: Any) -> None:
    one = isinstance(lengths, int | np.integer)
    sizes = int(lengths) if one else [int(n) for n in lengths]
    same(iolift.plan(offsets, lengths), naive_plan([int(o) for o in offsets], sizes))


HUGE = MAX_OFFSET + 1
BAD: list[tuple[Any, Any, dict[str, Any], type[Exception], str]] = [
    ([0, -1, 5], 4, {}, ValueError, r"offsets.*\b1\b.*-1"),
    ([0, 5], [4, -7], {}, ValueError, r"lengths.*\b1\b.*-7"),
    ([0, 5], -7, {}, ValueError, r"length.*-7"),
    (np.array([3, 2, -9], "int8"), 1, {}, ValueError, r"offsets.*\b2\b.*-9"),
    ([0, MAX_OFFSET], [1, 1], {}, ValueError, rf"\b1\b.*{MAX_OFFSET}"),
    ([0, 2**62], [1, 2**62], {}, ValueError, rf"\b1\b.*{2**62}"),
    ([0, 1], MAX_OFFSET, {}, ValueError, rf"\b1\b.*{MAX_OFFSET}"),
    ([0, HUGE], 1, {}, ValueError, rf"offsets.*\b1\b.*{HUGE}"),
    ([0, 1], [1, HUGE], {}, ValueError, rf"lengths.*\b1\b.*{HUGE}"),
    ([0, 1], HUGE, {}, ValueError, rf"length.*{HUGE}"),
    (np.array([0, HUGE], "uint64"), 1, {}, ValueError, rf"offsets.*\b1\b.*{HUGE}"),
    ([0, 10**30], 1, {}, ValueError, rf"offsets.*\b1\b.*{10**30}"),
    ([0, 1], [1], {}, ValueError, r"\b2\b.*\b1\b|\b1\b.*\b2\b"),
    ([], [1], {}, ValueError, r"lengths"),
    ([0], 1, {"gap": -1}, ValueError, r"gap.*-1"),
    ([0], 1, {"max_io": 0}, ValueError, r"max_io.*0"),
    ([0], 1, {"max_io": -5}, ValueError, r"max_io.*-5"),
    ([0], 1, {"start": -1}, ValueError, r"start.*-1"),
    ([0], 1, {"order": "lifo"}, ValueError, r"order.*lifo"),
    ([0], 1, {"gap": 1.5}, TypeError, r"gap"),
    ([0], 1, {"max_io": "1"}, TypeError, r"max_io"),
    ([0], 1, {"start": None}, TypeError, r"start"),
    ([0], 1, {"order": None}, (TypeError, ValueError), r"order"),
    ([0, 1.0], 1, {}, TypeError, r"offsets"),
    ([0.5], 1, {}, TypeError, r"offsets"),
    ([0, "1"], 1, {}, TypeError, r"offsets"),
    ([0, None], 1, {}, TypeError, r"offsets"),
    ("01", 1, {}, TypeError, r"offsets"),
    (5, 1, {}, TypeError, r"offsets"),
    (None, 1, {}, TypeError, r"offsets"),
    (np.array(5), 1, {}, TypeError, r"offsets"),
    (np.zeros((2, 2), int), 1, {}, TypeError, r"offsets"),
    (np.array([0.0, 1.0]), 1, {}, TypeError, r"offsets"),
    (np.array([True, False]), 1, {}, TypeError, r"offsets"),
    (np.array(["1"]), 1, {}, TypeError, r"offsets"),
    (np.array([0, 1], dtype=object) + 0.5, 1, {}, TypeError, r"offsets"),
    (np.array([0], "m8[s]"), 1, {}, TypeError, r"offsets"),
    ([0, 1], [1, 1.5], {}, TypeError, r"lengths"),
    ([0, 1], 1.0, {}, TypeError, r"lengths"),
    ([0, 1], "12", {}, TypeError, r"lengths"),
    ([0, 1], None, {}, TypeError, r"lengths"),
    ([0, 1], np.ones((2, 1), int), {}, TypeError, r"lengths"),
    ([0, 1], np.array([1.0, 2.0]), {}, TypeError, r"lengths"),
    ([0, 1], np.array([True, True]), {}, TypeError, r"lengths"),
]


@pytest.mark.parametrize(("offsets", "lengths", "options", "kind", "message"), BAD)
def test_bad_inputs_name_argument_index_and_value(
    offsets: Any, lengths: Any, options: Any, kind: Any, message: str
) -> None:
    with pytest.raises(kind, match=message):
        iolift.plan(offsets, lengths, **options)


@pytest.mark.parametrize("at", [0, 1, 4096, 99_999])
def test_the_one_bad_request_of_many_is_named(at: int) -> None:
    offsets = np.arange(100_000) * 8
    offsets[at] = -3
    with pytest.raises(ValueError, match=rf"offsets.*\b{at}\b.*-3"):
        iolift.plan(offsets, 8)


def test_inputs_are_left_alone_and_results_own_their_memory() -> None:
    rng = np.random.default_rng(3)
    offsets, lengths = rng.integers(0, 10**6, 5000), rng.integers(0, 500, 5000)
    kept = offsets.copy(), lengths.copy()
    offsets.flags.writeable = lengths.flags.writeable = False
    plan = iolift.plan(offsets, lengths, gap=5, max_io=4000, start=7)
    again = iolift.plan(offsets, lengths, gap=5, max_io=4000, start=7)
    np.testing.assert_array_equal(offsets, kept[0])
    np.testing.assert_array_equal(lengths, kept[1])
    for name in ARRAYS:
        assert not np.shares_memory(getattr(plan, name), offsets)
        assert not np.shares_memory(getattr(plan, name), getattr(again, name))
    same(again, {name: getattr(plan, name) for name in ARRAYS + COUNTERS})


def test_repr_shows_the_counters() -> None:
    text = repr(iolift.plan([0, 0, 8, 100], 8))
    assert "Plan" in text
    for number in ("32", "24", "1"):
        assert number in text


def test_more_than_can_be_counted_is_refused():
    far = [0, 2**63 - 2] * 3
    huge = {"gap": 2**63 - 1, "max_io": 2**63 - 1}
    assert iolift.plan(far, 1, **huge).bytes_moved == 2**63 - 1
    with pytest.raises(ValueError, match=r"would move 2\*\*63 bytes or more \(gap = 9223"):
        iolift.plan(far, 1, order="fifo", **huge)
