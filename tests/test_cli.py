"""The console script: what it prints, its exit codes, and what it leaves behind (nothing)."""

from __future__ import annotations

import builtins
import errno
import gzip
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

from iolift import _replay_data, cli
from iolift._replay_data import human
from iolift._replay_sides import Coalesced
from iolift.cli import main

HEADER = "time_us,op,offset,length\n"
TRACE = HEADER + "0,R,0,4096\n1,W,4096,512\n2,R,4096,512\n3,R,4096,512\n4,S,0,0\n5,R,8192,100\n"


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "trace.csv"
    path.write_text(TRACE)
    return str(path)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where temporary files go; a test may look whether it is empty."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Make packages look as if they weren't installed."""
    true_import = builtins.__import__

    def fake(name: str, *rest: Any) -> Any:
        if name.split(".")[0] in names:
            raise ImportError(f"no {name}", name=name)
        return true_import(name, *rest)

    monkeypatch.setattr(builtins, "__import__", fake)


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr; nothing is on stdout."""
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("iolift: error: ")
    assert said.err.count("\n") == 1
    return said.err


FIGURES = (
    "requests",
    "I/Os",
    "duplicates",
    "bytes asked",
    "bytes moved",
    "head travel",
    "wall time",
)


@pytest.mark.parametrize("rich", [False, True])
def test_table(
    rich: bool,
    trace: str,
    temporary: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if rich:
        pytest.importorskip("rich")
    else:
        without(monkeypatch, "rich")
    assert main(["replay", trace]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert ("│" in said.out) == rich
    lines = [line.replace("│", " ").split() for line in said.out.splitlines()]
    for figure in FIGURES:
        assert any(line[: len(figure.split())] == figure.split() for line in lines), figure
    assert ["requests", "5", "5", "1.00x"] in lines
    assert ["I/Os", "5", "3", "1.67x"] in lines
    assert ["duplicates", "1", "0", "-"] in lines
    assert "check: the same bytes were read, and the files are the same" in said.out
    assert f"trace: {trace} (csv), 1 syncs" in said.out
    assert "backend: " in said.out
    assert "window 1024, elevator" in said.out
    assert list(temporary.iterdir()) == []


def test_json(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", "--json", "--window", "2K", "--gap=0", "--no-compact", trace]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.count("\n") == 1
    found = json.loads(said.out)
    assert found["agree"] is True
    assert found["trace"] == trace
    assert found["format"] == "csv"
    options = found["options"]
    assert (options["window"], options["gap"], options["compact"]) == (2048, 0, False)
    for run in ("one_by_one", "coalesced"):
        assert found[run]["requests"] == 5
        assert found[run]["wall_s"] > 0
    assert found["one_by_one"]["read_hash"] == found["coalesced"]["read_hash"]
    assert found["one_by_one"]["bytes_moved"] == 4096 + 3 * 512 + 100
    assert found["ratio"]["ios"] == pytest.approx(5 / 3)
    assert found["ratio"]["duplicates"] is None


def test_the_bundled_trace(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["format"] == "fio-v3"
    assert found["trace"].endswith(cli.BUNDLED)
    assert 10_000 <= found["one_by_one"]["requests"] <= 40_000
    assert found["ratio"]["ios"] > 4
    assert found["ratio"]["head_travel_bytes"] > 30
    assert found["agree"]


def test_the_bundled_trace_is_small() -> None:
    path = Path(cli.__file__).parent / "data" / cli.BUNDLED
    assert path.stat().st_size <= 300_000


def test_plot(trace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "out.png"
    assert main(["replay", trace, "--plot", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    assert f"plot: {out}" in capsys.readouterr().out


def test_plot_without_matplotlib(
    trace: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "iolift.plot", raising=False)
    monkeypatch.delattr("iolift.plot", raising=False)
    without(monkeypatch, "matplotlib")
    assert main(["replay", trace, "--plot", str(tmp_path / "x.png")]) == 2
    assert "pip install 'iolift[plot]'" in error_of(capsys)


@pytest.mark.parametrize("out", ["nowhere/x.png", ".", "x.gpx", "x"])
def test_plot_into_nowhere(
    out: str, trace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    assert main(["replay", trace, "--plot", str(tmp_path / out)]) == 2
    assert "--plot" in error_of(capsys)


def test_two_runs_that_disagree(
    trace: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coalesced side that swaps two bytes of what it has read: exit code 1."""
    true_go = Coalesced.go

    def broken(side: Coalesced) -> None:
        true_go(side)
        first = next(iter(side.reads()), None)
        if first is not None:
            first[0], first[1] = first[1], first[0]

    monkeypatch.setattr(Coalesced, "go", broken)
    assert main(["replay", trace]) == 1
    said = capsys.readouterr()
    assert "THE TWO RUNS DISAGREE" in said.out
    assert said.err == "iolift: error: the two runs disagree: what was read differ\n"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "COMMAND"),
        (["polish"], "polish"),
        (["replay", "--gap", "-1"], "--gap"),
        (["replay", "--gap", "1.5"], "not a whole number: '1.5'"),
        (["replay", "--order", "random"], "--order"),
        (["replay", "--backend", "dma"], "--backend"),
        (["replay", "--window", "0"], "--window must be"),
        (["replay", "one", "two"], "two"),
        (["replay", "/nonexistent/trace"], "/nonexistent/trace: No such file"),
        (["replay", "/"], "/: Is a directory"),
    ],
)
def test_bad_usage(
    arguments: list[str], why: str, capsys: pytest.CaptureFixture[str], temporary: Path
) -> None:
    assert main(arguments) == 2
    assert why in error_of(capsys)
    assert list(temporary.iterdir()) == []


