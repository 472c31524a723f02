"""Goal: a File is an io.RawIOBase as io.FileIO is one; opening, closing and syncing tell the truth.

The same steps run on a File and on an io.FileIO of a twin file, and have the same results. Then
what only iolift has: descriptors, O_APPEND, coalescers, alignment, and poison after a failed sync.
"""

from __future__ import annotations

import errno
import io
import os
import random
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import child
import numpy as np
import pytest
from faulty import FaultyDisk
from gated import GatedDisk

import iolift

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MODES = ("r", "r+", "w", "w+", "x", "x+", "a", "a+")
CLOSED = "closed file"

# Each step is done to both files; its result, or the kind of its failure, must be the same.
STEPS: list[tuple[str, Callable[[Any], Any]]] = [
    ("ability", lambda f: (f.readable(), f.writable(), f.seekable(), f.isatty(), f.closed)),
    ("tell", lambda f: f.tell()),
    ("read", lambda f: f.read(5)),
    ("read none", lambda f: f.read(0)),
    ("readinto", lambda f: f.readinto(bytearray(7))),
    ("readinto memory", lambda f: f.readinto(memoryview(bytearray(7))[2:4])),
    ("tell after reads", lambda f: f.tell()),
    ("write", lambda f: f.write(b"written")),
    ("write nothing", lambda f: f.write(b"")),
    ("write array", lambda f: f.write(np.arange(3, dtype=np.int16))),
    ("tell after writes", lambda f: f.tell()),
    ("seek", lambda f: f.seek(3)),
    ("seek on", lambda f: f.seek(4, os.SEEK_CUR)),
    ("write there", lambda f: f.write(b"there")),
    ("seek end", lambda f: f.seek(-2, os.SEEK_END)),
    ("readall", lambda f: f.readall()),
    ("read at the end", lambda f: (f.read(10), f.read(), f.readinto(bytearray(4)))),
    ("seek past", lambda f: f.seek(100)),
    ("read past", lambda f: (f.read(3), f.tell())),
    ("write past", lambda f: f.write(b"past")),
    ("rewind and read all", lambda f: (f.seek(0), f.read(), f.tell())),
    ("lines", lambda f: (f.seek(0), f.readline(), f.readlines())),
    ("truncate", lambda f: (f.truncate(50), f.tell())),
    ("truncate here", lambda f: (f.seek(20), f.truncate(), f.seek(0, 2))),
    ("truncate longer", lambda f: (f.truncate(60), f.seek(0, 2))),
    ("write after truncate", lambda f: (f.write(b"tail"), f.tell())),
    ("flush", lambda f: f.flush()),
    ("bad whence", lambda f: f.seek(0, 99)),
    ("bad position", lambda f: f.seek(-1)),
    ("bad data", lambda f: f.writable() and f.write("text")),
]


def outcome(step: Callable[[Any], Any], f: Any) -> Any:
    try:
        return step(f)
    except (OSError, ValueError):  # one family: which of them FileIO chooses is not consistent
        return "refused"
    except TypeError:
        return "TypeError"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("b", ["", "b"])
def test_as_fileio(backend: Any, tmp_path: Path, mode: str, b: str) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    if "x" not in mode:
        for path in (ours, theirs):
            path.write_bytes(b"line 1\nline 2\nand the rest of it")
    with backend.open(ours, mode + b) as f, io.FileIO(theirs, mode) as twin:
        assert isinstance(f, io.RawIOBase)
        assert os.fspath(f.name) == os.fspath(ours)
        assert f.mode.replace("b", "") in (mode, twin.mode.replace("b", ""))
        for name, step in STEPS:
            assert outcome(step, f) == outcome(step, twin), name
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize(
    "mode", ["", "b", "rw", "+", "rr", "r++", "U", "rt", "wx", "rbb", "R", "z"]
)
def test_bad_modes(backend: Any, make_file: Any, mode: str) -> None:
    path, content = make_file(10)
    with pytest.raises(ValueError, match="mode"):
        backend.open(path, mode)
    assert path.read_bytes() == content


