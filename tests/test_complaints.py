"""Goal: what users of such systems complain about can't be said of iolift.

One test for each complaint about bulk I/O, named after the project and the number of its issue;
the first line of each says what happened there.
"""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from faulty import FaultyDisk
from oracle import FileOracle, same_reads

import iolift

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


def traced(f: Any, call: Any) -> tuple[Any, np.ndarray]:
    """The result of call(), and the I/Os it took: rows of (kind, offset, length)."""
    f.coalescer.trace_start()
    result = call()
    return result, f.coalescer.trace_stop()


# ------------------------------------------------------------------------- memory that stays


PAGE = 4096  # what a result may be larger for, to lie on a page


def owned(array: Any) -> int:
    """Bytes that an array keeps alive."""
    base = array
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    return base.nbytes if isinstance(base, np.ndarray) else memoryview(base).nbytes


def test_slatedb_211_small_result_does_not_pin_a_merged_buffer(
    backend: Any, make_file: Any
) -> None:
    """A small slice of a merged buffer kept all of it alive until memory ran out."""
    path, content = make_file(8 * MIB)
    with backend.open(path, gap=MIB, max_io=8 * MIB) as f:
        result, trace = traced(f, lambda: f.read_ranges([0, 4 * MIB, 8 * MIB - 4096], 4096))
        assert len(trace) == 3, "4 MiB apart is more than the gap"
        result = f.read_ranges(range(0, 8 * MIB, MIB), 4096)
        assert result[3].tobytes() == content[3 * MIB : 3 * MIB + 4096]
        assert owned(result) <= result.nbytes + PAGE == 9 * 4096
        one = f.pread(4096, 5 * MIB)
        assert sys.getsizeof(one) < 4096 + 64


PEAK = """
import sys
import numpy as np
import iolift

def status(name):
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith(name)) * 1024

path, backend, gap, n = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
out = np.ones((n, 2048), np.uint8)
offsets = np.random.default_rng(0).permutation(n) * 4096
with iolift.open(path, backend=backend, gap=gap, max_io=1 << 30) as f:
    f.read_ranges(offsets[:10], 2048, out=out[:10])
    with open("/proc/self/clear_refs", "w") as clear:
        clear.write("5")
    before = status("VmRSS")
    f.read_ranges(offsets, 2048, out=out)
    print(status("VmHWM") - before)
"""


