"""Goal: what iolift raises is what iolift.errors says, with all it says, pickled or not."""

from __future__ import annotations

import copy
import errno
import inspect
import os
import pickle
import re
from typing import Any

import pytest
from faulty import FaultyDisk

import iolift
import iolift.errors

MADE = {
    "RangeError": lambda: iolift.RangeError(errno.EIO, "some file", 3, 4096, 512, {3: 5, 7: 28}),
    "ShortReadError": lambda: iolift.ShortReadError("some file", 3, 4096, 512, 100),
    "PoisonedError": lambda: iolift.PoisonedError(errno.EIO, "a sync failed before", "some file"),
    "ForkedError": lambda: iolift.ForkedError("this file belongs to the parent process"),
}


def documented_tree() -> dict[str, str]:
    """class -> base, as the drawing at the top of errors.py has it."""
    tree = {}
    above: dict[int, str] = {}  # column -> class
    for line in inspect.getdoc(iolift.errors).splitlines():  # type: ignore[union-attr]
        if match := re.match(r"^[ |]+\+-- (\w+)", line):
            tree[match[1]] = above[max(c for c in above if c < match.start(1) - 2)]
        elif not (match := re.match(r"^    (\w+)( |$)", line)):
            continue
        above = {column: name for column, name in above.items() if column < match.start(1)}
        above[match.start(1)] = match[1]
    return tree


def test_the_documented_tree_is_the_real_one() -> None:
    tree = documented_tree()
    real = {
        name: value
        for name, value in vars(iolift.errors).items()
        if isinstance(value, type) and value.__module__ == "iolift.errors"
    }
    from iolift import traces

    real["TraceError"] = traces.TraceError
    assert set(tree) == set(real)
    for name, base in tree.items():
        known = real.get(base) or getattr(__import__("builtins"), base)
        assert real[name].__bases__ == (known,)
        assert real[name].__doc__


def test_every_error_is_public() -> None:
    for name in documented_tree():
        if name != "TraceError":
            assert name in iolift.__all__
            assert getattr(iolift, name).__module__ == "iolift.errors"


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickling_and_copying(name: str, protocol: int) -> None:
    error = MADE[name]()
    for again in (
        pickle.loads(pickle.dumps(error, protocol)),
        copy.copy(error),
        copy.deepcopy(error),
    ):
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert vars(again) == vars(error)
        for attribute in ("errno", "strerror", "filename"):
            assert getattr(again, attribute, None) == getattr(error, attribute, None)


@pytest.mark.parametrize("path_type", [str, os.fsencode])
def test_short_read_error_names_file_index_and_offset(make_file: Any, path_type: Any) -> None:
    path, content = make_file(1000)
    out = bytearray(400)
    with iolift.open(path_type(str(path))) as f, pytest.raises(EOFError) as caught:
        f.read_ranges([0, 950, 1200, 900], 100, out=out)
    error = caught.value
    assert isinstance(error, iolift.ShortReadError)
    assert (error.index, error.offset, error.length, error.got) == (1, 950, 100, 50)
    assert error.filename == path_type(str(path))
    for part in (repr(error.filename), "request 1", "offset 950", "50 of 100 bytes"):
        assert part in str(error)
    assert out == content[:100] + content[950:] + bytes(150) + content[900:]


def test_short_read_beyond_the_end_got_nothing(make_file: Any) -> None:
    path, _ = make_file(1000)
    with iolift.open(path) as f, pytest.raises(iolift.ShortReadError) as caught:
        f.read_ranges([5000, 100], [10, 20])
    assert (caught.value.index, caught.value.got) == (0, 0)


def test_range_error_names_file_index_and_offset(make_file: Any) -> None:
    path, content = make_file(1000)
    disk = FaultyDisk()
    disk.bad(300, 310, errno.EIO)
    disk.bad(700, 710, errno.ENXIO)
    out = bytearray(40)
    with iolift.open(path, backend=disk) as f, pytest.raises(OSError, match="request") as caught:
        f.read_ranges([0, 705, 300, 990], 10, out=out)
    error = caught.value
    assert isinstance(error, iolift.RangeError)
    assert (error.errno, error.strerror) == (errno.ENXIO, os.strerror(errno.ENXIO))
    assert (error.index, error.offset, error.length) == (1, 705, 10)
    assert error.errnos == {1: errno.ENXIO, 2: errno.EIO}
    assert error.filename == str(path)
    for part in (str(path), "request 1", "10 bytes", "offset 705", "(2 requests failed)"):
        assert part in str(error)
    assert out[:10] == content[:10]
    assert out[30:] == content[990:]


