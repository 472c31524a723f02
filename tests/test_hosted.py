"""Goal: a backend written in Python may raise, lie or be interrupted; iolift stays whole.

The protocol is in ext/iolift/_hosted.pyx. Whatever the object does: the call ends, what it raised
is raised, no buffer is in use by a queued operation afterwards, and the next call works.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from faulty import FaultyDisk
from oracle import FileOracle, same_reads

import iolift

if TYPE_CHECKING:
    from collections.abc import Callable

OFFSETS = list(range(0, 10_000, 500))
LENGTHS = [100] * len(OFFSETS)


class Raising(FaultyDisk):
    """Raises `error` in the `at`-th call of `method`, once."""

    def __init__(self, method: str, at: int, error: BaseException, **options: Any) -> None:
        super().__init__(**options)
        self.method, self.countdown, self.error = method, at, error

    def _maybe(self, method: str) -> None:
        if method == self.method:
            self.countdown -= 1
            if self.countdown == -1:
                raise self.error

    def submit(self, *arguments: Any) -> int | str:
        self._maybe("submit")
        return super().submit(*arguments)

    def reap(self, wait: bool) -> list[tuple[int, int]]:
        self._maybe("reap")
        return super().reap(wait)


def bulk_calls(f: Any) -> list[Callable[[], object]]:
    return [
        lambda: f.read_ranges(OFFSETS, LENGTHS),
        lambda: f.write_ranges(OFFSETS, bytes(sum(LENGTHS)), lengths=LENGTHS),
        lambda: f.pread(100, 50),
        lambda: f.pwrite(b"x" * 100, 50),
    ]


class Interrupt(BaseException):
    """As KeyboardInterrupt, but it can't end the test run."""


@pytest.mark.parametrize("error", [ZeroDivisionError, Interrupt, OSError])
@pytest.mark.parametrize("method", ["submit", "reap"])
@pytest.mark.parametrize("at", [0, 1, 3])
@pytest.mark.parametrize("number", range(4))
def test_what_the_host_raises_is_raised_and_all_is_drained(
    make_file: Any, method: str, at: int, error: type[BaseException], number: int
) -> None:
    """As a Ctrl-C that arrives while Python runs the host. Operations that are queued keep their
    buffers until they are done: whoever frees them earlier lets the disk write into free memory."""
    path, content = make_file(10_100)
    disk = Raising(method, at, error("from the host"), delay=3, reorder=True, depth=4)
    with iolift.open(path, "r+", backend=disk, depth=4) as f:
        call = bulk_calls(f)[number]
        if number >= 2 and at:
            call()  # over before it comes to that
            disk.countdown = 0
        with pytest.raises(error, match="from the host"):
            call()
        left = len(disk.queued)
        path.write_bytes(content)
        same_reads(f, FileOracle(content), OFFSETS, LENGTHS)
    assert not left
    disk.check()


@pytest.mark.parametrize("kind", ["read", "write"])
@pytest.mark.parametrize("ranges", ["one", "many"])
def test_bytes_in_flight_are_bounded(make_zeros: Any, kind: str, ranges: str) -> None:
    """An interrupt waits for what is in flight, however deep the device is: 32 MiB, and never
    more than a chunk above it. Less would leave the device idle."""
    size, most, chunk = 48 << 20, 32 << 20, 4 << 20
    disk = FaultyDisk(depth=128)
    rows = np.zeros(size, np.uint8)
    offsets, length = ([0], size) if ranges == "one" else (range(0, size, chunk), chunk - 4096)
    with iolift.open(make_zeros(size), "r+", backend=disk, depth=128) as f:
        if kind == "read":
            f.read_ranges(offsets, length, out=rows[: len(offsets) * length])
        else:
            f.write_ranges(offsets, rows[: len(offsets) * length], lengths=length)
    assert most <= disk.most_bytes < most + chunk
    disk.check()


class Lying(FaultyDisk):
    """Answers the first submit with something else than the truth."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer: Any = answer
        self.lies = 1

    def submit(self, *arguments: Any) -> Any:
        if self.lies:
            self.lies -= 1
            return self.answer
        return super().submit(*arguments)


@pytest.mark.parametrize("answer", [None, "what", [], b"queued", 2**70])
def test_an_answer_that_is_none_is_an_error(make_file: Any, answer: Any) -> None:
    path, content = make_file(10_100)
    for number in range(4):
        disk = Lying(answer)
        with iolift.open(path, "r+", backend=disk) as f:
            with pytest.raises((TypeError, ValueError, OverflowError, OSError)):
                bulk_calls(f)[number]()
            path.write_bytes(content)
            same_reads(f, FileOracle(content), OFFSETS, LENGTHS)
        disk.check()


@pytest.mark.parametrize("answer", [101, 10**6, 2**62])
def test_more_bytes_than_asked_is_an_io_error(make_file: Any, answer: int) -> None:
    path, _ = make_file(10_100)
    disk = Lying(answer)
    with iolift.open(path, backend=disk) as f:
        with pytest.raises(iolift.RangeError) as caught:
            f.read_ranges(OFFSETS, LENGTHS)
        assert caught.value.errnos == {0: errno.EIO}
        disk.lies = 1
        with pytest.raises(OSError, match="Errno 5"):
            f.pread(100, 0)
    disk.check()


class Forgetful(FaultyDisk):
    """Says "queued" and never completes it."""

    def submit(self, *arguments: Any) -> str:
        return "queued"


def test_a_host_that_forgets_what_it_queued(make_file: Any) -> None:
    """reap(True) promises at least one completion: a host that has none is broken, not slow."""
    path, _ = make_file(1000)
    with iolift.open(path, "r+", backend=Forgetful()) as f:
        for number in range(4):
            with pytest.raises((RuntimeError, OSError)):
                bulk_calls(f)[number]()


@pytest.mark.parametrize("extra", [(10**9, 5), "no pair", (1,), None])
def test_completions_of_what_was_never_submitted(make_file: Any, extra: Any) -> None:
    class Inventive(FaultyDisk):
        def reap(self, wait: bool) -> list[Any]:
            return [*super().reap(wait), extra]

    path, _ = make_file(10_100)
    disk = Inventive()
    with (
        iolift.open(path, backend=disk) as f,
        pytest.raises((RuntimeError, OSError, KeyError, TypeError, ValueError)),
    ):
        f.read_ranges(OFFSETS, LENGTHS)
    disk.check()


@pytest.mark.parametrize("backend", [object(), 5, None, "disk"])
def test_what_is_no_backend_is_refused(backend: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="backend"):
        iolift.Coalescer(backend=backend)