@pytest.mark.parametrize("mode", [None, 5, b"r"])
def test_modes_of_a_wrong_type(backend: Any, make_file: Any, mode: Any) -> None:
    with pytest.raises(TypeError):
        backend.open(make_file(10)[0], mode)


def test_open_fails_as_open_does(backend: Any, make_file: Any, tmp_path: Path) -> None:
    path, content = make_file(10)
    missing = tmp_path / "missing"
    with pytest.raises(FileNotFoundError) as caught:
        backend.open(missing)
    assert os.fspath(caught.value.filename) == os.fspath(missing)
    with pytest.raises(FileExistsError):
        backend.open(path, "x")
    for mode in ("r", "r+", "w", "a"):
        with pytest.raises(IsADirectoryError):
            backend.open(tmp_path, mode)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        backend.open(987_654)
    for name in (1.5, None, [path]):
        with pytest.raises(TypeError):
            backend.open(name)
    with pytest.raises(ValueError, match="null"):
        backend.open("nul\0l")
    assert path.read_bytes() == content
    assert not missing.exists()


@pytest.mark.parametrize("kind", [str, os.fsencode, lambda p: p], ids=["str", "bytes", "Path"])
def test_every_kind_of_path(backend: Any, make_file: Any, kind: Any) -> None:
    path, content = make_file(10)
    with backend.open(kind(path)) as f:
        assert f.read() == content


def test_descriptors(backend: Any, make_file: Any) -> None:
    path, content = make_file(100)
    fd = os.open(path, os.O_RDWR)
    f = backend.open(fd, "r+")
    assert f.fileno() == fd
    assert f.pread(10, 5) == content[5:15]
    assert f.pwrite(b"new", 0) == 3
    f.close()
    with suppress(OSError):
        os.close(fd)
    assert path.read_bytes() == b"new" + content[3:]


def test_append_descriptors_are_refused(backend: Any, make_file: Any) -> None:
    """Linux's pwrite ignores the offset on them."""
    path, content = make_file(100)
    fd = os.open(path, os.O_RDWR | os.O_APPEND)
    with pytest.raises(ValueError, match="O_APPEND"):
        backend.open(fd, "r+")
    assert os.pread(fd, 10, 0) == content[:10], "and left open: it is the caller's"
    os.close(fd)


def test_mode_a_keeps_offsets(backend: Any, make_file: Any) -> None:
    path, content = make_file(100)
    with backend.open(path, "a+") as f:
        assert f.tell() == 100
        assert f.pwrite(b"front", 0) == 5
        assert f.write(b"end") == 3
        assert f.write_ranges([50, 40], b"ab") == 2
        assert f.read_ranges([0, 100], [5, 3]).tobytes() == b"frontend"
    assert path.read_bytes()[40] == ord("b")
    assert path.stat().st_size == 103
    assert path.read_bytes()[5:40] == content[5:40]


def test_buffered_wrappers(backend: Any, tmp_path: Path) -> None:
    path = tmp_path / "wrapped"
    lines = [f"línea {i} {'x' * (i % 90)}\n" for i in range(5000)]
    raw = backend.open(path, "w")
    with io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", newline="") as text:
        text.writelines(lines)
    assert raw.closed
    assert path.read_bytes() == "".join(lines).encode()
    with io.TextIOWrapper(io.BufferedReader(backend.open(path)), encoding="utf-8") as text:
        assert text.readlines() == lines
    with io.BufferedRandom(backend.open(path, "r+")) as both:
        both.seek(1000)
        both.write(b"in the middle")
        both.seek(995)
        assert both.read(18)[5:] == b"in the middle"


