"""Goal: a File does what os.pread and os.pwrite do, and bulk calls are many of those, everywhere.

Every test runs on every backend; positional and bulk calls are compared with `FileOracle`, a
bytearray. The io.RawIOBase side of a File is in test_rawio.py.
"""

from __future__ import annotations

import array
import errno
import mmap
import os
import random
import resource
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import MAX_OFFSET, SENTINEL, FileOracle, placed, same_reads, same_writes

import iolift

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SIZES = (0, 1, 4095, 4096, 4097)
COUNTS = (1, 1023, 1024, 1025, 3000)
HUGE = MAX_OFFSET + 1


@pytest.fixture(params=["buffered", "direct"])
def direct(request: pytest.FixtureRequest, tmp_path: Path) -> bool:
    if request.param == "direct":
        probe = tmp_path / "probe"
        probe.write_bytes(bytes(4096))
        try:
            os.close(os.open(probe, os.O_RDONLY | os.O_DIRECT))
        except OSError as error:
            pytest.skip(f"O_DIRECT: {error}")
    return bool(request.param == "direct")


# ---------------------------------------------------------------------------------- single calls


@pytest.mark.parametrize("n", SIZES)
def test_pread_and_pwrite(backend: Any, make_file: Any, direct: bool, n: int) -> None:
    path, content = make_file(20_000)
    oracle = FileOracle(content)
    with backend.open(path, "r+", direct=direct) as f:
        for offset in (0, 1, 511, 512, 4096, 4097, 15_904, 19_999, 20_000, 20_001, 50_000):
            assert f.pread(n, offset) == oracle.pread(n, offset)
            data = random.Random(offset).randbytes(n)
            assert f.pwrite(data, offset) == oracle.pwrite(data, offset) == n
            assert f.pread(n + 7, max(0, offset - 3)) == oracle.pread(n + 7, max(0, offset - 3))
    assert path.read_bytes() == oracle.data


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("size", [1, 100])
def test_preadv_and_pwritev_beyond_iov_max(
    backend: Any, make_file: Any, direct: bool, count: int, size: int
) -> None:
    path, content = make_file(count * size + 1000)
    oracle = FileOracle(content)
    with backend.open(path, "r+", direct=direct) as f:
        rows = [bytearray([SENTINEL]) * size for _ in range(count)]
        assert f.preadv(rows, 313) == count * size
        assert b"".join(rows) == oracle.pread(count * size, 313)
        new = [random.Random(i).randbytes(size) for i in range(count)]
        assert f.pwritev(new, 777) == oracle.pwrite(b"".join(new), 777)
    assert path.read_bytes() == oracle.data


def test_vectored_calls_with_nothing_and_with_empty_buffers(backend: Any, make_file: Any) -> None:
    path, content = make_file(100)
    with backend.open(path, "r+") as f:
        assert f.preadv([], 0) == f.pwritev([], 0) == 0
        assert f.preadv([bytearray(), bytearray(0)], 5) == f.pwritev([b"", b""], 5) == 0
        rows = [bytearray(), bytearray(3), bytearray(), bytearray(4)]
        assert f.preadv(rows, 10) == 7
        assert b"".join(rows) == content[10:17]
    assert path.read_bytes() == content


def test_preadv_past_the_end_is_short(backend: Any, make_file: Any, direct: bool) -> None:
    path, content = make_file(1000)
    with backend.open(path, direct=direct) as f:
        rows = [bytearray([SENTINEL]) * 400 for _ in range(3)]
        assert f.preadv(rows, 300) == 700
        assert b"".join(rows) == content[300:] + bytes([SENTINEL]) * 500
        assert f.preadv(rows, 1000) == f.preadv(rows, 10**9) == 0


def test_holes_read_as_zeros(backend: Any, tmp_path: Path, direct: bool) -> None:
    path = tmp_path / "sparse"
    with backend.open(path, "w+", direct=direct) as f:
        assert f.pwrite(b"end", 1_000_000) == 3
        assert f.pread(10, 0) == bytes(10)
        assert f.pread(20, 999_995) == bytes(5) + b"end"
    assert path.stat().st_size == 1_000_003


@pytest.mark.parametrize("offset", [2**40, 2**62, MAX_OFFSET - 10, MAX_OFFSET - 1])
def test_far_offsets_do_as_the_kernel_does(backend: Any, make_file: Any, offset: int) -> None:
    path, _ = make_file(10)
    n = min(10, MAX_OFFSET - offset)
    with backend.open(path, "r+") as f:
        assert f.pread(n, offset) == b""
        assert f.preadv([bytearray(n)], offset) == 0
        assert f.pread(0, MAX_OFFSET) == b""
        with pytest.raises(iolift.ShortReadError):
            f.read_ranges([0, offset], [10, n])
    if offset >= 2**62:
        with backend.open(path, "r+") as f:
            with pytest.raises(OSError, match=os.strerror(errno.EFBIG)) as caught:
                f.pwrite(bytes(n), offset)
            assert caught.value.errno == errno.EFBIG
            assert os.fspath(caught.value.filename) == os.fspath(path)


