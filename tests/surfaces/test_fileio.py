"""Goal: iolift.File passes CPython's own tests of io.FileIO and of the layers over it.

The tests are those of the interpreter that runs this (its `test` package: test_fileio, and the
classes of test_io that open files), with iolift.File where they say io.FileIO, and CPython's own
`open` over it. Where iolift differs on purpose, the test is overridden here: DEVIATIONS has the
reason of each, and the override asserts what iolift does instead. Then what neither of the two
modules looks at, as a comparison with an io.FileIO of the same file.
"""

from __future__ import annotations

import _pyio
import contextlib
import copy
import errno
import functools
import gc
import io
import mmap
import os
import pickle
import sys
import types
import unittest
import warnings
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

import iolift

cpython_fileio = pytest.importorskip("test.test_fileio")
cpython_io = pytest.importorskip("test.test_io")

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PIPES = "iolift needs offsets: what can't be seeked is refused when opened, with ESPIPE"
POSITION = "the position is the object's own: no kernel is asked, which would say EBADF"
DEVIATIONS = {
    "test_optional_abilities": PIPES,
    "test_open_pipe_with_append": PIPES,
    "test_nonblock_pipe_write_bigbuf": PIPES,
    "test_nonblock_pipe_write_smallbuf": PIPES,
    "test_warn_on_dealloc_fd": PIPES + ": the same with descriptors of files",
    "testAbles": PIPES + ": a terminal",
    "testErrnoOnClosedTell": POSITION,
    "testErrnoOnClosedSeek": POSITION + " (from the end: it is)",
    "testErrnoOnClosedWrite": "write() is write-behind: its errors come with flush, sync and close",
    "testRepr": "it is no _io.FileIO, and does not say so",
    "testReprNoCloseFD": "it is no _io.FileIO, and does not say so",
    "testBooleanFd": "a bool is refused with a ValueError, not only warned of",
}


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path: Path, monkeypatch: Any) -> None:
    """CPython's tests write to the working directory."""
    monkeypatch.chdir(tmp_path)


def open_over(kind: Callable[..., Any]) -> Callable[..., Any]:
    """CPython's io.open, in its Python version, with `kind` for FileIO below the C layers."""
    theirs = getattr(_pyio.open, "__wrapped__", _pyio.open)
    names = vars(_pyio) | {name: getattr(io, name) for name in io.__all__} | {"FileIO": kind}
    made = types.FunctionType(theirs.__code__, names, "open", theirs.__defaults__)
    made.__kwdefaults__ = theirs.__kwdefaults__
    return made


layered_open = open_over(iolift.File)


def with_file(kind: type) -> type:
    """Gives a class of test_io the names that its load_tests would, but for FileIO and open."""
    for name in io.__all__:
        setattr(kind, name, getattr(io, name))
    for name in vars(cpython_io):
        if "C" + name in vars(cpython_io) and not name.endswith("Test"):
            setattr(kind, name, getattr(cpython_io, "C" + name))
    kind.is_C = True  # type: ignore[attr-defined]
    kind.FileIO = iolift.File  # type: ignore[attr-defined]
    kind.open = staticmethod(layered_open)  # type: ignore[attr-defined]
    return kind


def assert_refused(call: Callable[[], Any]) -> None:
    with pytest.raises(OSError, match="iolift needs offsets") as caught:
        call()
    assert caught.value.errno == errno.ESPIPE


@contextlib.contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    r, w = os.pipe()
    try:
        yield r, w
    finally:
        os.close(r)
        os.close(w)


# ------------------------------------------------------------------------------- test.test_fileio


