"""How much memory does a batch of 1M requests take, beyond the caller's own buffers?

C allocations don't show in tracemalloc, so the kernel is asked: a fresh process makes its
arrays and touches them, makes one small call (imports, the ring, the thread pool), resets its
high-water mark (5 > /proc/self/clear_refs), makes the call, and reads VmHWM. What the call
returns counts as well (a Plan holds 16 B per request and 16 B per extent). The constant is the
same at 1000 requests, the slope what lies between; the figure asked for is the peak itself.

`python bench/bench_memory.py CASE REQUESTS PATH` is that process.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from _measure import Row
from _work import MIB, page_aligned

if TYPE_CHECKING:
    from collections.abc import Callable

    from _work import Work

SIZE, LENGTH, REQUESTS = 256 * MIB, 64, 1_000_000
PER_REQUEST, CONSTANT = 96, 8 * MIB


def status(field: str) -> int:
    """A VmXXX line of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def case(name: str, n: int, path: str) -> Callable[[Any], object]:
    """The call to measure, as a function of its offsets; its buffers are made and touched."""
    import iolift

    if name == "plan":
        return lambda offsets: iolift.plan(offsets, LENGTH)
    rows = page_aligned(n, LENGTH)
    f = iolift.open(path, "r+")
    if name == "read_ranges":
        return lambda offsets: f.read_ranges(offsets, LENGTH, out=rows[: len(offsets)])
    return lambda offsets: f.write_ranges(offsets, rows[: len(offsets)])


def probe(name: str, n: int, path: str) -> int:
    """The peak in bytes that a call of `n` requests adds to this process."""
    call = case(name, n, path)
    offsets = np.random.default_rng(17).integers(0, SIZE - LENGTH, n)
    call(offsets[:2])
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    result = call(offsets)
    peak = status("VmHWM") - before
    del result
    return max(0, peak)


def measure(name: str, n: int, work: Work) -> int:
    """`probe` in a fresh process."""
    path = work.file(SIZE)
    command = [sys.executable, __file__, name, str(n), str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout)


@dataclass
class Memory:
    """A question whose answer is bytes."""

    key: str
    what: str
    case: str
    slow: bool = False

    def rows(self, work: Work, rounds: int) -> list[Row]:
        """The line of the table."""
        peak, small = (measure(self.case, n, work) for n in (REQUESTS, 1000))
        slope = (peak - small) / (REQUESTS - 1000)
        asked = f"<= {PER_REQUEST} B per request + {CONSTANT // MIB} MiB"
        limit = PER_REQUEST * REQUESTS + CONSTANT
        measured = f"{slope:.0f} B per request + {small / MIB:.1f} MiB: {peak / MIB:.0f} MiB in all"
        return [Row(self.what, asked, measured, f"{limit / MIB:.0f} MiB allowed", peak <= limit)]


QUESTIONS = [
    Memory(f"memory_{name}", f"memory, {name}, 1M requests", name)
    for name in ("plan", "read_ranges", "write_ranges")
]


@pytest.mark.parametrize("memory", QUESTIONS, ids=lambda q: q.key)
def test_memory(benchmark, work, memory) -> None:
    """The whole probe is timed (it means little); the bytes are in extra_info."""
    peak = benchmark.pedantic(measure, args=(memory.case, REQUESTS, work), rounds=1)
    benchmark.extra_info["bytes_per_request"] = peak / REQUESTS


if __name__ == "__main__":
    print(probe(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
