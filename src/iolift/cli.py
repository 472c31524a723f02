"""The console script ``iolift``.

1. A subcommand is one function that adds its parser and one that runs it (`SUBCOMMANDS`).
2. Results go to stdout; errors, one line each, and progress go to stderr, progress only if that is
   a terminal.
3. Exit codes: 0 done, 1 the two runs of a replay disagree, 2 bad input or usage or a system that
   says no, 130 Ctrl-C (143 SIGTERM). A user's mistake never ends in a traceback.
4. rich is used when it is installed and does not change what is said.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import sys
import threading
from contextlib import closing, contextmanager
from importlib import resources
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn

from ._doctor_cli import add_doctor
from ._journal_cli import add_journal
from ._nbd_cli import add_nbd_plugin
from ._recording_cli import add_record, add_report
from ._replay_data import human
from .replay import Options, ReplayError, Result, Run, replay
from .traces import Trace, TraceError, read_trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

BUNDLED = "sqlite-orders.iolog.gz"
SHOW_AFTER_S = 0.25
WORTH_S = 1.0
REDRAW_S = 0.1


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names have letters that it may not
            stream.reconfigure(errors="backslashreplace")
    parser = _Parser(prog="iolift", description="I/O request coalescing.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in SUBCOMMANDS:
        add(commands)
    try:
        with _sigterm_unwinds():
            arguments = parser.parse_args(argv)
            run: Callable[[argparse.Namespace], int] = arguments.run
            code = run(arguments)
            sys.stdout.flush()
            return code
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except _Terminated:
        return _fail("terminated", 143)
    except BrokenPipeError:
        # The reader of stdout has left; python would complain once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (TraceError, ReplayError, UsageError) as error:
        return _fail(str(error), 2)
    except MemoryError:
        return _fail("out of memory", 2)
    except OSError as error:
        return _fail(_os_error(error), 2)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as everything here does."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


class UsageError(Exception):
    """What the user asked for can't be done; the text is the line to print."""


