"""What does coalescing save on real traces: I/Os, wall time, head travel?

`python -m iolift replay TRACE --direct --json` answers; it replays the trace one by one
(os.pread, os.pwrite) and coalesced, on the same data, without the page cache, and checks that
both leave the same bytes. The traces: the one in the package, and the shared trace of a virtual
disk if it is there ($IOLIFT_TRACES, a file or a directory, or ../shared/traces beside the
repository).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from _measure import Row
from _work import UnavailableError

if TYPE_CHECKING:
    from _work import Work

SHARED = "cloudphysics-first50k.csv.gz"


def shared_trace() -> Path:
    """Where the shared trace is."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "traces"
    path = Path(os.environ.get("IOLIFT_TRACES", beside))
    path = path / SHARED if path.is_dir() else path
    if not path.exists():
        raise UnavailableError(f"{SHARED} is not on this machine")
    return path


@dataclass
class Replay:
    """A trace, and the least that each ratio may be (None: just shown)."""

    key: str
    what: str
    asked: dict[str, float]
    shared: bool
    slow: bool = True

    def run(self, work: Work) -> dict[str, Any]:
        """One replay, both ways."""
        command = [sys.executable, "-m", "iolift", "replay"]
        command += [str(shared_trace())] if self.shared else []
        target = work.root / "replayed"
        target.unlink(missing_ok=True)
        command += ["--direct", "--json", "--file", str(target)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"iolift replay: {done.stderr.strip()[-300:]}")
        result = json.loads(done.stdout)
        assert result["agree"]
        return result

    def rows(self, work: Work, rounds: int) -> list[Row]:
        """A line per ratio, the median of the rounds."""
        try:
            runs = [self.run(work) for _ in range(min(rounds, ENOUGH))]
        except UnavailableError as why:
            return [Row(self.what, "-", "not measured", str(why))]
        return [self._row(key, runs) for key in FIGURES]

    def _row(self, key: str, runs: list[dict[str, Any]]) -> Row:
        name, show = FIGURES[key]

        def median(part: str) -> float:
            return statistics.median(run[part][key] for run in runs)

        ratio, least = median("ratio"), self.asked.get(key)
        return Row(
            f"{self.what}: {name}",
            "-" if least is None else f">= {least:g}x less",
            f"{ratio:.1f}x less: {show(median('coalesced'))}",
            f"one by one: {show(median('one_by_one'))}",
            None if least is None else ratio >= least,
        )


ENOUGH = 3  # replays per figure: each is itself two runs of thousands of I/Os
FIGURES = {
    "ios": ("I/Os", "{:.0f}".format),
    "wall_s": ("wall time", "{:.2f} s".format),
    "head_travel_bytes": ("head travel", lambda travel: f"{travel / 2**30:.1f} GiB"),
}
QUESTIONS = [
    Replay("replay_bundled", "replay of the bundled trace, direct", {}, shared=False),
    Replay(
        "replay_shared",
        "replay of the shared trace, direct",
        {"ios": 4, "wall_s": 4, "head_travel_bytes": 30},
        shared=True,
    ),
]


@pytest.mark.parametrize("replay", QUESTIONS, ids=lambda q: q.key)
def test_replay(benchmark, work, replay) -> None:
    """Timed as a whole, both ways and their checks; the ratios are in extra_info."""
    try:
        result = benchmark.pedantic(replay.run, args=(work,), rounds=1)
    except UnavailableError as why:
        pytest.skip(str(why))
    benchmark.extra_info.update(result["ratio"])
