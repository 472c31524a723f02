"""Goal: LiftStore is zarr's LocalStore, but that ranges are one batch and nothing stale is read.

zarr's own StoreTests, whole; LocalStore as the oracle of every kind of range, key and listing; what
is one batch, and what its results keep alive; files replaced, deleted, cut and rewritten behind an
open descriptor; writers and readers of one value at once; descriptors, forks, pickles, bad input.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TYPE_CHECKING, Any

import child
import numpy as np
import pytest
from child import run

import iolift

zarr = pytest.importorskip("zarr", minversion="3.1")
suite = pytest.importorskip("zarr.testing.store")
ours = pytest.importorskip("iolift.zarr")

from zarr.abc.store import (  # noqa: E402
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import default_buffer_prototype  # noqa: E402
from zarr.core.buffer.cpu import Buffer  # noqa: E402
from zarr.storage import LocalStore  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

LiftStore = ours.LiftStore
PROTOTYPE = default_buffer_prototype()
HAS_RANGES = hasattr(Store, "get_ranges")  # zarr >= 3.3
BLOCK = 4096


def as_plain(function: Any) -> Any:
    """A coroutine function that pytest runs without a plugin; marks and fixtures stay."""

    @functools.wraps(function)
    def plain(*args: Any, **kwargs: Any) -> Any:
        return asyncio.run(function(*args, **kwargs))

    return plain


async def collect(items: Any) -> list[Any]:
    return [item async for item in items]


def value(data: bytes) -> Buffer:
    return Buffer.from_bytes(data)


def plain(found: Any) -> bytes | None:
    return None if found is None else found.to_bytes()


async def ranges(store: Any, key: str, asked: list[Any]) -> list[bytes]:
    groups = await collect(store.get_ranges(key, asked, prototype=PROTOTYPE))
    found = dict(chain.from_iterable(groups))
    return [found[i].to_bytes() for i in range(len(asked))]


def ranges_sync(store: Any, key: str, asked: list[Any]) -> list[bytes]:
    found = dict(store.get_ranges_sync(key, asked, prototype=PROTOTYPE))
    return [found[i].to_bytes() for i in range(len(asked))]


def open_below(root: Path) -> list[str]:
    """The files below root that this process has open."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [name for name in found if name.startswith(f"{root}/")]


class TestStore(suite.StoreTests[LiftStore, Buffer]):
    """zarr's suite; its coroutines are run here, so that no plugin is needed."""

    store_cls = LiftStore
    buffer_cls = Buffer

    async def get(self, store: Any, key: str) -> Buffer:
        return value((store.root / key).read_bytes())

    async def set(self, store: Any, key: str, value: Buffer) -> None:
        (store.root / key).parent.mkdir(parents=True, exist_ok=True)
        (store.root / key).write_bytes(value.to_bytes())

    @pytest.fixture
    def store_kwargs(self, tmp_path: Path) -> dict[str, Any]:
        return {"root": str(tmp_path)}

    @pytest.fixture
    def store(self, open_kwargs: dict[str, Any]) -> Any:
        return asyncio.run(LiftStore.open(**open_kwargs))

    @pytest.fixture
    def store_not_open(self, store_kwargs: dict[str, Any]) -> Any:
        return LiftStore(**store_kwargs)

    def test_store_repr(self, store: Any) -> None:
        assert repr(store) == f"LiftStore('file://{store.root.as_posix()}')"

    def test_store_supports_writes(self, store: Any) -> None:
        assert store.supports_writes

    def test_store_supports_listing(self, store: Any) -> None:
        assert store.supports_listing

    def test_store_supports_partial_writes(self, store: Any) -> None:
        assert store.supports_partial_writes == LocalStore(store.root).supports_partial_writes


for _name, _test in inspect.getmembers(TestStore, inspect.iscoroutinefunction):
    if _name.startswith("test_"):
        setattr(TestStore, _name, as_plain(_test))


def test_every_test_of_the_suite_is_run() -> None:
    names = [name for name in dir(TestStore) if name.startswith("test_")]
    assert len(names) >= 30
    assert not [name for name in names if inspect.iscoroutinefunction(getattr(TestStore, name))]