class _Terminated(BaseException):
    pass


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind as Ctrl-C does, so that a temporary file is removed."""

    def stop(_signal: int, _frame: object) -> NoReturn:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.signal(number, stop)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN  # as nohup has it
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _fail(text: str, code: int) -> int:
    line = " ".join(text.split())
    print(f"iolift: error: {line}", file=sys.stderr)
    return code


def _os_error(error: OSError) -> str:
    what = error.strerror or str(error) or type(error).__name__
    return f"{os.fsdecode(error.filename)}: {what}" if error.filename else what


# ------------------------------------------------------------------------------------------ replay


def _add_replay(commands: Any) -> None:
    parser = commands.add_parser(
        "replay",
        help="replay an I/O trace one by one and coalesced, and compare",
        description=(
            "Replays a trace twice on the same data, one by one with os.pread and os.pwrite and "
            "coalesced through iolift, as fast as each can; checks that both leave the same bytes "
            "and shows what coalescing saved."
        ),
    )
    default = Options()
    add = parser.add_argument
    add(
        "trace",
        nargs="?",
        metavar="TRACE",
        help="fio iolog v2 or v3, MSR Cambridge CSV, or CSV with the header "
        "time_us,op,offset,length; plain or gzipped; or a recording of iolift (default: a trace of "
        "SQLite that comes with iolift)",
    )
    add(
        "--file",
        metavar="PATH",
        help="work on this file (default: a temporary one). If it exists it must be big enough, "
        "and a trace that writes is refused; if not it is made, and kept",
    )
    add("--overwrite", action="store_true", help="let a trace that writes destroy --file")
    add(
        "--compact",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="shrink the holes between what the trace touches to at most 2 MiB",
    )
    add("--window", type=_size, default=default.window, metavar="REQUESTS", help=HELP_DEFAULT)
    add("--order", choices=("elevator", "fifo"), default=default.order, help=HELP_DEFAULT)
    add(
        "--gap",
        type=_size,
        default=default.gap,
        metavar="BYTES",
        help="widest hole between two reads that is read through (default: %(default)s)",
    )
    add(
        "--max-io",
        type=_size,
        default=default.max_io,
        metavar="BYTES",
        help="no I/O is longer, unless a request is (default: %(default)s)",
    )
    add("--depth", type=_size, default=default.depth, metavar="IOS", help=HELP_DEFAULT)
    add("--backend", choices=("auto", "uring", "posix"), default="auto", help=HELP_DEFAULT)
    add("--direct", action="store_true", help="use O_DIRECT")
    add("--json", action="store_true", help="print one JSON object instead of the table")
    add("--plot", metavar="OUT.png", help="draw offset over time, before and after")
    parser.set_defaults(run=_run_replay)


HELP_DEFAULT = "(default: %(default)s)"
SUBCOMMANDS: tuple[Callable[[Any], None], ...] = (
    _add_replay,
    add_doctor,
    add_journal,
    add_nbd_plugin,
    add_record,
    add_report,
)


def _size(text: str) -> int:
    """A number, perhaps with the suffix K, M or G (powers of 1024)."""
    scale = {"K": 10, "M": 20, "G": 30}.get(text[-1:].upper(), 0)
    digits = text[:-1] if scale else text
    if not (digits.isascii() and digits.isdigit()):
        raise argparse.ArgumentTypeError(f"not a whole number: {text!r}")
    return int(digits) << scale


def _run_replay(arguments: argparse.Namespace) -> int:
    fields = Options.__dataclass_fields__
    options = Options(**{name: getattr(arguments, name) for name in fields})
    draw = _plotter(arguments.plot) if arguments.plot else None
    with closing(make_progress()) as progress:
        trace = _bundled() if arguments.trace is None else read_trace(arguments.trace)
        result = replay(trace, options, progress)
    if arguments.json:
        print(json.dumps(_as_json(result)))
    else:
        _print_table(result)
    if draw is not None:
        draw(result, arguments.plot)
        if not arguments.json:
            print(f"plot: {arguments.plot}")
    if result.agree:
        return 0
    wrong = [] if result.reads_agree else ["what was read"]
    wrong += [] if result.files_agree else ["the file"]
    return _fail(f"the two runs disagree: {' and '.join(wrong)} differ", 1)


def _bundled() -> Trace:
    with resources.as_file(resources.files("iolift.data") / BUNDLED) as path:
        return read_trace(path)


def _plotter(path: str) -> Callable[[Result, str], None]:
    """`plot.draw`, or an error now rather than after the replay."""
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path) or not os.access(folder, os.W_OK):
        raise UsageError(f"--plot: can't write {path}")
    try:
        from .plot import draw, formats
    except ImportError as error:
        name = error.name or "matplotlib"
        raise UsageError(f"--plot needs {name}: pip install 'iolift[plot]'") from None
    ending = os.path.splitext(path)[1][1:].lower()
    if ending not in formats():
        known = ", ".join(sorted(formats()))
        raise UsageError(f"--plot: {path} must end in one of {known}")
    return draw


# ------------------------------------------------------------------------------------------ output


def _rows(one: Run, two: Run) -> list[tuple[str, str, str, str]]:
    """(figure, one by one, coalesced, ratio): the same for the plain table and rich's."""

    def row(
        name: str, a: float, b: float, show: Callable[[float], str]
    ) -> tuple[str, str, str, str]:
        return name, show(a), show(b), f"{a / b:.2f}x" if b else "-"

    def count(value: float) -> str:
        return f"{value:,.0f}"

    return [
        row("requests", one.requests, two.requests, count),
        row("I/Os", len(one.ios), len(two.ios), count),
        row("duplicates", one.duplicates, two.duplicates, count),
        row("bytes asked", one.bytes_asked, two.bytes_asked, human),
        row("bytes moved", one.bytes_moved, two.bytes_moved, human),
        row("head travel", one.head_travel, two.head_travel, human),
        row("wall time", one.seconds, two.seconds, lambda s: f"{s:.3f} s"),
    ]


def _notes(result: Result) -> list[str]:
    options, one = result.options, result.one_by_one
    trace = f"{result.trace.name} ({result.trace.format}), {one.syncs} syncs"
    how = "O_DIRECT" if options.direct else "buffered"
    cold = "both runs began cold" if result.cold else "in memory: never cold"
    rules = f"window {options.window}, {options.order}, gap {options.gap}"
    rules += f", max-io {options.max_io}, depth {options.depth}"
    file = f"{human(result.data_bytes)} of data in {human(result.file_bytes)}"
    same = "the same bytes were read, and the files are the same"
    return [
        f"trace: {trace}",
        f"check: {same if result.agree else 'THE TWO RUNS DISAGREE'}",
        f"backend: {result.backend} ({result.backend_reason})",
        f"file: {result.filesystem}, {how}, {cold}; {file}",
        f"coalesced: {rules}",
    ]