def test_a_single_call_raises_the_kernels_own_error(make_file: Any) -> None:
    path, _ = make_file(1000)
    disk = FaultyDisk()
    disk.bad(300, 310, errno.EACCES)
    with iolift.open(path, "r+", backend=disk) as f:
        for call in (
            lambda: f.pread(10, 300),
            lambda: f.preadv([bytearray(10)], 300),
            lambda: f.pwrite(bytes(10), 300),
            lambda: f.pwritev([bytes(5), bytes(5)], 300),
        ):
            with pytest.raises(PermissionError) as caught:  # as the builtin open has it
                call()
            assert (caught.value.errno, caught.value.filename) == (errno.EACCES, str(path))
            assert not isinstance(caught.value, iolift.RangeError)


def test_a_poisoned_error_keeps_the_errno_and_names_the_file(make_file: Any) -> None:
    path, _ = make_file(100)
    disk = FaultyDisk()
    disk.fail(errno.EIO, kind="sync")
    with iolift.open(path, "r+", backend=disk) as f:
        with pytest.raises(OSError, match="Input/output") as first:
            f.sync()
        assert first.value.filename == str(path)
        with pytest.raises(iolift.PoisonedError) as caught:
            f.pwrite(b"x", 0)
        assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(path))
        assert str(path) in str(caught.value)
        assert pickle.loads(pickle.dumps(caught.value)).errno == errno.EIO


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: f.pread(-1, 0), ValueError, "n = -1"),
        (lambda f: f.pread(1, -2), ValueError, "offset = -2"),
        (lambda f: f.pread(1.0, 0), TypeError, r"n must be an integer, not 1\.0"),
        (lambda f: f.pread(True, 0), TypeError, "n must be an integer, not True"),
        (lambda f: f.pread(10, 2**63 - 5), ValueError, "past 2"),
        (lambda f: f.read_ranges([0, -7], 1), ValueError, r"offsets\[1\] = -7"),
        (lambda f: f.read_ranges([0, 7], [1, -2]), ValueError, r"lengths\[1\] = -2"),
        (lambda f: f.read_ranges([0, 2**63 - 3], 9), ValueError, r"offsets\[1\] \+ lengths\[1\]"),
        (
            lambda f: f.read_ranges([0, 2**64], 9),
            ValueError,
            r"offsets\[1\] = 18446744073709551616",
        ),
        (lambda f: f.read_ranges([[0, 1]], 9), TypeError, "offsets must be one-dimensional"),
        (lambda f: f.read_ranges([0.5], 9), TypeError, "offsets must be integers"),
        (lambda f: f.read_ranges([0, 1], [1]), ValueError, "offsets and lengths.*2 and 1"),
        (lambda f: f.read_ranges([0, 1], 4, out=bytearray(7)), ValueError, "out has 7 .* 8"),
        (lambda f: f.read_ranges([0], 4, out=b"1234"), ValueError, "out is read-only"),
        (lambda f: f.read_ranges([0], 4, out=[1]), TypeError, "out must .* not list"),
        (lambda f: f.write_ranges([0, 1, 2], b"1234"), ValueError, "data has 4 bytes.*3"),
        (lambda f: f.write_ranges([0], b"1234", lengths=3), ValueError, "data has 4 bytes"),
        (lambda f: f.pwrite("text", 0), TypeError, "data must .* not str"),
        (lambda f: f.preadv([bytearray(1), b"2"], 0), ValueError, r"buffers\[1\] is read-only"),
        (lambda f: f.pwritev([b"1", 2], 0), TypeError, r"buffers\[1\] must .* not int"),
        (lambda f: f.truncate(-1), ValueError, "size = -1"),
    ],
)
def test_a_bad_argument_is_named_before_anything_is_moved(
    make_file: Any, call: Any, error: type[Exception], message: str
) -> None:
    path, content = make_file(100)
    disk = FaultyDisk()
    with iolift.open(path, "r+", backend=disk) as f:
        with pytest.raises(error, match=message):
            call(f)
        assert disk.log == []
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"gap": -1}, ValueError, "gap = -1"),
        ({"max_io": 0}, ValueError, "max_io = 0"),
        ({"depth": 0}, ValueError, "depth = 0"),
        ({"depth": 4097}, ValueError, "depth = 4097"),
        ({"depth": 1.5}, TypeError, "depth"),
        ({"order": "random"}, ValueError, "order .* not 'random'"),
        ({"backend": "aio"}, ValueError, "backend .* not 'aio'"),
        ({"backend": 7}, TypeError, "backend .* not 7"),
        ({"window": 7}, TypeError, "window"),
    ],
)
def test_bad_options(tmp_path: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        iolift.Coalescer(**options)
    with pytest.raises(error, match=message):
        iolift.open(tmp_path / "never made", "w", **options)
    assert not (tmp_path / "never made").exists()


def test_an_object_that_was_never_initialised_is_an_error_not_a_crash() -> None:
    import child

    said = child.run("""
        import iolift
        for name in "backend", "backend_reason", "depth", "gap", "closed", "order":
            try:
                getattr(iolift.Coalescer.__new__(iolift.Coalescer), name)
            except Exception:
                pass
        for call in "close", "flush", "sync", "trace_start", "trace_stop", "__repr__", "__enter__":
            try:
                getattr(iolift.Coalescer.__new__(iolift.Coalescer), call)()
            except Exception:
                pass
        f = iolift.File.__new__(iolift.File)
        for call in "close", "fileno", "tell", "flush", "__repr__", "read", "readable":
            try:
                getattr(f, call)()
            except Exception:
                pass
        try:
            repr(iolift.Plan.__new__(iolift.Plan))
        except Exception:
            pass
        print("alive")
    """)
    assert said == "alive\n"


# ------------------------------------------------------------- what the kernel or the sizes forbid


def test_lengths_whose_sum_is_too_large_are_named() -> None:
    with pytest.raises(ValueError, match=r"lengths\[2\] = .* the sum of the lengths is past"):
        iolift.plan([0, 1, 2], [1 << 61, 1 << 62, 1 << 62])


def test_a_result_that_no_memory_holds(make_file: Any) -> None:
    path, content = make_file(100)
    with iolift.open(path) as f:
        with pytest.raises(MemoryError):
            f.read_ranges([0], 2**63 - 4096)
        assert f.pread(100, 0) == content


def test_one_buffer_is_no_sequence_of_buffers(make_file: Any) -> None:
    path, content = make_file(100)
    with iolift.open(path, "r+") as f:
        for one in (b"ab", bytearray(2), memoryview(b"ab")):
            with pytest.raises(TypeError, match=f"sequence of buffers, not {type(one).__name__}"):
                f.pwritev(one, 0)
    assert path.read_bytes() == content


def test_a_refused_truncate_names_the_file(make_file: Any) -> None:
    path, content = make_file(100)
    with iolift.open(path, "r+") as f:
        with pytest.raises(OSError, match="File too large") as caught:
            f.truncate(2**63 - 1)
        assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
    assert path.read_bytes() == content


@pytest.mark.parametrize("closed", ["file", "coalescer"])
def test_a_descriptor_that_somebody_else_closed(make_file: Any, closed: str) -> None:
    """Closing says so, names the file, and closes all else nevertheless."""
    path, content = make_file(100)
    other, _ = make_file(100, name="other")
    c = iolift.Coalescer()
    f, g = c.open(path), c.open(other)
    os.close(f.fileno())
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        (f if closed == "file" else c).close()
    assert (caught.value.errno, caught.value.filename) == (errno.EBADF, str(path))
    with pytest.raises(ValueError, match="closed"):
        f.pread(1, 0)
    if closed == "coalescer":
        with pytest.raises(ValueError, match="closed"):
            g.pread(1, 0)
        assert c.closed
    c.close()
    with iolift.open(path) as f:
        assert f.pread(100, 0) == content


def test_options_are_what_was_asked_for() -> None:
    with iolift.Coalescer(order="fifo", gap=7, max_io=12_345, depth=9) as c:
        assert (c.order, c.gap, c.max_io, c.depth) == ("fifo", 7, 12_345, 9)


def test_what_open_refuses(make_file: Any) -> None:
    path, _ = make_file(8192)
    fd, direct = os.open(path, os.O_RDONLY), os.open(path, os.O_RDONLY | os.O_DIRECT)
    with iolift.Coalescer() as c:
        refused: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
            (path, {"coalescer": c, "gap": 5}, TypeError, "'gap'.* can't be set"),
            (path, {"coalescer": "posix"}, TypeError, "an iolift.Coalescer, not 'posix'"),
            (path, {"closefd": False}, ValueError, "needs a file descriptor, not a path"),
            (-1, {}, ValueError, "path = -1 is no file descriptor"),
            (True, {}, ValueError, "path = True is no file descriptor"),
            (fd, {"direct": True}, ValueError, f"path = {fd}: .* a descriptor with O_DIRECT"),
            (direct, {}, ValueError, f"path = {direct}: .* needs direct=True"),
        ]
        for what, options, error, message in refused:
            with pytest.raises(error, match=message):
                iolift.open(what, **options)
    # And what was refused is still the caller's.
    assert os.pread(fd, 1, 0)
    os.close(fd)
    os.close(direct)


def test_a_file_says_what_it_is(make_file: Any) -> None:
    path, _ = make_file(100)
    with iolift.open(path) as f:
        assert repr(f) == f"<iolift.File name={path!r} mode='rb' closefd=True>"
        with pytest.raises(TypeError, match="float"):
            f.seek(1.5)
    assert repr(f) == "<iolift.File [closed]>"