class TestAutoFile(cpython_fileio.AutoFileTests, unittest.TestCase):  # type: ignore[misc, name-defined]
    FileIO = iolift.File
    modulename = "iolift"

    def tearDown(self) -> None:
        with contextlib.suppress(OSError, AttributeError):  # closed underneath, or gone
            self.f.close()
        super().tearDown()

    def testErrnoOnClosedTell(self) -> None:  # noqa: N802
        self.f.write(b"abc")
        os.close(self.f.fileno())
        assert self.f.tell() == 3

    def testErrnoOnClosedSeek(self) -> None:  # noqa: N802
        os.close(self.f.fileno())
        assert self.f.seek(5) == 5
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            self.f.seek(0, os.SEEK_END)

    def testErrnoOnClosedWrite(self) -> None:  # noqa: N802
        for end in (self.f.flush, self.f.sync, self.f.fileno, self.f.close):
            self.f.__init__(self.f.name, "w")
            os.close(self.f.fileno())
            assert self.f.write(b"a") == 1
            with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
                end()
            with contextlib.suppress(OSError):
                self.f.close()

    def testRepr(self) -> None:  # noqa: N802
        f = self.f
        assert repr(f) == f"<iolift.File name={f.name!r} mode={f.mode!r} closefd=True>"
        del f.name
        assert repr(f) == f"<iolift.File fd={f.fileno()} mode={f.mode!r} closefd=True>"
        f.close()
        assert repr(f) == "<iolift.File [closed]>"

    def testReprNoCloseFD(self) -> None:  # noqa: N802
        fd = os.open(self.f.name, os.O_RDONLY)
        with iolift.File(fd, "r", closefd=False) as f:
            assert repr(f) == f"<iolift.File name={fd} mode='rb' closefd=False>"
        os.close(fd)


class TestOtherFile(cpython_fileio.COtherFileTests):  # type: ignore[misc, name-defined]
    FileIO = iolift.File
    modulename = "iolift"

    def testAbles(self) -> None:  # noqa: N802
        for mode, able in (("w", (False, True)), ("r", (True, False)), ("a+", (True, True))):
            with self.FileIO("ables", mode) as f:
                assert (f.readable(), f.writable()) == able
                assert f.seekable()
                assert not f.isatty()
        ours, terminal = os.openpty()
        try:
            assert_refused(lambda: self.FileIO(terminal, "r+"))
        finally:
            os.close(ours)
            os.close(terminal)

    def testBooleanFd(self) -> None:  # noqa: N802
        for fd in (False, True):
            with pytest.raises(ValueError, match=f"path = {fd} is no file descriptor"):
                self.FileIO(fd, closefd=False)


# ----------------------------------------------------------------------------------- test.test_io


@with_file
class TestIO(cpython_io.CIOTest):  # type: ignore[misc, name-defined]
    def test_optional_abilities(self) -> None:
        with pipe() as (r, w):
            assert_refused(lambda: self.FileIO(r, "r", closefd=False))
            assert_refused(lambda: self.FileIO(w, "w", closefd=False))

    def test_opener_invalid_fd(self) -> None:
        """As it is; only that no ring of a coalescer may get the number of the closed one."""
        with iolift.Coalescer() as c:
            over = open_over(functools.partial(iolift.File, coalescer=c))
            with mock.patch.object(self, "open", over):
                super().test_opener_invalid_fd()


@with_file
class TestMiscIO(cpython_io.CMiscIOTest):  # type: ignore[misc, name-defined]
    def _check_warn_on_dealloc(self, *args: Any, **kwargs: Any) -> None:
        with mock.patch.object(cpython_io, "open", layered_open, create=True):
            super()._check_warn_on_dealloc(*args, **kwargs)

    def test_warn_on_dealloc_fd(self) -> None:
        for layers in ({"mode": "rb", "buffering": 0}, {"mode": "rb"}, {"encoding": "utf-8"}):
            self._check_warn_on_dealloc(os.open(__file__, os.O_RDONLY), **layers)
            fd = os.open(__file__, os.O_RDONLY)
            with cpython_io.warnings_helper.check_no_resource_warning(self):
                self.open(fd, closefd=False, **layers)
            os.close(fd)

    def test_open_pipe_with_append(self) -> None:
        with pipe() as (_, w):
            assert_refused(lambda: self.open(w, "a", encoding="utf-8", closefd=False))

    def _test_nonblock_pipe_write(self, bufsize: int) -> None:
        with pipe() as (r, w):
            os.set_blocking(r, False)
            assert_refused(lambda: self.open(r, "rb", bufsize, closefd=False))
            assert_refused(lambda: self.open(w, "wb", bufsize, closefd=False))


