"""Goal: whichever allocation is refused, the call raises MemoryError, and the next one works.

Of the window: every ticket ends, with its result or MemoryError, and what was accepted is seen.

A library that is loaded before all others takes the place of malloc and its kin, in a child. It
refuses the k-th allocation that comes from the core, and no other; k goes up until the call needs
no more. So every line that deals with a refusal runs, and none by chance.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import child
import preload

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = preload.needed

REFUSING = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>

void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);

static long countdown = -1;     /* -1: refuse nothing */

void refuse(long number) { countdown = number; }

static int refuses(void *caller)
{
    Dl_info from;
    if (countdown < 0 || !dladdr(caller, &from) || !strstr(from.dli_fname, "/iolift/_"))
        return 0;
    return __atomic_fetch_sub(&countdown, 1, __ATOMIC_SEQ_CST) == 0;    /* drivers ask, too */
}

int was_refused(void)
{
    int was = countdown < 0;
    countdown = -1;
    return was;
}

#define REFUSED refuses(__builtin_return_address(0))

void *malloc(size_t n) { return REFUSED ? NULL : __libc_malloc(n); }
void *calloc(size_t n, size_t size) { return REFUSED ? NULL : __libc_calloc(n, size); }
void *realloc(void *p, size_t n) { return REFUSED ? NULL : __libc_realloc(p, n); }
int posix_memalign(void **p, size_t alignment, size_t n)
{
    if (REFUSED)
        return ENOMEM;
    *p = __libc_memalign(alignment, n);
    return *p ? 0 : ENOMEM;
}
"""


CALLS = """
    import ctypes, errno, os, sys, numpy as np, iolift
    path, library, direct_works = sys.argv[1], ctypes.CDLL(sys.argv[2]), sys.argv[3] == "True"
    chance = np.random.default_rng(1)
    with open(path, "rb") as plain:
        content = plain.read()
    size = len(content)
    many = chance.integers(0, size - 100, 5000)
    lengths = chance.integers(0, 100, 5000)

    neighbours = np.arange(200) * 100           # merged, so when they fail each goes alone

    class Host:
        # Blocks that are a multiple of 8 KiB away from the beginning are bad, and nothing else.
        def submit(self, token, kind, fd, offset, buffers):
            length = sum(b.nbytes for b in buffers)
            if any(o < offset + length and offset < o + 100 for o in range(0, size, 8192)):
                return -errno.EIO
            return (os.preadv if kind == "read" else os.pwritev)(fd, buffers, offset)
        def reap(self, wait):
            return []

    def plan(*arguments, **options):
        made = iolift.plan(*arguments, **options)
        return made.offsets.tobytes() + made.first.tobytes() + repr(made).encode()

    def opened(options, call):
        # What `call` made of the file, and what of the result.
        def reopened():
            with open(path, "r+b") as plain:
                plain.write(content)
            with iolift.open(path, "r+", **options) as f:
                try:
                    result = call(f)
                except (iolift.RangeError, iolift.ShortReadError) as error:
                    result = type(error).__name__, error.index, getattr(error, "errnos", {})
            with open(path, "rb") as plain:
                return bytes(result) if isinstance(result, np.ndarray) else result, plain.read()
        return reopened

    def traced(f):
        f.coalescer.trace_start()
        f.read_ranges(many, 1)
        return f.coalescer.trace_stop().tobytes()

    def read(f):
        return f.read_ranges(many, lengths)

    def read_few(f):
        return f.read_ranges(neighbours, 100)

    def write_few(f):
        return f.write_ranges(neighbours, bytes(20_000))

    def write(f):
        return f.write_ranges(many, np.repeat(np.arange(5000) % 251, lengths).astype(np.uint8),
                              lengths=lengths)

    def past_the_end(f):
        return f.read_ranges([size - 10, 0], 20)

    def vector(f):
        buffers = [bytearray(5000) for _ in range(3)]
        return f.preadv(buffers, 10), b"".join(buffers), f.pwritev(buffers, 7)

    def far(f):
        return f.read_ranges(np.arange(0, size, 300), 10)

    posix = {"backend": "posix", "depth": 3}      # few operations, few allocations
    hosted = {**posix, "backend": Host()}
    calls = {
        "plan": lambda: plan(many, lengths),
        "plan, one length": lambda: plan(many, 10),
        "plan, wide offsets": lambda: plan(many << 40, 10),
        "plan, fifo": lambda: plan(many, lengths, order="fifo"),
        "plan, fifo, one length": lambda: plan(many, 10, order="fifo"),
        "plan, cut": lambda: plan(np.arange(5000) * 10, 10, max_io=100),
        "plan, few": lambda: plan([3, 2, 1], 1),
        "read": opened(posix, read),
        "read, gap": opened({**posix, "gap": 50}, read),
        "read, far": opened(posix, far),
        "read past the end": opened(posix, past_the_end),
        "write": opened(posix, write),
        "write, fifo": opened({**posix, "order": "fifo"}, write),
        "write, fifo, no overlaps": opened(
            {**posix, "order": "fifo"}, lambda f: f.write_ranges([20, 0, 40], b"abcdef")),
        "vectors": opened(posix, vector),
        "trace": opened(posix, traced),
        "reads that fail": opened(hosted, read_few),
        "writes that fail": opened(hosted, write_few),
    }
    if direct_works:
        direct = {**posix, "direct": True}
        calls |= {
            "direct read": opened(direct, read),
            "direct write": opened(direct, write),
            "direct writes that fail": opened(
                {**hosted, "direct": True},
                lambda f: f.write_ranges(np.arange(8) * 5000, bytes(40_000))),
        }
    for name, call in calls.items():
        expected = call()
        number = 0
        while True:
            library.refuse(ctypes.c_long(number))
            try:
                result = call()
            except MemoryError:
                result = MemoryError
            if not library.was_refused():
                assert result == expected, name
                break
            assert result is MemoryError, (name, number, result)
            assert call() == expected, (name, number)
            number += 1
        print(name, number, sep=": ")
"""


