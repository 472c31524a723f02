"""Goal: LiftFileSystem is fsspec's local file system, and its batches say what one by one would.

fsspec's own abstract suite, as fsspec runs it on local files; an oracle, LocalFileSystem, for
every kind of limit; what a disk refuses, one range at a time; forks, pickles and workers; and the
readers that come by way of fsspec: zarr, xarray, pandas, pyarrow, dask.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import io
import json
import multiprocessing
import os
import pickle
import random
import re
import threading
from pathlib import Path
from typing import Any

import child
import numpy as np
import pytest
from faulty import FaultyDisk

import iolift
from iolift import _scratch

fsspec = pytest.importorskip("fsspec")
abstract = pytest.importorskip("fsspec.tests.abstract")
ours = pytest.importorskip("iolift.fsspec")
LocalFileSystem = fsspec.get_filesystem_class("file")
LiftFileSystem, MOST_IDLE, SCRATCH = ours.LiftFileSystem, _scratch.MOST_IDLE, _scratch.SCRATCH

BLOCK = 4096
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def has_entry_point() -> bool:
    found = importlib.metadata.entry_points(group="fsspec.specs", name="lift")
    return any(entry.value == "iolift.fsspec:LiftFileSystem" for entry in found)


@pytest.fixture(autouse=True)
def _registered() -> None:
    fsspec.register_implementation("lift", LiftFileSystem, clobber=True)


@pytest.fixture
def lift(backend: Any) -> LiftFileSystem:
    """On each backend."""
    return LiftFileSystem(skip_instance_cache=True, **backend.options())


# --------------------------------------------------------------------------- fsspec's own suite


class LiftFixtures(abstract.AbstractFixtures):
    """As fsspec wires its LocalFileSystem."""

    @pytest.fixture
    def fs(self) -> LiftFileSystem:
        return LiftFileSystem(auto_mkdir=True)

    @pytest.fixture
    def fs_path(self, tmpdir: Any) -> str:
        return str(tmpdir)


class TestCopy(abstract.AbstractCopyTests, LiftFixtures): ...


class TestGet(abstract.AbstractGetTests, LiftFixtures): ...


class TestPut(abstract.AbstractPutTests, LiftFixtures): ...


class TestOpen(abstract.AbstractOpenTests, LiftFixtures): ...


class TestPipe(abstract.AbstractPipeTests, LiftFixtures): ...


# --------------------------------------------------------------------------------------- ranges


def same(ours: list[Any], theirs: list[Any]) -> None:
    """The same bytes, and exceptions of the same kind and errno in the same places."""
    assert len(ours) == len(theirs)
    for i, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        if isinstance(their, Exception):
            assert type(our) is type(their), (i, our, their)
            assert getattr(our, "errno", None) == getattr(their, "errno", None), i
        else:
            assert type(our) is bytes, (i, our)
            assert our == their, i


SIZE = 10_000
LIMITS = {
    "inside": ([0, 5000, 100], [10, 9000, 101]),
    "from the beginning": ([None, None], [10, SIZE]),
    "to the end": ([5, 9999, 0], [None, None, None]),
    "from behind": ([-10, -SIZE, -1], [None, None, -0 or None]),
    "before the beginning": ([-SIZE - 5, -(2**40)], [7, -9000]),
    "up to behind": ([0, 0, 9000], [-1, -SIZE, -500]),
    "past the end": ([SIZE, SIZE + 5, SIZE - 3, 2**40], [None, SIZE + 9, SIZE + 9, 2**40 + 9]),
    "empty": ([0, 77, SIZE], [0, 77, SIZE]),
    "reversed": ([10, 9000, 5], [5, 8000, 6]),
    "reversed from behind": ([0, -5, 4], [-SIZE - 3, -9, 5]),
    "one from, many to": (17, [17, 18, 1000]),
    "many from, one to": ([0, 17, 5000], -4),
    "all": (None, None),
    "no integers": ([0, 1, "2"], [3, 2.5, 4]),
}


@pytest.mark.parametrize("name", LIMITS)
def test_limits_mean_what_they_mean_to_fsspec(name: str, make_file: Any, lift: Any) -> None:
    path, _ = make_file(SIZE)
    starts, ends = LIMITS[name]
    n = max(len(x) if isinstance(x, list) else 2 for x in (starts, ends))
    theirs = LocalFileSystem().cat_ranges([str(path)] * n, starts, ends)
    same(lift.cat_ranges([str(path)] * n, starts, ends), theirs)
    for i in range(n):
        limits = (x[i] if isinstance(x, list) else x for x in (starts, ends))
        same(lift.cat_ranges([str(path)], *limits), theirs[i : i + 1])


def test_far_limits_mean_what_they_mean_to_a_slice(make_file: Any, lift: Any) -> None:
    # LocalFileSystem tries to have the memory for it.
    path, content = make_file(SIZE)
    for starts, ends in (
        ([0, 5, 2**62], [2**40, 2**62, 2**63 - 1]),
        ([0, -7, SIZE], [2**80, 2**63, 2**64]),
    ):
        expected = [content[s:e] for s, e in zip(starts, ends, strict=True)]
        assert lift.cat_ranges([path] * 3, starts, ends) == expected
        assert [
            lift.cat_file(path, *limits) for limits in zip(starts, ends, strict=True)
        ] == expected


def test_a_range_that_ends_a_byte_before_it_starts(make_file: Any, lift: Any) -> None:
    # LocalFileSystem asks for -1 bytes then, and gets all that is left.
    path, _ = make_file(SIZE)
    for answers in (
        lift.cat_ranges([path] * 2, [10, 0], [9, 4]),
        lift.cat_ranges([path], [10], [9]),
    ):
        assert isinstance(answers[0], ValueError)
        assert "start 10, end 9" in str(answers[0])


def test_any_ranges_of_many_files(make_file: Any, lift: Any) -> None:
    files = [make_file(size, seed=size, name=f"f{size}")[0] for size in (0, 1, 5000, 300_000)]
    chance = random.Random(5)
    paths, starts, ends = [], [], []
    for _ in range(1500):
        path = chance.choice([*files, files[0].with_name("missing"), files[0].parent])
        begin = chance.choice([None, 0, chance.randrange(-9000, 320_000)])
        n = chance.choice([0, 1, 7, BLOCK, 70_000])
        paths.append(str(path))
        starts.append(begin)
        ends.append(chance.choice([None, -5, n if begin is None else max(begin + n, 0)]))
    # What differs, and is not asked: a range of -1 bytes.
    theirs = LocalFileSystem().cat_ranges(paths, starts, ends)
    sizes = [os.path.getsize(p) if os.path.isfile(p) else 0 for p in paths]
    for i, (size, begin, end) in enumerate(zip(sizes, starts, ends, strict=True)):
        first = 0 if begin is None else begin if begin >= 0 else max(0, size + begin)
        last = size if end is None else end if end >= 0 else size + end
        if last == first - 1 and end is not None and isinstance(theirs[i], bytes):
            starts[i], ends[i], theirs[i] = 0, 0, b""
    for max_gap in (None, 0, 100_000):
        same(lift.cat_ranges(paths, starts, ends, max_gap=max_gap), theirs)


def test_identical_ranges_are_all_answered_in_order(make_file: Any, lift: Any) -> None:
    path, content = make_file(100 * BLOCK)
    starts = [(i * 37 % 10) * BLOCK for i in range(500)]
    for max_gap in (None, 0, BLOCK):
        got = lift.cat_ranges([path] * 500, starts, [s + 99 for s in starts], max_gap=max_gap)
        assert got == [content[s : s + 99] for s in starts]


def test_results_larger_than_the_scratch_memory(make_file: Any) -> None:
    path, content = make_file(3 * SCRATCH + 5)
    fs = LiftFileSystem()
    spans = [(0, None), (1, SCRATCH), (7, SCRATCH + 7), (3, SCRATCH + 9), (SCRATCH, 2 * SCRATCH)]
    spans += [(i * BLOCK, i * BLOCK + BLOCK) for i in range(2 * SCRATCH // BLOCK)] + [(0, None)]
    starts, ends = (list(x) for x in zip(*spans, strict=True))
    got = fs.cat_ranges([path] * len(spans), starts, ends)
    assert got == [content[s:e] for s, e in spans]


def test_one_batch_for_each_file(make_file: Any) -> None:
    disk = FaultyDisk()
    fs = LiftFileSystem(backend=disk)
    paths = [make_file(100 * BLOCK, name=name)[0] for name in "ab"]
    n = 64
    starts = [i * BLOCK for i in range(n) for _ in paths]
    before = fs.coalescer.stats()
    fs.cat_ranges(paths * n, starts, [s + BLOCK for s in starts])
    after = fs.coalescer.stats()
    assert after.batches - before.batches == 2
    assert len(disk.log) == 2  # neighbours are one I/O
    disk.check()


@pytest.mark.parametrize(("max_gap", "reads"), [(0, 10), (99, 10), (100, 1), (1000, 1)])
def test_max_gap(make_file: Any, max_gap: int, reads: int) -> None:
    disk = FaultyDisk()
    fs = LiftFileSystem(backend=disk, gap=BLOCK if max_gap < 100 else 0)
    path, content = make_file(100 * BLOCK)
    starts = [i * (BLOCK + 100) for i in range(10)]
    ends = [s + BLOCK for s in starts]
    got = fs.cat_ranges([path] * 10, starts, ends, max_gap=max_gap)
    assert got == [content[s:e] for s, e in zip(starts, ends, strict=True)]
    assert len(disk.log) == reads
    assert fs.coalescer.gap == fs.storage_options["gap"]


def test_a_bad_place_fails_who_asked_for_it(make_file: Any) -> None:
    path, content = make_file(100 * BLOCK)
    disk = FaultyDisk()
    disk.fail(errno.EIO, within=(5 * BLOCK, 5 * BLOCK + 1), times=None)
    fs = LiftFileSystem(backend=disk)
    starts = [i * BLOCK for i in range(10)]
    paths, ends = [path] * 10, [s + BLOCK for s in starts]
    got = fs.cat_ranges(paths, starts, ends)
    bad = got.pop(5)
    assert isinstance(bad, OSError)
    assert (bad.errno, bad.filename) == (errno.EIO, str(path))
    assert got == [content[s : s + BLOCK] for s in starts if s != 5 * BLOCK]
    with pytest.raises(OSError, match="Input/output error"):
        fs.cat_ranges(paths, starts, ends, on_error="raise")


def test_a_bad_place_in_a_large_range(make_file: Any) -> None:
    path, content = make_file(2 * SCRATCH)
    disk = FaultyDisk()
    disk.fail(errno.EIO, within=(0, 1), times=None)
    fs = LiftFileSystem(backend=disk)
    bad, good = fs.cat_ranges([path] * 2, [0, 5], [SCRATCH + 1, SCRATCH + 9])
    assert isinstance(bad, OSError)
    assert good == content[5 : SCRATCH + 9]


def test_an_error_keeps_nothing_alive(make_file: Any, lift: Any) -> None:
    path, _ = make_file(SIZE)
    paths = [path, path, path.with_name("missing"), path.with_name("missing"), path.parent]
    answers = lift.cat_ranges(paths, [0, 9, 0, 0, 0], [5, 4, 5, 5, 5])
    for error in answers[1:]:
        assert isinstance(error, Exception)
        assert error.__traceback__ is None
        assert error.__context__ is None


def test_a_file_that_shrinks_meanwhile(make_file: Any) -> None:
    path, content = make_file(10 * BLOCK)

    class Shrinking(FaultyDisk):
        def submit(self, *request: Any) -> int | str:
            os.truncate(path, 3 * BLOCK + 5)
            return super().submit(*request)

    fs = LiftFileSystem(backend=Shrinking())
    starts = [i * BLOCK for i in range(10)]
    got = fs.cat_ranges([path] * 10, starts, [s + BLOCK for s in starts])
    assert got == [content[: 3 * BLOCK + 5][s : s + BLOCK] for s in starts]


def test_the_first_error_is_raised(make_file: Any, lift: Any) -> None:
    path, _ = make_file(SIZE)
    paths = [str(path), str(path), str(path) + "x", str(path)]
    with pytest.raises(FileNotFoundError, match="datax"):
        lift.cat_ranges(paths, 0, [5, 5, 5, -SIZE - 1], on_error="raise")
    with pytest.raises(ValueError, match="ends before"):
        lift.cat_ranges(paths, 0, [5, -SIZE - 9, 5, 5], on_error="raise")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("/data", [0], [1]), "TypeError: paths must be a list"),
        ((["/data"], [0, 1], [1]), "ValueError: starts has 2 limits for 1 paths"),
        ((["/data"], 0, []), "ValueError: ends has 0 limits for 1 paths"),
        ((["/data"], 0, 1, -1), "ValueError: max_gap .* -1"),
        ((["/data"], 0, 1, 1.5), "ValueError: max_gap .* 1.5"),
        ((["/data"], 0, 1, True), "ValueError: max_gap .* True"),
        ((["/data"], 0, 1, 2**63), "ValueError: max_gap .* 9223372036854775808"),
        ((["/data"], 0, 1, None, "omit"), "ValueError: on_error .* 'omit'"),
    ],
)
def test_bad_arguments(arguments: tuple[Any, ...], complaint: str) -> None:
    kind, _, text = complaint.partition(": ")
    with pytest.raises({"TypeError": TypeError, "ValueError": ValueError}[kind], match=text):
        LiftFileSystem().cat_ranges(*arguments)


def test_no_ranges(lift: Any) -> None:
    assert lift.cat_ranges([], [], []) == []
    assert lift.cat_ranges([], 0, 1, on_error="raise") == []


def test_a_file_of_no_size(lift: Any) -> None:
    # /proc says 0 for what has content.
    path = Path("/proc/version")
    content = path.read_bytes()
    got = lift.cat_ranges([path] * 4, [0, 2, 3, 5], [20, 20, None, 5])
    assert got == [content[:20], content[2:20], content[3:], b""]
    assert lift.cat_file(path) == content
    # Or it has no end.
    assert lift.cat_file("/dev/zero", 0, 10) == bytes(10)
    assert lift.cat_ranges(["/dev/zero"] * 2, [0, 5], [3, 9]) == [bytes(3), bytes(4)]


def test_ranges_of_compressed_files_go_through_open(make_file: Any, tmp_path: Path) -> None:
    fs = LiftFileSystem()
    path = str(tmp_path / "data.gz")
    with fs.open(path, "wb", compression="gzip") as f:
        f.write(b"0123456789" * 1000)
    assert fs.cat_file(path, 10, 15, compression="gzip") == b"01234"
    assert fs.cat_ranges([path], [9995], [None], compression="gzip") == [b"56789"]
    with pytest.raises(ValueError, match=r"max_gap = 1 .*compression"):
        fs.cat_ranges([path], [0], [1], max_gap=1, compression="gzip")


def test_threads_share_an_instance(make_file: Any, lift: Any) -> None:
    path, content = make_file(200 * BLOCK)
    failed: list[BaseException] = []

    def read(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(20):
            starts = [chance.randrange(200 * BLOCK) for _ in range(50)]
            got = lift.cat_ranges([path] * 50, starts, [s + 1000 for s in starts])
            if got != [content[s : s + 1000] for s in starts]:
                failed.append(AssertionError(f"wrong bytes, seed {seed}"))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


# ------------------------------------------------------------------------------------ whole files


def test_whole_files(tmp_path: Path, lift: Any) -> None:
    path = f"lift://{tmp_path}/new"
    with pytest.raises(FileNotFoundError):
        lift.cat_file(path)
    lift.pipe({path: b"some data", path + "2": b""})
    assert lift.cat_file(path) == b"some data"
    assert lift.cat_file(path, 5) == b"data"
    assert lift.cat_file(path, -4, -1) == b"dat"
    both = {str(tmp_path / "new"): b"some data", str(tmp_path / "new2"): b""}
    assert lift.cat([path, path + "2"]) == both
    with pytest.raises(FileExistsError):
        lift.pipe_file(path, b"other", mode="create")
    assert lift.cat(path) == b"some data"
    with pytest.raises(ValueError, match="'append'"):
        lift.pipe_file(path, b"", mode="append")
    with pytest.raises(IsADirectoryError):
        lift.cat_file(tmp_path)


@pytest.mark.parametrize("prefix", ["lift://", "lift:", ""])
def test_paths(prefix: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert LiftFileSystem._strip_protocol(f"{prefix}/a/b/") == "/a/b"
    assert LiftFileSystem._strip_protocol(f"{prefix}a") == f"{tmp_path}/a"
    assert LiftFileSystem().unstrip_protocol(f"{prefix}/a") == "lift:///a"
    (tmp_path / "a").write_bytes(b"x")
    with (
        LiftFileSystem().open(f"{prefix}{tmp_path}/a") as f,
        fsspec.open(f"lift://{tmp_path}/a") as g,
    ):
        assert (f.read(), g.read()) == (b"x", b"x")


def test_auto_mkdir(tmp_path: Path) -> None:
    deep = tmp_path / "new" / "deep" / "file"
    with pytest.raises(FileNotFoundError):
        LiftFileSystem().pipe_file(deep, b"x")
    fs = LiftFileSystem(auto_mkdir=True)
    with pytest.raises(FileNotFoundError):
        fs.open(deep)
    assert not deep.parent.exists()
    fs.pipe_file(deep, b"x")
    assert deep.read_bytes() == b"x"


MODES = ["wb", "xb", "ab", "r+b", "w+b", "a+b"]


@pytest.mark.parametrize("mode", MODES)
def test_writing_is_as_with_local_files(mode: str, tmp_path: Path, lift: Any) -> None:
    said = []
    for fs, name in ((lift, "ours"), (LocalFileSystem(), "theirs")):
        path = tmp_path / name
        if mode != "xb":
            path.write_bytes(b"0123456789")
        with fs.open(str(path), mode) as f:
            done = [f.tell(), f.write(b"abc" * 5000), f.tell(), f.writable(), f.seekable()]
            f.flush()
            done += [path.read_bytes(), f.seek(4), f.write(memoryview(b"XY"))]
            if "+" in mode:
                done += [f.seek(0), f.read(9), f.tell(), f.read()]
            done.append(f.closed)
        said.append((done, f.closed, path.read_bytes()))
    assert said[0] == said[1]


def test_reading_is_as_with_local_files(tmp_path: Path, lift: Any) -> None:
    path = str(tmp_path / "lines")
    (tmp_path / "lines").write_bytes(b"one\ntwo\n\nthree" * 3000)
    said = []
    for fs in (lift, LocalFileSystem()):
        with fs.open(path) as f, fs.open(path, "r", encoding="ascii") as text:
            done = [f.readline(), f.read(3), f.seek(-5, 2), f.read(), f.read(), f.size]
            done += [f.seek(0), f.readlines(), text.readline(), text.read()[-4:], f.readable()]
            f.seek(6)
            buffer = bytearray(10)
            done += [f.readinto(buffer), buffer, list(f)[:2]]
            assert f.fileno() >= 0
            with pytest.raises(io.UnsupportedOperation):
                f.write(b"x")
        with pytest.raises(ValueError, match="closed"):
            f.read()
        said.append(done)
    assert said[0] == said[1]


def test_what_is_open_is_an_iolift_file(make_file: Any) -> None:
    path, _ = make_file(10)
    fs = LiftFileSystem(depth=7)
    with fs.open(path) as f:
        assert isinstance(f.raw, iolift.File)
        assert f.raw.coalescer is fs.coalescer
        assert f.raw.coalescer.depth == 7


def test_a_transaction(tmp_path: Path) -> None:
    fs = LiftFileSystem()
    path = tmp_path / "file"
    with fs.transaction:
        with fs.open(path, "wb") as f:
            f.write(b"all or nothing")
        assert not path.exists()
    assert path.read_bytes() == b"all or nothing"
    with contextlib.suppress(KeyError), fs.transaction:
        fs.pipe_file(path, b"nothing")
        raise KeyError
    assert path.read_bytes() == b"all or nothing"
    new = tmp_path / "new"
    with contextlib.suppress(KeyError), fs.transaction:
        fs.pipe_file(new, b"nothing", mode="create")
        raise KeyError
    assert not new.exists()
    with fs.transaction:
        fs.pipe_file(new, b"created", mode="create")
        assert not new.exists()
    assert new.read_bytes() == b"created"


@pytest.mark.parametrize("compression", [None, "gzip", "bz2", "xz"])
def test_an_error_of_writing_is_told(tmp_path: Path, compression: str | None) -> None:
    """What compresses does not close the file below it: nobody would hear of it later."""
    child.run(
        """
        import errno, os, resource, sys
        from iolift.fsspec import LiftFileSystem
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
        compression = None if sys.argv[2] == "None" else sys.argv[2]
        try:
            LiftFileSystem().pipe_file(sys.argv[1], os.urandom(3 << 20), compression=compression)
        except OSError as error:
            assert error.errno == errno.EFBIG
        else:
            sys.exit("nothing was said")
        """,
        tmp_path / "file",
        compression,
    )


def test_several_may_append(tmp_path: Path, lift: Any) -> None:
    with lift.open(tmp_path / "log", "ab") as one, lift.open(tmp_path / "log", "ab") as other:
        for i in range(10):
            for f in (one, other):
                f.write(b"%d" % i)
                f.flush()
    assert (tmp_path / "log").read_bytes() == b"00112233445566778899"


def test_leaving_an_open_file_in_a_forked_child(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"x")
    child.run(
        """
        import os, sys
        from iolift.fsspec import LiftFileSystem
        with LiftFileSystem().open(sys.argv[1]) as f:
            pid = os.fork()
        if pid:
            assert os.waitpid(pid, 0)[1] == 0
        """,
        path,
    )


def test_direct(make_file: Any, tmp_path: Path) -> None:
    path, content = make_file(100 * BLOCK + 17)
    fs = LiftFileSystem(direct=True)
    try:
        with fs.open(path) as f:
            assert f.raw.direct
    except OSError as error:
        pytest.skip(f"no direct I/O here: {error}")
    starts = [i * 5001 for i in range(80)]
    got = fs.cat_ranges([path] * 80, starts, [s + BLOCK for s in starts])
    assert got == [content[s : s + BLOCK] for s in starts]
    assert fs.cat_file(path) == content
    fs.pipe_file(tmp_path / "out", content)
    assert (tmp_path / "out").read_bytes() == content


# ----------------------------------------------------------- options, processes, pickles, workers


def test_options() -> None:
    fs = LiftFileSystem(backend="posix", gap=77, depth=3, use_listings_cache=False)
    assert (fs.coalescer.backend, fs.coalescer.gap, fs.coalescer.depth) == ("posix", 77, 3)
    assert LiftFileSystem(depth=3, gap=77, backend="posix").coalescer is fs.coalescer
    assert LiftFileSystem().coalescer is not fs.coalescer
    with pytest.raises(TypeError, match="dept"):
        LiftFileSystem(dept=3)
    with pytest.raises(ValueError, match="depth"):
        LiftFileSystem(depth=-3)


def test_threads_of_a_process_share_a_coalescer() -> None:
    # fsspec makes one instance for each thread.
    found: list[LiftFileSystem] = []
    threads = [
        threading.Thread(target=lambda: found.append(fsspec.filesystem("lift", depth=5)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
        thread.join()
    assert found[0].coalescer is found[1].coalescer


def test_pickles_and_json(make_file: Any) -> None:
    path, content = make_file(SIZE)
    fs = LiftFileSystem(auto_mkdir=True, gap=77)
    for other in (pickle.loads(pickle.dumps(fs)), type(fs).from_json(fs.to_json())):
        assert other == fs
        assert (other.auto_mkdir, other.coalescer) == (True, fs.coalescer)
        assert other.cat_file(path) == content
    assert json.loads(fs.to_json())["protocol"] == "lift"
    with fs.open(path) as f:
        f.seek(100)
        with pickle.loads(pickle.dumps(f)) as again:
            assert again.tell() == 100
            assert again.read() == content[100:]
            assert again.fs == fs
    with fs.open(path, "ab") as f, pytest.raises(ValueError, match="write-mode"):
        pickle.dumps(f)


def read_in_process(fs: LiftFileSystem, path: str) -> tuple[int, list[Any]]:
    """In a worker."""
    starts = list(range(0, SIZE, 100))
    return os.getpid(), fs.cat_ranges([path] * len(starts), starts, [s + 50 for s in starts])


@forks
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing(method: str, make_file: Any) -> None:
    path, _ = make_file(SIZE)
    fs = LiftFileSystem(gap=77)
    _, expected = read_in_process(fs, str(path))
    with multiprocessing.get_context(method).Pool(2) as pool:
        found = pool.starmap_async(read_in_process, [(fs, str(path))] * 4).get(100)
    assert [answers for _, answers in found] == [expected] * 4
    assert os.getpid() not in {pid for pid, _ in found}
    assert read_in_process(fs, str(path))[1] == expected


FORKS = """
    import os, sys, warnings
    from iolift import ForkedError
    from iolift.fsspec import LiftFileSystem
    warnings.simplefilter("ignore", DeprecationWarning)     # of a fork among threads
    path, backend = sys.argv[1:]
    fs = LiftFileSystem(backend=backend)
    starts = list(range(0, 9000, 10))
    def read(max_gap=None):
        return fs.cat_ranges([path] * 900, starts, [s + 5 for s in starts], max_gap)
    content = fs.cat_file(path)
    expected = [content[s:s + 5] for s in starts]
    opened = fs.open(path)
    assert read() == read(5) == expected
    ours = fs.coalescer
    pids = []
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            assert fs.coalescer is not ours                 # at once, and in the child's child
            assert read() == read(5) == expected
            fs.pipe_file(f"{path}-{os.getpid()}", b"child")
            try:
                opened.read()
                sys.exit("the parent's file was read")
            except ForkedError:
                opened.close()
            ours = fs.coalescer
            if (below := os.fork()) == 0:
                assert fs.coalescer is not ours
                assert read() == expected
                sys.exit()
            assert os.waitpid(below, 0)[1] == 0
            assert fs.coalescer is ours
            sys.exit()
        pids.append(pid)
    assert read() == read(5) == expected
    for pid in pids:
        assert os.waitpid(pid, 0)[1] == 0
        assert fs.cat_file(f"{path}-{pid}") == b"child"
    assert fs.coalescer is ours
    assert read() == expected and opened.read() == content
    opened.close()