@with_file
class TestBufferedReader(cpython_io.CBufferedReaderTest):  # type: ignore[misc, name-defined]
    pass


@with_file
class TestBufferedWriter(cpython_io.CBufferedWriterTest):  # type: ignore[misc, name-defined]
    pass


@with_file
class TestBufferedRandom(cpython_io.CBufferedRandomTest):  # type: ignore[misc, name-defined]
    pass


@with_file
class TestTextIOWrapper(cpython_io.CTextIOWrapperTest):  # type: ignore[misc, name-defined]
    pass


def test_every_override_is_a_deviation_with_its_reason() -> None:
    """And none has gone from CPython unnoticed, but for those that came with a later one."""
    ours = {TestAutoFile, TestOtherFile, TestIO, TestMiscIO}
    overridden = {n for kind in ours for n in vars(kind) if n.startswith("test")}
    hooks = {"test_opener_invalid_fd"}  # no deviation
    by_helper = {"test_nonblock_pipe_write_bigbuf", "test_nonblock_pipe_write_smallbuf"}
    assert overridden - hooks == set(DEVIATIONS) - by_helper
    theirs = {n for kind in ours for base in kind.__mro__[1:] for n in vars(base)}
    missing = set(DEVIATIONS) - theirs
    assert missing <= ({"testBooleanFd"} if sys.version_info < (3, 13) else set())


# ------------------------------------------------------------------------ what they do not look at

CONSTRUCTIONS: list[tuple[Any, ...]] = [
    ("data",),
    (b"data", "rb"),
    ("data", "r+", True, None),
    ("data", "w+b"),
    ("data", "a"),
    ("data", "a+b"),
    ("new", "x+"),
    ("new", "xb"),
    ("data", "r", False),
    ("data", "r", True, lambda name, flags: os.open(name, flags)),
    ("data", "r", True, lambda name, flags: "text"),
    ("data", "r", True, lambda name, flags: -1),
    ("data", "r", True, lambda name, flags: None),
    ("data", "r", True, lambda name, flags: 1 / 0),
    ("data", "r", True, 5),
    ("missing",),
    (".", "r"),
    ("nul\0l",),
    (-1,),
    (2**31,),
    (1.5,),
    (None,),
    ("data", 5),
    ("data", "rw"),
]


