"""Goal: where io_uring, descriptors or memory are refused: the same results, and it says why.

Each test brings the refusal about for real, in a child: a seccomp filter as containers have it, an
exhausted descriptor table, no memory that may be locked.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import child
import pytest
from conftest import unavailable

import iolift

if TYPE_CHECKING:
    from pathlib import Path

needs_ring = pytest.mark.skipif(bool(unavailable("uring")), reason="no io_uring here anyway")

FORBID = """
    import ctypes, errno, os, sys, iolift

    def forbid(error):
        # A filter of five instructions: system calls 425 to 427, which are io_uring's on every
        # architecture, return `error`.
        class Instruction(ctypes.Structure):
            _fields_ = [("code", ctypes.c_uint16), ("yes", ctypes.c_uint8),
                        ("no", ctypes.c_uint8), ("k", ctypes.c_uint32)]
        class Program(ctypes.Structure):
            _fields_ = [("length", ctypes.c_uint16), ("first", ctypes.POINTER(Instruction))]
        code = (Instruction * 5)(
            (0x20, 0, 0, 0),                    # load the number of the call
            (0x35, 0, 2, 425),                  # >= 425, or else to the end
            (0x25, 1, 0, 427),                  # > 427: to the end
            (0x06, 0, 0, 0x00050000 | error),   # return the error
            (0x06, 0, 0, 0x7fff0000))           # allow
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(38, 1, 0, 0, 0)              # PR_SET_NO_NEW_PRIVS
        program = Program(5, code)
        if libc.prctl(22, 2, ctypes.byref(program), 0, 0):      # PR_SET_SECCOMP, filter
            print("no seccomp here")
            sys.exit()

    path, error, backend = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    forbid(error)
    try:
        f = iolift.open(path, "r+", backend=backend)
    except OSError as refused:
        print(refused.errno, refused.strerror)
        sys.exit()
    print(f.coalescer.backend, f.coalescer.backend_reason)
    f.write_ranges([6, 3, 0], [b"gghhii"][0] + b"jjj")
    assert bytes(f.read_ranges([0, 6], 3)) == b"jjjggh", f.pread(9, 0)
    f.sync()
    f.close()