@pytest.mark.parametrize("offset", [-1, HUGE, MAX_OFFSET - 9, 10**30])
def test_bad_offsets(backend: Any, make_file: Any, offset: int) -> None:
    path, content = make_file(100)
    with backend.open(path, "r+") as f:
        calls: list[Callable[[], object]] = [
            lambda: f.pread(10, offset),
            lambda: f.pwrite(bytes(10), offset),
            lambda: f.preadv([bytearray(10)], offset),
            lambda: f.pwritev([bytes(5), bytes(5)], offset),
            lambda: f.read_ranges([0, offset], 10),
            lambda: f.write_ranges([0, offset], bytes(20)),
        ]
        for call in calls:
            with pytest.raises(ValueError, match=str(offset)):
                call()
        with pytest.raises(ValueError, match="-5"):
            f.pread(-5, 0)
        for bad in ("0", 1.5, None):
            with pytest.raises(TypeError):
                f.pread(10, bad)
            with pytest.raises(TypeError):
                f.pread(bad, 0)
    assert path.read_bytes() == content, "nothing is done before the arguments are checked"


def test_every_kind_of_input_buffer(backend: Any, make_file: Any) -> None:
    path, content = make_file(8192)
    oracle = FileOracle(content)
    anonymous = mmap.mmap(-1, 4096)
    anonymous.write(random.Random(9).randbytes(4096))
    grid = np.arange(24, dtype=np.uint32).reshape(4, 6)
    buffers = [
        b"bytes",
        bytearray(b"bytearray"),
        array.array("d", [1.5, 2.5]),
        memoryview(b"a memoryview")[2:],
        anonymous,
        grid,
        np.float64(1.25).reshape(1),
    ]
    with backend.open(path, "r+") as f:
        for i, data in enumerate(buffers):
            raw = bytes(memoryview(data).cast("B")) if data is not grid else grid.tobytes()
            assert f.pwrite(data, 100 * i) == oracle.pwrite(raw, 100 * i)
        assert f.pwritev(buffers, 4000) == sum(memoryview(b).nbytes for b in buffers)
        oracle.pwrite(b"".join(memoryview(b).tobytes() for b in buffers), 4000)
        for bad in (grid[:, ::2], grid.T, np.arange(10)[::2]):
            with pytest.raises(ValueError, match="contiguous"):
                f.pwrite(bad, 0)
        for wrong in ("text", 5, None):
            with pytest.raises(TypeError):
                f.pwrite(wrong, 0)
            with pytest.raises(TypeError):
                f.pwritev([b"good", wrong], 0)
        with pytest.raises((TypeError, ValueError)):
            f.preadv([bytearray(4), b"read-only"], 0)
    assert path.read_bytes() == oracle.data
    anonymous.close()


# ------------------------------------------------------------------------------------- bulk reads

