"""Goal: forks, signals, exits and broken hosts: no hang, no leak, nobody's data harmed.

What may take a whole process along runs in a child process (child.py). Nothing sleeps to wait:
pipes, events and waitpid say when the other side is there.
"""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import child
import pytest
from conftest import unavailable

import iolift

REAL = [
    pytest.param("posix"),
    pytest.param("uring", marks=pytest.mark.skipif(bool(unavailable("uring")), reason="no ring")),
]
TESTS = Path(__file__).parent

# --------------------------------------------------------------------------------------- forks

FORKED_CHILD = """
    import os, sys, numpy as np, iolift
    path, backend, sharing = sys.argv[1:]
    c = iolift.Coalescer(backend=backend)
    f = c.open(path, "r+") if sharing == "shared" else iolift.open(path, "r+", backend=backend)
    if sharing == "private":
        c = f.coalescer
    many = range(0, 64_000, 640)
    content = f.pread(64_000, 0)
    expected = b"".join(content[o:o + 64] for o in many)
    assert f.read_ranges(many, 64).tobytes() == expected        # ring and threads are at work
    fd = f.fileno()
    to_parent, to_child = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        calls = {
            "pread": lambda: f.pread(1, 0), "pwrite": lambda: f.pwrite(b"x", 0),
            "preadv": lambda: f.preadv([bytearray(1)], 0), "pwritev": lambda: f.pwritev([b"x"], 0),
            "read_ranges": lambda: f.read_ranges([0], 1),
            "write_ranges": lambda: f.write_ranges([0], b"x"), "flush": lambda: f.flush(),
            "sync": lambda: f.sync(), "read": lambda: f.read(1), "readall": lambda: f.readall(),
            "readinto": lambda: f.readinto(bytearray(1)), "write": lambda: f.write(b"x"),
            "seek": lambda: f.seek(0), "tell": lambda: f.tell(), "fileno": lambda: f.fileno(),
            "truncate": lambda: f.truncate(0), "c.open": lambda: c.open(path),
            "c.flush": lambda: c.flush(), "c.sync": lambda: c.sync(),
            "c.enter": lambda: c.__enter__(), "c.trace": lambda: c.trace_start(),
        }
        said = []
        for name, call in calls.items():
            try:
                call()
                said.append(name + " was allowed")
            except iolift.ForkedError:
                pass
            except BaseException as error:
                said.append(f"{name}: {error!r}")
        os.write(to_parent[1], b"refused ")
        os.read(to_child[0], 1)
        try:
            f.close()
            assert f.closed
            c.close()
            os.fstat(fd)
            said.append("the descriptor is still open")
        except OSError:
            pass
        except BaseException as error:
            said.append(f"close: {error!r}")
        # A file of its own works.
        with iolift.open(path, backend=backend) as own:
            if own.read_ranges(many, 64).tobytes() != expected:
                said.append("wrong bytes")
        os.write(to_parent[1], repr(said).encode())
        sys.exit()                      # with all that the parent made still there
    os.close(to_parent[1])
    os.read(to_parent[0], 8)
    for _ in range(3):
        assert f.read_ranges(many, 64).tobytes() == expected
    os.write(to_child[1], b"x")
    print(os.read(to_parent[0], 10_000).decode())
    assert f.read_ranges(many, 64).tobytes() == expected
    assert os.waitpid(pid, 0)[1] == 0
    assert f.write_ranges(many, expected) == len(expected)
    assert f.read_ranges(many, 64).tobytes() == expected
    f.sync()
    c.close()
"""


@pytest.mark.parametrize("backend_name", REAL)
@pytest.mark.parametrize("sharing", ["private", "shared"])
def test_a_forked_child_may_only_close(make_file: Any, backend_name: str, sharing: str) -> None:
    path, content = make_file(64_000)
    assert child.run(FORKED_CHILD, path, backend_name, sharing) == "[]\n"
    assert path.read_bytes() == content


