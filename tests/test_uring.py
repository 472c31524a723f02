"""Goal: whatever a kernel answers to io_uring's system calls, the bytes are right or it says why.

A library loaded before all others stands between the ring and the kernel: kernels that are older,
give smaller rings, are short of memory or take only a part of what is submitted.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import child
import preload
import pytest
from conftest import unavailable

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    *preload.needed,
    pytest.mark.skipif(bool(unavailable("uring")), reason="no ring"),
]

KERNEL = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/types.h>

enum { SETUP = 425, ENTER = 426, DEPTH_WORD = 1, FLAGS_WORD = 2, FEATURES_WORD = 5 };

static int setup_flags_refused, ring_depth, maps_left = -1;
static uint32_t features_missing;
static int enter_refusals, enter_error, enter_takes = -1, most_submitted;

void know_no_flags(void) { setup_flags_refused = 1; }
void lack(uint32_t features) { features_missing = features; }
void give_depth(int depth) { ring_depth = depth; }
void give_maps(int count) { maps_left = count; }
void refuse_enter(int times, int error) { enter_refusals = times; enter_error = error; }
int refusals_left(void) { return enter_refusals; }
int most(void) { return most_submitted; }
/* Each refused call still takes so many of what is submitted. */
void take(int count) { enter_takes = count; }

long syscall(long number, ...)
{
    static long (*real)(long, ...);
    long a[6];
    va_list list;
    va_start(list, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(list, long);
    va_end(list);
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "syscall");
    if (number == SETUP && setup_flags_refused && ((uint32_t *)a[1])[FLAGS_WORD]) {
        errno = EINVAL;
        return -1;
    }
    if (number == ENTER && a[1] > most_submitted)
        most_submitted = a[1];
    if (number == ENTER && enter_refusals && a[1]) {
        enter_refusals--;
        if (enter_takes > 0)
            real(number, a[0], a[1] < enter_takes ? a[1] : enter_takes, 0L, 0L, 0L, 0L);
        errno = enter_error;
        return -1;
    }
    long answer = real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    if (number == SETUP && answer >= 0) {
        ((uint32_t *)a[1])[FEATURES_WORD] &= ~features_missing;
        if (ring_depth)
            ((uint32_t *)a[1])[DEPTH_WORD] = ring_depth;
    }
    return answer;
}

static int refuses_map(int fd)
{
    return fd >= 0 && maps_left >= 0 && maps_left-- == 0;
}

void *mmap64(void *at, size_t size, int protection, int flags, int fd, off64_t offset)
{
    static void *(*real)(void *, size_t, int, int, int, off64_t);
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "mmap64");
    if (refuses_map(fd)) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    return real(at, size, protection, flags, fd, offset);
}

void *mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset)
{
    return mmap64(at, size, protection, flags, fd, offset);
}
"""

PRELUDE = """
    import ctypes, errno, os, sys, numpy as np, iolift
    path, kernel = sys.argv[1], ctypes.CDLL(sys.argv[2])
    with open(path, "rb") as plain:
        content = plain.read()
    offsets = np.random.default_rng(1).permutation(len(content) // 2000) * 2000
    expected = b"".join(content[o:o + 100] for o in offsets.tolist())

    def is_right(f):
        assert f.read_ranges(offsets, 100).tobytes() == expected
        assert f.write_ranges(offsets, expected) == len(expected)
        f.sync()
        return True

    def held():
        with open("/proc/self/maps") as maps:
            return len(os.listdir("/proc/self/fd")), sum("io_uring" in line for line in maps)
"""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return preload.build(KERNEL, tmp_path_factory.mktemp("kernel"))


@pytest.fixture
def on_kernel(make_file: Any, kernel: Path) -> Any:
    """on_kernel(code) -> what the code printed; the file is as it was."""

    def run(code: str, *arguments: Any) -> list[str]:
        path, content = make_file(200_000)
        said = child.run(PRELUDE + code, path, kernel, *arguments, LD_PRELOAD=str(kernel))
        assert path.read_bytes() == content
        return said.splitlines()

    return run