def every_call(f: Any) -> dict[str, tuple[str, Callable[[], Any]]]:
    """name -> (what it needs: "r", "w" or "", the call)."""
    return {
        "pread": ("r", lambda: f.pread(1, 0)),
        "preadv": ("r", lambda: f.preadv([bytearray(1)], 0)),
        "read_ranges": ("r", lambda: f.read_ranges([0], 1)),
        "read": ("r", lambda: f.read(1)),
        "readall": ("r", lambda: f.readall()),
        "readinto": ("r", lambda: f.readinto(bytearray(1))),
        "pwrite": ("w", lambda: f.pwrite(b"1", 0)),
        "pwritev": ("w", lambda: f.pwritev([b"1"], 0)),
        "write_ranges": ("w", lambda: f.write_ranges([0], b"1")),
        "write": ("w", lambda: f.write(b"1")),
        "truncate": ("w", lambda: f.truncate(5)),
        "flush": ("", f.flush),
        "sync": ("", f.sync),
        "seek": ("", lambda: f.seek(0)),
        "tell": ("", f.tell),
        "fileno": ("", f.fileno),
        "readable": ("", f.readable),
        "writable": ("", f.writable),
        "seekable": ("", f.seekable),
    }


def test_wrong_mode_and_closed(backend: Any, make_file: Any) -> None:
    path, _ = make_file(10)
    for mode, lacks in (("r", "w"), ("a", "r")):
        with backend.open(path, mode) as f:
            for needs, call in every_call(f).values():
                if needs == lacks:
                    with pytest.raises(io.UnsupportedOperation):
                        call()
    f = backend.open(path, "r+")
    f.close()
    f.close()
    assert f.closed
    for _, call in every_call(f).values():
        with pytest.raises(ValueError, match=CLOSED):
            call()
    with pytest.raises(ValueError, match=CLOSED), f:
        pass


def test_attributes(backend: Any, make_file: Any) -> None:
    path, _ = make_file(10)
    with backend.coalescer() as c:
        assert c.backend == backend.name
        assert isinstance(c.backend_reason, str)
        f, g = c.open(path), iolift.open(path, "r+", coalescer=c)
        assert f.coalescer is g.coalescer is c
        assert f.direct is False
        assert f.alignment == (1, 1)
        g.pwrite(b"0123456789", 0)
        assert f.pread(10, 0) == b"0123456789"
        c.flush()
        c.sync()
    assert c.closed
    c.close()
    with pytest.raises(ValueError, match="closed"):
        c.open(path)