FORKED_MEANWHILE = """
    import os, signal, sys, threading, iolift
    path = sys.argv[1]

    class Gate:
        def __init__(self):
            self.arrived, self.opened = threading.Event(), threading.Event()
        def submit(self, token, kind, fd, offset, buffers):
            self.arrived.set()
            self.opened.wait()
            return os.preadv(fd, buffers, offset)
        def reap(self, wait):
            return []

    gate = Gate()
    f = iolift.open(path, backend=gate)
    thread = threading.Thread(target=f.read, args=(10,))
    thread.start()
    gate.arrived.wait()
    pid = os.fork()                     # in the middle of the other thread's call
    if pid == 0:
        for call in (lambda: f.read(1), lambda: f.pread(1, 0), lambda: f.readall(),
                     lambda: f.write(b"x"), lambda: f.truncate(0), lambda: f.seek(0)):
            try:
                call()
                os._exit(1)
            except iolift.ForkedError:
                pass
        f.close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    gate.opened.set()
    thread.join()
    assert f.tell() == 10
    f.close()
"""


def test_a_fork_while_another_thread_is_in_a_call(make_file: Any) -> None:
    path, _ = make_file(1000)
    child.run(FORKED_MEANWHILE, path)


def read_in_process(path: str, backend: str) -> bytes:
    with iolift.open(path, backend=backend) as f:
        return bytes(f.read_ranges(range(0, 6400, 64), 32))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("backend_name", REAL)
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_multiprocessing(make_file: Any, method: str, backend_name: str, monkeypatch: Any) -> None:
    path, _ = make_file(6400)
    monkeypatch.syspath_prepend(str(TESTS))
    context = multiprocessing.get_context(method)
    with iolift.open(path, backend=backend_name) as f:
        expected = bytes(f.read_ranges(range(0, 6400, 64), 32))
        with context.Pool(2) as pool:
            results = pool.starmap_async(read_in_process, [(str(path), backend_name)] * 4)
            assert results.get(100) == [expected] * 4
        assert bytes(f.read_ranges(range(0, 6400, 64), 32)) == expected


FORKS_IN_A_HANDLER = """
    import os, signal, sys, numpy as np, iolift
    path, backend = sys.argv[1:]
    f = iolift.open(path, backend=backend)
    offsets = np.arange(0, 1 << 26, 256)
    out = np.empty((len(offsets), 128), np.uint8)
    me, children = os.getpid(), []

    def read_until_forked(in_child):
        def handler(*_):
            signal.setitimer(signal.ITIMER_REAL, 0)
            pid = os.fork()
            if pid:
                children.append(pid)
            else:
                in_child()
        signal.signal(signal.SIGALRM, handler)
        while not children and os.getpid() == me:
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            f.read_ranges(offsets, 128, out=out)        # the child comes back in here
            signal.setitimer(signal.ITIMER_REAL, 0)
"""

HANDLER_FORKS = (
    FORKS_IN_A_HANDLER
    + """
    refused = False
    try:
        read_until_forked(lambda: None)
    except iolift.ForkedError:
        refused = True
    if os.getpid() != me:
        try:
            f.pread(1, 0)
        except iolift.ForkedError:
            sys.exit(0)
        sys.exit(1)
    assert not refused and not out.any()
    assert os.waitpid(children[0], 0)[1] == 0
    f.read_ranges(offsets, 128, out=out)
    f.close()
"""
)

HANDLER_FORKS_AND_LEAVES = (
    FORKS_IN_A_HANDLER
    + """
    read_until_forked(lambda: sys.exit(3))
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 3
"""
)


@pytest.mark.parametrize("backend_name", REAL)
@pytest.mark.parametrize("code", [HANDLER_FORKS, HANDLER_FORKS_AND_LEAVES], ids=["stays", "leaves"])
def test_a_signal_handler_that_forks(make_zeros: Any, code: str, backend_name: str) -> None:
    """In the child the call is refused, unless the handler raised: that is raised there."""
    child.run(code, make_zeros(1 << 26), backend_name)


FORKS_IN_A_THREAD = """
    import os, signal, sys, threading, warnings, iolift
    warnings.simplefilter("ignore", DeprecationWarning)     # of a fork beside other threads
    codes = []

    class Host:
        # Never answers.
        def submit(self, token, kind, fd, offset, buffers):
            return "queued"
        def reap(self, wait):
            threading.Event().wait()

    class StopError(Exception):
        pass

    def stop(*_):
        raise StopError

    def fork():
        pid = os.fork()
        if pid == 0:
            f = iolift.open(sys.argv[1], backend=Host())
            ticket = f.submit_pread(10, 0)
            signal.signal(signal.SIGALRM, stop)
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            try:
                ticket.result()
            except StopError:
                os._exit(7)
            os._exit(1)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    thread = threading.Thread(target=fork)
    thread.start()
    thread.join()
    assert codes == [7], codes
"""