def told(make: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    try:
        f = make(*arguments)
    except Exception as error:
        return type(error), getattr(error, "errno", None), getattr(error, "filename", None)
    with f:
        assert not os.get_inheritable(f.fileno())
        return f.name, f.mode, f.closefd, f.tell(), f._blksize, f.readable(), f.writable()


@pytest.mark.parametrize("arguments", CONSTRUCTIONS, ids=range(len(CONSTRUCTIONS)))
def test_is_made_as_a_fileio_is(arguments: tuple[Any, ...], tmp_path: Path) -> None:
    for make in (io.FileIO, iolift.File):
        (tmp_path / "data").write_bytes(b"some data")
        (tmp_path / "new").unlink(missing_ok=True)
        if make is io.FileIO:
            expected = told(make, arguments)
    assert told(iolift.File, arguments) == expected
    assert told(iolift.open, (arguments[0],)) == told(io.FileIO, (arguments[0],))


def test_the_opener_gets_what_a_fileio_gives_it(tmp_path: Path) -> None:
    """But for O_APPEND, which is refused in what it returns; its descriptor is never inherited."""
    seen: list[tuple[Any, int]] = []

    def opener(name: Any, flags: int) -> int:
        seen.append((name, flags))
        fd = os.open(name, flags)
        os.set_inheritable(fd, True)
        return fd

    path = tmp_path / "data"
    path.touch()
    for mode in ("r", "r+", "w", "a+"):
        for make in (io.FileIO, functools.partial(iolift.open, opener=opener)):
            with make(path, mode, opener=opener) as f:
                assert not os.get_inheritable(f.fileno())
        assert seen[-1] == (path, seen[-2][1] & ~os.O_APPEND)
    opened: list[int] = []

    def appends(name: Any, flags: int) -> int:
        opened.append(os.open(name, flags | os.O_APPEND))
        return opened[-1]

    with pytest.raises(ValueError, match="O_APPEND"):
        iolift.open(path, "a", opener=appends)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(opened[0])


def test_a_descriptor_says_where_to_start_and_is_left_there(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"0123456789")
    fd = os.open(path, os.O_RDWR)
    os.lseek(fd, 4, os.SEEK_SET)
    with iolift.File(fd, "r+", closefd=False) as f:
        assert f.read(3) == b"456"
        assert os.lseek(fd, 0, os.SEEK_CUR) == 4
        assert f.tell() == 7
    os.close(fd)


def test_initialised_again_it_is_another_file(tmp_path: Path) -> None:
    for kind in (io.FileIO, iolift.File):
        f = kind(tmp_path / "one", "w")
        f.write(b"one")
        fd = f.fileno()
        f.__init__(tmp_path / "two", "w+")
        assert (tmp_path / "one").read_bytes() == b"one"
        assert f.fileno() == fd or not os.path.exists(f"/proc/self/fd/{fd}")
        f.write(b"two")
        assert (f.seek(0), f.read(), f.name, f.mode) == (0, b"two", tmp_path / "two", "rb+")
        f.close()
        f.__init__(tmp_path / "one")
        assert (f.closed, f.read()) == (False, b"one")
        with pytest.raises(FileNotFoundError):
            f.__init__(tmp_path / "missing")
        assert f.closed
        with pytest.raises(ValueError, match=r"closed|uninitialized"):
            f.read()


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_a_method_keeps_its_file(tmp_path: Path) -> None:
    """Whoever has no more than f.read, and be it for the length of a call, has the file."""
    path = tmp_path / "data"
    path.write_bytes(b"0123456789")
    for kind in (io.FileIO, iolift.File):
        buffer = bytearray(4)
        assert kind(path).read() == kind(path).readall() == b"0123456789"
        assert (kind(path).readinto(buffer), buffer) == (4, b"0123")
        assert kind(path, "r+").write(b"0") == 1
        assert (kind(path).seek(2), kind(path).tell(), kind(path).seekable()) == (2, 0, True)
        read = kind(path).read
        gc.collect()
        assert (read(3), read(3)) == (b"012", b"345")
        del read
    assert iolift.open(path).pread(3, 2) == b"234"
    assert iolift.open(path, "r+").pwrite(b"2", 2) == 1
    assert iolift.open(path, "r+").submit_pwrite(b"2", 2).result() == 1
    iolift.open(path, "r+").submit_sync().result()
    assert path.read_bytes() == b"0123456789"


def test_not_initialised_it_is_closed() -> None:
    for kind in (io.FileIO, iolift.File):
        f = kind.__new__(kind)
        assert (f.closed, f.closefd, f.mode) == (True, True, "wb")
        f.close()
        for call in (f.read, f.tell, f.fileno, f.__enter__, f.readall):
            with pytest.raises(ValueError, match=r"closed|uninitialized"):
                call()
        assert "[closed]" in repr(f)


@pytest.mark.parametrize("copies", [copy.copy, copy.deepcopy, pickle.dumps])
def test_is_not_copied(copies: Any, tmp_path: Path) -> None:
    with iolift.File(tmp_path / "data", "w") as f:
        with pytest.raises(TypeError, match="cannot pickle 'File' object"):
            copies(f)
        with io.BufferedWriter(f) as layer, pytest.raises(TypeError, match="cannot pickle"):
            copies(layer)


def test_a_subclass_may_reduce(tmp_path: Path) -> None:
    with Reopens(tmp_path / "data", "w") as f, pickle.loads(pickle.dumps(f)) as again:
        assert again.name == f.name
        assert "Reopens" in repr(again)


class Reopens(iolift.File):
    def __reduce__(self) -> Any:
        return Reopens, (self.name,)


@pytest.mark.parametrize("layered", [False, True])
def test_an_unclosed_file_warns_writes_and_closes(layered: bool, tmp_path: Path) -> None:
    """Also where warnings are errors: there is nobody to catch it, and the file is still closed."""
    path = tmp_path / "data"
    for action in ("always", "error"):
        raw = iolift.File(path, "w")
        f: Any = io.BufferedWriter(raw) if layered else raw
        name, fd = repr(f), raw.fileno()
        f.write(action.encode())
        if not layered:  # of a cycle, the raw file may go before the buffer: so do io's own
            f.itself = f
        heard: list[Any] = []
        with (
            warnings.catch_warnings(record=True) as caught,
            mock.patch.object(sys, "unraisablehook", heard.append),
        ):
            warnings.simplefilter(action)  # type: ignore[arg-type]
            del f, raw
            gc.collect()
        said = [w.message for w in caught] + [u.exc_value for u in heard]
        assert [(type(w), str(w)) for w in said] == [(ResourceWarning, f"unclosed file {name}")]
        assert path.read_bytes() == action.encode()
        assert not os.path.exists(f"/proc/self/fd/{fd}")


def test_closed_with_its_coalescer_it_does_not_warn(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with iolift.Coalescer() as c:
            f = c.open(tmp_path / "data", "w")
        with mock.patch.object(sys, "unraisablehook", pytest.fail):
            del f
            gc.collect()


# ----------------------------------------------------------------------------------- write-behind


def held(path: Path) -> iolift.File:
    """A file with writes that would stay held for a minute."""
    f = iolift.open(path, "w+", write_window_ms=60_000)
    for k in range(100):
        f.write(b"%04d" % k)
    assert f.coalescer.stats().held_requests > 0
    return f


WRITTEN = b"".join(b"%04d" % k for k in range(100))


def test_whoever_asks_for_the_descriptor_sees_what_was_written(tmp_path: Path) -> None:
    """So that f.flush(); os.fsync(f.fileno()) over a BufferedWriter is what it says."""
    with held(tmp_path / "data") as f:
        assert os.fstat(f.fileno()).st_size == len(WRITTEN)
    with held(tmp_path / "data") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as m:
        assert m[:] == WRITTEN
        for _ in range(2):
            f.pwritev([b"same"], 0)
        assert m[:4] == b"same"
    with held(tmp_path / "data") as f:
        assert f.seek(0, os.SEEK_HOLE) == len(WRITTEN)


def test_the_flush_of_a_bufferedwriter_does_not_reach_the_file(tmp_path: Path) -> None:
    """It does not flush what is below it. That of its raw does, and so does fileno()."""
    path = tmp_path / "data"
    with io.BufferedWriter(held(path)) as f:
        f.write(b"more")
        f.flush()
        assert path.stat().st_size < len(WRITTEN)
        os.fsync(f.fileno())
        assert path.read_bytes() == WRITTEN + b"more"


def test_an_error_that_fileno_raised_is_raised_again(tmp_path: Path) -> None:
    """Many who ask for a descriptor take any error for "there is none"."""
    for end in ("flush", "sync", "close"):
        f = iolift.open(tmp_path / "data", "w", write_window_ms=60_000)
        with open(tmp_path / "data", "rb") as readonly:
            os.dup2(readonly.fileno(), f.fileno())
        f.write(b"lost")
        for call in (f.fileno, getattr(f, end)):
            with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
                call()
        f.close()
