"""Turns what gcov counted in the core into coverage.py's data, so that one report shows all.

    python .ci/core_lines.py        # after the tests, in a tree built with IOLIFT_BUILD=coverage

The compiler counts, not a tracer, because much of the core runs where no tracer sees it: in
threads that Python doesn't know, and below a mutex that must not wait for the GIL. Which lines
count at all is still what Cython's plugin for coverage.py says.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from coverage import CoverageData

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "ext" / "iolift"


def counted() -> dict[Path, dict[int, int]]:
    """How often each line ran, of each file of the core, all processes together."""
    counts: dict[Path, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for notes in sorted((ROOT / "build").rglob("*.gcda")):
        said = subprocess.run(
            ["gcov", "--json-format", "--stdout", str(notes)],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
        for file in json.loads(said.stdout)["files"]:
            path = CORE / Path(file["file"]).name  # Cython's paths begin anywhere
            if path.exists() and path.suffix != ".c":
                for line in file["lines"]:
                    counts[path][line["line_number"]] += line["count"]
    return counts


def ran(counts: dict[int, int]) -> list[int]:
    """The lines that ran. One without code of its own, like `try:`, did when the next one did."""
    found, following = [], 0
    for line in range(max(counts), 0, -1):
        following = counts.get(line, following)
        if following:
            found.append(line)
    return found


def main() -> None:
    counts = counted()
    if not counts:
        sys.exit("nothing was counted: was it built with IOLIFT_BUILD=coverage, and run?")
    # The plugin doesn't know headers. Most only declare, and to gcov that looks like code.
    for path in sorted(path for path in counts if path.suffix != ".pyx"):
        lines = counts.pop(path)
        if "inline" in path.read_text():
            missed = [line for line, count in sorted(lines.items()) if not count]
            sys.stdout.write(f"{path.relative_to(ROOT)}: {len(lines)} lines, missed {missed}\n")
    data = CoverageData(str(ROOT / ".coverage.core"))
    data.erase()
    data.add_lines({str(path): ran(lines) for path, lines in counts.items()})
    data.add_file_tracers({str(path): "Cython.Coverage.Plugin" for path in counts})
    data.write()


if __name__ == "__main__":
    main()