def test_a_child_of_another_thread_hears_signals(make_file: Any) -> None:
    """There the thread that forked is the main one, though it was not when iolift was loaded."""
    child.run(FORKS_IN_A_THREAD, make_file(1000)[0])


# ------------------------------------------------------------------------------------- signals

LONG_READS = """
    import os, signal, sys, numpy as np, iolift
    path, backend, depth = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.default_int_handler)    # whoever started us may ignore it
    f = iolift.open(path, "r+", backend=backend, depth=int(depth))
    offsets = np.random.default_rng(1).permutation(1 << 16) * 1024
    out = np.zeros((len(offsets), 256), np.uint8)
    def forever():
        f.read_ranges(offsets, 256, out=out)
        print("reading", flush=True)
        while True:
            f.read_ranges(offsets, 256, out=out)
            f.write_ranges(offsets[:1 << 15], out[:1 << 15])
    try:
        forever()
    except KeyboardInterrupt:
        pass
    # All is still usable, and the rows are the caller's again.
    out[:] = 1
    assert f.pread(1024, 0) == bytes(1024)
    assert not f.read_ranges(offsets, 256).any()
    assert (out == 1).all()
    f.sync()
    print("caught", flush=True)
    forever()
"""


@pytest.mark.parametrize("depth", [1, 64])
@pytest.mark.parametrize("backend_name", REAL)
def test_ctrl_c(make_zeros: Any, backend_name: str, depth: int) -> None:
    path = make_zeros(1 << 26)
    code = textwrap.dedent(LONG_READS)
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path), backend_name, str(depth)],
        env=child.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        said = []
        for line in process.stdout or ():
            said.append(line.strip())
            if line == "reading\n":
                process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        trouble = process.stderr.read()
    assert said == ["reading", "caught", "reading"], trouble
    assert process.returncode == -signal.SIGINT  # as Python ends on a KeyboardInterrupt
    assert trouble.rstrip().endswith("KeyboardInterrupt")


HANDLERS = """
    import os, signal, sys, threading, numpy as np, iolift
    path, backend, direct, case = sys.argv[1:]
    f = iolift.open(path, "r+", backend=backend, direct=direct == "direct", max_io=1 << 14)
    offsets = np.random.default_rng(1).permutation(1 << 11) * 16384
    rows = np.zeros((len(offsets), 8192), np.uint8)

    def until(handler, call):
        # Makes `call` again and again until `handler` has run, in the middle of one hopefully.
        heard = []
        def wrapped(*_):
            heard.append(1)
            handler()
        signal.signal(signal.SIGALRM, wrapped)
        signal.setitimer(signal.ITIMER_REAL, 0.005)
        while not heard:
            call()

    class Special(Exception):
        pass

    def fails():
        raise Special("from the handler")

    read = lambda: f.read_ranges(offsets, 8192, out=rows)
    write = lambda: f.write_ranges(offsets, rows)
    if case == "raises":
        for call in read, write, lambda: f.pread(1 << 25, 0):
            try:
                until(fails, call)
                raise AssertionError("nothing was raised")
            except Special as error:
                assert str(error) == "from the handler"
    if case == "uses the file":
        for call in read, write:
            until(lambda: f.pread(100, 5), call)
            until(lambda: f.read_ranges([5, 70_000], 100), call)
            until(lambda: f.pwrite(bytes(100), 5), call)
            until(lambda: f.write_ranges(offsets[:10], bytes(81920)), call)
            until(lambda: f.sync(), call)
    if case == "moves the position":
        for call in lambda: f.write(bytes(1 << 22)), lambda: (f.seek(0), f.read(1 << 22)):
            until(lambda: f.tell(), call)
            until(lambda: f.read(10), call)
            until(lambda: f.write(bytes(10)), call)
            f.seek(0)
    assert not f.read_ranges(offsets, 8192).any()
    if case == "closes":
        for kind in "file", "coalescer":
            c = iolift.Coalescer(backend=backend)
            g = c.open(path, "r+")
            close = (g if kind == "file" else c).close
            try:
                until(close, lambda: g.read_ranges(offsets, 8192, out=rows))
            except ValueError:
                pass                    # it came between two calls
            try:
                g.pread(1, 0)
                raise AssertionError("not closed")
            except ValueError:
                pass
            c.close()
    f.close()
"""