# ----------------------------------------------------------------------------- LocalStore as oracle

SIZE = 3 * BLOCK + 7
DATA = np.random.default_rng(1).bytes(SIZE)
REQUESTS = [
    None,
    *(RangeByteRequest(a, b) for a, b in ((0, 0), (0, 1), (5, SIZE), (7, SIZE + 9), (SIZE, SIZE))),
    *(
        RangeByteRequest(a, b)
        for a, b in ((SIZE + 5, SIZE + 9), (1 << 40, (1 << 40) + 5), (BLOCK, 9000))
    ),
    *(OffsetByteRequest(a) for a in (0, 1, SIZE - 1, SIZE, SIZE + 1, 1 << 40)),
    *(SuffixByteRequest(a) for a in (0, 1, BLOCK, SIZE, SIZE + 1, 1 << 40)),
]


@pytest.mark.parametrize("data", [b"", b"x", DATA], ids=["empty", "one", "blocks"])
@pytest.mark.parametrize("request_", REQUESTS, ids=str)
def test_a_range_is_what_local_store_reads(tmp_path: Path, data: bytes, request_: Any) -> None:
    (tmp_path / "k").write_bytes(data)
    store, local = LiftStore(tmp_path), LocalStore(tmp_path)
    expected = plain(asyncio.run(local.get("k", PROTOTYPE, request_)))
    assert plain(asyncio.run(store.get("k", PROTOTYPE, request_))) == expected
    assert plain(store.get_sync("k", byte_range=request_)) == expected
    assert asyncio.run(ranges(store, "k", [request_, request_])) == [expected] * 2
    assert ranges_sync(store, "k", [request_]) == [expected]
    partial = asyncio.run(store.get_partial_values(PROTOTYPE, [("k", request_)]))
    assert [plain(found) for found in partial] == [expected]


BAD = [
    (RangeByteRequest(5, 4), ValueError, "ends before"),
    (RangeByteRequest(-1, 4), ValueError, "-1"),
    (OffsetByteRequest(-1), ValueError, "-1"),
    (SuffixByteRequest(-1), ValueError, "negative"),
    ((0, 2), TypeError, r"Unexpected byte_range, got \(0, 2\)"),
    (7, TypeError, "got 7"),
]


@pytest.mark.parametrize(("request_", "error", "words"), BAD, ids=str)
def test_a_bad_range_is_named(tmp_path: Path, request_: Any, error: type, words: str) -> None:
    (tmp_path / "k").write_bytes(DATA)
    store = LiftStore(tmp_path)
    with pytest.raises(error, match=words):
        asyncio.run(store.get("k", PROTOTYPE, request_))
    with pytest.raises(error, match=words):
        store.get_sync("k", byte_range=request_)
    with pytest.raises(ExceptionGroup) as group:
        asyncio.run(ranges(store, "k", [None, request_]))
    assert group.value.subgroup(error)
    with pytest.raises(ExceptionGroup) as group:
        ranges_sync(store, "k", [None, request_])
    assert group.value.subgroup(error)


@pytest.mark.parametrize("key", ["missing", "dir", "file/below", "", "dir/missing"])
def test_no_value_is_none(tmp_path: Path, key: str) -> None:
    (tmp_path / "dir" / "sub").mkdir(parents=True)
    (tmp_path / "file").write_bytes(b"x")
    store, local = LiftStore(tmp_path), LocalStore(tmp_path)
    assert asyncio.run(local.get(key, PROTOTYPE)) is None
    assert asyncio.run(store.get(key, PROTOTYPE)) is None
    assert store.get_sync(key) is None
    asked = [(key, None), ("file", None), (key, RangeByteRequest(0, 1))]
    partial = asyncio.run(store.get_partial_values(PROTOTYPE, asked))
    assert [plain(found) for found in partial] == [None, b"x", None]
    for read in (lambda *a: asyncio.run(ranges(*a)), ranges_sync):
        with pytest.raises(ExceptionGroup) as group:
            read(store, key, [None, RangeByteRequest(0, 1)])
        assert group.value.split(FileNotFoundError)[1] is None  # as zarr's sharding asks
        assert read(store, key, []) == []


