"""Goal: planning and moving many requests takes 96 bytes a request and 8 MiB, beside the caller's.

Measured as the kernel counts it: the high-water mark of a fresh process, set back to what is
resident before the call. The margin is for what is none of ours: the allocator keeps freed pages,
the interpreter grows.
"""

from __future__ import annotations

import os
from typing import Any

import child
import numpy as np
import pytest
from conftest import unavailable

import iolift

pytestmark = pytest.mark.skipif(
    "IOLIFT_SANITIZED" in os.environ, reason="the sanitizer's own memory can't be told from ours"
)

REQUESTS = 300_000
PER_REQUEST = 96
FIXED = 8 << 20
MARGIN = 2 << 20

MEASURE = """
    import os, sys, numpy as np, iolift
    path, backend, case, n = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    chance = np.random.default_rng(1)
    size = os.path.getsize(path)
    offsets = chance.integers(0, size - 200, n)
    lengths = chance.integers(1, 100, n)
    if "far" in case:
        offsets = chance.permutation(n) * (size // n)           # nothing merges
        lengths = chance.integers(1, size // n, n)
    one_length = "one" in case
    if one_length:
        lengths = 16
    total = int(np.sum(lengths)) if not one_length else 16 * n
    rows = np.ones(total, np.uint8)
    order = "fifo" if "fifo" in case else "elevator"
    f = iolift.open(path, "r+", backend=backend, order=order, gap=64 if "gap" in case else 0,
                    direct="direct" in case)
    def call(offsets, lengths, rows):
        if "plan" in case:
            return iolift.plan(offsets, lengths, order=order)
        if "read" in case:
            return f.read_ranges(offsets, lengths, out=rows)
        return f.write_ranges(offsets, rows, lengths=lengths)
    few = lengths if one_length else lengths[:100]
    call(offsets[:100], few, rows[:1600] if one_length else rows[:int(few.sum())])
    def status(name):
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")                                        # the high-water mark: from now on
    before = status("VmRSS")
    result = call(offsets, lengths, rows)
    print(max(0, status("VmHWM") - before))
"""

CASES = [
    "plan",
    "plan one",
    "plan far",
    "plan fifo",
    "read",
    "read one",
    "read far",
    "read fifo",
    "read gap",
    "read one far",
    "write",
    "write one",
    "write far",
    "write fifo",
    "write one far",
]


WITH_A_RING = ["read", "write far"]
ring = pytest.mark.skipif(bool(unavailable("uring")), reason="no ring")


@pytest.mark.parametrize(
    ("backend_name", "case"),
    [("posix", case) for case in CASES]
    + [pytest.param("uring", case, marks=ring) for case in WITH_A_RING],
)
def test_peak_memory(make_zeros: Any, backend_name: str, case: str) -> None:
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("the high-water mark can't be set back here")
    path = make_zeros(64 << 20)
    peak = int(child.run(MEASURE, path, backend_name, case, REQUESTS))
    allowed = PER_REQUEST * REQUESTS + FIXED + MARGIN
    per_request = (peak - FIXED) / REQUESTS
    assert peak <= allowed, f"{peak / 2**20:.1f} MiB, {per_request:.0f} bytes a request + 8 MiB"


def test_a_small_result_keeps_no_merged_buffer_alive(backend: Any, make_file: Any) -> None:
    path, content = make_file(1 << 20)
    with backend.open(path, gap=1 << 20, max_io=1 << 24) as f:
        small = f.read_ranges([0, (1 << 20) - 10], 10)
        base: Any = small
        while isinstance(base, np.ndarray) and base.base is not None:
            base = base.base
        assert memoryview(base).nbytes == 20
        assert len(f.pread(10, 5)) == 10
    assert small.tobytes() == content[:10] + content[-10:]


def test_a_result_outlives_the_file(backend: Any, make_file: Any) -> None:
    path, content = make_file(10_000)
    f = backend.open(path)
    result = f.read_ranges([9000, 10], 500)
    f.close()
    del f
    assert result.tobytes() == content[9000:9500] + content[10:510]


def test_a_failed_call_keeps_no_memory(make_file: Any) -> None:
    import tracemalloc

    path, _ = make_file(1000)
    out = np.zeros((50_000, 10), np.uint8)
    offsets = np.full(50_000, 995)
    with iolift.open(path) as f:
        tracemalloc.start()
        for turn in range(4):
            with pytest.raises(iolift.ShortReadError):
                f.read_ranges(offsets, 10, out=out)
            if turn == 0:
                before = tracemalloc.get_traced_memory()[0]
        assert tracemalloc.get_traced_memory()[0] < before + (1 << 14)
        tracemalloc.stop()
