"""Goal: the posix backend's threads help, and never stand between a signal and its handler.

A library loaded before all others makes `pread` slow in the thread that asked, so that helpers are
called, and in a helper makes it wait until it is let go.
"""

from __future__ import annotations

from typing import Any

import child
import preload

pytestmark = preload.needed

STUCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

static volatile int gate = -1, waiting;

/* From now on helpers wait until the other end of the pipe is closed. */
void hold(int fd) { waiting = 0; gate = fd; }
int helpers_waiting(void) { return waiting; }

ssize_t pread64(int fd, void *memory, size_t size, off64_t offset)
{
    static ssize_t (*real)(int, void *, size_t, off64_t);
    char nothing;
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "pread64");
    if (gate >= 0) {
        if (gettid() == getpid()) {
            nanosleep(&(struct timespec){0, 100000}, NULL);
        } else {
            __sync_fetch_and_add(&waiting, 1);
            (void)!read(gate, &nothing, 1);
        }
    }
    return real(fd, memory, size, offset);
}

ssize_t pread(int fd, void *memory, size_t size, off_t offset)
{
    return pread64(fd, memory, size, offset);
}
"""

HANDLER_RUNS = """
    import ctypes, os, signal, sys, iolift
    path, library = sys.argv[1], ctypes.CDLL(sys.argv[2])
    f = iolift.open(path, backend="posix", depth=8)
    content = f.pread(100_000, 0)
    offsets = range(0, 100_000, 1000)
    expected = b"".join(content[o:o + 10] for o in offsets)
    heard, stuck = [], []

    def handler(*_):
        stuck.append(library.helpers_waiting())
        heard.append(f.read(5))         # the file is as usable as ever
        os.close(ends[1])               # lets the helpers go

    signal.signal(signal.SIGALRM, handler)
    while not any(stuck):
        ends = os.pipe()
        library.hold(ends[0])
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0)
        # It can't end before the handler has run, once a helper has taken an operation.
        assert f.read_ranges(offsets, 10).tobytes() == expected
        while len(heard) < len(stuck) or not stuck:
            signal.pause()
        library.hold(-1)
        os.close(ends[0])
    print(heard[0] == content[:5])
    f.close()
"""


def test_a_handler_runs_while_a_helper_is_stuck(make_file: Any, tmp_path: Any) -> None:
    path, _ = make_file(100_000)
    library = preload.build(STUCK, tmp_path)
    assert child.run(HANDLER_RUNS, path, library, LD_PRELOAD=str(library)) == "True\n"