@pytest.mark.parametrize("case", ["raises", "uses the file", "moves the position", "closes"])
@pytest.mark.parametrize("backend_name", REAL)
def test_a_signal_handler(make_zeros: Any, backend_name: str, case: str) -> None:
    child.run(HANDLERS, make_zeros(1 << 25), backend_name, "buffered", case)


@pytest.mark.parametrize("backend_name", REAL)
def test_a_signal_handler_that_uses_the_same_direct_file(
    make_zeros: Any, backend_name: str
) -> None:
    path = make_zeros(1 << 25)
    try:
        iolift.open(path, direct=True).close()
    except OSError as error:
        pytest.skip(f"no direct I/O here: {error}")
    child.run(HANDLERS, path, backend_name, "direct", "uses the file")


# -------------------------------------------------------------------------------------- leaks

LEAKS = """
    import gc, os, sys, threading, numpy as np, iolift
    path, backend = sys.argv[1:]
    def own():
        gc.collect()
        for _ in range(10_000):         # a joined thread is a task for a moment longer
            if len(own_threads()) == 1:
                break
        return len(os.listdir("/proc/self/fd")), len(own_threads()), open_maps()
    def own_threads():
        # Not the kernel's own workers of a ring, which it ends when it likes.
        names = []
        for task in os.listdir("/proc/self/task"):
            try:
                with open(f"/proc/self/task/{task}/comm") as comm:
                    names.append(comm.read())
            except OSError:
                pass
        return [name for name in names if not name.startswith("iou-")]
    def open_maps():
        with open("/proc/self/maps") as maps:
            return sum("io_uring" in line for line in maps)
    def use(c):
        f = c.open(path)
        f.read_ranges(np.arange(200) << 16, 1 << 15)    # slow enough for helpers
        threads = [threading.Thread(target=f.read_ranges, args=(range(0, 90_000, 900), 4))
                   for _ in range(6)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        return f
    def one_round():
        c = iolift.Coalescer(backend=backend)
        f, g = use(c), use(c)
        del f, g, c                                     # dropped
        c = iolift.Coalescer(backend=backend)
        f = use(c)
        del c, f
        f = iolift.open(path, backend=backend)
        f.read_ranges(range(0, 90_000, 900), 4)
        del f
        with iolift.Coalescer(backend=backend) as c:    # closed, the file kept
            f = use(c)
        try:
            iolift.Coalescer(backend=backend, depth=0)
        except ValueError:
            pass
        c = iolift.Coalescer(backend=backend)           # closed while in use, then dropped
        f = use(c)
        t = threading.Thread(target=lambda: swallow(f))
        t.start()
        c.close()
        t.join()
    def swallow(f):
        try:
            while True:
                f.read_ranges(np.arange(200) << 16, 1 << 15)
        except ValueError:
            pass
    one_round()
    before = own()
    for _ in range(8):
        one_round()
    print(before == own() or (before, own()))
"""


@pytest.mark.parametrize("backend_name", REAL)
def test_what_is_dropped_leaves_no_thread_descriptor_or_ring(
    make_zeros: Any, backend_name: str
) -> None:
    path = make_zeros(200 << 16)
    assert child.run(LEAKS, path, backend_name) == "True\n"


EXIT = """
    import atexit, sys, threading, numpy as np, iolift
    path, backend = sys.argv[1:]
    c = iolift.Coalescer(backend=backend)
    f = c.open(path, "r+")
    g = iolift.open(path, backend=backend)
    f.read_ranges(np.arange(200) << 16, 1 << 15)
    g.read_ranges(np.arange(200) << 16, 1 << 15)
    cycle = [f, c]
    cycle.append(cycle)
    atexit.register(lambda: f.pwrite(b"at exit", 0))
    started = threading.Event()
    def work():
        while True:
            f.read_ranges(np.arange(200) << 16, 1 << 15)
            started.set()
    threading.Thread(target=work, daemon=True).start()  # still at it when the interpreter ends
    started.wait()
"""