def _print_table(result: Result) -> None:
    heads = ("", "one by one", "coalesced", "ratio")
    rows = _rows(result.one_by_one, result.coalesced)
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(4)]
        for row in (heads, *rows):
            cells = [row[0].ljust(widths[0])]
            cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            print("  ".join(cells).rstrip())
        print(*_notes(result), sep="\n")
        return
    table = Table()
    for head in heads:
        table.add_column(head, justify="right" if head else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    # Digits that are cut off make another number.
    room = console.options.update(width=1000)
    console.width = max(console.width, console.measure(table, options=room).maximum)
    with console.capture() as text:  # to be printed here: rich has its own mind on broken pipes
        console.print(table)
        for note in _notes(result):
            console.print(note)
    print(text.get(), end="")


def _as_json(result: Result) -> dict[str, Any]:
    def figures(run: Run) -> dict[str, Any]:
        return {
            "requests": run.requests,
            "syncs": run.syncs,
            "ios": len(run.ios),
            "duplicates": run.duplicates,
            "bytes_asked": run.bytes_asked,
            "bytes_moved": run.bytes_moved,
            "head_travel_bytes": run.head_travel,
            "wall_s": run.seconds,
            "read_hash": run.read_hash,
            "file_hash": run.file_hash,
        }

    one, two = figures(result.one_by_one), figures(result.coalesced)
    ratio = {
        key: one[key] / two[key] if two[key] else None
        for key in one
        if key not in ("read_hash", "file_hash")
    }
    return {
        "trace": os.fsdecode(result.trace.name),
        "format": result.trace.format,
        "options": {name: getattr(result.options, name) for name in Options.__dataclass_fields__},
        "backend": result.backend,
        "backend_reason": result.backend_reason,
        "filesystem": result.filesystem,
        "cold": result.cold,
        "alignment": list(result.alignment),
        "file_bytes": result.file_bytes,
        "data_bytes": result.data_bytes,
        "one_by_one": one,
        "coalesced": two,
        "ratio": ratio,
        "agree": result.agree,
    }


# ---------------------------------------------------------------------------------------- progress


class _NoProgress:
    def __call__(self, stage: str, done: int, total: int, unit: str) -> None:
        pass

    def close(self) -> None:
        pass


class _LineProgress(_NoProgress):
    """One line on stderr, for a stage that will take longer than a second; gone when it is done."""

    def __init__(self) -> None:
        self.stage = ""
        self.began = self.drawn = 0.0
        self.shown = False

    def __call__(self, stage: str, done: int, total: int, unit: str) -> None:
        now = monotonic()
        if stage != self.stage:
            self.close()
            self.stage, self.began = stage, now
        if done >= total:
            self.close()
            self.stage = ""
            return
        if not self.shown:
            spent = now - self.began
            if spent < SHOW_AFTER_S or spent * total < WORTH_S * max(done, 1):
                return
        elif now - self.drawn < REDRAW_S:
            return
        self.shown, self.drawn = True, now
        self.draw(done, total, unit)

    def draw(self, done: int, total: int, unit: str) -> None:
        part = f"{human(done)} of {human(total)}"
        if unit != "B":
            part = f"{done:,} of {total:,} {unit}"
        sys.stderr.write(f"\r\x1b[K{self.stage}: {100 * done // total:3d} %  {part}")
        sys.stderr.flush()

    def close(self) -> None:
        if self.shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self.shown = False


class _RichProgress(_LineProgress):
    """The same with rich's bar, drawn only when told: no thread runs beside a timed run."""

    def draw(self, done: int, total: int, unit: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn

        if self._bar is None:
            columns = ("{task.description}", BarColumn(), TaskProgressColumn())
            self._bar = Progress(
                *columns,
                TimeRemainingColumn(),
                console=Console(stderr=True),
                auto_refresh=False,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.stage, total=total)
        self._bar.update(self._task, completed=done, total=total)
        self._bar.refresh()

    _bar: Any = None

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        self.shown = False


def make_progress() -> _NoProgress:
    """A line on stderr, or nothing if that is no terminal. To be closed."""
    if not sys.stderr.isatty():
        return _NoProgress()
    try:
        import rich  # noqa: F401
    except ImportError:
        return _LineProgress()
    return _RichProgress()
