"""Goal: `iolift journal` shows what is there, and brings files back, from the command line."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from iolift._journal import Journal
from iolift._storage import DirectoryStorage
from iolift.cli import main

if TYPE_CHECKING:
    from pathlib import Path

SEGMENT = 32 << 10


class Place:
    """A journal of one file, left as by a process that died: nothing is in the file."""

    def __init__(self, folder: Path, *, count: int, close: bool, keep: bool = False) -> None:
        self.folder = folder
        self.file, self.path = folder / "data", folder / "data.journal"
        self.file.write_bytes(b"")
        fd = os.open(self.file, os.O_RDWR)
        journal = Journal(
            DirectoryStorage(self.path),
            [fd],
            write_back=lambda: self.written,
            segment_bytes=SEGMENT,
            max_bytes=64 * SEGMENT,
            keep_segments=keep,
            background=False,
        )
        self.states = {0: b""}
        self.written = 0
        content = bytearray()
        for i in range(count):
            if i % 10 == 9:
                content[50:] = b""
                sequence = journal.truncate(0, 50).wait()
            else:
                data = bytes([65 + i % 26]) * (100 * i)
                content.extend(bytes(max(0, i + len(data) - len(content))))
                content[i : i + len(data)] = data
                sequence = journal.write(0, i, data, b"key%d" % i if i == 3 else b"").wait()
            self.states[sequence] = bytes(content)
        self.last = sequence
        if close:
            self.file.write_bytes(content)
            self.written = self.last
            journal.close()
        journal._storage.close()
        os.close(fd)

    def segments(self) -> list[Path]:
        return sorted(self.path.glob("*.seg"))

    def bend(self, segment: Path, place: int) -> None:
        data = bytearray(segment.read_bytes())
        data[place] ^= 1
        segment.write_bytes(data)


def run(*arguments: Any) -> int:
    return main(["journal", *map(str, arguments)])


@pytest.fixture
def crashed(tmp_path: Path) -> Place:
    return Place(tmp_path, count=30, close=False)


def test_show(crashed: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", crashed.path, "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    asked = [row for row in rows if row["type"] != "key"]
    assert len(asked) == 30
    assert [row["sequence"] for row in rows] == list(range(1, len(rows) + 1))
    assert asked[3] == {
        "sequence": 4,
        "type": "write",
        "target": 0,
        "offset": 3,
        "length": 300,
        "key": b"key3".hex(),
        "durable": 3,
        "segment": crashed.segments()[0].name,
        "at": 4 * 4096,
    }
    assert asked[9]["type"] == "truncate"
    assert run("show", crashed.path) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == len(rows) + 1
    assert table[0].split()[0] == "sequence"


def test_verify(crashed: Place, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in crashed.path.iterdir()}
    assert run("verify", crashed.path, "--json") == 0
    about = json.loads(capsys.readouterr().out)
    assert (about["end"], about["last"], about["checkpoint"]) == ("clean", crashed.last, 0)
    assert about["damage"] is None
    assert run("verify", crashed.path) == 0
    assert "clean" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in crashed.path.iterdir()} == before


def test_recover(crashed: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("recover", crashed.path, crashed.file) == 0
    assert "records replayed" in capsys.readouterr().out
    assert crashed.file.read_bytes() == crashed.states[crashed.last]
    assert run("recover", crashed.path, crashed.file) == 0
    assert capsys.readouterr().out.startswith("0 records replayed")


def test_recover_tells_of_a_torn_tail(crashed: Place, capsys: pytest.CaptureFixture[str]) -> None:
    segment = crashed.segments()[-1]
    crashed.bend(segment, len(segment.read_bytes().rstrip(b"\0")) - 1)
    assert run("verify", crashed.path) == 0
    assert "torn" in capsys.readouterr().out
    assert run("recover", crashed.path, crashed.file) == 0
    said = capsys.readouterr().out
    assert "a torn tail" in said
    assert (crashed.path / said.split()[-1]).stat().st_size > 0


def test_recover_for_a_copy_needs_to_be_told(
    crashed: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = crashed.folder / "copy"
    shutil.copy(crashed.file, copy)
    assert run("recover", crashed.path, copy) == 2
    assert "other files" in capsys.readouterr().err
    assert copy.read_bytes() == b""
    assert run("recover", crashed.path, copy, crashed.file, "--adopt") == 2
    assert "2 files for 1" in capsys.readouterr().err
    assert run("recover", crashed.path, copy, "--adopt") == 0
    assert copy.read_bytes() == crashed.states[crashed.last]
    assert run("recover", crashed.path, copy) == 0
    assert run("recover", crashed.path, crashed.file) == 2


def test_damage_and_salvage(crashed: Place, capsys: pytest.CaptureFixture[str]) -> None:
    first = crashed.segments()[0]
    crashed.bend(first, 5 * 4096 + 70)  # record 5
    for command in (["verify", crashed.path], ["recover", crashed.path, crashed.file]):
        assert run(*command) == 1
        assert "record 5 was durable" in capsys.readouterr().err
    assert crashed.file.read_bytes() == b""
    before = {path: path.read_bytes() for path in crashed.path.iterdir()}
    assert run("salvage", crashed.path, "--into", crashed.file) == 0
    said = capsys.readouterr().out
    assert "lost: records 5 to 5\n" in said
    assert f"the last one of all is {crashed.last}" in said
    # Of record 5 the others have overwritten all but its first byte.
    wanted = bytearray(crashed.states[crashed.last])
    wanted[4:5] = b"D"
    assert crashed.file.read_bytes() == wanted
    assert {path: path.read_bytes() for path in crashed.path.iterdir()} == before
    assert run("show", crashed.path) == 1
    # The checkpoint is gone, too.
    (crashed.path / "checkpoint").unlink()
    crashed.file.write_bytes(b"")
    assert run("salvage", crashed.path, "--into", crashed.file) == 0
    assert "lost: the checkpoint" in capsys.readouterr().out
    assert crashed.file.read_bytes() == wanted


def test_damage_in_the_last_segment_is_not_passed_over(
    crashed: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    last = crashed.segments()[-1]
    crashed.bend(last, 4096 + 66)  # its first record, which later ones vouch for
    assert run("show", crashed.path) == 1
    assert "was durable" in capsys.readouterr().err


def test_recover_keeps_the_history(tmp_path: Path) -> None:
    place = Place(tmp_path, count=30, close=False, keep=True)
    assert run("recover", place.path, place.file) == 0
    copy = tmp_path / "copy"
    copy.write_bytes(b"")
    assert run("restore", place.path, "--into", copy, "--at", 12) == 0
    assert copy.read_bytes() == place.states[12]


def test_restore(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = Place(tmp_path, count=30, close=True, keep=True)
    for at in (0, 1, 7, 10, 11, place.last - 1, place.last):
        copy = tmp_path / f"at{at}"
        copy.write_bytes(b"")
        assert run("restore", place.path, "--into", copy, "--at", at) == 0
        state = place.states[max(n for n in place.states if n <= at)]
        assert copy.read_bytes() == state, at
    # From a copy that is newer than the beginning.
    copy = tmp_path / "at7"
    assert run("restore", place.path, "--into", copy, "--base", 7, "--at", 12) == 0
    assert copy.read_bytes() == place.states[12]
    capsys.readouterr()
    for base, at, says in ((3, 2, "older"), (0, place.last + 1, "ends with")):
        assert run("restore", place.path, "--into", copy, "--base", base, "--at", at) == 2
        assert says in capsys.readouterr().err
    place.segments()[0].unlink()
    before = copy.read_bytes()
    assert run("restore", place.path, "--into", copy, "--at", place.last) == 2
    assert "begins with" in capsys.readouterr().err
    assert copy.read_bytes() == before


def test_a_journal_that_is_open(crashed: Place, capsys: pytest.CaptureFixture[str]) -> None:
    storage = DirectoryStorage(crashed.path)
    storage.lock()
    assert run("verify", crashed.path) == 0
    assert "the journal is open" in capsys.readouterr().err
    assert run("recover", crashed.path, crashed.file) == 2
    assert "open already" in capsys.readouterr().err
    storage.close()


def test_where_there_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder").mkdir(mode=0o700)
    for name in ("none", "folder"):
        for command in ("show", "verify"):
            assert run(command, tmp_path / name) == 2
            error = capsys.readouterr().err
            assert error.startswith("iolift: error: ")
            assert error.count("\n") == 1
    assert os.listdir(tmp_path / "folder") == []
    for wrong in (["show"], ["restore", "x", "--into", "y", "--at", "-1"], ["sing", "x"]):
        assert run(*wrong) == 2
