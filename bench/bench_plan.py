"""What does a plan cost against sorting the offsets, and does a request cost more among many?

The peers: `numpy.argsort` of the offsets, which only sorts; `fsspec.utils.merge_offset_ranges`
(>= 2026.9, earlier ones lose identical ranges), which sorts and merges lists; both get what
they like best (int64 array; lists of int).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from _measure import Ask, Question, Side, benchmark_side

import iolift

if TYPE_CHECKING:
    from _work import Work

BLOCK = 4096


def random_offsets(n: int) -> np.ndarray[Any, Any]:
    """4 KiB requests at random blocks among 16 n of them: some neighbours, few duplicates."""
    return np.random.default_rng(n).integers(0, 16 * n, n) * BLOCK


def build_sort(work: Work) -> dict[str, Side]:
    """1M requests: our plan, their sort."""
    n = 1_000_000
    offsets = random_offsets(n)
    anywhere = np.random.default_rng(1).integers(0, 2**42, n)
    assert len(iolift.plan(offsets, BLOCK).first) <= n
    return {
        "iolift": Side(n, lambda: iolift.plan(offsets, BLOCK).first),
        "numpy argsort": Side(n, lambda: np.argsort(offsets)),
        "any byte of 4 TiB": Side(n, lambda: iolift.plan(anywhere, BLOCK).first),
        "numpy argsort of these": Side(n, lambda: np.argsort(anywhere)),
    }


def build_merge(work: Work) -> dict[str, Side]:
    """100k requests against the merge that fsspec's readers use."""
    from fsspec.utils import merge_offset_ranges

    n = 100_000
    offsets = random_offsets(n)
    paths, starts, ends = ["f"] * n, offsets.tolist(), (offsets + BLOCK).tolist()
    plan = iolift.plan(offsets, BLOCK, max_io=1 << 62)
    _, theirs, _ = merge_offset_ranges(paths, starts, ends)
    assert np.sort(plan.offsets).tolist() == theirs
    return {
        "iolift": Side(n, lambda: iolift.plan(offsets, BLOCK).first, loops=5),
        "fsspec merge": Side(n, lambda: merge_offset_ranges(paths, starts, ends)),
    }


def build_growth(work: Work) -> dict[str, Side]:
    """The same density of requests at four sizes; the small ones looped to a readable time."""
    sides = {}
    for name, n in (("10k", 10_000), ("100k", 100_000), ("1M", 1_000_000), ("10M", 10_000_000)):
        offsets = random_offsets(n)
        run = lambda offsets=offsets: iolift.plan(offsets, BLOCK).first  # noqa: E731
        sides[name] = Side(n, run, loops=max(1, 1_000_000 // n))
    return sides


QUESTIONS = [
    Question(
        "plan_sort",
        "plan, 1M random 4 KiB requests",
        build_sort,
        (
            Ask("numpy argsort", at_least=4),
            Ask("numpy argsort of these", us="any byte of 4 TiB"),
        ),
    ),
    Question(
        "plan_merge",
        "plan, 100k random 4 KiB requests",
        build_merge,
        (Ask("fsspec merge", at_least=50),),
    ),
    Question(
        "plan_growth",
        "plan, growth per request",
        build_growth,
        (
            Ask("10k", at_most=4, us="10M"),
            Ask("10k", us="1M"),
            Ask("10k", us="100k"),
        ),
        slow=True,
    ),
]


def test_plan(benchmark, side) -> None:
    """One side of one question."""
    benchmark_side(benchmark, side)