def test_a_damaged_trace(trace: str, temporary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open(trace, "a") as file:
        file.write("6,R,x,1\n")
    assert main(["replay", trace]) == 2
    wanted = f"iolift: error: {trace}: line 8: offset is not a whole number: 'x'\n"
    assert error_of(capsys) == wanted
    Path(trace).write_bytes(gzip.compress(TRACE.encode())[:-9])
    assert main(["replay", trace]) == 2
    assert "the gzip data ends early" in error_of(capsys)
    assert list(temporary.iterdir()) == []


def test_a_given_file_that_exists(
    trace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine"
    path.write_bytes(bytes(range(256)) * 64)
    assert main(["replay", trace, "--file", str(path)]) == 2
    assert "--overwrite" in error_of(capsys)
    assert path.read_bytes() == bytes(range(256)) * 64
    assert main(["replay", trace, "--file", str(path), "--overwrite"]) == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_given_file_without_permission(
    trace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert main(["replay", trace, "--file", str(tmp_path / "locked" / "x")]) == 2
    assert "Permission denied" in error_of(capsys)


def interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


def terminate(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def hang_up(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGHUP)


def fill_up(*_: Any) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def run_out_of_memory(*_: Any) -> NoReturn:
    raise MemoryError


@pytest.mark.parametrize(
    ("what", "code", "why"),
    [
        (interrupt, 130, "interrupted"),
        (terminate, 143, "terminated"),
        (hang_up, 143, "terminated"),
        (fill_up, 2, "No space left on device"),
        (run_out_of_memory, 2, "out of memory"),
    ],
)
@pytest.mark.parametrize("where", ["prepare", "run"])
def test_the_temporary_file_is_gone(
    where: str,
    what: Any,
    code: int,
    why: str,
    trace: str,
    temporary: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    seen = []

    def act(*arguments: Any) -> None:
        seen.extend(temporary.iterdir())
        what(*arguments)

    if where == "prepare":
        monkeypatch.setattr(_replay_data, "write_all", act)
    else:
        monkeypatch.setattr(Coalesced, "go", act)
    assert main(["replay", trace]) == code
    assert why in error_of(capsys)
    assert seen
    assert list(temporary.iterdir()) == []
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before


def test_no_digit_is_cut_off(
    trace: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    assert main(["replay", trace]) == 0
    assert "\N{HORIZONTAL ELLIPSIS}" not in capsys.readouterr().out


def test_names_that_the_terminal_can_not_write(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "iolift", "replay", str(tmp_path / "\u65e5")]
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 2
    assert b"\\u65e5" in done.stderr
    assert b"Traceback" not in done.stderr


def test_as_a_module(trace: str) -> None:
    command = [sys.executable, "-m", "iolift", "replay", "--json", trace]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["agree"]


def test_a_reader_of_stdout_that_leaves(trace: str) -> None:
    command = [sys.executable, "-m", "iolift", "replay", trace]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("rich", [False, True])
def test_progress_is_for_stages_that_take_long(rich: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if rich:
        pytest.importorskip("rich")
    else:
        without(monkeypatch, "rich")
    now = 100.0
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(cli, "monotonic", lambda: now)
    progress = cli.make_progress()
    progress("short", 0, 100, "B")
    now += 0.3
    progress("short", 90, 100, "B")
    progress("short", 100, 100, "B")
    assert screen.getvalue() == ""
    progress("long", 0, 1000, "requests")
    now += 0.3
    progress("long", 10, 1000, "requests")
    drawn = screen.getvalue()
    assert "long" in drawn
    progress("long", 11, 1000, "requests")  # too soon to draw again
    assert screen.getvalue() == drawn
    now += 0.3
    progress("long", 300, 1000, "requests")
    assert "30" in screen.getvalue()
    progress("long", 1000, 1000, "requests")
    progress("more", 0, 2048, "B")
    now += 2
    progress("more", 1024, 2048, "B")
    assert "more" in screen.getvalue()
    progress.close()


def test_no_progress_unless_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    progress = cli.make_progress()
    progress("stage", 0, 10**12, "B")
    progress.close()
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.50 KiB"),
        (3 << 40, "3.00 TiB"),
        (1 << 53, "8.00 PiB"),
    ],
)
def test_human(size: int, text: str) -> None:
    assert human(size) == text