LAYOUTS: dict[str, tuple[list[int], list[int]]] = {
    "none": ([], []),
    "empty ones": ([5, 0, 10**7], [0, 0, 0]),
    "one": ([7], [100]),
    "2,3,4,1": ([200, 300, 400, 100], [100] * 4),
    "duplicates": ([4096, 0, 4096, 4096, 0], [512] * 5),
    "overlaps": ([0, 50, 25, 10, 99], [100, 100, 10, 400, 1]),
    "contained, other lengths": ([500, 500, 500, 600], [10, 900, 500, 3]),
    "gaps": ([0, 4100, 9000, 30_000], [4096] * 4),
    "a cut chain": (list(range(0, 30_000, 700)), [1000] * 43),
    "sizes": ([0, 1, 4000, 8000, 20_000], [0, 1, 4095, 4096, 4097]),
    "past the end": ([0, 39_990, 40_000, 50_000, 100], [10, 20, 5, 5, 10]),
    "past the end, merged": ([39_000, 39_500, 39_900, 39_950], [500, 600, 50, 100]),
}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"gap": 5000},
    {"max_io": 1500, "gap": 100},
    {"order": "fifo"},
    {"depth": 1, "max_io": 1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_read_ranges(
    backend: Any, make_file: Any, direct: bool, layout: str, options: dict[str, Any]
) -> None:
    path, content = make_file(40_000)
    with backend.open(path, direct=direct, **options) as f:
        same_reads(f, FileOracle(content), *LAYOUTS[layout])


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("spread", [1, 3, 8])
def test_read_ranges_beyond_iov_max(backend: Any, make_file: Any, count: int, spread: int) -> None:
    """Adjacent, overlapping and apart (with gaps read through) in one extent each."""
    path, content = make_file(count * spread + 10)
    offsets = [i * spread for i in range(count)]
    random.Random(count).shuffle(offsets)
    with backend.open(path, gap=100) as f:
        same_reads(f, FileOracle(content), offsets, [3] * count)
        same_reads(f, FileOracle(content), offsets, [i % 5 for i in range(count)])


def test_the_gap_may_be_far_wider_than_any_scratch_page(backend: Any, make_file: Any) -> None:
    path, content = make_file(3_000_000)
    with backend.open(path, gap=3_000_000, max_io=4_000_000) as f:
        same_reads(f, FileOracle(content), [2_999_000, 1_500_000, 3], [1000, 10, 1])


def test_shapes_of_results(backend: Any, make_file: Any) -> None:
    path, content = make_file(1000)
    with backend.open(path) as f:
        for length in (0, 1, 10):
            found = f.read_ranges([5, 900, 5], length)
            assert (found.shape, found.dtype) == ((3, length), np.uint8)
            assert found[1].tobytes() == content[900 : 900 + length]
        flat = f.read_ranges(np.array([5, 900, 5]), [3, 0, 4])
        assert (flat.shape, flat.dtype) == ((7,), np.uint8)
        assert flat.tobytes() == content[5:8] + content[5:9]
        assert f.read_ranges([], 10).shape == (0, 10)
        assert f.read_ranges([], []).shape == (0,)
        assert f.read_ranges([5], np.int32(4)).shape == (1, 4)
        assert f.read_ranges([5], 4).flags.writeable


def test_out(backend: Any, make_file: Any) -> None:
    path, content = make_file(1000)
    wanted = content[100:108] + content[50:58]
    with backend.open(path) as f:
        outs: list[Any] = [
            bytearray(16),
            np.zeros((2, 8), np.uint8),
            np.zeros(2),
            np.zeros((2, 1, 4), np.int16),
            array.array("i", [0] * 4),
            memoryview(bytearray(20))[2:18],
            mmap.mmap(-1, 16),
        ]
        for out in outs:
            assert f.read_ranges([100, 50], 8, out=out) is out
            assert bytes(memoryview(out).cast("B")) == wanted
        outs[-1].close()
        for size in (0, 15, 17, 160):
            with pytest.raises(ValueError, match="out"):
                f.read_ranges([100, 50], 8, out=bytearray(size))
        frozen = np.zeros(16, np.uint8)
        frozen.flags.writeable = False
        bad: list[Any] = [bytes(16), frozen, np.zeros((8, 4), np.uint8)[:, ::2], "x" * 16, 16]
        bad.append(np.zeros((4, 4), np.uint8).T)
        for out in bad:
            with pytest.raises((ValueError, TypeError), match="out"):
                f.read_ranges([100, 50], 8, out=out)


def test_short_read_error(backend: Any, make_file: Any, direct: bool) -> None:
    path, content = make_file(1000)
    out = np.full((4, 100), SENTINEL, np.uint8)
    f = backend.open(path, gap=10**6, direct=direct)
    with f, pytest.raises(iolift.ShortReadError) as caught:
        f.read_ranges([0, 950, 2000, 900], 100, out=out)
    error = caught.value
    assert isinstance(error, EOFError)
    assert (error.index, error.offset, error.length, error.got) == (1, 950, 100, 50)
    assert out[0].tobytes() == content[:100]
    assert out[1].tobytes() == content[950:] + bytes([SENTINEL]) * 50
    assert out[2].tobytes() == bytes([SENTINEL]) * 100
    assert out[3].tobytes() == content[900:]


@pytest.mark.parametrize("n", [512, 4096, 10_000])
@pytest.mark.parametrize("size", [1, 600, 4097])
def test_bytes_past_the_end_are_untouched_also_on_a_page(
    backend: Any, make_file: Any, direct: bool, n: int, size: int
) -> None:
    """A direct read into well-placed memory fills the file's last block with zeros."""
    path, content = make_file(size)
    with backend.open(path, direct=direct) as f:
        same_reads(f, FileOracle(content), [0, 512], [n, n])
        out = placed(n, 0)
        got = f.preadv([out], 0)
        assert out.tobytes() == content[:n] + bytes([SENTINEL]) * (n - got)


# ------------------------------------------------------------------------------------ bulk writes


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_write_ranges(
    backend: Any, make_file: Any, direct: bool, layout: str, options: dict[str, Any]
) -> None:
    """A gap is never written; of overlapping rows the last in index order is seen."""
    path, content = make_file(40_000)
    oracle = FileOracle(content)
    offsets, lengths = LAYOUTS[layout]
    rows = [bytes([i + 1]) * n for i, n in enumerate(lengths)]
    with backend.open(path, "r+", direct=direct, **options) as f:
        same_writes(f, oracle, offsets, rows)
        if oracle.data:
            same_reads(f, oracle, offsets, lengths)
    assert path.read_bytes() == oracle.data


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("spread", [1, 3])
def test_write_ranges_beyond_iov_max(backend: Any, make_file: Any, count: int, spread: int) -> None:
    path, content = make_file(count * spread // 2)
    oracle = FileOracle(content)
    offsets = [i * spread for i in range(count)]
    random.Random(count).shuffle(offsets)
    with backend.open(path, "r+") as f:
        same_writes(f, oracle, offsets, [random.Random(i).randbytes(3) for i in range(count)])
    assert path.read_bytes() == oracle.data


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 120), st.integers(0, 40)), max_size=30),
    st.integers(1, 60),
    st.sampled_from(["elevator", "fifo"]),
)
def test_of_overlapping_writes_the_last_index_wins(
    backend: Any, make_file: Any, asked: list[tuple[int, int]], max_io: int, order: str
) -> None:
    path, content = make_file(100)
    oracle = FileOracle(content)
    rows = [bytes([i + 1]) * n for i, (_, n) in enumerate(asked)]
    with backend.open(path, "r+", max_io=max_io, order=order) as f:
        same_writes(f, oracle, [o for o, _ in asked], rows)
    assert path.read_bytes() == oracle.data