"""


@pytest.mark.parametrize("name", ["auto", "posix"])
def test_a_forked_child_has_a_coalescer_of_its_own(name: str, make_file: Any) -> None:
    child.run(FORKS, make_file(SIZE)[0], name)


def test_by_the_name_of_the_protocol(make_file: Any) -> None:
    path, _ = make_file(20)
    register = "" if has_entry_point() else "register('lift', 'iolift.fsspec.LiftFileSystem')"
    said = child.run(
        f"""
        import sys, fsspec
        from fsspec import register_implementation as register
        {register}
        fs = fsspec.filesystem("lift", depth=9)
        print(type(fs).__module__, type(fs).__name__, fs.coalescer.depth)
        with fsspec.open("lift://" + sys.argv[1]) as f:
            print(type(f).__name__, len(f.read()))
        """,
        path,
    )
    assert said.split() == ["iolift.fsspec", "LiftFileSystem", "9", "LiftFile", "20"]


def test_without_fsspec() -> None:
    said = child.run("""
        import sys
        import iolift
        print("fsspec" in sys.modules)
        sys.modules["fsspec"] = None
        try:
            import iolift.fsspec
        except ImportError as error:
            print(error)
    """)
    assert said == "False\niolift.fsspec needs fsspec: pip install 'iolift[fsspec]'\n"


DASK = """
    import sys, warnings
    warnings.simplefilter("ignore")
    import numpy, fsspec, iolift.fsspec
    from distributed import Client, LocalCluster

    def read(fs, path, starts):
        import os
        got = fs.cat_ranges([path] * len(starts), starts, [s + 50 for s in starts])
        return os.getpid(), b"".join(got)

    if __name__ == "__main__":
        path = sys.argv[1]
        fs = iolift.fsspec.LiftFileSystem(gap=77)
        content = fs.cat_file(path)
        starts = [list(range(k, len(content) - 50, 500)) for k in range(8)]
        with LocalCluster(n_workers=2, threads_per_worker=2, processes=True, dashboard_address=None,
                          host="127.0.0.1") as cluster, Client(cluster) as client:
            workers = list(client.scheduler_info()["workers"])
            jobs = [client.submit(read, fs, path, s, workers=[workers[k % 2]], pure=False)
                    for k, s in enumerate(starts)]
            found = client.gather(jobs)
        assert len({pid for pid, _ in found}) == 2
        for (_, got), s in zip(found, starts):
            assert got == b"".join(content[a:a + 50] for a in s)
        print("read")