@pytest.mark.parametrize("gap", [0, 4096])
def test_opendal_8062_arrow_39808_memory_is_not_doubled(
    backend: Any, tmp_path: Path, gap: int
) -> None:
    """A merged read and the pieces copied from it were there at the same time. Here rows are
    read in place, and a gap of any width goes to one page: at most 96 bytes a request + 8 MiB."""
    if backend.name == "hosted":
        pytest.skip("the simulated disk keeps a log")
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("needs Linux's /proc/self/clear_refs")
    n = 16_384
    path = tmp_path / "large"
    path.write_bytes(bytes(4096 * n))
    command = [sys.executable, "-c", PEAK, str(path), backend.name, str(gap), str(n)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 96 * n + 8 * MIB


def test_obstore_a_4_kib_result_does_not_keep_273_mib_alive(backend: Any, make_file: Any) -> None:
    """Any one result kept the whole answer's source; here a copied row stands alone."""
    path, _ = make_file(4 * MIB)
    with backend.open(path, gap=4 * MIB, max_io=4 * MIB) as f:
        result = f.read_ranges([0, 4 * MIB - 4096], 4096)
        assert owned(result) <= 8192 + PAGE
        assert owned(f.read_ranges([0, 4 * MIB - 4096], [4096, 1])) <= 4097 + PAGE


def test_disks_views_are_released_when_done(make_file: Any) -> None:
    """A backend that kept a view would keep the caller's array from being resized."""
    path, _ = make_file(1000)
    disk = FaultyDisk(delay=3, reorder=True)
    out = bytearray(300)
    with iolift.open(path, backend=disk) as f:
        f.read_ranges([0, 500, 100], 100, out=out)
        out.extend(b"resized")
    disk.check()


# ----------------------------------------------------------------------------- too much merging


def test_rocksdb_6979_no_over_merging(backend: Any, make_file: Any) -> None:
    """30 reads of 100 bytes became one read of 100 MiB."""
    path, _ = make_file(4 * MIB)
    offsets = range(0, 30 * 128 * 1024, 128 * 1024)
    with backend.open(path) as f:
        _, trace = traced(f, lambda: f.read_ranges(offsets, 100))
    assert len(trace) == 30
    assert trace[:, 2].sum() == 3000


def test_virtualizarr_1033_vortex_2037_no_gap_is_read_unless_asked(
    backend: Any, make_file: Any
) -> None:
    """A default gap of 1 MiB was 2.8 times slower than none."""
    path, _ = make_file(100_000)
    offsets = range(0, 100_000, 5000)
    with backend.open(path) as f:
        _, trace = traced(f, lambda: f.read_ranges(offsets, 4999))
        assert trace[:, 2].tolist() == [4999] * 20
    with backend.open(path, gap=1) as f:
        _, trace = traced(f, lambda: f.read_ranges(offsets, 4999))
        assert trace.tolist() == [[0, 0, 99_999]]


def test_doris_57303_merged_reads_are_bounded(backend: Any, make_file: Any) -> None:
    """A merge had no upper bound: max_io is one, also along a chain of overlaps."""
    path, _ = make_file(200_000)
    with backend.open(path, max_io=16_384) as f:
        _, trace = traced(f, lambda: f.read_ranges(range(0, 190_000, 1000), 3000))
    assert trace[:, 2].max() <= 16_384
    assert trace[:, 2].sum() == 192_000, "and yet nothing is read twice"


def test_obstore_678_gap_zero_merges_only_neighbours(backend: Any, make_file: Any) -> None:
    """coalesce=0 still merged ranges apart. gap=0: adjacent and overlapping ones, no others."""
    path, _ = make_file(1000)
    with backend.open(path, gap=0) as f:
        _, trace = traced(f, lambda: f.read_ranges([0, 100, 201, 290], 100))
    assert trace.tolist() == [[0, 0, 200], [0, 201, 189]]


# ------------------------------------------------------------------------------ too little merging


def test_lance_1505_zarr_1758_neighbours_of_many_requests_share_one_read(
    backend: Any, make_file: Any
) -> None:
    """Adjacent requests in any order were read one by one."""
    path, content = make_file(256 * 100)
    order = np.random.default_rng(1).permutation(100) * 256
    with backend.open(path) as f:
        result, trace = traced(f, lambda: f.read_ranges(order, 256))
    assert trace.tolist() == [[0, 0, 25_600]]
    assert result.tobytes() == b"".join(content[o : o + 256] for o in order)


def test_duplicates_are_read_once(backend: Any, make_file: Any) -> None:
    """50 hot blocks asked for 100 times each are 50 blocks."""
    path, _ = make_file(50 * 8192)
    offsets = np.repeat(np.arange(50) * 8192, 100)
    with backend.open(path) as f:
        _, trace = traced(f, lambda: f.read_ranges(np.roll(offsets, 37), 4096))
    assert trace[:, 2].sum() == 50 * 4096


def test_seastar_2939_libtorrent_3776_small_writes_are_gathered(
    backend: Any, make_file: Any
) -> None:
    """Each small neighbouring write was its own system call."""
    path, _ = make_file(0)
    order = np.random.default_rng(2).permutation(1000)
    rows = np.repeat(order.astype(np.uint32), 4).reshape(1000, 4)
    with backend.open(path, "w+") as f:
        _, trace = traced(f, lambda: f.write_ranges(order * 16, rows))
    assert trace.tolist() == [[1, 0, 16_000]]
    assert path.read_bytes() == np.repeat(np.arange(1000, dtype=np.uint32), 4).tobytes()


# ----------------------------------------------------------------------------------- wrong answers


def test_fsspec_identical_ranges_are_not_dropped(backend: Any, make_file: Any) -> None:
    """Of identical ranges only one had an answer (fsspec 2026.2 to 2026.7)."""
    path, content = make_file(1000)
    with backend.open(path) as f:
        result = f.read_ranges([10, 500, 10, 10, 500], 100)
        for row, o in zip(result, [10, 500, 10, 10, 500], strict=True):
            assert row.tobytes() == content[o : o + 100]
    plan = iolift.plan([10, 500, 10, 10, 500], 100)
    assert plan.count.tolist() == [1] * 5
    assert plan.duplicates == 3


@pytest.mark.parametrize("gap", [0, 10**6])
def test_obstore_one_range_past_eof_does_not_hurt_the_others(
    backend: Any, make_file: Any, gap: int
) -> None:
    """A merged range past the end of the file was a panic."""
    path, content = make_file(10_000)
    with backend.open(path, gap=gap, max_io=10**7) as f:
        same_reads(
            f, FileOracle(content), [9000, 9900, 9990, 20_000, 0, 10_000], [900, 100, 20, 5, 9, 1]
        )


def test_hadoop_19291_adjacent_ranges_after_a_merge_are_right(backend: Any, make_file: Any) -> None:
    """Ranges that touch, or one that contains others, came back with the wrong bytes."""
    path, content = make_file(5000)
    with backend.open(path, gap=64) as f:
        same_reads(f, FileOracle(content), [0, 100, 100, 0, 150, 260], [100, 1, 100, 300, 10, 10])


def test_glommio_632_results_in_request_order(backend: Any, make_file: Any) -> None:
    """Results came in the order of the disk, not of the requests."""
    path, content = make_file(100_000)
    order = np.random.default_rng(3).permutation(1000) * 100
    with backend.open(path, max_io=700) as f:
        result = f.read_ranges(order, 100)
    assert result.tobytes() == b"".join(content[o : o + 100] for o in order)


def test_glommio_632_also_when_completions_are_shuffled(make_file: Any) -> None:
    path, content = make_file(100_000)
    order = np.random.default_rng(3).permutation(500) * 200
    disk = FaultyDisk(seed=8, delay=9, reorder=True, depth=32)
    with iolift.open(path, backend=disk, depth=32) as f:
        result = f.read_ranges(order, 100)
    assert result.tobytes() == b"".join(content[o : o + 100] for o in order)
    disk.check()


def test_a_bad_sector_fails_only_whom_it_belongs_to(make_file: Any) -> None:
    """When a merged I/O failed, every request in it failed."""
    path, content = make_file(1000)
    disk = FaultyDisk()
    disk.bad(150, 160)
    out = bytearray(300)
    with (
        iolift.open(path, backend=disk) as f,
        pytest.raises(iolift.RangeError) as caught,
    ):
        f.read_ranges([0, 100, 200], 100, out=out)
    assert caught.value.errnos == {1: errno.EIO}
    assert (out[:100], out[200:]) == (content[:100], content[200:300])


# ---------------------------------------------------------------------------------- waiting


def test_lance_7861_extents_do_not_wait_for_each_other(make_file: Any) -> None:
    """Each batch of reads waited for the one before; here all are queued before any is done."""
    path, _ = make_file(100_000)
    disk = FaultyDisk(delay=1000)
    with iolift.open(path, backend=disk, depth=64) as f:
        f.read_ranges(range(0, 100_000, 2000), 100)
    assert disk.deepest == 50


def test_lance_2721_7588_more_requests_than_any_limit_do_not_deadlock(make_file: Any) -> None:
    """Admission blocked the already admitted."""
    path, content = make_file(50_000)
    disk = FaultyDisk(seed=1, delay=2, capacity=1, depth=2)
    with iolift.open(path, backend=disk, depth=2, max_io=1) as f:
        same_reads(f, FileOracle(content), list(range(0, 50_000, 50)), [20] * 1000)
    assert disk.deepest == 1
    disk.check()


def test_liburing_281_busy_with_nothing_in_flight(make_file: Any) -> None:
    """A submit refused with nothing in flight waited for a completion that could not come."""
    path, content = make_file(1000)
    disk = FaultyDisk(seed=6, busy_rate=0.8)
    with iolift.open(path, "r+", backend=disk) as f:
        for _ in range(20):
            assert f.pread(100, 50) == content[50:150]
            same_reads(f, FileOracle(content), [0, 300, 600], [100] * 3)
        f.sync()
    disk.check()


def test_every_result_is_there_even_when_wrapped(backend: Any, tmp_path: Path) -> None:
    """A raw file whose short reads were not completed broke its BufferedReader."""
    path = tmp_path / "data"
    path.write_bytes(bytes(range(256)) * 1000)
    with io.BufferedReader(backend.open(path), 100) as f:
        assert f.read(77_777) == path.read_bytes()[:77_777]