def test_forms_of_write_data(backend: Any, make_file: Any) -> None:
    path, content = make_file(500)
    oracle = FileOracle(content)
    grid = np.arange(12, dtype=np.uint16).reshape(3, 4)
    cube = np.arange(24, dtype=np.uint8).reshape(3, 2, 4)
    flat = random.Random(1).randbytes(24)
    with backend.open(path, "r+") as f:
        for data in (
            grid,
            cube,
            flat,
            bytearray(flat),
            memoryview(flat),
            np.frombuffer(flat, "u8"),
        ):
            raw = memoryview(data).tobytes()
            assert f.write_ranges([300, 0, 150], data) == 24
            oracle.write_ranges([300, 0, 150], [raw[:8], raw[8:16], raw[16:]])
            assert f.pread(500, 0) == oracle.data
        assert f.write_ranges([300, 0, 150], flat, lengths=8) == 24
        assert f.write_ranges([30, 20], flat, lengths=[20, 4]) == 24
        oracle.write_ranges([300, 0, 150], [flat[:8], flat[8:16], flat[16:]])
        oracle.write_ranges([30, 20], [flat[:20], flat[20:]])
        assert f.write_ranges([], b"") == f.write_ranges([], b"", lengths=[]) == 0
        assert f.write_ranges([400, 410], b"", lengths=0) == 0
        bad: list[tuple[Any, Any, Any]] = [
            ([0, 1, 2], b"12345", None),
            ([0, 1], grid, None),
            ([0, 1], flat, [20, 5]),
            ([0, 1], flat, [20, 3]),
            ([0, 1], flat, 11),
            ([0, 1, 2], flat, [12, 12]),
            ([], b"1", None),
            ([0, 1, 2, 3], grid.T, None),
        ]
        for offsets, data, lengths in bad:
            with pytest.raises(ValueError, match=r"data|lengths|offsets"):
                f.write_ranges(offsets, data, lengths=lengths)
        with pytest.raises(TypeError):
            f.write_ranges([0], "text")
    assert path.read_bytes() == oracle.data


@pytest.fixture
def file_size_limit() -> Iterator[Callable[[int], None]]:
    """RLIMIT_FSIZE: a way to make the kernel itself fail a part of a merged write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_kernel_fails_one_of_merged_writes(
    backend: Any, make_file: Any, file_size_limit: Any
) -> None:
    path, content = make_file(8192)
    offsets, rows = [6144, 0, 8192, 4096, 10_240], [bytes([i]) * 2048 for i in range(1, 6)]
    with backend.open(path, "r+") as f:
        file_size_limit(8192)
        with pytest.raises(iolift.RangeError) as caught:
            f.write_ranges(offsets, b"".join(rows), lengths=2048)
        file_size_limit(resource.RLIM_INFINITY)
    assert caught.value.errnos == {2: errno.EFBIG, 4: errno.EFBIG}
    assert (caught.value.index, caught.value.errno) == (2, errno.EFBIG)
    assert (caught.value.offset, caught.value.length) == (8192, 2048)
    assert os.fspath(caught.value.filename) == os.fspath(path)
    oracle = FileOracle(content)
    oracle.write_ranges([6144, 0, 4096], [rows[0], rows[1], rows[3]])
    assert path.read_bytes() == oracle.data