def test_listing_and_deleting_are_those_of_local_store(tmp_path: Path) -> None:
    stores = {cls: cls(tmp_path / cls.__name__) for cls in (LiftStore, LocalStore)}

    async def story(store: Any) -> list[Any]:
        seen: list[Any] = []

        async def look() -> None:
            for prefix in ("", "a", "a/", "a/b", "c"):
                listing = (collect(store.list_prefix(prefix)), collect(store.list_dir(prefix)))
                seen.append([sorted(await each) for each in listing])
            seen.append([await store.exists(key) for key in ("a", "a/b/0", "c", "z")])

        for key in ("a/b/0", "a/b/1", "a/zarr.json", "ab/0", "c"):
            await store.set(key, value(key.encode()))
        await look()
        for key in ("a/b/1", "missing", "ab"):
            await store.delete(key)
        await store.delete_dir("missing")
        await look()
        await store.delete_dir("a/b")
        await look()
        with pytest.raises(ValueError, match="is a file"):
            await store.delete_dir("c")
        seen.append([await store.getsize("c"), await store.getsize_prefix("a")])
        await store.clear()
        await look()
        return seen

    ours_, local = (asyncio.run(story(stores[cls])) for cls in (LiftStore, LocalStore))
    assert ours_ == local
    assert not open_below(tmp_path)  # what was deleted here isn't kept open


# ------------------------------------------------------------------------------------- one batch


def shard(path: Path, blocks: int = 2048) -> np.ndarray[Any, Any]:
    rows = np.random.default_rng(2).integers(0, 256, (blocks, BLOCK), np.uint8)
    path.write_bytes(rows.tobytes())
    return rows


def blocks_of(chosen: Any) -> list[Any]:
    return [RangeByteRequest(k * BLOCK, (k + 1) * BLOCK) for k in chosen]


@pytest.mark.parametrize("read", [lambda *a: asyncio.run(ranges(*a)), ranges_sync])
def test_ranges_are_one_batch(tmp_path: Path, read: Any) -> None:
    rows = shard(tmp_path / "c")
    chosen = [*np.random.default_rng(3).permutation(2048)[:256].tolist(), 5, 5, 6, 7, 8]
    with iolift.Coalescer() as coalescer:
        store = LiftStore(tmp_path, coalescer=coalescer)
        before = coalescer.stats()
        assert read(store, "c", blocks_of(chosen)) == [rows[k].tobytes() for k in chosen]
        after = coalescer.stats()
    assert after.batches - before.batches == 1
    assert after.bytes_moved <= 1.3 * len(set(chosen)) * BLOCK


def test_neighbours_are_one_extent_and_mixed_sizes_come_right(tmp_path: Path) -> None:
    rows = shard(tmp_path / "c").reshape(-1)
    large = ours.LARGE + 1
    asked = [
        *(RangeByteRequest(at, at + 100) for at in range(0, 64 * 100, 100)),
        RangeByteRequest(3, 3 + large),
        RangeByteRequest(0, 0),
        SuffixByteRequest(large),
        OffsetByteRequest(len(rows) - 5),
        *(RangeByteRequest(at, at + (1 << 20)) for at in range(0, 7 << 20, 1 << 20)),
    ]
    expected = [rows[0:6400].tobytes()[k : k + 100] for k in range(0, 6400, 100)]
    expected += [rows[3 : 3 + large].tobytes(), b"", rows[-large:].tobytes(), rows[-5:].tobytes()]
    expected += [rows[at : at + (1 << 20)].tobytes() for at in range(0, 7 << 20, 1 << 20)]
    with iolift.Coalescer() as coalescer:
        store = LiftStore(tmp_path, coalescer=coalescer)
        assert ranges_sync(store, "c", asked[:64]) == expected[:64]
        assert coalescer.stats().extents == 1
        assert ranges_sync(store, "c", asked) == expected
        assert asyncio.run(ranges(store, "c", asked)) == expected