def test_a_kernel_that_knows_no_flags(on_kernel: Any) -> None:
    said = on_kernel("""
    kernel.know_no_flags()
    with iolift.open(path, "r+") as f:
        print(f.coalescer.backend, is_right(f))
    """)
    assert said == ["uring True"]


REFUSED = """
    before = held()
    for _ in range(3):
        try:
            {refuse}
            iolift.Coalescer(backend="uring")
        except OSError as error:
            print(error.errno, error.strerror)
    {refuse}
    with iolift.open(path, "r+") as f:
        print(f.coalescer.backend, is_right(f), f.coalescer.backend_reason)
    assert held() == before, (held(), before)
"""


@pytest.mark.parametrize("feature", [0, 1, 8])  # one mapping, no drops, timeouts
def test_a_kernel_without_what_is_needed(on_kernel: Any, feature: int) -> None:
    *refused, instead = on_kernel(REFUSED.format(refuse=f"kernel.lack({1 << feature})"))
    assert len(refused) == 3
    for said in refused:
        assert said.startswith(f"{errno.ENOTSUP} io_uring_setup")
        assert "before Linux 5.11" in said
    assert instead.startswith("posix True no io_uring")


@pytest.mark.parametrize("maps", [0, 1])
def test_rings_that_can_not_be_mapped(on_kernel: Any, maps: int) -> None:
    *refused, instead = on_kernel(REFUSED.format(refuse=f"kernel.give_maps({maps})"))
    assert len(refused) == 3
    assert all("RLIMIT_MEMLOCK" in said for said in refused)
    assert instead.startswith("posix True no io_uring")


def test_a_completion_queue_that_is_smaller_than_the_depth(on_kernel: Any) -> None:
    said = on_kernel("""
    kernel.give_depth(3)
    with iolift.open(path, "r+", backend="uring", depth=64) as f:
        print(all(is_right(f) for _ in range(3)), kernel.most())
    """)
    assert said == ["True 3"]


SHORT_OF = """
    name, times, takes, depth = sys.argv[3], int(sys.argv[4]), int(sys.argv[5]), int(sys.argv[6])
    kernel.take(takes)
    with iolift.open(path, "r+", backend="uring", depth=depth) as f:
        for _ in range(3):
            kernel.refuse_enter(times, getattr(errno, name))
            assert f.read_ranges(offsets, 100).tobytes() == expected
        assert takes or kernel.refusals_left() == 0
        kernel.refuse_enter(0, 0)
        print(is_right(f))
"""


@pytest.mark.parametrize("takes", [0, 7])
@pytest.mark.parametrize("depth", [2, 64])
@pytest.mark.parametrize(
    ("name", "times"),
    [
        ("EAGAIN", 1),
        ("EBUSY", 5),
        ("EINTR", 5),
        ("EAGAIN", 102),  # one more than it is asked again: the batch asks instead
    ],
)
def test_a_kernel_that_is_short_of_something(
    on_kernel: Any, name: str, times: int, takes: int, depth: int
) -> None:
    assert on_kernel(SHORT_OF, name, times, takes, depth) == ["True"]


def test_a_kernel_that_refuses_once(on_kernel: Any) -> None:
    """What was merged is given back with the kernel's answer, and then each request goes alone."""
    said = on_kernel("""
    with iolift.open(path, "r+", backend="uring", gap=2000, max_io=10_000,
                     max_waste=float("inf")) as f:
        kernel.refuse_enter(1, errno.ENOMEM)
        f.coalescer.trace_start()
        print(is_right(f), len(f.coalescer.trace_stop()) > 2 * len(offsets))
    """)
    assert said == ["True True"]


def test_a_kernel_that_takes_nothing_any_more(on_kernel: Any) -> None:
    """Each request gets the kernel's answer, and nothing is left in the ring for the next call."""
    said = on_kernel("""
    with iolift.open(path, "r+", backend="uring") as f:
        kernel.refuse_enter(1 << 30, errno.ENXIO)
        try:
            f.read_ranges(offsets, 100)
        except iolift.RangeError as error:
            print(error.errno == errno.ENXIO, len(error.errnos) == len(offsets))
        kernel.refuse_enter(0, 0)
        print(is_right(f))
    """)
    assert said == ["True True", "True"]