def test_options_with_a_given_coalescer_are_refused(backend: Any, make_file: Any) -> None:
    path, _ = make_file(10)
    with backend.coalescer() as c, pytest.raises((TypeError, ValueError)):
        iolift.open(path, coalescer=c, gap=5)
    with pytest.raises(TypeError):
        iolift.open(path, no_such_option=1)
    for bad in ({"gap": -1}, {"max_io": 0}, {"depth": 0}, {"order": "lifo"}, {"backend": "none"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            iolift.Coalescer(**bad)


def test_direct_alignment(backend: Any, make_file: Any) -> None:
    path, content = make_file(5000)
    try:
        f = backend.open(path, "r+", direct=True)
    except OSError as error:
        pytest.skip(f"O_DIRECT: {error}")
    with f:
        assert f.direct is True
        memory, offset = f.alignment
        assert memory >= 4
        assert offset >= 512
        assert offset & (offset - 1) == memory & (memory - 1) == 0
        assert f.pread(3000, 1999) == content[1999:4999]


def test_trace(backend: Any, make_file: Any) -> None:
    path, _ = make_file(1000)
    with backend.coalescer() as c, c.open(path, "r+") as f:
        c.trace_start()
        f.read_ranges([500, 0, 100], 100)
        f.write_ranges([10, 5], b"1234567890")
        f.pread(3, 7)
        f.sync()
        trace = c.trace_stop()
        f.pread(3, 7)
        assert trace.dtype == np.int64
        wanted = [[0, 0, 200], [0, 500, 100], [1, 5, 10], [0, 7, 3]]
        assert trace[:4].tolist() == wanted
        assert trace[4:, 0].tolist() == [2]
        c.trace_start()
        assert c.trace_stop().shape == (0, 3)


def test_many_threads_on_one_file(backend: Any, make_file: Any) -> None:
    """Each thread has its own part of the file, all share the coalescer."""
    part, parts = 50_000, 8
    path, content = make_file(part * parts)
    wrong: list[str] = []

    def work(f: Any, number: int) -> None:
        chance, base = random.Random(number), number * part
        mine = bytearray(content[base : base + part])
        for _ in range(60):
            offsets = [chance.randrange(part - 200) for _ in range(20)]
            rows = [chance.randbytes(200) for _ in offsets]
            f.write_ranges([base + o for o in offsets], b"".join(rows), lengths=200)
            for o, row in zip(offsets, rows, strict=True):
                mine[o : o + 200] = row
            found = f.read_ranges([base + o for o in offsets], 200)
            if found.tobytes() != b"".join(mine[o : o + 200] for o in offsets):
                wrong.append(f"thread {number}")

    with backend.open(path, "r+", depth=8) as f:
        threads = [threading.Thread(target=work, args=(f, i)) for i in range(parts)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert not wrong


FORK = """
import os, sys
import iolift

f = iolift.open(sys.argv[1], "r+", backend=sys.argv[2], depth=4)
f.read_ranges(range(0, 9000, 1000), 10)
calls = [
    lambda: f.pread(1, 0), lambda: f.pwrite(b"1", 0), lambda: f.read_ranges([0, 50], 1),
    lambda: f.write_ranges([0, 50], b"12"), lambda: f.read(1), lambda: f.write(b"1"),
    f.sync, f.flush, lambda: f.coalescer.open(sys.argv[1]), f.coalescer.flush, f.coalescer.sync,
]
if not os.fork():
    wrong = 0
    for number, call in enumerate(calls):
        try:
            call()
        except iolift.ForkedError:
            pass
        else:
            wrong |= 1 << number
    f.close()
    f.coalescer.close()
    with iolift.open(sys.argv[1], backend=sys.argv[2]) as own:
        if own.read_ranges([5, 50], 3).nbytes != 6:
            wrong = -1
    print(wrong, flush=True)
    os._exit(0)
os.wait()
print(f.read_ranges([0, 5000], 4).nbytes)
f.close()
"""


def test_a_forked_child_is_refused_and_the_parent_unharmed(backend: Any, make_file: Any) -> None:
    if backend.name == "hosted":
        pytest.skip("the host decides about forks")
    path, content = make_file(10_000)
    command = [sys.executable, "-W", "ignore", "-c", FORK, str(path), backend.name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["0", "8"], "bit i: call i was not refused in the child"
    assert path.read_bytes() == content


# ------------------------------------------------------------------------------------------ sync


@pytest.mark.parametrize("queue", [0.0, 1.0])
def test_a_failed_sync_poisons_the_file(make_file: Any, queue: float) -> None:
    """The kernel forgets: after one EIO the next fsync says success and the data is gone."""
    path, _content = make_file(1000)
    other, _ = make_file(1000, name="other")
    disk = FaultyDisk(queue=queue)
    with iolift.Coalescer(backend=disk) as c:
        f, g = c.open(path, "r+"), c.open(other, "r+")
        f.pwrite(b"before", 0)
        f.sync()
        disk.fail(errno.EIO, kind="sync", times=1)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)) as caught:
            f.sync()
        assert not isinstance(caught.value, iolift.PoisonedError)
        assert caught.value.errno == errno.EIO
        assert os.fspath(caught.value.filename) == os.fspath(path)
        seen = len(disk.log)
        for name, (needs, call) in every_call(f).items():
            if needs == "w" or name == "sync":
                with pytest.raises(iolift.PoisonedError) as poisoned:
                    call()
                assert poisoned.value.errno == errno.EIO, name
        assert len(disk.log) == seen, "a poisoned file reaches the disk no more"
        assert f.pread(6, 0) == b"before"
        g.pwrite(b"fine", 0)
        g.sync()
        f.close()
        assert f.closed
        g.close()
    disk.check()


def test_sync_comes_after_all_the_writes(make_file: Any) -> None:
    path, _ = make_file(100_000)
    disk = FaultyDisk(seed=2, delay=5, reorder=True)
    with iolift.open(path, "r+", backend=disk) as f:
        f.write_ranges(list(range(0, 100_000, 1000)), bytes(1000))
        f.sync()
    kinds = [op.kind for op in disk.log]
    assert kinds.count("write") == 100
    assert kinds[100:] == ["sync"]
    disk.check()


@pytest.mark.parametrize("error", [errno.EINTR, errno.EAGAIN])
def test_an_interrupted_sync_is_no_failure(make_file: Any, error: int) -> None:
    path, _ = make_file(10)
    disk = FaultyDisk()
    disk.fail(error, kind="sync", times=3)
    with iolift.open(path, "r+", backend=disk) as f:
        f.sync()
        assert f.pwrite(b"1", 0) == 1
    assert len(disk.ops("sync")) == 4
    disk.check()


# ---------------------------------------------------------------------- in the middle of each other


@pytest.mark.parametrize("mode", ["w", "a"])
def test_a_handler_that_writes_in_the_middle_of_a_write(tmp_path, mode):
    child.run(
        """
        import signal, sys, iolift
        path, mode = sys.argv[1:]
        f = iolift.open(path, mode)
        heard, n, goes_on = 0, 0, True

        def handler(*_):
            global heard
            f.write(b"H%07d" % heard)
            heard += 1
            if goes_on:                     # here, so that none comes into another
                signal.setitimer(signal.ITIMER_REAL, 20e-6)

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 20e-6)
        while heard < 3000 or n < 20_000:
            f.write(b"M%07d" % n)
            n += 1
        goes_on = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert f.tell() == 8 * (n + heard), (f.tell(), n, heard)
        f.close()
        with open(path, "rb") as file:
            data = file.read()
        records = sorted(data[i:i + 8] for i in range(0, len(data), 8))
        assert records == [b"H%07d" % i for i in range(heard)] + [b"M%07d" % i for i in range(n)]
        """,
        tmp_path / "data",
        mode,
    )


class Interrupting(FaultyDisk):
    """Calls `handler` once, in the middle of a call and on its thread, as a signal would."""

    handler: Any = None

    def submit(self, *operation):
        handler, self.handler = self.handler, None
        if handler is not None:
            handler()
        return super().submit(*operation)


READS = {
    "read": lambda f: f.read(4),
    "readall": lambda f: f.readall(),
    "readinto": lambda f: memoryview(buffer := bytearray(4))[: f.readinto(buffer)].tobytes(),
}


@pytest.mark.parametrize("call", READS.values(), ids=READS)
def test_a_handler_that_reads_in_the_middle_of_a_read_goes_on_behind_it(tmp_path, call):
    (tmp_path / "data").write_bytes(b"0123456789")
    disk = Interrupting()
    with iolift.open(tmp_path / "data", backend=disk) as f:
        read = []
        disk.handler = lambda: read.append(f.read(4))
        first = call(f)
        assert first + read[0] + f.read() == b"0123456789"
        assert first.startswith(b"0123")
        assert f.tell() == 10


@pytest.mark.parametrize("call", READS.values(), ids=READS)
def test_a_read_that_a_handler_ends_moves_nothing(tmp_path, call):
    (tmp_path / "data").write_bytes(b"0123456789")
    disk = Interrupting()

    def interrupt():
        raise KeyboardInterrupt

    with iolift.open(tmp_path / "data", backend=disk) as f:
        f.seek(2)
        disk.handler = interrupt
        with pytest.raises(KeyboardInterrupt):
            call(f)
        assert f.tell() == 2
        assert call(f)[:4] == b"2345"


LAYERS = """
    import io, random, signal, sys, iolift
    path = sys.argv[1]

    class Interrupt(Exception):
        pass

    def handler(*_):
        raise Interrupt

    signal.signal(signal.SIGALRM, handler)
    rng, interrupted = random.Random(1), 0

    def again(call):
        global interrupted
        while True:
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(5e-6, 60e-6))
                result = call()
                signal.setitimer(signal.ITIMER_REAL, 0)
                return result
            except Interrupt:
                interrupted += 1

    records = [b"%08d" % i for i in range(4000)]
    with io.BufferedWriter(iolift.File(path, "w")) as f:
        for record in records:
            f.write(record)
            again(f.flush)
    found = []
    with io.BufferedReader(iolift.File(path), 64) as f:
        while data := again(f.peek):
            found.append(f.read(len(data)))
    assert interrupted > 20, interrupted
    with open(path, "rb") as f:
        assert f.read() == b"".join(records)
    assert b"".join(found) == b"".join(records)
"""


def test_a_buffered_layer_that_tries_again_loses_and_doubles_nothing(tmp_path):
    child.run(LAYERS, tmp_path / "data")


@pytest.mark.parametrize("journal", [None, "journal"])
@pytest.mark.parametrize("dtype", ["M8[s]", "m8[us]", "f8", "S3", "V5"])
def test_arrays_of_any_type_are_written(tmp_path, dtype, journal):
    (tmp_path / "data").touch()
    array = np.zeros(3, dtype)
    array.view("u1")[...] = range(1, array.nbytes + 1)
    with iolift.open(tmp_path / "data", "r+", journal=journal and tmp_path / journal) as f:
        assert f.write(array) == f.tell() == array.nbytes
        assert f.pwrite(array, array.nbytes) == array.nbytes
        assert f.submit_pwrite(array, 2 * array.nbytes).result() == array.nbytes
        assert f.pread(999, 0) == 3 * array.tobytes()


@pytest.mark.parametrize("call", ["readall()", "read(SIZE + 1)", "pread(SIZE + 1, 0)"])
def test_a_handler_that_extends_the_file_in_the_middle_of_a_read_past_its_end(tmp_path, call):
    said = child.run(
        """
        import signal, sys, iolift
        SIZE = 1 << 28
        f = iolift.open(sys.argv[1], "w+")
        f.truncate(SIZE)
        heard = []

        def handler(*_):
            f.write(b"hello")
            f.flush()
            heard.append(f.tell())

        signal.signal(signal.SIGALRM, handler)
        while not heard:                # before the call is over
            f.truncate(SIZE)
            f.seek(0)
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            assert len(eval("f." + sys.argv[2])) >= SIZE
            signal.setitimer(signal.ITIMER_REAL, 0)
        print(len(heard))
        f.close()
        """,
        tmp_path / "data",
        call,
    )
    assert int(said) == 1


def test_a_handlers_own_file_is_closed_when_it_says_so(tmp_path):
    child.run(
        """
        import signal, sys, iolift
        path, mine = sys.argv[1:]
        heard, goes_on = 0, True

        def handler(*_):
            global heard
            f = iolift.open(mine, "w", write_window_ms=1000)
            f.write(b"x" * 1000)
            f.close()
            with open(mine, "rb") as file:
                assert f.closed and len(file.read()) == 1000, heard
            heard += 1
            if goes_on:
                signal.setitimer(signal.ITIMER_REAL, 100e-6)

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 100e-6)
        while heard < 1000:
            with iolift.open(path, "w") as f:
                f.write(b"y")
        goes_on = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        """,
        tmp_path / "data",
        tmp_path / "mine",
    )


def test_nothing_written_moves_nothing(tmp_path):
    (tmp_path / "data").write_bytes(b"0123456789")
    with iolift.open(tmp_path / "data", "a+") as f:
        f.seek(4)
        assert f.write(b"") == 0
        assert (f.tell(), f.read()) == (4, b"456789")


def test_a_flush_that_was_interrupted_leaves_fileno_to_flush_again(tmp_path):
    disk = GatedDisk()
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with iolift.open(tmp_path / "data", "w", write_window_ms=60_000, backend=disk) as f:
            f.write(b"x" * 100)
            f.write(b"x" * 100)
            disk.close("write")
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            with pytest.raises(KeyboardInterrupt):
                f.fileno()
            disk.open()
            assert os.fstat(f.fileno()).st_size == 200
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_descriptor_stays_the_callers_where_opening_fails(tmp_path):
    (tmp_path / "data").write_bytes(b"x")
    fd = os.open(tmp_path / "data", os.O_RDWR)
    with pytest.raises(NotADirectoryError):
        iolift.open(fd, "r+", journal=tmp_path / "data" / "no")
    assert os.fstat(fd).st_size == 1
    iolift.open(fd, "r+").close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