"""


def forbidden(path: Path, error: int, backend: str, **environment: str) -> str:
    path.write_bytes(bytes(9))
    said = child.run(FORBID, path, error, backend, **environment).strip()
    if said == "no seccomp here":
        pytest.skip(said)
    return said


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS])
def test_forbidden_io_uring_is_replaced_by_posix_with_the_reason(
    tmp_path: Path, error: int
) -> None:
    said = forbidden(tmp_path / "data", error, "auto")
    assert said.startswith("posix no io_uring")
    assert errno.errorcode[error] in said
    assert "seccomp" in said


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS])
@pytest.mark.parametrize("way", ["option", "environment"])
def test_uring_asked_for_and_forbidden_fails_clearly(tmp_path: Path, error: int, way: str) -> None:
    if way == "option":
        said = forbidden(tmp_path / "data", error, "uring")
    else:
        said = forbidden(tmp_path / "data", error, "auto", IOLIFT_BACKEND="uring")
    assert said.startswith(f"{error} io_uring_setup: {errno.errorcode[error]}")
    assert "seccomp" in said


def test_the_environment_takes_the_place_of_auto(monkeypatch: Any) -> None:
    monkeypatch.setenv("IOLIFT_BACKEND", "posix")
    with iolift.Coalescer() as c:
        assert c.backend == "posix"
        assert "IOLIFT_BACKEND" in c.backend_reason
    monkeypatch.setenv("IOLIFT_BACKEND", "")
    iolift.Coalescer().close()


@needs_ring
def test_the_environment_does_not_overrule_what_was_asked_for(monkeypatch: Any) -> None:
    monkeypatch.setenv("IOLIFT_BACKEND", "posix")
    with iolift.Coalescer(backend="uring") as c:
        assert c.backend == "uring"
    monkeypatch.setenv("IOLIFT_BACKEND", "uring")
    with iolift.Coalescer(backend="posix") as c:
        assert c.backend == "posix"
    with iolift.Coalescer() as c:
        assert c.backend == "uring"


@pytest.mark.parametrize("value", ["io_uring", "URING", " posix", "hosted", "0"])
def test_a_bad_environment_is_named(monkeypatch: Any, value: str, tmp_path: Path) -> None:
    monkeypatch.setenv("IOLIFT_BACKEND", value)
    with pytest.raises(ValueError, match=rf"\$IOLIFT_BACKEND .* not {value!r}"):
        iolift.open(tmp_path / "never made", "w")
    assert not (tmp_path / "never made").exists()


NO_DESCRIPTORS = """
    import os, resource, sys, threading, numpy as np, iolift
    path, backend = sys.argv[1:]
    with open(path, "rb") as plain:
        content = plain.read()
    offsets = np.random.default_rng(1).permutation(len(content) // 64) * 64
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    def exhaust():
        taken = []
        while True:
            try:
                taken.append(os.dup(0))
            except OSError:
                return taken
    f = iolift.open(path, backend=backend)
    taken = exhaust()
    # No further ring for the other threads.
    results = [None] * 12
    barrier = threading.Barrier(12)
    def work(k):
        barrier.wait()
        for _ in range(5):
            results[k] = f.read_ranges(offsets, 32).tobytes()
    threads = [threading.Thread(target=work, args=(k,)) for k in range(12)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    expected = b"".join(content[o:o + 32] for o in offsets)
    assert results == [expected] * 12
    # No ring at all.
    with iolift.Coalescer() as c:
        print(c.backend, c.backend_reason)
        os.close(taken.pop())
        with c.open(path) as g:
            assert g.read_ranges(offsets, 32).tobytes() == expected
    taken += exhaust()
    try:
        iolift.Coalescer(backend="uring").close()
        print("got a ring")
    except OSError as error:
        print(error.errno, error.strerror)
    # And no descriptor is lost by having failed.
    os.close(taken.pop())
    try:
        iolift.open(path, backend="uring").close()
    except OSError as error:
        print(error.errno)
    os.close(os.dup(0))
    f.close()
"""


@pytest.mark.parametrize("backend", ["posix", pytest.param("uring", marks=needs_ring)])
def test_out_of_descriptors(make_file: Any, backend: str) -> None:
    path, _ = make_file(1 << 16)
    said = child.run(NO_DESCRIPTORS, path, backend).splitlines()
    assert said[0].startswith("posix no io_uring")
    if not unavailable("uring"):
        assert "RLIMIT_NOFILE" in said[0]
        assert said[1].startswith(f"{errno.EMFILE} io_uring_setup: EMFILE")
        assert said[2] == str(errno.EMFILE)


NO_LOCKED_MEMORY = """
    import resource, sys, iolift
    path = sys.argv[1]
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
    with iolift.open(path, "r+") as f:
        content = f.read()
        got = f.read_ranges(range(0, 60_000, 100), 50)
        assert got.tobytes() == b"".join(content[o:o + 50] for o in range(0, 60_000, 100))
        assert f.coalescer.backend_reason
"""


def test_no_memory_may_be_locked(make_file: Any) -> None:
    path, _ = make_file(60_000)
    child.run(NO_LOCKED_MEMORY, path)


NO_THREADS = """
    import resource, sys, threading, numpy as np, iolift
    path = sys.argv[1]
    with open(path, "rb") as plain:
        content = plain.read()
    f = iolift.open(path, "r+", backend="posix")
    # Stacks of helpers come from the address space: there is none left for them.
    with open("/proc/self/statm") as statm:
        size = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 17), resource.RLIM_INFINITY))
    offsets = np.arange(0, len(content), 2 << 16)
    for o in offsets.tolist():
        assert f.pread(10, o) == content[o:o + 10]
    assert f.write_ranges(offsets, np.zeros((len(offsets), 8), np.uint8)) == 8 * len(offsets)
"""


def test_no_further_thread_can_be_had(make_file: Any) -> None:
    path, _ = make_file(4 << 20)
    child.run(NO_THREADS, path)
    assert path.read_bytes()[: 2 << 16 : 2 << 16] == b"\0"
