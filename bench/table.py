"""The table of the README: `python bench/table.py [--rounds 5] [--quick] [QUESTION ...]`.

Runs every question's sides in turns (peer, us, peer, us, ...) and prints "what | asked |
measured | peer" with the machine named. Progress goes to stderr, the table to stdout. A figure
that was not reached is printed as missed; no figure fails the run.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _work import work

if TYPE_CHECKING:
    from _measure import Row
    from _work import Work

MODULES = (
    *("plan", "read_warm", "read_cold", "write", "replay", "memory", "gap"),
    *("window_alone", "window_asyncio", "window_cold", "window_threads", "window_joins"),
    *("window_small_writes", "window_sync_threads", "window_sync_tasks", "window_lone_reader"),
    *("window_submit", "window_idle", "window_growth"),
    *("journal_burst", "journal_alone", "journal_threads", "journal_cost"),
    *("recording", "zarr"),
    "seek_disk",
    *("fsspec", "dataset"),
    "nbd",
)
PACKAGES = ("numpy", "fsspec", "obstore", "caio", "lmdb", "rocksdict", "mfusepy", "zarr")


def cpu() -> str:
    """The processor's name."""
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return found.group(1).strip() if found else platform.machine()


def machine(place: Work) -> str:
    """What the figures were measured on, without naming anybody's paths."""
    kernel = platform.release().split("-")[0]
    parts = [
        f"{cpu()}, {os.cpu_count()} cores",
        f"Linux {kernel}, {place.filesystem}",
        f"Python {platform.python_version()}",
    ]
    for name in PACKAGES:
        try:
            parts.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return "; ".join(parts)


def questions(names: list[str], quick: bool) -> list[Any]:
    """All questions, or those whose key begins with one of `names`."""
    found = [q for name in MODULES for q in import_module(f"bench_{name}").QUESTIONS]
    if names:
        return [q for q in found if q.key.startswith(tuple(names))]
    return [q for q in found if not (quick and q.slow)]


def markdown(rows: list[Row]) -> str:
    """The table."""
    head = ["| what | asked | measured | peer |", "|---|---|---|---|"]
    return "\n".join(head + [f"| {' | '.join(row.cells())} |" for row in rows])


def say(text: str) -> None:
    """Progress, to stderr."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def main() -> None:
    """Parses, measures, prints."""
    parser = argparse.ArgumentParser(description="Measure iolift beside its peers, as a table.")
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help="keys or their beginnings")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each pair (default 5)")
    parser.add_argument("--quick", action="store_true", help="2 turns, without the long ones")
    options = parser.parse_args()
    rows: list[Row] = []
    try:
        with work(say) as place:
            chosen = questions(options.questions, options.quick)
            for i, question in enumerate(chosen, 1):
                say(f"{i}/{len(chosen)} {question.what}")
                rows += question.rows(place, 2 if options.quick else options.rounds)
            print(f"{machine(place)}\n\n{markdown(rows)}")
    except KeyboardInterrupt:
        raise SystemExit(f"\nbench: stopped; {len(rows)} rows measured, nothing kept") from None


if __name__ == "__main__":
    main()
