"""Goal: a recording is kept, saved, merged, explained, replayed and exported without a changed bit,
and a program's recordings are saved when it ends, whoever forks meanwhile."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import re
import signal
import stat
import subprocess
import sys
import textwrap
from collections import defaultdict
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import child
import numpy as np
import pytest
import synthetic

import iolift
from iolift import _chrome, _recording_cli, recording
from iolift.cli import main
from iolift.recording import IO, REASONS, REQUEST, Recording, RecordingError, merge, replacing
from iolift.traces import MIB, read_trace

HERE = str(Path(__file__).parent)


def same(one: Recording, two: Recording) -> bool:
    """Bit by bit."""
    for field in fields(Recording):
        a, b = getattr(one, field.name), getattr(two, field.name)
        if isinstance(a, np.ndarray):
            if a.dtype != b.dtype or a.tobytes() != b.tobytes():
                return False
        elif a != b or type(a) is not type(b):
            return False
    return True


def recording_of(requests: Any = (), ios: Any = (), files: tuple[str, ...] = ("f",)) -> Recording:
    """From rows as dicts; what is left out is 0."""

    def rows(dtype: Any, given: Any) -> Any:
        array = np.zeros(len(given), dtype)
        for row, wanted in zip(array, given, strict=True):
            for name, value in wanted.items():
                row[name] = value
        return array

    return Recording(rows(REQUEST, requests), rows(IO, ios), files, 0, 0, "posix", 1, 1, 1.0)


# ------------------------------------------------------------------------------ what it is made of


@pytest.mark.parametrize("dtype", [REQUEST, IO])
def test_rows_are_c_structs(dtype: Any) -> None:
    aligned = np.dtype([(name, dtype[name]) for name in dtype.names], align=True)
    assert aligned.itemsize == dtype.itemsize
    assert [aligned.fields[n][1] for n in dtype.names] == [dtype.fields[n][1] for n in dtype.names]


BAD_ROWS = {
    "kind": ({"kind": 3}, "kind = 3"),
    "source": ({"source": 3}, "source = 3"),
    "state": ({"state": 3}, "state = 3"),
    "reason": ({"reason": 10}, "reason = 10"),
    "file": ({"file": 1}, "file = 1"),
    "no file": ({"file": -2}, "file = -2"),
    "offset": ({"offset": -1}, "offset = -1"),
    "length": ({"length": -1}, "length = -1"),
    "end": ({"offset": 2**63 - 1, "length": 1}, "length = 1"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_rows_that_cannot_be_are_refused(case: str) -> None:
    row, why = BAD_ROWS[case]
    with pytest.raises(ValueError, match=rf"requests\[1\]: {why}"):
        recording_of([{}, row, {}])


def test_arrays_of_another_kind_are_refused() -> None:
    good = synthetic.make(3)
    for wrong in (good.ios, good.requests.tolist(), good.requests.reshape(1, 3), None):
        with pytest.raises(TypeError, match="requests must be"):
            replace(good, requests=wrong)
    with pytest.raises(TypeError, match="ios must be"):
        replace(good, ios=good.requests)


def test_it_cannot_be_written_to() -> None:
    mine = np.zeros(2, REQUEST)
    made = replace(synthetic.make(3), requests=mine)
    with pytest.raises(ValueError, match="read-only"):
        made.requests["offset"] = 1
    mine["offset"] = 1  # whose array it was may go on
    assert "2 requests" in repr(made)


# -------------------------------------------------------------------------------- saved and loaded

NAMES = (
    "data.bin",
    "",
    "mit Umlaut: \u00e4",
    "emoji \U0001f4be",
    os.fsdecode(b"not text \xff\x80"),
)


@pytest.mark.parametrize("n", [0, 1, 700])
def test_what_was_saved_comes_back(n: int, tmp_path: Path) -> None:
    made = synthetic.make(n, n, files=NAMES, strange=0.3, lost_requests=2**40, lost_ios=7)
    made.save(tmp_path / "t")
    assert same(Recording.load(tmp_path / "t"), made)
    assert os.listdir(tmp_path) == ["t"]


def test_numpy_reads_it(tmp_path: Path) -> None:
    made = synthetic.make(50)
    made.save(tmp_path / "t")
    with np.load(tmp_path / "t", allow_pickle=False) as archive:
        assert archive["requests"].tobytes() == made.requests.tobytes()
        about = json.loads(archive["about"].tobytes())
    assert about["format"] == "iolift recording"
    assert about["files"] == ["data.bin"]


def test_a_failed_save_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t"
    synthetic.make(5, 1).save(path)
    before = path.read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(OSError, match="No space left"):
        synthetic.make(5, 2).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["t"]


def test_a_save_that_cannot_begin_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "t"
    with pytest.raises(FileNotFoundError) as caught:
        synthetic.make(5).save(path)
    assert caught.value.filename == str(path)


def test_damage_is_found(tmp_path: Path) -> None:
    """Every place of the file: what loads nevertheless is the same."""
    made = synthetic.make(40, 3, files=NAMES)
    path = tmp_path / "t"
    made.save(path)
    whole = path.read_bytes()
    rng, refused = random.Random(1), 0
    cuts = [whole[:n] for n in (0, 1, 4, len(whole) // 2, len(whole) - 1)]
    flips = [
        whole[:i] + bytes([whole[i] ^ (1 << rng.randrange(8))]) + whole[i + 1 :]
        for i in range(0, len(whole), 2)
    ]
    for data in cuts + flips:
        path.write_bytes(data)
        try:
            loaded = Recording.load(path)
        except RecordingError:
            refused += 1
        else:
            assert same(loaded, made)
    assert refused > len(flips) * 0.75  # the rest is in what zip files say of dates and systems


def archive(**members: Any) -> bytes:
    out = io.BytesIO()
    np.savez(out, **members)
    return out.getvalue()


def about(**changed: Any) -> Any:
    facts: dict[str, Any] = {"format": "iolift recording", "version": 1, "files": ["f"]}
    facts |= {"lost_requests": 0, "lost_ios": 0, "backend": "b", "pid": 1, "began_ns": 1}
    facts |= {"began_at": 1.0} | changed
    return np.frombuffer(json.dumps(facts).encode(), np.uint8)


class Bomb:
    """What runs when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.abort, ()


