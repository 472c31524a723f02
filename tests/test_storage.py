"""Goal: the journal trusts no name and no file that somebody else may have put there.

And its lock: one opener, in this process or another, until it is closed or dead.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Any

import child
import pytest

from iolift._storage import DirectoryStorage, Room, read_into, write_all

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def read_all(storage: Any, handle: int, n: int, offset: int) -> bytes:
    view = memoryview(bytearray(n))
    return bytes(view[: read_into(storage, handle, view, offset)])


def test_what_it_makes_is_the_owners_alone(place: Path) -> None:
    storage = DirectoryStorage(place)
    storage.lock()
    storage.shut(storage.create("a"))
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    for name in ("a", "lock"):
        assert stat.S_IMODE((place / name).stat().st_mode) == 0o600
    storage.close()
    storage.close()


def test_the_whole_seam(place: Path) -> None:
    storage = DirectoryStorage(place)
    handle = storage.create("a")
    with pytest.raises(FileExistsError):
        storage.create("a")
    write_all(storage, handle, b"0123456789", 0)
    storage.sync(handle)
    assert storage.size(handle) == 10
    assert read_all(storage, handle, 100, 3) == b"3456789"
    storage.truncate(handle, 4)
    assert read_all(storage, handle, 100, 0) == b"0123"
    storage.rename("a", "b")
    storage.sync_directory()
    storage.shut(handle)
    assert storage.names() == ["b"]
    storage.shut(storage.open("b"))
    storage.unlink("b")
    assert storage.names() == []
    storage.close()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc/passwd", "../lock", "a\0b"])
def test_a_name_is_never_a_path(place: Path, name: str) -> None:
    storage = DirectoryStorage(place)
    for call in (storage.create, storage.open, storage.unlink):
        with pytest.raises(ValueError, match="no name"):
            call(name)
    with pytest.raises(ValueError, match="no name"):
        storage.rename("a", name)
    storage.close()


def test_only_regular_files_with_one_link(place: Path, tmp_path: Path) -> None:
    storage = DirectoryStorage(place)
    (tmp_path / "outside").write_bytes(b"x")
    os.symlink(tmp_path / "outside", place / "symlink")
    os.link(tmp_path / "outside", place / "link")
    os.mkfifo(place / "fifo", 0o600)
    os.mkdir(place / "folder")
    (place / "shared").write_bytes(b"x")
    (place / "shared").chmod(0o666)
    for name, error in {
        "symlink": errno.ELOOP,
        "link": errno.EPERM,
        "fifo": errno.EPERM,
        "folder": errno.EISDIR,
        "shared": errno.EPERM,
        "missing": errno.ENOENT,
    }.items():
        with pytest.raises(OSError, match=r".") as caught:
            storage.open(name)
        assert caught.value.errno == error, name
    storage.close()


def test_only_a_directory_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    os.mkdir(tmp_path / "real", 0o700)
    os.symlink(tmp_path / "real", tmp_path / "symlink")
    os.mkdir(tmp_path / "open")
    (tmp_path / "open").chmod(0o777)
    for name, error in {
        "file": NotADirectoryError,
        "symlink": NotADirectoryError,
        "open": PermissionError,
    }.items():
        with pytest.raises(error):
            DirectoryStorage(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        DirectoryStorage(tmp_path / "none", create=False)
    assert not (tmp_path / "none").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_somebody_else(place: Path) -> None:
    storage = DirectoryStorage(place)
    (place / "a").write_bytes(b"")
    os.chown(place / "a", 12345, -1)
    with pytest.raises(PermissionError, match="belongs to user 12345"):
        storage.open("a")
    storage.close()
    os.chown(place, 12345, -1)
    with pytest.raises(PermissionError, match="belongs to user 12345"):
        DirectoryStorage(place)


# ------------------------------------------------------------------------------------------- lock

OTHER = """
    import sys
    from iolift._storage import DirectoryStorage
    storage = DirectoryStorage(sys.argv[1])
    try:
        storage.lock()
        print("locked")
    except BlockingIOError as error:
        print("refused", error.strerror)
