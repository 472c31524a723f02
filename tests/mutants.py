"""Goal: each rule of the window is held by a test that fails when the rule is broken.

    python -m tests.mutants [NAME ...]

Copies this tree, which must be built in place, breaks one rule at a time in the copy, builds the
module that it is in, and runs the tests that should notice. Prints which did; fails if none.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent
HANG_S = 400  # not an expectation: what takes this long hangs
TESTS = ("test_overlay", "test_window", "test_ticket", "test_sync", "test_asyncio", "test_soak")
OF_THIS = "tests/test_soak.py::test_each_mutant_can_be_made"  # notices any, of course


class Mutant(NamedTuple):
    """A rule, where it is kept, what keeps it, and what would not."""

    rule: str
    module: str
    right: str
    wrong: str


MUTANTS = {
    "overlay": Mutant(
        "the overlay has the writes that are in flight, too",
        "_window",
        "                if with_flying:\n",
        "                if False:\n",
    ),
    "order": Mutant(
        "a write waits for an older read that it overlaps",
        "_dispatch",
        "                    and flight.overlaps(write.offset, write.end)):",
        "                    and flight.overlaps(write.offset, write.end) and False):",
    ),
    "join": Mutant(
        "no read joins one that a write has come after",
        "_desk",
        "    if self.window.has_writes():\n        with_flying",
        "    if may_join(self, ticket.offset, ticket.end) and join(self, ticket):\n"
        "        return 0\n"
        "    if self.window.has_writes():\n        with_flying",
    ),
    "sync": Mutant(
        "a sync begins after the writes before it are in the file",
        "_desk",
        "    if self.window.has_writes():\n        self.window.add_write(ticket)       # it",
        "    if False:\n        self.window.add_write(ticket)       # it",
    ),
    "cancel": Mutant(
        "a write that was seen can't be withdrawn",
        "_desk",
        "                ticket.seen or (ticket.end",
        "                False or (ticket.end",
    ),
    "bound": Mutant(
        "no more requests are held than max_held_requests",
        "_scheduler",
        "            self.held_requests >= requests or size",
        "            self.held_requests > requests or size",
    ),
    "share": Mutant(
        "writes leave a part of the bounds to reads",
        "_scheduler",
        "            requests -= requests >> 3\n",
        "            requests -= 0\n",
    ),
    "room": Mutant(
        "reads have room on a device that is busy with writes",
        "_scheduler",
        "self.read_operations if kind == READ else self.operations",
        "self.operations",
    ),
    "put off": Mutant(
        "what shaping has put off goes when it may",
        "_scheduler",
        "            (<Desk>desk).go_on()            # shaping may have said later before\n",
        "",
    ),
    "woken": Mutant(
        "who waits for a ticket is woken when it ends",
        "_landing",
        "    self.scheduler.drivers.wake_at_landing(&ticket.sleepers)\n",
        "",
    ),
    "covered": Mutant(
        "a read that has looked at the overlay waits for no write in flight",
        "_solo",
        "    if memory == NULL and self.window.flying is not None:\n",
        "    if self.window.flying is not None:\n",
    ),
    "solo": Mutant(
        "what passes the window by waits for what it overlaps",
        "_solo",
        "    if solo.offset >= end or offset >= solo.end or (",
        "    if True or solo.offset >= end or offset >= solo.end or (",
    ),
    "parked": Mutant(
        "parked requests are let in as soon as there is room",
        "_landing",
        "    if self.scheduler.parked:\n        self.scheduler.go_on()\n",
        "",
    ),
    "deferred": Mutant(
        "the error of a write that nobody asked about comes at the next flush",
        "_ticket",
        "not self.is_heard and self.kind != READ:",
        "not self.is_heard and self.kind == READ:",
    ),
}


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(cwd / "src"), "CFLAGS": "-g0 -O1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG_S,
    )


def try_one(mutant: Mutant, tree: Path) -> list[str]:
    """The tests that fail with this rule broken."""
    source = tree / "ext" / "iolift" / f"{mutant.module}.pyx"
    text = source.read_text()
    assert text.count(mutant.right) == 1, f"{source.name} does not have this once: {mutant.right}"
    source.write_text(text.replace(mutant.right, mutant.wrong))
    try:
        built = run(sys.executable, "setup.py", "-q", "build_ext", "--inplace", cwd=tree)
        if built.returncode:
            sys.exit(built.stdout + built.stderr)
        files = [f"tests/{name}.py" for name in TESTS]
        options = ["-q", "-x", "-n", "auto", f"--deselect={OF_THIS}"]
        tried = run(sys.executable, "-m", "pytest", *options, *files, cwd=tree)
    except subprocess.TimeoutExpired:
        return ["a test hangs"]
    finally:
        source.write_text(text)
    return re.findall(r"^(?:FAILED|ERROR) (\S+)", tried.stdout, re.MULTILINE)


def main() -> None:
    names = sys.argv[1:] or list(MUTANTS)
    survivors = []
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory, "tree")
        shutil.copytree(
            REPOSITORY, tree, ignore=shutil.ignore_patterns(".git", ".venv*", ".*cache")
        )
        for name in names:
            failed = try_one(MUTANTS[name], tree)
            sys.stdout.write(
                f"{name}: not ({MUTANTS[name].rule}): {', '.join(failed) or 'alive'}\n"
            )
            sys.stdout.flush()
            survivors += [] if failed else [name]
    sys.exit(f"no test notices: {', '.join(survivors)}" if survivors else 0)


if __name__ == "__main__":
    main()