@pytest.mark.parametrize("backend_name", REAL)
def test_exit_with_everything_open_is_clean(make_zeros: Any, backend_name: str) -> None:
    path = make_zeros(200 << 16)
    for _ in range(3):
        assert child.run(EXIT, path, backend_name) == ""
    assert path.read_bytes()[:7] == b"at exit"


SMALL_STACK = """
    import sys, threading, numpy as np, iolift
    offsets = np.random.default_rng(1).integers(0, 1 << 40, 20_000)
    threading.stack_size(64 << 10)
    plans = []
    thread = threading.Thread(target=lambda: plans.append(iolift.plan(offsets, 4096)))
    thread.start()
    thread.join()
    assert plans[0].bytes_asked == 4096 * len(offsets)
"""


def test_a_small_stack_is_enough() -> None:
    child.run(SMALL_STACK)


# ------------------------------------------------------------------------------------ finalizers

CLOSED_BY_THE_COLLECTOR = """
    import contextlib, gc, sys, threading
    import iolift
    from iolift import _threads
    path, backend, kind = sys.argv[1:]
    options = {"direct": {"direct": True}, "journal": {
        "journal": path + ".journal", "journal_segment_bytes": 1 << 16,
        "journal_max_bytes": 1 << 18}}.get(kind, {})
    BLOCK, ROUNDS = 4096, 120

    left, left_to_threads = 0, []

    def collect(phase, _):
        global left
        if phase == "start":
            left -= 1
            if left == 0:
                (f.coalescer if kind == "coalescer" else f).close()

    def begin_aside(work, name, begin=_threads.begin_aside):
        done = threading.Event()
        left_to_threads.append(done)
        begin(lambda: (work(), done.set()), name)

    def reopened():
        while True:         # another thread may be about to close it
            with contextlib.suppress(BlockingIOError):
                return iolift.open(path, "r+", backend=backend, write_window_ms=1, **options)

    def use(written):
        for i in range(40):
            offset, turn = i * 37 % 200 * BLOCK, i % 8
            if turn < 4:
                data = bytes([65 + i % 26]) * BLOCK
                f.submit_pwrite(data, offset)
                written[offset] = data
            elif turn == 4:
                f.submit_pread(BLOCK, offset).result()
            elif turn == 5:
                f.submit_sync()
            elif turn == 6:
                f.pread(100, offset)
                f.submit_pread(BLOCK, offset)
            else:
                f.sync()
                f.read_ranges([0, BLOCK, 10 * BLOCK], BLOCK)
                if kind == "journal":
                    f.checkpoint()

    _threads.begin_aside = begin_aside
    gc.callbacks.append(collect)
    cut_short = 0
    for moment in range(1, ROUNDS):
        gc.set_threshold(0)
        f, written = reopened(), {}
        left = moment
        gc.set_threshold(1, 1, 1)       # every object that is made begins a collection
        try:
            use(written)
            f.close()
        except ValueError:              # it is closed
            cut_short += 1
        gc.set_threshold(0)
        was_late, left = left > 0, 0
        while left_to_threads:
            left_to_threads.pop().wait()
        f.close()
        f = None
        if kind == "journal":
            reopened().close()          # whoever closes it has done so
        with open(path, "rb") as file:
            for offset, data in written.items():
                file.seek(offset)
                assert file.read(BLOCK) == data, (moment, offset)
        gc.collect()
        if was_late:
            break
    print(cut_short)
"""


@pytest.mark.parametrize("backend_name", REAL)
@pytest.mark.parametrize("kind", ["plain", "direct", "coalescer", "journal"])
def test_a_file_that_is_closed_by_a_finalizer_in_the_middle_of_its_own_call(
    make_zeros: Any, backend_name: str, kind: str
) -> None:
    # At each moment at which an object is made. Before CPython 3.12 the core itself gives occasion.
    path = make_zeros(1 << 20)
    cut_short = int(child.run(CLOSED_BY_THE_COLLECTOR, path, backend_name, kind))
    assert cut_short >= (20 if sys.version_info < (3, 12) else 0)