"""


def test_one_opener(place: Path) -> None:
    first, second = DirectoryStorage(place), DirectoryStorage(place)
    first.lock()
    with pytest.raises(BlockingIOError, match="open already"):
        second.lock()
    assert child.run(OTHER, str(place)) == "refused the journal is open already\n"
    # Closing another descriptor of the file does not let go of it, as POSIX's own locks would.
    os.close(os.open(place / "lock", os.O_RDONLY))
    with pytest.raises(BlockingIOError):
        second.lock()
    first.close()
    second.lock()
    second.close()
    assert child.run(OTHER, str(place)).split() == ["locked"]


def test_readers_share_the_lock_and_keep_a_writer_out(place: Path) -> None:
    readers = [DirectoryStorage(place), DirectoryStorage(place)]
    for reader in readers:
        reader.lock(shared=True)
    writer = DirectoryStorage(place)
    with pytest.raises(BlockingIOError):
        writer.lock()
    for reader in readers:
        reader.close()
    writer.lock()
    writer.close()


def test_a_forked_child_does_not_keep_the_lock(place: Path) -> None:
    storage = DirectoryStorage(place)
    storage.lock()
    held, release = os.pipe()
    ready, say = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(release)
        os.write(say, b"x")
        os.read(held, 1)  # until the parent has seen that the lock is free
        os._exit(0)
    os.read(ready, 1)
    storage.close()
    other = DirectoryStorage(place)
    other.lock()
    other.close()
    for end in (release, held, ready, say):
        os.close(end)
    os.waitpid(pid, 0)


# ---------------------------------------------------------------------------- what may stop halfway


class Script:
    """A storage that answers writes and reads from a list."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.seen: list[tuple[int, int]] = []

    def _answer(self, size: int, offset: int) -> Any:
        self.seen.append((offset, size))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def write(self, handle: int, data: Any, offset: int) -> int:
        return int(self._answer(len(data), offset))

    def read(self, handle: int, n: int, offset: int) -> bytes:
        return bytes(self._answer(n, offset))


def test_a_write_goes_on_where_it_was_short() -> None:
    again = InterruptedError(errno.EINTR, "x")
    script: Any = Script(3, again, BlockingIOError(errno.EAGAIN, "x"), 2, 5)
    write_all(script, 0, b"0123456789", 100)
    assert script.seen == [(100, 10), (103, 7), (103, 7), (103, 7), (105, 5)]


@pytest.mark.parametrize("answer", [0, -1, 11])
def test_a_write_that_lies_is_an_error(answer: int) -> None:
    script: Any = Script(answer)
    with pytest.raises(OSError, match="wrote"):
        write_all(script, 0, b"0123456789", 0)


def test_nothing_is_tried_for_ever() -> None:
    for error in (InterruptedError(errno.EINTR, "x"), BlockingIOError(errno.EAGAIN, "x")):
        script: Any = Script(error)
        with pytest.raises(type(error)):
            write_all(script, 0, b"0", 0)
        with pytest.raises(type(error)):
            read_all(script, 0, 1, 0)
    reader: Any = Script(b"ab", InterruptedError(errno.EINTR, "x"), b"c", b"")
    assert read_all(reader, 0, 10, 0) == b"abc"


def test_large_reads_are_many(place: Path) -> None:
    storage = DirectoryStorage(place)
    handle = storage.create("a")
    content = bytes(range(256)) * 1500
    write_all(storage, handle, content, 0)
    assert read_all(storage, handle, len(content), 0) == content
    storage.close()


def test_a_room_is_used_again() -> None:
    room = Room()
    room.take(5)[:] = b"12345"
    assert room.take(3) == b"123"
    assert len(room.take(9)) == 9
    assert len(room.take(0)) == 0


def test_a_target_is_known_again(tmp_path: Path, place: Path) -> None:
    storage = DirectoryStorage(place)
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"")
    handles = [os.open(tmp_path / name, os.O_RDWR) for name in ("a", "b", "a")]
    one, two, again = map(storage.identity, handles)
    assert one == again != two
    assert len(one) == 32
    ends = os.pipe()
    with pytest.raises(OSError, match="regular files"):
        storage.identity(ends[0])
    for handle in (*handles, *ends):
        os.close(handle)
    storage.close()
