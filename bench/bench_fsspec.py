"""What do random ranges cost through fsspec: iolift's `cat_ranges` against that of local files?

5000 random 4 KiB ranges of one file, as bytes objects, in one call. Warm: of 256 MiB in the page
cache. Cold: of 2 GiB, other ones in every round, the page cache emptied before each (and shown
to be empty by mincore). Both file systems get the same lists; the file is opened in each call,
as fsspec does. "max_gap" is the same through a second coalescer that reads through holes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from _cold import BLOCK, SIZE, Draw
from _measure import Ask, Question, Side, benchmark_side
from _work import MIB, UnavailableError

if TYPE_CHECKING:
    from pathlib import Path

    from _work import Work

RANGES, WARM_SIZE, MAX_GAP = 5000, 256 * MIB, 8192


def filesystems() -> dict[str, tuple[Any, dict[str, Any]]]:
    """Name -> the file system and what else its cat_ranges is given."""
    try:
        import fsspec
    except ImportError:
        raise UnavailableError("fsspec is not installed") from None
    from iolift.fsspec import LiftFileSystem

    lift = LiftFileSystem()
    return {
        "iolift": (lift, {}),
        "max_gap": (lift, {"max_gap": MAX_GAP}),
        "direct": (LiftFileSystem(direct=True), {}),
        "fsspec local": (fsspec.filesystem("file"), {}),
    }


def build(path: Path, draw: Any, before: Any, loops: int) -> dict[str, Side]:
    """`draw()` gives the round's offsets; all sides are compared once, on the same ones."""
    sides: dict[str, Side] = {}
    found = {}
    paths = [str(path)] * RANGES
    for name, (fs, options) in filesystems().items():

        def run(fs: Any = fs, options: Any = options) -> None:
            offsets = draw()
            fs.cat_ranges(paths, offsets, [o + BLOCK for o in offsets], on_error="raise", **options)

        starts = list(range(0, RANGES * 9999, 9999))
        found[name] = fs.cat_ranges(paths, starts, [s + BLOCK for s in starts], **options)
        sides[name] = Side(RANGES, run, before, loops)
    assert all(answers == found["fsspec local"] for answers in found.values())
    return sides


def build_warm(work: Work) -> dict[str, Side]:
    """The page cache has it all."""
    path = work.file(WARM_SIZE)
    work.warm(path)
    blocks = np.random.default_rng(7).integers(0, WARM_SIZE // BLOCK, RANGES)
    offsets = (blocks * BLOCK).tolist()
    return build(path, lambda: offsets, lambda: None, loops=4)


def build_cold(work: Work) -> dict[str, Side]:
    """The page cache has nothing."""
    path = work.file(SIZE)
    draw = Draw(work, path, lambda rng: rng.choice(SIZE // BLOCK, RANGES, replace=False))
    return build(path, lambda: draw.offsets.tolist(), draw.again, loops=1)


QUESTIONS = [
    Question(
        "fsspec_warm",
        "fsspec cat_ranges, warm, 5000 random 4 KiB",
        build_warm,
        (
            Ask("fsspec local", at_least=8),
            Ask("fsspec local", us="max_gap"),
        ),
    ),
    Question(
        "fsspec_cold",
        "fsspec cat_ranges, cold, 5000 random 4 KiB in 2 GiB",
        build_cold,
        (
            Ask("fsspec local", at_least=3),
            Ask("fsspec local", us="direct"),
        ),
    ),
]


def test_fsspec(benchmark, side) -> None:
    """One side of one question."""
    benchmark_side(benchmark, side)