def test_more_than_the_scratch_memory_is_merged_as_well(tmp_path: Path) -> None:
    rows = shard(tmp_path / "c")
    chosen = np.random.default_rng(8).permutation(2048).tolist()
    assert len(chosen) * BLOCK == 2 * ours.SCRATCH
    with iolift.Coalescer(max_io=ours.SCRATCH) as coalescer:
        store = LiftStore(tmp_path, coalescer=coalescer)
        expected = [rows[k].tobytes() for k in chosen]
        assert ranges_sync(store, "c", blocks_of(chosen)) == expected
        stats = coalescer.stats()
    assert stats.batches == 2
    assert stats.extents <= 4


@pytest.mark.parametrize("n", [1, 100, BLOCK, ours.INLINE + 1, ours.LARGE + 1])
def test_a_result_keeps_only_its_own_bytes(tmp_path: Path, n: int) -> None:
    shard(tmp_path / "c")
    store = LiftStore(tmp_path)
    asked = [RangeByteRequest(k * n, (k + 1) * n) for k in range(4)]
    found = [store.get_sync("c", byte_range=asked[0])]
    found += [asyncio.run(store.get("c", PROTOTYPE, asked[0]))]
    found += [buffer for _, buffer in store.get_ranges_sync("c", asked, prototype=PROTOTYPE)]
    groups = asyncio.run(collect(store.get_ranges("c", asked, prototype=PROTOTYPE)))
    found += [buffer for group in groups for _, buffer in group]
    found += asyncio.run(store.get_partial_values(PROTOTYPE, [("c", each) for each in asked]))
    for buffer in found:
        held = buffer.as_numpy_array()
        while getattr(held, "base", None) is not None:
            held = held.base
        held = getattr(held, "obj", held)  # of a memoryview
        assert len(memoryview(held).cast("B")) <= 1.2 * n


def sharded(store: Any, **kwargs: Any) -> Any:
    return zarr.create_array(
        store,
        shape=(1024, 1024),
        shards=(1024, 1024),
        chunks=(32, 32),
        dtype="i4",
        compressors=None,
        **kwargs,
    )


