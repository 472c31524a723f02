"""Goal: a hosted backend that raises, lies or loses operations gets an error, never a hang.

The cases run in child processes, as what is at stake is an endless loop without the GIL.
"""

from __future__ import annotations

from typing import Any

import child
import pytest

HOST = """
    import os, sys, iolift
    path = sys.argv[1]

    class Host:
        # Honest while `case` is empty; else its submit or its reap answers what the case says.
        case = ""
        def __init__(self):
            self.queue = []
        def run(self, kind, fd, offset, buffers):
            if kind == "sync":
                return 0
            return (os.preadv if kind == "read" else os.pwritev)(fd, buffers, offset)
        def submit(self, token, *operation):
            if self.case.startswith("submit "):
                return eval(self.case[7:], {"fail": fail})
            self.queue.append((token, operation))
            return "queued"
        def reap(self, wait):
            done = [(token, self.run(*operation)) for token, operation in self.queue]
            self.queue.clear()
            if self.case.startswith("reap "):
                return eval(self.case[5:], {"fail": fail, "done": done})
            return done

    def fail(error=RuntimeError("broken")):
        raise error

    for case in sys.argv[2:]:
        print(case, end=": ")
        host = Host()
        c = iolift.Coalescer(backend=host)
        f = c.open(path, "r+")
        content = f.pread(1000, 0)
        for call in (
            lambda: f.pread(10, 0),
            lambda: f.read_ranges(range(0, 900, 90), 3),
            lambda: f.preadv([bytearray(9), bytearray(9)], 5),
            lambda: f.pwrite(content[:9], 0),
            lambda: f.write_ranges(range(0, 900, 90), content[:900], lengths=90),
            lambda: f.sync(),
        ):
            host.case = case
            try:
                call()
                print("allowed", end=" ")
            except Exception as error:
                print(type(error).__name__, end=" ")
            # It recovers when the host does.
            host.case = ""
            host.queue.clear()
            assert f.pread(1000, 0) == content
            assert bytes(f.read_ranges([90, 0], 90)) == content[90:180] + content[:90]
        c.close()
        print()
"""

RAISES = [
    "submit fail()",
    "reap fail()",
    "submit fail(OSError(5, 'x'))",
    "reap fail(StopIteration())",
]
LIES = [
    "submit None",
    "submit 'lost'",
    "submit 1.5",
    "submit 2**70",
    "submit -2**63",
    "submit -2**32",
    "submit 10**9",
    "submit []",
    "reap [(t, 'text') for t, _ in done]",
    "reap [(t, None) for t, _ in done]",
    "reap [(t, 2**70) for t, _ in done]",
    "reap [(t, 10**9) for t, _ in done]",
    "reap [(t, -10**6) for t, _ in done]",
    "reap [(t, 1.5) for t, _ in done]",
    "reap [(t + 1000, r) for t, r in done]",
    "reap [(t,) for t, r in done]",
    "reap done + done",
    "reap None",
    "reap 7",
]
LOSSES = ["submit 'queued'", "reap []", "reap done[:-1]", "submit 'busy'"]


@pytest.mark.parametrize("cases", [RAISES, LIES, LOSSES], ids=["raises", "lies", "loses"])
def test_never_a_hang_and_an_error_each_time(make_file: Any, cases: list[str]) -> None:
    path, content = make_file(1000)
    for line in child.run(HOST, path, *cases).splitlines():
        case, _, answers = line.rpartition(": ")
        said = answers.split()
        assert len(said) == 6, line
        # Of a sync, any number that is no error says that it was done.
        assert "allowed" not in (said[:-1] if "10**9" in case else said), line
    assert path.read_bytes() == content


INTERRUPTED = """
    import os, signal, sys, iolift
    path = sys.argv[1]
    signal.signal(signal.SIGINT, signal.default_int_handler)    # whoever started us may ignore it

    class Host:
        calls = 0
        def submit(self, token, kind, fd, offset, buffers):
            self.calls += 1
            if self.calls == 5:
                os.kill(os.getpid(), signal.SIGINT)     # heard in here, as in any Python code
            return os.preadv(fd, buffers, offset)
        def reap(self, wait):
            return []

    host = Host()
    with iolift.open(path, backend=host) as f:
        try:
            f.read_ranges(range(0, 1000, 2), 1)
        except KeyboardInterrupt:
            print("interrupted", host.calls < 100)
        assert len(f.pread(100, 0)) == 100
"""


def test_ctrl_c_inside_the_host_ends_the_batch(make_file: Any) -> None:
    path, _ = make_file(1000)
    assert child.run(INTERRUPTED, path) == "interrupted True\n"


STRANGER = """
    import os, sys, threading, iolift
    path = sys.argv[1]
    sys.setswitchinterval(1e-6)

    class Host:
        # Fails in the call of one thread, and goes on with it until the other one's call is done.
        def submit(self, token, kind, fd, offset, buffers):
            if offset == 500:
                failed.set()
                raise RuntimeError("only who reads at 500 asked for this")
            return os.preadv(fd, buffers, offset)
        def reap(self, wait):
            return []

    f = iolift.open(path, backend=Host())
    results = {}

    def good():
        failed.wait()
        try:
            results["good"] = len(f.pread(10, 0))
        except RuntimeError:
            results["good"] = "refused"

    def bad():
        try:
            f.read_ranges(range(500, 100_000, 2), 1)
        except RuntimeError:
            results["bad"] = "refused"

    for _ in range(10):
        failed = threading.Event()
        threads = [threading.Thread(target=good), threading.Thread(target=bad)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert results == {"good": 10, "bad": "refused"}, results
    f.close()
"""


def test_what_the_host_raised_reaches_the_call_that_it_served(make_file: Any) -> None:
    path, _ = make_file(100_000)
    child.run(STRANGER, path)