"""


def test_dask_workers(make_file: Any, tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    script = tmp_path / "read_by_dask.py"
    script.write_text(child.textwrap.dedent(DASK))
    path, _ = make_file(SIZE)
    said = child.run(
        """
        import subprocess, sys
        done = subprocess.run([sys.executable, *sys.argv[1:]], capture_output=True, text=True)
        print(done.stdout, "" if done.returncode == 0 else done.stderr)
        """,
        script,
        path,
    )
    assert said.split() == ["read"], said


# ------------------------------------------------------------------------ who comes through fsspec


@pytest.fixture
def sharded(tmp_path: Path) -> tuple[str, Any]:
    """A zarr array of one shard of 16 x 16 chunks, and what is in it."""
    zarr = pytest.importorskip("zarr", minversion="3")
    values = np.random.default_rng(3).integers(0, 1 << 30, (128, 128), dtype=np.int32)
    array = zarr.create_array(
        str(tmp_path / "a.zarr"), shape=(128, 128), chunks=(8, 8), shards=(128, 128), dtype="int32"
    )
    array[:] = values
    return f"lift://{tmp_path}/a.zarr", values


def test_zarr_reads_a_shard(sharded: tuple[str, Any]) -> None:
    zarr = pytest.importorskip("zarr")
    url, values = sharded
    # zarr wants auto_mkdir of whatever is a LocalFileSystem.
    array = zarr.open(url, mode="r", storage_options={"auto_mkdir": True})
    wrapper = array.store.fs
    assert isinstance(wrapper.sync_fs, LiftFileSystem)
    before = wrapper.sync_fs.coalescer.stats().reads
    assert (array[:] == values).all()
    assert (array[3:77, 50:51] == values[3:77, 50:51]).all()
    assert (
        array.get_orthogonal_selection(([1, 60, 127], [0, 99])) == values[[1, 60, 127]][:, [0, 99]]
    ).all()
    assert wrapper.sync_fs.coalescer.stats().reads > before


def test_zarr_writes(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr", minversion="3")
    values = np.arange(400, dtype=np.int64).reshape(20, 20)
    options = {"auto_mkdir": True, "gap": 77}
    array = zarr.create_array(
        f"lift://{tmp_path}/b.zarr", shape=(20, 20), chunks=(7, 7), dtype="int64",
        storage_options=options,
    )  # fmt: skip
    array[:] = values
    assert (zarr.open(str(tmp_path / "b.zarr"), mode="r")[:] == values).all()


def test_zarr_asks_for_partial_values_in_one_batch(sharded: tuple[str, Any]) -> None:
    zarr = pytest.importorskip("zarr")
    from zarr.abc.store import RangeByteRequest, SuffixByteRequest
    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.sync import sync

    url, _ = sharded
    fs = LiftFileSystem(auto_mkdir=True, gap=78)
    store = zarr.storage.FsspecStore.from_url(url, {"auto_mkdir": True, "gap": 78}, read_only=True)
    content = fs.cat_file(f"{url}/c/0/0")
    wanted = [("c/0/0", RangeByteRequest(i * 64, i * 64 + 9)) for i in range(50)]
    wanted += [("c/0/0", SuffixByteRequest(16)), ("c/9/9", RangeByteRequest(0, 4))]
    before = fs.coalescer.stats().batches
    got = sync(store.get_partial_values(default_buffer_prototype(), wanted))
    assert fs.coalescer.stats().batches == before + 1
    assert got.pop() is None
    expected = [content[i * 64 : i * 64 + 9] for i in range(50)] + [content[-16:]]
    assert [value.to_bytes() for value in got] == expected


def test_xarray(tmp_path: Path) -> None:
    pytest.importorskip("zarr", minversion="3")
    xarray = pytest.importorskip("xarray")
    values = np.random.default_rng(4).normal(size=(30, 40))
    made = xarray.Dataset({"t": (("y", "x"), values)})
    made.to_zarr(
        tmp_path / "c.zarr",
        encoding={"t": {"chunks": (5, 5), "shards": (30, 40)}},
        zarr_format=3,
        consolidated=False,
    )
    with xarray.open_zarr(
        f"lift://{tmp_path}/c.zarr", storage_options={"auto_mkdir": True}, consolidated=False
    ) as found:
        assert (found["t"][3:9, 11:].values == values[3:9, 11:]).all()
        assert found.identical(made)


def test_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {"a": np.arange(5000), "b": np.arange(5000) * 0.5, "c": ["x", "y"] * 2500}
    )
    url = f"lift://{tmp_path}/d.parquet"
    frame.to_parquet(url, row_group_size=500, storage_options={"gap": 77})
    assert pandas.read_parquet(tmp_path / "d.parquet").equals(frame)
    assert pandas.read_parquet(url, columns=["c", "a"]).equals(frame[["c", "a"]])
    fs = LiftFileSystem()
    before = fs.coalescer.stats().reads
    table = parquet.read_table(f"{tmp_path}/d.parquet", filesystem=fs, columns=["b"])
    assert table["b"].to_pylist() == frame["b"].tolist()
    assert fs.coalescer.stats().reads > before


def test_scratch_memory_is_not_hoarded(make_file: Any) -> None:
    path, _ = make_file(SIZE)
    fs = LiftFileSystem()
    for _ in range(MOST_IDLE + 2):
        fs.cat_ranges([path] * 3, [0, 5, 9], [1, 6, 10])
    assert len(_scratch._idle) <= MOST_IDLE
    with contextlib.ExitStack() as stack:
        # All that is idle, and a new one.
        held = [stack.enter_context(_scratch.borrowed_scratch()) for _ in range(MOST_IDLE + 1)]
        assert not _scratch._idle
        fs.cat_ranges([path] * 3, [0, 5, 9], [1, 6, 10])
        assert len(_scratch._idle) == 1
        assert _scratch._idle[0] not in held


def test_the_text_runs(tmp_path: Path, monkeypatch: Any) -> None:
    text = Path(__file__).parents[2] / "docs" / "fsspec.md"
    if not text.exists():
        pytest.skip("no docs/ here")
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"^```python\n(.*?)^```", text.read_text(), re.M | re.S)
    exec(compile(block, text.name, "exec"), {"__name__": "__main__"})