@pytest.mark.skipif(not HAS_RANGES, reason="this zarr asks for inner chunks one by one")
@pytest.mark.parametrize("pipeline", ["BatchedCodecPipeline", "FusedCodecPipeline"])
def test_inner_chunks_of_a_shard_are_one_batch(tmp_path: Path, pipeline: str) -> None:
    if not hasattr(zarr.core.codec_pipeline, pipeline):
        pytest.skip(f"this zarr has no {pipeline}")
    data = np.arange(1024 * 1024, dtype="i4").reshape(1024, 1024)
    rows, columns = np.random.default_rng(4).integers(0, 1024, (2, 300))
    path = f"zarr.core.codec_pipeline.{pipeline}"
    with zarr.config.set({"codec_pipeline.path": path}), iolift.Coalescer() as coalescer:
        array = sharded(LiftStore(tmp_path, coalescer=coalescer))
        array[:] = data
        chunks = len({(r // 32, c // 32) for r, c in zip(rows, columns, strict=True)})
        before = coalescer.stats()
        assert (array.vindex[rows, columns] == data[rows, columns]).all()
        after = coalescer.stats()
    assert after.batches - before.batches <= 2  # the index, and the chunks
    index = 1024 * 16 + 4
    assert after.bytes_moved - before.bytes_moved <= 1.3 * (chunks * BLOCK) + index
    assert after.requests - before.requests == chunks + 1


@pytest.mark.parametrize("index_location", ["start", "end"])
def test_a_sharded_array_is_read_and_written_alike(tmp_path: Path, index_location: str) -> None:
    data = np.arange(1024 * 1024, dtype="i4").reshape(1024, 1024)
    codec = zarr.codecs.ShardingCodec(chunk_shape=(32, 32), index_location=index_location)
    kwargs = {"shape": data.shape, "chunks": (512, 512), "dtype": "i4", "serializer": codec}
    ours_ = zarr.create_array(LiftStore(tmp_path / "a"), compressors=None, **kwargs)
    local = zarr.create_array(LocalStore(tmp_path / "b"), compressors=None, **kwargs)
    for array in (ours_, local):
        array[:] = data
        array[100:200, 5:9] = 7
    names = sorted(str(p.relative_to(tmp_path / "a")) for p in (tmp_path / "a").rglob("*"))
    assert names == sorted(str(p.relative_to(tmp_path / "b")) for p in (tmp_path / "b").rglob("*"))
    for name in names:
        if (tmp_path / "a" / name).is_file():
            same = (tmp_path / "b" / name).read_bytes()
            assert (tmp_path / "a" / name).read_bytes() == same
    for where in (np.s_[:], np.s_[::37, 3:70], np.s_[1023, 1023], np.s_[500:520, 500:520]):
        assert np.array_equal(ours_[where], local[where])


def test_big_reads_leave_the_loop_and_small_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard(tmp_path / "c")
    store, hops = LiftStore(tmp_path), []
    to_thread = asyncio.to_thread

    async def counted(*args: Any, **options: Any) -> Any:
        hops.append(args)
        return await to_thread(*args, **options)

    monkeypatch.setattr(asyncio, "to_thread", counted)
    for request_, expected in (
        (RangeByteRequest(0, ours.INLINE), 0),
        (RangeByteRequest(0, ours.INLINE + 1), 1),
        (None, 1),
    ):
        hops.clear()
        asyncio.run(store.get("c", PROTOTYPE, request_))
        assert len(hops) == expected
    hops.clear()
    asyncio.run(ranges(store, "c", blocks_of(range(9))))
    assert len(hops) == 1


@pytest.mark.parametrize("size", [100, 300_000])
def test_many_tasks_have_few_files_open(tmp_path: Path, size: int) -> None:
    child.run(
        """
        import asyncio, os, resource, sys
        from zarr.abc.store import RangeByteRequest
        from zarr.core.buffer import default_buffer_prototype
        from iolift.zarr import LiftStore
        place, size = sys.argv[1], int(sys.argv[2])
        keys = [f"k{i}" for i in range(400)]
        for key in keys:
            with open(os.path.join(place, key), "wb") as f:
                f.write(key.encode() * size)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        prototype = default_buffer_prototype()
        ranges = [(k, RangeByteRequest(j, j + 2)) for k in keys for j in (0, 50)]
        async def main():
            asyncio.get_running_loop().slow_callback_duration = 100   # no word of that
            store = LiftStore(place, backend="posix")
            values = await asyncio.gather(*[store.get(key, prototype) for key in keys])
            assert [v.to_bytes() for v in values] == [k.encode() * size for k in keys]
            parts = await store.get_partial_values(prototype, ranges)
            assert all(len(p) == 2 for p in parts)
        asyncio.run(main())
        """,
        tmp_path,
        size,
    )


# -------------------------------------------------------------------------------- nothing is stale


@pytest.mark.parametrize("max_open_files", [0, 32])
def test_a_file_that_changes_behind_our_back(tmp_path: Path, max_open_files: int) -> None:
    path = tmp_path / "k"
    store = LiftStore(tmp_path, max_open_files=max_open_files)

    def seen() -> set[Any]:
        one = [RangeByteRequest(0, 4), None]
        return {
            plain(store.get_sync("k")),
            plain(asyncio.run(store.get("k", PROTOTYPE))),
            *ranges_sync(store, "k", one),
        }

    path.write_bytes(b"old1")
    status = path.stat()
    assert seen() == {b"old1"}
    for k in range(8):  # replaced: the same name, size and times
        other = tmp_path / f"other{k}"
        other.write_bytes(b"new%d" % k)
        os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
        other.replace(path)
        assert seen() == {b"new%d" % k}
    path.unlink()
    assert store.get_sync("k") is None
    assert asyncio.run(store.get("k", PROTOTYPE)) is None
    path.write_bytes(b"more")
    assert seen() == {b"more"}
    with path.open("r+b") as f:  # in place
        f.write(b"less")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert seen() == {b"less"}
    path.write_bytes(b"")
    assert plain(store.get_sync("k")) == b""
    path.unlink()
    path.mkdir()
    assert store.get_sync("k") is None
    path.rmdir()
    (tmp_path / "elsewhere").write_bytes(b"link")
    path.symlink_to("elsewhere")
    assert seen() == {b"link"}


def test_an_inode_number_is_not_used_again_while_the_file_is_open(tmp_path: Path) -> None:
    # What the cache stands on: delete and write anew, and the number differs.
    path, store = tmp_path / "k", LiftStore(tmp_path)
    for k in range(50):
        path.write_bytes(b"%04d" % k)
        assert plain(store.get_sync("k")) == b"%04d" % k
        path.unlink()


def test_what_was_deleted_here_is_not_kept_open(tmp_path: Path) -> None:
    store = LiftStore(tmp_path)
    for key in ("a/b/0", "a/b/1", "ab/0"):
        store.set_sync(key, value(b"x"))
        store.get_sync(key)
    asyncio.run(store.delete_dir("a"))
    assert open_below(tmp_path) == [f"{tmp_path}/ab/0"]
    asyncio.run(store.delete("ab"))
    assert not open_below(tmp_path)


def test_what_became_something_else_is_not_kept_open(tmp_path: Path) -> None:
    store = LiftStore(tmp_path)
    (tmp_path / "k").write_bytes(b"value")
    assert store.get_sync("k") is not None
    assert str(tmp_path / "k") in store._files._open
    (tmp_path / "k").unlink()
    (tmp_path / "k").mkdir()
    assert store.get_sync("k") is None
    assert str(tmp_path / "k") not in store._files._open


def test_a_moved_store(tmp_path: Path) -> None:
    store = LiftStore(tmp_path / "a")
    store.set_sync("k", value(b"1"))
    assert plain(store.get_sync("k")) == b"1"
    asyncio.run(store.move(tmp_path / "b"))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "k").write_bytes(b"2")
    assert plain(store.get_sync("k")) == b"1"
    assert plain(LiftStore(tmp_path / "a").get_sync("k")) == b"2"


def test_a_file_that_is_cut_between_looking_and_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = shard(tmp_path / "c", 16)
    store, find = LiftStore(tmp_path), ours._Files.find

    def find_and_cut(files: Any, path: Path) -> Any:
        found = find(files, path)
        os.truncate(path, 2 * BLOCK + 5)
        return found

    monkeypatch.setattr(ours._Files, "find", find_and_cut)
    expected = [rows[0].tobytes(), rows[2, :5].tobytes(), b"", rows[1].tobytes()]
    assert ranges_sync(store, "c", blocks_of([0, 2, 9, 1])) == expected


# ---------------------------------------------------------------------------- writers and readers


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_reader_sees_old_or_new(tmp_path: Path, kind: str) -> None:
    store = LiftStore(tmp_path, max_open_files=2)
    sizes, rounds, done = (5 * BLOCK, 9 * BLOCK), 150, threading.Event()
    asked = [RangeByteRequest(k * BLOCK, (k + 1) * BLOCK) for k in (0, 4, 2)]
    for key in "abc":
        store.set_sync(key, value(bytes(sizes[0])))

    def write(seed: int) -> None:
        for k in range(rounds):
            data = value(bytes([seed * 80 + k % 80]) * sizes[k % 2])
            if kind == "sync":
                store.set_sync("abc"[k % 3], data)
            else:
                asyncio.run(store.set("abc"[k % 3], data))

    def read(number: int) -> int:
        seen: set[bytes] = set()
        while not done.is_set():
            key = "abc"[len(seen) % 3]
            if kind == "sync":
                whole, parts = store.get_sync(key), ranges_sync(store, key, asked)
            else:
                whole = asyncio.run(store.get(key, PROTOTYPE))
                parts = asyncio.run(ranges(store, key, asked))
            found = whole.to_bytes()
            assert len(found) in sizes
            assert len(set(found)) == 1
            assert len(set(b"".join(parts))) == 1  # the parts of one call are of one version
            seen.add(found[:1])
        return len(seen)

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read, number) for number in range(2)]
        writers = [pool.submit(write, seed) for seed in (1, 2)]
        try:
            for writer in writers:
                writer.result()
        finally:
            done.set()
        assert all(reader.result() >= 1 for reader in readers)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]  # no temporary file


