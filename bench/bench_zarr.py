"""What does zarr take to read 256 random inner chunks of a shard, from the page cache and the disk?

One shard of 64 MiB with 16384 inner chunks of 4 KiB, not compressed, so that reading is what
counts; `vindex` asks for one element of each of 256 chunks, other ones in every round. The peers
are zarr's LocalStore as it comes and, where zarr asks a store for many ranges at once (3.3), one
whose `get_ranges` is what anybody writes first: ranges in ascending order, a pread each. zarr's own
work on the chunks is in all of them: 150 us a chunk with the codec pipeline that it comes with.
"fused" is its other one, `FusedCodecPipeline`, which asks a store without a hop between threads.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from _measure import Ask, Count, Question, Side, Tally, benchmark_side
from _work import MIB, UnavailableError

import iolift

if TYPE_CHECKING:
    from collections.abc import Callable

    from _work import Work

try:
    import zarr
    from zarr.abc.store import RangeByteRequest
    from zarr.storage import LocalStore
except ImportError:
    zarr = None

SHAPE, INNER, PICKED = (4096, 4096), (32, 32), 256
PIPELINES = "zarr.core.codec_pipeline"
ACROSS = SHAPE[1] // INNER[1]


def sorted_preads() -> type:
    """A LocalStore with the naive `get_ranges`."""

    class SortedStore(LocalStore):
        def get_ranges_sync(self, key: str, byte_ranges: Any, *, prototype: Any, **_: Any) -> Any:
            fd = os.open(self.root / key, os.O_RDONLY)
            try:
                size, found = os.fstat(fd).st_size, []
                for i, asked in sorted(
                    enumerate(byte_ranges), key=lambda pair: getattr(pair[1], "start", 0)
                ):
                    first, end = 0, size
                    if isinstance(asked, RangeByteRequest):
                        first, end = asked.start, asked.end
                    data = os.pread(fd, end - first, first)
                    found.append((i, prototype.buffer.from_bytes(data)))
                return found
            finally:
                os.close(fd)

        async def get_ranges(self, key: str, byte_ranges: Any, *, prototype: Any, **_: Any) -> Any:
            yield self.get_ranges_sync(key, byte_ranges, prototype=prototype)

    return SortedStore


class Shard:
    """The array, and which elements this round picks."""

    def __init__(self, work: Work, cold: bool) -> None:
        if zarr is None:
            raise UnavailableError("zarr is not installed")
        self.root = Path(work.root) / "shard.zarr"
        self._work, self._cold = work, cold
        self._rng = np.random.default_rng(8)
        if not self.root.exists():
            array = zarr.create_array(
                LocalStore(self.root), shape=SHAPE, shards=SHAPE, chunks=INNER, dtype="i4",
                compressors=None,
            )  # fmt: skip
            array[:] = self._rng.integers(0, 1 << 30, SHAPE, np.int32)
            os.sync()
        (self.file,) = (path for path in self.root.rglob("*") if path.stat().st_size > 32 * MIB)
        self.again()

    def again(self) -> None:
        """Other chunks, none of them cached where it is to be cold."""
        chunks = self._rng.choice(ACROSS * ACROSS, PICKED, replace=False)
        self.rows, self.columns = (
            (chunks // ACROSS) * INNER[0] + 5,
            (chunks % ACROSS) * INNER[1] + 7,
        )
        if self._cold:
            self._work.drop(self.file)
        else:
            self._work.warm(self.file)

    def side(self, store: Any, fused: bool) -> Side:
        """The reads through one store."""
        pipeline = {"codec_pipeline.path": f"{PIPELINES}.FusedCodecPipeline"} if fused else {}
        with zarr.config.set(pipeline):
            array = zarr.open_array(store, mode="r")
        return Side(PICKED, lambda: array.vindex[self.rows, self.columns], self.again)


def build(cold: bool) -> Callable[[Work], dict[str, Side]]:
    """All read the same elements."""

    def sides(work: Work) -> dict[str, Side]:
        from iolift.zarr import LiftStore

        shard = Shard(work, cold)
        stores = {"iolift": LiftStore(shard.root), "LocalStore": LocalStore(shard.root)}
        if hasattr(LocalStore, "get_ranges"):
            stores["sorted preads"] = sorted_preads()(shard.root)
        made = {name: shard.side(store, False) for name, store in stores.items()}
        if hasattr(zarr.core.codec_pipeline, "FusedCodecPipeline"):
            made |= {f"{name}, fused": shard.side(store, True) for name, store in stores.items()}
        results = [side.run() for side in made.values()]
        assert all((result == results[0]).all() for result in results)
        return made

    return sides


def bytes_read(work: Work) -> Tally:
    """What is read of the file for 256 chunks, and the shard's index."""
    from iolift.zarr import LiftStore

    shard = Shard(work, cold=True)
    with iolift.Coalescer() as coalescer:
        array = zarr.open_array(LiftStore(shard.root, coalescer=coalescer), mode="r")
        before = coalescer.stats().bytes_moved
        array.vindex[shard.rows, shard.columns]
        moved = coalescer.stats().bytes_moved - before
    asked = PICKED * INNER[0] * INNER[1] * 4
    index = ACROSS * ACROSS * 16 + 4
    ratio = (moved - index) / asked
    return Tally(ratio, f"{ratio:.2f} of the chunks' bytes, beside the index of {index}", "1")


QUESTIONS = [
    Question(
        f"zarr_{place}",
        f"zarr, 256 random 4 KiB inner chunks of a 64 MiB shard, {place}",
        build(place == "cold"),
        (
            Ask("LocalStore", at_least=3),
            Ask("LocalStore", at_least=3, us="iolift, fused"),
            Ask("LocalStore, fused", us="iolift, fused"),
            Ask("sorted preads", at_most=1.0),
            Ask("sorted preads, fused", at_most=1.0, us="iolift, fused"),
        ),
    )
    for place in ("warm", "cold")
] + [
    Count("zarr_bytes", "the same: bytes read", bytes_read, "<= 1.3 of those asked", 1.3),
]


def test_zarr(benchmark, side) -> None:
    """One side of one question."""
    benchmark_side(benchmark, side)