ROWS = {"requests": np.zeros(1, REQUEST), "ios": np.zeros(1, IO)}
FOREIGN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is no recording"),
    "text": (b"time_us,op,offset,length\n", "is no recording"),
    "another archive": (archive(a=np.zeros(3)), "is no recording"),
    "pickles": (archive(about=np.array([Bomb()]), **ROWS), "damaged"),
    "pickled rows": (
        archive(about=about(), requests=np.array([Bomb()]), ios=ROWS["ios"]),
        "layout",
    ),
    "another format": (archive(about=about(format="x"), **ROWS), "is no recording of iolift"),
    "a later version": (archive(about=about(version=2), **ROWS), "of version 2, and 1 is known"),
    "rows missing": (archive(about=about(), ios=ROWS["ios"]), "requests"),
    "other rows": (archive(about=about(), requests=np.zeros(1), ios=ROWS["ios"]), "layout"),
    "two axes": (
        archive(about=about(), requests=np.zeros((1, 1), REQUEST), ios=ROWS["ios"]),
        "(1, 1)",
    ),
    "no such file": (archive(about=about(files=[]), **ROWS), r"requests[0]: file = 0"),
    "names": (archive(about=about(files=[3]), **ROWS), "names of files"),
    "facts": (archive(about=about(pid="x"), **ROWS), "pid is 'x'"),
    "a time": (archive(about=about(began_at="x"), **ROWS), "began_at"),
    "a fact more": (archive(about=about(more=1), **ROWS), "more"),
    "no object": (archive(about=np.frombuffer(b"[1]", np.uint8), **ROWS), "damaged"),
    "no JSON": (archive(about=np.frombuffer(b"{\xff", np.uint8), **ROWS), "damaged"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_files_are_refused(case: str, tmp_path: Path) -> None:
    data, why = FOREIGN[case]
    (tmp_path / "t").write_bytes(data)
    with pytest.raises(RecordingError) as caught:
        Recording.load(tmp_path / "t")
    assert why in str(caught.value)
    assert caught.value.name == str(tmp_path / "t")


def test_rows_of_an_accepted_archive_are_those_of_numpy(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(archive(about=about(), **ROWS))
    assert len(Recording.load(tmp_path / "t").requests) == 1


# ------------------------------------------------------------------------------------------- merge


def test_merge_is_all_of_them() -> None:
    """Against the rows as dicts, sorted by hand."""
    parts = [
        synthetic.make(60, 1, files=("a", "b"), strange=0.2, pid=1),
        synthetic.make(40, 2, files=("b", "c"), strange=0.2, pid=2, backend="posix", lost_ios=3),
        synthetic.make(0, 3, files=("d",), pid=3, lost_requests=5, began_ns=7, began_at=1.5),
    ]

    def known(recording: Recording, rows: Any, when: str) -> list[tuple[Any, ...]]:
        out = []
        for row in rows:
            named = dict(zip(row.dtype.names, row.item(), strict=True))
            file = named.pop("file")
            name = recording.files[file] if file >= 0 else None
            named.pop("batch")
            out.append((named[when], name, *named.values()))
        return out

    whole = merge(parts)
    for what, when in (("requests", "ended_ns"), ("ios", "done_ns")):
        wanted = [row for part in parts for row in known(part, getattr(part, what), when)]
        wanted.sort(key=lambda row: row[0])
        assert known(whole, getattr(whole, what), when) == wanted
    assert whole.files == ("a", "b", "c", "d")
    assert (whole.lost_requests, whole.lost_ios) == (5, 3)
    assert (whole.backend, whole.pid) == ("posix, uring", 0)
    assert (whole.began_ns, whole.began_at) == (7, 1.5)


def test_batches_of_several_stay_apart() -> None:
    one, two = synthetic.make(50, 1), synthetic.make(50, 2)
    whole = merge([one, two])
    rows = [*one.requests["batch"].tolist(), *(b + 10**6 for b in two.requests["batch"].tolist())]
    assert len(set(whole.requests["batch"].tolist())) == len(set(rows))
    for batch in set(whole.requests["batch"].tolist()):
        mine = whole.requests[whole.requests["batch"] == batch]
        ios = whole.ios[whole.ios["batch"] == batch]
        assert len(set(mine["dispatched_ns"].tolist())) == 1
        assert ios["submitted_ns"].min() >= mine["dispatched_ns"][0]


def test_no_batch_stays_none() -> None:
    one = recording_of([{"batch": 4}, {"batch": 0}], [{"batch": 4}])
    assert sorted(merge([one, one]).requests["batch"].tolist()) == [0, 0, 4, 8]


def test_nothing_to_merge() -> None:
    with pytest.raises(ValueError, match="recordings is empty"):
        merge([])


def test_one_process_stays_one() -> None:
    assert merge([synthetic.make(5, 1), synthetic.make(5, 2)]).pid == os.getpid()


# ----------------------------------------------------------------------------------------- explain

SERVED = {"submitted_ns": 1000, "dispatched_ns": 6000, "started_ns": 8000, "ended_ns": 18000}
BATCH = {"batch": 3, "reason": 2, "extent_offset": 0, "extent_length": 100, "companions": 1}
SENTENCES = {
    "read": (
        {"offset": 10, "length": 20, **SERVED, **BATCH},
        "read of 20 bytes at 10: done in batch 3 (2 requests, held 5.0 us until time, "
        "queued 2.0 us, served 10.0 us), by an I/O of 100 bytes at 0 with 1 others, "
        "20 bytes of waste are its share",
    ),
    "failed": (
        {"offset": 10, "length": 20, **SERVED, **BATCH, "state": 1, "errno": 5},
        "read of 20 bytes at 10: failed in batch 3 (2 requests, held 5.0 us until time, "
        "queued 2.0 us, served 10.0 us), by an I/O of 100 bytes at 0 with 1 others, "
        "20 bytes of waste are its share",
    ),
    "overlay": (
        {"offset": 1, "length": 2, "source": 1, "submitted_ns": 5, "ended_ns": 5},
        "read of 2 bytes at 1: done, answered by writes not yet in the file, without I/O",
    ),
    "joined": (
        {"length": 2, **SERVED, **BATCH, "submitted_ns": 7000, "source": 2, "extent_length": 0},
        "read of 2 bytes at 0: done in batch 3 (2 requests, held 0.0 us until time, "
        "queued 1.0 us, served 10.0 us), joined to a read that was already under way",
    ),
    "superseded": (
        {"kind": 1, "length": 2, **SERVED, **BATCH, "extent_length": 0},
        "write of 2 bytes at 0: done in batch 3 (2 requests, held 5.0 us until time, "
        "queued 2.0 us, served 10.0 us), every byte superseded by younger writes",
    ),
    "cancelled": (
        {"kind": 1, "length": 2, "state": 2, "submitted_ns": 5, "ended_ns": 9},
        "write of 2 bytes at 0: cancelled",
    ),
    "sync": (
        {"kind": 2, **SERVED, **BATCH, "extent_length": 0, "reason": 9},
        "sync: done in batch 3 (2 requests, held 5.0 us until call, queued 2.0 us, served 10.0 us)",
    ),
}


@pytest.mark.parametrize("case", SENTENCES)
def test_explain(case: str) -> None:
    row, sentence = SENTENCES[case]
    mate = {"offset": 70, "length": 20, **SERVED, **BATCH}
    io_row = {"kind": 0, "length": 100, "asked": 60, "batch": 3}
    made = recording_of([row, mate], [io_row, {"length": 9, "batch": 4}])
    assert str(made.explain(0)) == sentence
    assert made.explain(-2) == made.explain(0)
    with pytest.raises(IndexError):
        made.explain(2)


# ----------------------------------------------------------------------------------------- replays


def test_replay_reads_requests_in_the_order_of_their_submit(tmp_path: Path) -> None:
    made = synthetic.make(300, 5, strange=0.2)
    made.save(tmp_path / "t")
    trace = read_trace(tmp_path / "t")
    rows = [row for row in made.requests if row["state"] != 2]
    rows = [row for row in rows if row["file"] == 0]
    rows.sort(key=lambda row: int(row["submitted_ns"]))
    zero = int(min(made.requests["submitted_ns"][made.requests["state"] != 2]))
    known = trace.offset < 1 << 40
    assert trace.format == "recording"
    wanted = [
        ((int(r["submitted_ns"]) - zero) // 1000, int(r["kind"]), int(r["length"])) for r in rows
    ]
    mine = made.requests[made.requests["state"] != 2]
    order = np.argsort(mine["submitted_ns"], kind="stable")
    of_file = mine["file"][order] == 0
    got = zip(trace.time_us, trace.kind, trace.length, strict=True)
    assert [tuple(map(int, row)) for row, of in zip(got, of_file, strict=True) if of] == wanted
    assert known.all()


def test_replay_lays_files_one_behind_another(tmp_path: Path) -> None:
    made = recording_of(
        [
            {"submitted_ns": 3000, "file": 2, "offset": 5, "length": 10},
            {"submitted_ns": 1000, "file": 0, "offset": 0, "length": MIB},
            {"submitted_ns": 2000, "file": 0, "kind": 2, "offset": 77, "length": 7},
            {"submitted_ns": 2500, "file": 1, "state": 2, "length": 9},
        ],
        files=("a", "only cancelled", "b"),
    )
    made.save(tmp_path / "t")
    trace = read_trace(tmp_path / "t")
    columns = (trace.time_us, trace.kind, trace.offset, trace.length)
    rows = list(zip(*(column.tolist() for column in columns), strict=True))
    assert rows == [(0, 0, 0, MIB), (1, 2, 0, 0), (2, 0, 3 * MIB + 5, 10)]


def test_replay_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = synthetic.make(60, 5)
    made.save(tmp_path / "t")
    assert main(["replay", str(tmp_path / "t"), "--json", "--backend", "posix"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["format"] == "recording"
    assert told["one_by_one"]["requests"] == int((made.requests["kind"] != 2).sum())


UNREPLAYABLE = {
    "nothing": (recording_of(), "no requests"),
    "only syncs": (recording_of([{"kind": 2}]), "no reads and no writes"),
    "only cancelled": (recording_of([{"state": 2, "length": 1}]), "no requests"),
}


@pytest.mark.parametrize("case", UNREPLAYABLE)
def test_replay_refuses(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, why = UNREPLAYABLE[case]
    made.save(tmp_path / "t")
    assert main(["replay", str(tmp_path / "t")]) == 2
    assert capsys.readouterr().err == f"iolift: error: {tmp_path / 't'}: the trace has {why}\n"


def test_replay_refuses_a_damaged_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthetic.make(50).save(tmp_path / "t")
    whole = (tmp_path / "t").read_bytes()
    (tmp_path / "t").write_bytes(whole[: len(whole) // 2])
    assert main(["replay", str(tmp_path / "t")]) == 2
    assert "damaged" in capsys.readouterr().err


def test_replay_refuses_a_pipe(tmp_path: Path) -> None:
    synthetic.make(50).save(tmp_path / "t")
    told = subprocess.run(
        [sys.executable, "-m", "iolift", "replay", "/dev/stdin"],
        input=(tmp_path / "t").read_bytes(),
        env=child.environment(),
        capture_output=True,
        check=False,
        timeout=child.HANG_S,
    )
    assert told.returncode == 2
    assert b"/dev/stdin: is a pipe" in told.stderr


def test_replay_refuses_a_zipped_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthetic.make(50).save(tmp_path / "t")
    (tmp_path / "z").write_bytes(gzip.compress((tmp_path / "t").read_bytes()))
    assert main(["replay", str(tmp_path / "z")]) == 2
    assert f"{tmp_path / 'z'}: line 1: not text" in capsys.readouterr().err


# -------------------------------------------------------------------------------------- for Chrome


def chrome(made: Recording) -> dict[str, Any]:
    out = io.StringIO()
    made.to_chrome(out)
    parsed: dict[str, Any] = json.loads(out.getvalue())
    return parsed


def ns(us: float) -> int:
    """What the number stands for, exactly."""
    value = round(us * 1000)
    assert value / 1000 == us
    return value


def check_events(parsed: dict[str, Any]) -> None:
    """The rules of the format, and that slices of a thread hold each other or lie apart."""
    slices: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    named: set[tuple[int, int]] = set()
    counter = -1
    for event in parsed["traceEvents"]:
        assert event["ph"] in "XMC"
        assert type(event["pid"]) is int
        assert type(event["tid"]) is int
        assert type(event["name"]) is str
        assert type(event["args"]) is dict
        if event["ph"] == "X":
            begin, duration = ns(event["ts"]), ns(event["dur"])
            assert begin >= 0
            assert duration >= 0
            slices[event["pid"], event["tid"]].append((begin, begin + duration))
        elif event["ph"] == "C":
            assert ns(event["ts"]) > counter
            counter = ns(event["ts"])
            assert all(value >= 0 for value in event["args"].values())
        elif event["name"] == "thread_name":
            named.add((event["pid"], event["tid"]))
    assert named == set(slices)
    for of_thread in slices.values():
        open_until: list[int] = []
        for begin, end in sorted(of_thread, key=lambda slice: (slice[0], -slice[1])):
            while open_until and open_until[-1] <= begin:
                open_until.pop()
            assert not open_until or end <= open_until[-1], "slices overlap in part"
            open_until.append(end)


@pytest.mark.parametrize("n", [0, 1, 2, 2000])
def test_chrome_keeps_the_rules(n: int) -> None:
    made = synthetic.make(n, n, files=NAMES, strange=0.3)
    parsed = chrome(made)
    check_events(parsed)
    events = parsed["traceEvents"]
    slices = [event for event in events if event["ph"] == "X"]
    other = parsed["otherData"]
    there = {name: sum(e["cat"] == name for e in slices) for name in ("request", "io")}
    assert there["request"] == n - other["left_out_requests"]
    assert there["io"] == len(made.ios) - other["left_out_ios"]
    counter = [event["args"]["I/Os"] for event in events if event["ph"] == "C"]
    assert not counter or counter[-1] == 0
    assert all(event["dur"] > 0 for event in slices if event["cat"] == "phase")


def test_chrome_shows_held_queued_served() -> None:
    made = recording_of([{"offset": 10, "length": 20, **SERVED, **BATCH}])
    slices = [e for e in chrome(made)["traceEvents"] if e["ph"] == "X"]
    spans = {e["name"]: (e["ts"], e["dur"]) for e in slices}
    assert spans == {
        "read": (0.0, 17.0),
        "held": (0.0, 5.0),
        "queued": (5.0, 2.0),
        "served": (7.0, 10.0),
    }
    assert slices[0]["args"] == {
        "offset": 10,
        "length": 20,
        "state": "done",
        "source": "device",
        "batch": 3,
        "hold_ended_by": "time",
        "extent_offset": 0,
        "extent_length": 100,
        "companions": 1,
    }


def test_chrome_names_files_and_errors() -> None:
    made = recording_of(
        [{"state": 1, "errno": 28, **SERVED}, {"file": -1, **SERVED}],
        [{"result": -28, "file": 0, "submitted_ns": 5, "done_ns": 6}],
        files=('quo"te\udcff\n',),
    )
    events = chrome(made)["traceEvents"]
    processes = [e["args"]["name"] for e in events if e["name"] == "process_name"]
    assert processes == ["I/Os", "requests: unknown file", 'requests: quo"te\\udcff\\n']
    assert [e["args"]["error"] for e in events if "error" in e["args"]] == [os.strerror(28)]
    (io_event,) = (e for e in events if e.get("cat") == "io")
    assert io_event["args"]["result"] == -28
    assert io_event["args"]["file"] == 'quo"te\\udcff\\n'


def test_chrome_leaves_out_what_is_too_much_at_once() -> None:
    count = _chrome.MAX_LANES + 7
    row = {"submitted_ns": 1, "ended_ns": 9}
    made = recording_of([row] * count, [{"submitted_ns": 1, "done_ns": 9}] * count)
    parsed = chrome(made)
    check_events(parsed)
    assert parsed["otherData"]["left_out_requests"] == parsed["otherData"]["left_out_ios"] == 7
    counters = [e["args"]["I/Os"] for e in parsed["traceEvents"] if e["ph"] == "C"]
    assert counters == [count, 0]  # but they are counted


def test_chrome_is_a_file_or_nothing(tmp_path: Path) -> None:
    made = synthetic.make(20)
    made.to_chrome(tmp_path / "out.json")
    made.to_chrome(str(tmp_path / "same.json"))
    texts = {path.read_text() for path in tmp_path.iterdir()}
    assert len(texts) == 1
    assert json.loads(texts.pop())["traceEvents"]
    with pytest.raises(FileNotFoundError):
        made.to_chrome(tmp_path / "nowhere" / "out.json")


# ----------------------------------------------------- recorded because the environment asks for it

FAKE = """
    import os, sys, gc
    import synthetic
    from iolift import recording

    class Fake:  # as much of a coalescer as is seen
        def __init__(self, n, seed, **more):
            self.made = synthetic.make(n, seed, pid=os.getpid(), **more)
            recording.attach(self)
        def recording(self):
            return self.made
        def close(self):
            recording.keep(self)
"""


def recorded(code: str, directory: Path, status: int = 0, **variables: str) -> dict[int, Recording]:
    """What the processes of the code saved, by their pid."""
    directory.mkdir(exist_ok=True)
    child.run(
        textwrap.dedent(FAKE) + textwrap.dedent(code),
        status=status,
        PYTHONPATH=HERE,
        IOLIFT_RECORD=str(directory),
        **variables,
    )
    names = os.listdir(directory)
    assert all(name.endswith(".npz") for name in names)
    saved = [Recording.load(directory / name) for name in names]
    assert len({one.pid for one in saved}) == len(saved)
    return {one.pid: one for one in saved}


def test_open_closed_and_collected_ones_are_saved_at_exit(tmp_path: Path) -> None:
    saved = recorded(
        """
        closed = Fake(10, 1)
        closed.close()
        closed.close()
        lost = Fake(20, 2)
        lost.close()                     # as a finalizer does
        del lost
        gc.collect()
        still_open = Fake(30, 3)
        """,
        tmp_path / "d",
    )
    (one,) = saved.values()
    wanted = merge([synthetic.make(n, s, pid=one.pid) for n, s in ((10, 1), (20, 2), (30, 3))])
    assert same(one, wanted)


def test_a_finalizer_in_a_cycle_is_heard(tmp_path: Path) -> None:
    """The garbage collector clears weak references before it calls finalizers."""
    saved = recorded(
        """
        class Finalized(Fake):
            def __del__(self):
                self.close()
        one = Finalized(10, 1)
        one.itself = one
        del one
        gc.collect()
        """,
        tmp_path / "d",
    )
    assert [len(one.requests) for one in saved.values()] == [10]


def test_an_exit_by_an_exception_is_an_exit(tmp_path: Path) -> None:
    saved = recorded("one = Fake(10, 1); raise KeyboardInterrupt", tmp_path / "d", status=-2)
    assert [len(one.requests) for one in saved.values()] == [10]


def test_a_forked_child_saves_its_own(tmp_path: Path) -> None:
    saved = recorded(
        """
        parents = Fake(10, 1)
        closed = Fake(5, 7)
        closed.close()
        if os.fork() == 0:
            parents.close()              # what it inherited, it may close
            mine = Fake(20, 2)
            sys.exit()
        if os.fork() == 0:
            sys.exit()                   # which made none
        os.wait(), os.wait()
        """,
        tmp_path / "d",
    )
    assert sorted(len(one.requests) for one in saved.values()) == [15, 20]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_of_multiprocessing_are_saved(method: str, tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text(
        textwrap.dedent(FAKE) + "\ndef work(n):\n    global made\n    made = Fake(n, n)\n"
    )
    saved = recorded(
        f"""
        import multiprocessing
        sys.path.insert(0, {str(tmp_path)!r})
        import work
        if __name__ == "__main__":
            mine = Fake(1, 1)
            context = multiprocessing.get_context({method!r})
            children = [context.Process(target=work.work, args=(n,)) for n in (10, 20)]
            for each in children: each.start()
            for each in children: each.join()
        """,
        tmp_path / "d",
    )
    assert sorted(len(one.requests) for one in saved.values()) == [1, 10, 20]


def test_the_oldest_go_and_are_counted(tmp_path: Path) -> None:
    saved = recorded(
        """
        for seed in range(40):
            Fake(10, seed, lost_requests=1).close()
        """,
        tmp_path / "d",
        IOLIFT_RECORD_CAPACITY="30",
    )
    (one,) = saved.values()
    parts = [synthetic.make(10, seed, pid=one.pid) for seed in range(40)]
    kept = next(k for k in range(40) if rows(parts[-k - 1 :]) >= 60) + 1
    assert len(one.requests) == 10 * kept
    assert one.lost_requests == 10 * (40 - kept) + 40
    assert one.lost_ios == sum(len(part.ios) for part in parts[:-kept])


def rows(parts: list[Recording]) -> int:
    return sum(len(part.requests) + len(part.ios) for part in parts)


def test_a_save_that_fails_is_said(tmp_path: Path) -> None:
    code = textwrap.dedent(FAKE) + "one = Fake(1, 1)\n"
    told = subprocess.run(
        [sys.executable, "-c", code],
        env=child.environment(PYTHONPATH=HERE, IOLIFT_RECORD=str(tmp_path / "nowhere")),
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    assert told.startswith("iolift: the recording was not saved: ")
    assert "No such file" in told
    assert told.count("\n") == 1


def test_capacity_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IOLIFT_RECORD", raising=False)
    monkeypatch.setenv("IOLIFT_RECORD_CAPACITY", "12")
    assert recording.capacity() == 0
    monkeypatch.setenv("IOLIFT_RECORD", "/somewhere")
    assert recording.capacity() == 12
    monkeypatch.setenv("IOLIFT_RECORD_CAPACITY", "")
    assert recording.capacity() == recording.DEFAULT_CAPACITY
    for wrong in ("0", "-1", "x", "1e3", str(2**31)):
        monkeypatch.setenv("IOLIFT_RECORD_CAPACITY", wrong)
        with pytest.raises(ValueError, match=r"\$IOLIFT_RECORD_CAPACITY must be"):
            recording.capacity()


# ---------------------------------------------------------------------------------- iolift record


def record(*arguments: str, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "iolift", "record", *arguments],
        cwd=cwd,
        env=child.environment(PYTHONPATH=HERE),
        capture_output=True,
        text=True,
        check=False,
        timeout=child.HANG_S,
        **options,
    )


@pytest.fixture
def program(tmp_path: Path) -> str:
    """A program that records as many requests as it is told to in each of two processes."""
    path = tmp_path / "program.py"
    path.write_text(
        textwrap.dedent(FAKE)
        + textwrap.dedent(
            """
            one = Fake(int(sys.argv[1]), 1)
            print("capacity", recording.capacity(), sys.stdin.read(), flush=True)
            if os.fork() == 0:
                one = Fake(int(sys.argv[1]), 2)
                sys.exit()
            os.wait()
            sys.exit(int(sys.argv[2]))
            """
        )
    )
    return str(path)


def test_record_merges_what_all_processes_did(program: str, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    told = record(
        *("-o", str(out), "--capacity", "77", "--", sys.executable, program, "12", "3"),
        cwd=tmp_path,
        input="the input",
    )
    assert told.returncode == 3
    assert told.stdout == "capacity 77 the input\n"
    made = Recording.load(out)
    assert len(made.requests) == 24
    assert told.stderr == (
        f"iolift: 24 requests and {len(made.ios)} I/Os of 2 processes are in {out}\n"
    )


def test_record_has_a_default_name(program: str, tmp_path: Path) -> None:
    told = record(sys.executable, program, "12", "0", cwd=tmp_path, input="")
    assert told.returncode == 0
    assert len(Recording.load(tmp_path / "iolift.trace.npz").requests) == 24


CODES = {
    "done": ("", 0),
    "its own": ("import sys; sys.exit(7)", 7),
    "killed": ("import os; os.kill(os.getpid(), 9)", 137),
    "terminated": ("import os; os.kill(os.getpid(), 15)", 143),
}


@pytest.mark.parametrize("case", CODES)
def test_record_ends_as_the_program_did(case: str, tmp_path: Path) -> None:
    code, status = CODES[case]
    told = record("--", sys.executable, "-c", code, cwd=tmp_path)
    assert (told.returncode, told.stdout) == (status, "")
    assert told.stderr == "iolift: nothing was recorded: no coalescer was used\n"
    assert os.listdir(tmp_path) == []


BAD_USES = {
    "no program": ((), "no PROGRAM"),
    "no program after --": (("--",), "no PROGRAM"),
    "unknown program": (("/no/such/program",), "/no/such/program: No such file"),
    "capacity": (("--capacity", "0", "--", "true"), "not a number from 1 to 2**30: '0'"),
    "no folder": (("-o", "nowhere/out", "--", "true"), "--out: can't write nowhere/out"),
    "a folder": (("-o", ".", "--", "true"), "--out: can't write ."),
}


@pytest.mark.parametrize("case", BAD_USES)
def test_record_refuses(case: str, tmp_path: Path) -> None:
    arguments, why = BAD_USES[case]
    told = record(*arguments, cwd=tmp_path)
    assert told.returncode == 2
    assert why in told.stderr
    assert told.stderr.startswith("iolift: error: ")
    assert told.stderr.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_record_passes_signals_on_and_saves(number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        textwrap.dedent(FAKE)
        + textwrap.dedent(
            """
            import signal, threading
            def stop(number, frame):
                sys.exit(40 + number)
            signal.signal(signal.SIGINT, stop)
            signal.signal(signal.SIGTERM, stop)
            one = Fake(5, 1)
            print("ready", flush=True)
            threading.Event().wait()
            """
        )
    )
    with subprocess.Popen(
        [sys.executable, "-m", "iolift", "record", "--", sys.executable, "program.py"],
        cwd=tmp_path,
        env=child.environment(PYTHONPATH=HERE),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, said = process.communicate(timeout=child.HANG_S)
    assert process.returncode == 40 + number
    assert said.startswith("iolift: 5 requests")
    assert len(Recording.load(tmp_path / "iolift.trace.npz").requests) == 5


def test_a_ctrl_c_of_the_terminal_is_the_programs(tmp_path: Path) -> None:
    """In a terminal of its own: both are in the foreground, and the terminal tells both."""
    (tmp_path / "program.py").write_text(
        textwrap.dedent(FAKE)
        + textwrap.dedent(
            """
            import signal, time
            heard = []
            signal.signal(signal.SIGINT, lambda *_: heard.append(1))
            one = Fake(5, 1)
            print("ready", flush=True)
            while not heard:
                signal.pause()
            print("bye", flush=True)
            sys.stdin.readline()
            sys.exit(len(heard))
            """
        )
    )
    pid, terminal = os.forkpty()
    if pid == 0:
        os.chdir(tmp_path)
        os.execve(
            sys.executable,
            [sys.executable, "-m", "iolift", "record", "--", sys.executable, "program.py"],
            child.environment(PYTHONPATH=HERE),
        )
    with os.fdopen(terminal, "r+b", buffering=0) as screen:
        said = b""
        while b"ready" not in said:
            said += os.read(screen.fileno(), 1000)
        screen.write(b"\x03")
        while b"bye" not in said:
            said += os.read(screen.fileno(), 1000)
        screen.write(b"go on\n")
        while b"trace.npz" not in said:
            said += os.read(screen.fileno(), 1000)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    assert len(Recording.load(tmp_path / "iolift.trace.npz").requests) == 5


@pytest.mark.parametrize("typed", [False, True])
def test_only_what_no_terminal_sent_is_passed_on(
    typed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A terminal has sent its SIGINT to the program, too: a second one could end its clean-up."""
    monkeypatch.setattr(_recording_cli, "_in_foreground", lambda: typed)
    passed: list[int] = []

    class Child:
        send_signal = passed.append

    with _recording_cli._passing_signals_on() as pass_to:
        signal.raise_signal(signal.SIGTERM)  # before there is a child: it comes later
        pass_to(Child())
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
    wanted = [signal.SIGTERM, signal.SIGINT, signal.SIGTERM]
    assert passed == (wanted[::2] if typed else wanted)


# ------------------------------------------------------------------------ with a true coalescer


def test_a_program_is_recorded_to_its_last_write(tmp_path: Path) -> None:
    """Files closed, left open, opened by a forked child; and what is only written at exit."""
    (tmp_path / "program.py").write_text(
        textwrap.dedent(
            """
            import iolift, os, sys
            with iolift.open("closed", "w+") as f:
                for k in range(30):
                    f.submit_pwrite(b"12345678", k * 8)
            if os.fork() == 0:
                with iolift.open("closed") as f:
                    assert f.pread(8, 8) == b"12345678"
                sys.exit()
            os.wait()
            f = iolift.open("open", "w", write_window_ms=1e6)
            f.pwrite(b"first", 0)
            for k in range(20):
                f.submit_pwrite(b"held", 10 + k * 4)
            """
        )
    )
    told = record("--", sys.executable, "program.py", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert "of 2 processes" in told.stderr
    made = Recording.load(tmp_path / "iolift.trace.npz")
    assert (tmp_path / "open").stat().st_size == 90
    counted = defaultdict(int)
    for row in made.requests:
        counted[os.path.basename(made.files[row["file"]]), int(row["kind"])] += 1
        assert row["state"] == 0
        assert row["submitted_ns"] <= row["ended_ns"]
    assert counted == {("closed", 1): 30, ("closed", 0): 1, ("open", 1): 21}
    wrote = made.ios[made.ios["kind"] == 1]
    assert wrote["result"].sum() == 30 * 8 + 5 + 20 * 4
    assert all(str(made.explain(i)) for i in range(len(made.requests)))


# ------------------------------------------------------------------------------ where it is written


def test_what_is_written_goes_where_a_link_points(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("older")
    target.chmod(0o600)
    link.symlink_to(target)
    with replacing(link) as file:
        file.write(b"newer")
    assert link.is_symlink()
    assert target.read_bytes() == b"newer"
    assert target.stat().st_mode & 0o777 == 0o600
    with replacing(tmp_path / ("x" * 255)) as file:
        file.write(b"a name as long as may be")
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]


def test_what_is_no_regular_file_is_written_to(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with replacing(fifo) as file:
        file.write(b"through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert stat.S_ISFIFO(fifo.stat().st_mode)


def test_report_writes_over_nothing_that_it_reads_or_has_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "t.npz"
    with iolift.open(tmp_path / "data", "w+", trace=True) as f:
        f.pwrite(b"x", 0)
        f.coalescer.recording().save(trace)
    before = trace.read_bytes()
    (tmp_path / "link").symlink_to(trace)
    out = str(tmp_path / "out")
    for arguments in (
        [str(trace), "--chrome", str(trace)],
        [str(trace), "--chrome", str(tmp_path / "link")],
        [str(trace), "--chrome", out, "--png", out],
    ):
        assert main(["report", *arguments]) == 2
        assert "is given twice" in capsys.readouterr().err
    assert trace.read_bytes() == before
    assert not os.path.exists(out)


def test_record_keeps_what_could_not_be_saved(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"x")
    code = "import iolift\nwith iolift.open('data') as f: f.pread(1, 0)"
    done = record("-o", "/proc/t.npz", "--", sys.executable, "-c", code, cwd=tmp_path)
    said = done.stderr
    if "can't write" in said:
        pytest.skip("only root may try")
    assert done.returncode == 0
    kept = re.search(r"are in (\S+\.npz)", said)
    assert kept, said
    assert len(Recording.load(kept[1]).requests) > 0
    os.unlink(kept[1])


def test_what_is_ignored_stays_ignored(tmp_path: Path) -> None:
    code = "import signal; print(signal.getsignal(signal.SIGHUP), signal.getsignal(signal.SIGINT))"
    done = record(
        *("--", sys.executable, "-c", code),
        cwd=tmp_path,
        preexec_fn=lambda: [signal.signal(n, signal.SIG_IGN) for n in (1, 2)] and None,
    )
    assert done.stdout == f"{signal.SIG_IGN} {signal.SIG_IGN}\n"


def test_a_single_read_from_memory_was_not_held(tmp_path: Path) -> None:
    size = 1 << 20
    (tmp_path / "data").write_bytes(bytes(size))
    with iolift.open(tmp_path / "data", trace=True, backend="posix") as f:
        f.pread(size, 0)
        for _ in range(50):
            f.submit_pread(size, 0).result()
        found = f.coalescer.recording()
    at_once = found.requests[found.requests["reason"] == REASONS.index("alone")]
    for row in at_once[at_once["batch"] > 0]:
        io = found.ios[found.ios["batch"] == row["batch"]]
        assert row["dispatched_ns"] == row["started_ns"] <= io["submitted_ns"][0]
        assert io["done_ns"][0] <= row["ended_ns"]
        assert row["dispatched_ns"] <= io["submitted_ns"][0]