def test_each_allocation_may_be_refused(make_file: Any, tmp_path: Path) -> None:
    refusing = preload.build(REFUSING, tmp_path)
    path, _ = make_file(40_000)
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
        direct = True
    except OSError:
        direct = False
    said = child.run(CALLS, path, refusing, direct, LD_PRELOAD=str(refusing)).splitlines()
    refused = {name: int(number) for name, _, number in (line.partition(": ") for line in said)}
    assert len(refused) == (21 if direct else 18)
    assert min(refused.values()) >= 1, refused


TICKETS = """
    import ctypes, sys, iolift
    path, library = sys.argv[1], ctypes.CDLL(sys.argv[2])
    with open(path, "rb") as plain:
        content = plain.read()
    OLD, NEW = 100, 10_000              # where is read, and where is written

    def attempt(call, *arguments):
        try:
            return call(*arguments)
        except MemoryError:
            return MemoryError

    def story(number, **options):
        # Reads, writes, reads of what was written and a sync are held together; then they go.
        with open(path, "r+b") as plain:
            plain.write(content)
        seen = bytearray(content)       # as whoever submits must see the file
        expected, tickets = [], []

        def submit(answer, call, *arguments):
            # Whether it was held.
            ticket = attempt(call, *arguments)
            if ticket is MemoryError:
                return False
            tickets.append(ticket)
            expected.append(answer)
            return not (ticket.done() and ticket.exception())

        with iolift.open(path, "r+", backend="posix", clock=lambda: 10**15, **options) as f:
            f.submit_pread(1, 0), f.submit_pwrite(content[:1], 0)       # no other will be alone
            f.flush()
            library.refuse(ctypes.c_long(number))
            for k in range(40):
                submit(content[OLD + 7 * k:][:10 + k % 3], f.submit_pread, 10 + k % 3, OLD + 7 * k)
            for k in range(40):
                at = NEW + 100 * k
                if submit(7, f.submit_pwrite, b"written", at):
                    seen[at:at + 7] = b"written"
            for k in range(5):
                at = NEW + 3 + 301 * k
                submit(bytes(seen[at:at + 900]), f.submit_pread, 900, at)
            submit(None, f.submit_sync)
            attempt(f.flush), attempt(f.sync)
            got = [attempt(ticket.result) for ticket in tickets]
            wrong = [k for k, g in enumerate(got) if g not in (expected[k], MemoryError)]
            assert not wrong, (number, wrong)
            refused = library.was_refused()
            f.coalescer._check()
            stats = f.coalescer.stats()
            assert stats.held_requests == stats.held_bytes == 0, (number, stats)
        with open(path, "rb") as plain:
            now = plain.read()
        failed = MemoryError in got or len(got) < 86
        assert refused or not failed, number
        # A write that failed may have left either.
        assert all(n == s or (failed and n == c) for c, s, n in zip(content, seen, now)), number
        return refused, failed

    for options in {}, {"order": "fifo"}:
        number = failures = 0
        while True:
            refused, failed = story(number, **options)
            if not refused:
                break
            failures += failed
            number += 1
        print(number, failures)
"""


def test_every_ticket_ends_whichever_allocation_is_refused(make_file: Any, tmp_path: Path) -> None:
    refusing = preload.build(REFUSING, tmp_path)
    path, _ = make_file(40_000)
    for line in child.run(TICKETS, path, refusing, LD_PRELOAD=str(refusing)).splitlines():
        refused, failures = map(int, line.split())
        assert 10 < failures <= refused