def test_one_of_many_sets_a_value_that_was_not_there(tmp_path: Path) -> None:
    store, start = LiftStore(tmp_path), threading.Barrier(8)

    def propose(k: int) -> None:
        start.wait()
        asyncio.run(store.set_if_not_exists("k", value(b"%d" % k * 9000)))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(propose, range(8)))
    first = store.get_sync("k").to_bytes()
    assert len(first) == 9000
    assert len(set(first)) == 1
    asyncio.run(store.set_if_not_exists("k", value(b"late")))
    assert store.get_sync("k").to_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == ["k"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = LiftStore(tmp_path)
    (tmp_path / "dir" / "below").mkdir(parents=True)
    (tmp_path / "file").write_bytes(b"x")
    for key, error in (
        ("dir", IsADirectoryError),
        ("file/k", (NotADirectoryError, FileExistsError)),
    ):
        with pytest.raises(error):
            store.set_sync(key, value(b"y"))
        with pytest.raises(error):
            asyncio.run(LocalStore(tmp_path).set(key, value(b"y")))
    for wrong in (b"bytes", None, np.zeros(3)):
        with pytest.raises(TypeError, match="value must be"):
            store.set_sync("k", wrong)
    with pytest.raises(ValueError, match="read-only"):
        store.with_read_only(True).set_sync("k", value(b"y"))
    with pytest.raises(ValueError, match="read-only"):
        store.with_read_only(True).delete_sync("file")
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == [
        "dir", "dir/below", "file",
    ]  # fmt: skip
    assert not open_below(tmp_path)


def test_many_open_the_store_at_once(tmp_path: Path) -> None:
    store = LiftStore(tmp_path / "new")

    async def main() -> None:
        await asyncio.gather(*(store.set(f"k{k}", value(b"%d" % k)) for k in range(50)))
        found = await asyncio.gather(*(store.get(f"k{k}", PROTOTYPE) for k in range(50)))
        assert [plain(each) for each in found] == [b"%d" % k for k in range(50)]

    asyncio.run(main())
    with pytest.raises(FileNotFoundError):
        asyncio.run(LiftStore(tmp_path / "none", read_only=True).get("k", PROTOTYPE))


# --------------------------------------------------------------- descriptors, processes, arguments


@pytest.mark.parametrize("limit", [0, 1, 4])
def test_open_files_are_bounded_and_let_go(tmp_path: Path, limit: int) -> None:
    store = LiftStore(tmp_path, max_open_files=limit)
    for k in range(20):
        store.set_sync(f"k{k}", value(b"%d" % k))
    for _ in range(2):
        for k in range(20):
            assert plain(store.get_sync(f"k{k}")) == b"%d" % k
    assert len(open_below(tmp_path)) == limit
    if limit:
        assert [name for name in open_below(tmp_path) if name.endswith("k19")]
    store.set_sync("k19", value(b"new"))
    assert len(open_below(tmp_path)) <= max(0, limit - 1)
    store.close()
    assert not open_below(tmp_path)
    assert plain(store.get_sync("k19")) == b"new"
    store.delete_sync("k19")
    assert not open_below(tmp_path)


def test_a_file_in_use_survives_being_dropped(tmp_path: Path) -> None:
    store = LiftStore(tmp_path, max_open_files=1)
    rows = shard(tmp_path / "a", 16)
    file, size = store._files.find(tmp_path / "a")
    (tmp_path / "b").write_bytes(b"x")
    assert plain(store.get_sync("b")) == b"x"  # "a" is dropped
    assert file.pread(BLOCK, BLOCK) == rows[1].tobytes()
    assert size == 16 * BLOCK
    del file
    gc.collect()
    assert open_below(tmp_path) == [f"{tmp_path}/b"]


def test_pickles_and_copies(tmp_path: Path) -> None:
    with iolift.Coalescer() as coalescer:
        store = LiftStore(tmp_path, coalescer=coalescer, max_open_files=3)
        store.set_sync("k", value(b"v"))
        assert store.coalescer is coalescer
        assert store.with_read_only(True).coalescer is coalescer
        copy = pickle.loads(pickle.dumps(store))
        assert copy == store
        assert copy.coalescer is not coalescer
        assert plain(copy.get_sync("k")) == b"v"
    one, two = LiftStore(tmp_path, gap=17), LiftStore(tmp_path / "x", gap=17)
    assert one.coalescer is two.coalescer
    assert one.coalescer is pickle.loads(pickle.dumps(one)).coalescer
    assert one.coalescer.gap == 17
    assert LiftStore(tmp_path).coalescer is not one.coalescer
    assert asyncio.run(LiftStore.open(tmp_path, gap=17)).coalescer is one.coalescer
    assert one != two
    assert one != LocalStore(tmp_path)
    assert LocalStore(tmp_path) != one
    assert one == LiftStore(str(tmp_path), read_only=True)


def test_a_fork_has_its_own_coalescer(tmp_path: Path) -> None:
    code = """
        import asyncio, os, sys, warnings
        warnings.simplefilter("ignore", DeprecationWarning)     # of a fork among threads
        from zarr.core.buffer.cpu import Buffer
        from zarr.core.buffer import default_buffer_prototype
        from zarr.abc.store import RangeByteRequest
        import iolift
        from iolift.zarr import LiftStore
        stores = [LiftStore(sys.argv[1]), LiftStore(sys.argv[1], coalescer=iolift.Coalescer())]
        prototype = default_buffer_prototype()
        def look(store):
            asked = [RangeByteRequest(k, k + 1) for k in range(5)]
            parts = store.get_ranges_sync("k", asked, prototype=prototype)
            whole = asyncio.run(store.get("k", prototype)).to_bytes()
            assert b"".join(buffer.to_bytes() for _, buffer in parts) == whole[:5]
            return whole
        stores[0].set_sync("k", Buffer.from_bytes(b"parent"))
        before = [store.coalescer for store in stores]
        assert [look(store) for store in stores] == [b"parent"] * 2
        pid = os.fork()
        if not pid:
            assert [look(store) for store in stores] == [b"parent"] * 2
            assert not any(store.coalescer is c for store, c in zip(stores, before))
            stores[1].set_sync("k", Buffer.from_bytes(b"child!"))
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        assert [look(store) for store in stores] == [b"child!"] * 2
        assert all(store.coalescer is c for store, c in zip(stores, before))
        stores[1].coalescer.close()
        print("whole")
    """
    assert run(code, tmp_path) == "whole\n"


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"max_open_files": -1}, ValueError, "max_open_files.*-1"),
        ({"max_open_files": 1.5}, TypeError, r"max_open_files.*1\.5"),
        ({"max_open_files": True}, TypeError, "max_open_files.*True"),
        ({"gap": -1}, ValueError, "gap"),
        ({"nonsense": 1}, TypeError, "nonsense"),
        ({"coalescer": 7}, TypeError, "coalescer.*7"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: Any, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        LiftStore(tmp_path, **arguments)


def test_a_coalescer_has_its_own_options(tmp_path: Path) -> None:
    with iolift.Coalescer() as coalescer, pytest.raises(TypeError, match=r"gap.*its own"):
        LiftStore(tmp_path, coalescer=coalescer, gap=1)
    with pytest.raises(TypeError, match="root"):
        LiftStore(7)


def test_the_extra_is_named_where_zarr_is_missing() -> None:
    code = """
        import sys
        import iolift
        assert "zarr" not in sys.modules
        sys.modules["zarr"] = None
        try:
            import iolift.zarr
        except ImportError as error:
            print(error)
    """
    assert "pip install 'iolift[zarr]'" in run(code)
