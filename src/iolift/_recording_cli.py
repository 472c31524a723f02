"""The console script's ``iolift record`` and ``iolift report``: record a program, see what it did.

1. `record` runs a program, in which every coalescer of every process records, and saves one
   recording of all. Standard input and output are the program's; what `record` itself says goes to
   standard error. Its exit code is the program's (128 + n after signal n); 2 where the program
   could not be started or what it recorded not be saved.
2. Ctrl-C, which a terminal sends to both, ends the program and not `record`, which still saves;
   SIGTERM, and a SIGINT that no terminal sent, are passed on.
3. `report` prints the figures, and writes what it is told to: a page, a picture, a Chrome trace.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from typing import TYPE_CHECKING, Any

from .recording import DEFAULT_CAPACITY, Recording, RecordingError, merge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEFAULT_OUT = "iolift.trace.npz"
MAX_CAPACITY = 1 << 30

# Those that end a program which has no mind of its own about them.
PASSED_ON = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT),
    *(signal.SIGUSR1, signal.SIGUSR2),
)


def add_record(commands: Any) -> None:
    """Adds `record` to the parser of the console script."""
    parser = commands.add_parser(
        "record",
        help="run a program and record its requests and I/Os",
        description="Runs PROGRAM and records what iolift is asked for and does in it and in its "
        "children, each as it ends.",
        usage="%(prog)s [-h] [-o OUT] [--capacity N] -- PROGRAM ...",
    )
    parser.add_argument("-o", "--out", default=DEFAULT_OUT, help="(default: %(default)s)")
    parser.add_argument(
        "--capacity",
        type=_capacity,
        default=DEFAULT_CAPACITY,
        metavar="N",
        help="keep the last N requests and N I/Os of each coalescer (default: %(default)s)",
    )
    parser.add_argument("program", nargs=argparse.REMAINDER, metavar="PROGRAM ...")
    parser.set_defaults(run=_run_record)


def add_report(commands: Any) -> None:
    """Adds `report` to the parser of the console script."""
    parser = commands.add_parser(
        "report",
        help="show what a recording holds",
        description="Prints the figures of recordings, together, and draws them.",
    )
    add = parser.add_argument
    add("traces", nargs="+", metavar="TRACE", help="what `iolift record` or Recording.save wrote")
    add("-o", "--out", metavar="OUT.html", help="write a page that works offline")
    add("--png", metavar="OUT.png", help="write a picture")
    add("--chrome", metavar="OUT.json", help="write a Chrome trace, for https://ui.perfetto.dev")
    add("--json", action="store_true", help="print one JSON object instead of the table")
    parser.set_defaults(run=_run_report)


def _capacity(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MAX_CAPACITY):
        raise argparse.ArgumentTypeError(f"not a number from 1 to 2**30: {text!r}")
    return int(text)


def _fail(text: str) -> int:
    print(f"iolift: error: {' '.join(text.split())}", file=sys.stderr)
    return 2


# ------------------------------------------------------------------------------------------ record


def _run_record(arguments: argparse.Namespace) -> int:
    program = arguments.program
    if program[:1] == ["--"]:
        program = program[1:]
    if not program:
        return _fail("no PROGRAM to record (see iolift record --help)")
    out = os.path.abspath(arguments.out)
    if os.path.isdir(out) or not os.access(os.path.dirname(out), os.W_OK):
        return _fail(f"--out: can't write {arguments.out}")
    with tempfile.TemporaryDirectory(prefix="iolift-record-") as directory:
        status = _run(program, directory, arguments.capacity)
        parts = []
        for name in sorted(os.listdir(directory)):
            if name.endswith(".npz"):
                try:
                    parts.append(Recording.load(os.path.join(directory, name)))
                except RecordingError as error:
                    print(f"iolift: left out: {error}", file=sys.stderr)
    if not parts:
        print("iolift: nothing was recorded: no coalescer was used", file=sys.stderr)
        return status
    whole, kept = merge(parts), arguments.out
    try:
        whole.save(out)
    except OSError as error:  # what was recorded can't be had again
        handle, kept = tempfile.mkstemp(prefix="iolift-record-", suffix=".npz")
        os.close(handle)
        whole.save(kept)
        print(f"iolift: --out: {arguments.out}: {error.strerror or error}", file=sys.stderr)
    lost = ""
    if whole.lost_requests or whole.lost_ios:
        lost = f", without {whole.lost_requests:,} requests and {whole.lost_ios:,} I/Os before them"
    print(
        f"iolift: {len(whole.requests):,} requests and {len(whole.ios):,} I/Os of {len(parts)} "
        f"process{'es' if len(parts) > 1 else ''} are in {kept}{lost}",
        file=sys.stderr,
    )
    return status


def _run(program: list[str], directory: str, capacity: int) -> int:
    environment = {
        **os.environ,
        "IOLIFT_RECORD": directory,
        "IOLIFT_RECORD_CAPACITY": str(capacity),
    }
    with _passing_signals_on() as pass_to:
        child = subprocess.Popen(program, env=environment)
        pass_to(child)
        code = child.wait()
    return code if code >= 0 else 128 - code


@contextlib.contextmanager
def _passing_signals_on() -> Iterator[Callable[[subprocess.Popen[bytes]], None]]:
    """Until it is left, signals that would end this process go to the child that it is told of."""
    early: list[int] = []
    children: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _frame: object) -> None:
        if number == signal.SIGINT and _in_foreground():
            return
        if not children:
            early.append(number)
        for child in children:
            child.send_signal(number)

    def pass_to(child: subprocess.Popen[bytes]) -> None:
        children.append(child)
        for number in early:
            child.send_signal(number)

    if threading.current_thread() is not threading.main_thread():
        yield pass_to
        return
    # Who began this program may have some of them ignored, and the child is to ignore them, too.
    before = {
        number: signal.signal(number, pass_on)
        for number in PASSED_ON
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield pass_to
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_foreground() -> bool:
    """Whether this process is of those that its terminal sends a Ctrl-C to; so is the child."""
    try:
        terminal = os.open(os.ctermid(), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


# ------------------------------------------------------------------------------------------ report


def _run_report(arguments: argparse.Namespace) -> int:
    from ._report_data import covered, figures, summarize

    written = [path for path in (arguments.out, arguments.png, arguments.chrome) if path]
    for i, path in enumerate(written):
        for other in (*arguments.traces, *written[:i]):
            if _is_same_file(path, other):
                return _fail(f"{path} is given twice: nothing is written")
    parts = [Recording.load(path) for path in arguments.traces]
    whole = parts[0] if len(parts) == 1 else merge(parts)
    title = ", ".join(os.path.basename(path) for path in arguments.traces)
    try:
        if arguments.out is not None:
            whole.to_html(arguments.out, title)
        if arguments.png is not None:
            whole.to_png(arguments.png, title)
    except ImportError as error:
        return _fail(str(error))
    if arguments.chrome is not None:
        whole.to_chrome(arguments.chrome)
    whole = covered(whole)
    summary = summarize(whole)
    if arguments.json:
        lost = {"lost_requests": whole.lost_requests, "lost_ios": whole.lost_ios}
        print(json.dumps(summary.to_dict() | lost))
        return 0
    for name, value in figures(summary):
        print(f"{name:<22}{value:>14}")
    if whole.lost_requests or whole.lost_ios:
        print(f"lost before these: {whole.lost_requests:,} requests, {whole.lost_ios:,} I/Os")
    for path in written:
        print(f"written: {path}")
    return 0


def _is_same_file(one: str, other: str) -> bool:
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
