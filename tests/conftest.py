"""Goal: the same tests on every backend, and no test that hangs for ever.

`backend` runs a test three times: "uring" (skipped with iolift's reason where the kernel forbids
it), "posix", and "hosted": a simulated disk without faults that queues most operations and
completes them out of order. `make_file` writes known bytes, `make_zeros` none. Every simulated
disk that a test makes through `backend` is checked when the test ends.
"""

from __future__ import annotations

import faulthandler
import os
import random
import signal
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from faulty import FaultyDisk
from gated import Rig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HANG_S = 100  # not an expectation: a test that takes this long hangs, and says where

# Whoever runs the tests in the background may have these ignored, and some tests send them.
for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

hypothesis.settings.register_profile(
    "iolift",
    deadline=None,
    derandomize=True,
    suppress_health_check=[
        hypothesis.HealthCheck.function_scoped_fixture,
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.data_too_large,
    ],
)
hypothesis.settings.load_profile("iolift")


class Backend:
    """Opens files and coalescers on one backend."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.disks: list[FaultyDisk] = []

    def options(self, **options: Any) -> dict[str, Any]:
        if self.name != "hosted":
            return {"backend": self.name, **options}
        disk = FaultyDisk(seed=1, queue=0.8, delay=2, reorder=True)
        self.disks.append(disk)
        return {"backend": disk, **options}

    def open(self, path: Any, mode: str = "r", *, direct: bool = False, **options: Any) -> Any:
        import iolift

        return iolift.open(path, mode, direct=direct, **self.options(**options))

    def coalescer(self, **options: Any) -> Any:
        import iolift

        return iolift.Coalescer(**self.options(**options))

    def check(self) -> None:
        for disk in self.disks:
            disk.check()


def unavailable(name: str) -> str:
    """Why a backend can't be used here; empty when it can."""
    if name != "uring":
        return ""
    import iolift

    with iolift.Coalescer(backend="auto") as c:
        if c.backend == "uring":
            return ""
        reason = str(c.backend_reason)
    try:
        with iolift.Coalescer(backend="uring"):
            return ""
    except (OSError, RuntimeError, ValueError) as error:
        return f"io_uring: {error} ({reason})"


@pytest.fixture(params=["uring", "posix", "hosted"])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    if reason := unavailable(request.param):
        pytest.skip(reason)
    made = Backend(request.param)
    yield made
    made.check()


@pytest.fixture
def make_file(tmp_path: Path) -> Callable[..., tuple[Path, bytes]]:
    """make_file(size, seed=0, name="data") -> its path and its bytes."""

    def make(size: int, seed: int = 0, name: str = "data") -> tuple[Path, bytes]:
        content = random.Random(seed).randbytes(size)
        path = tmp_path / name
        path.write_bytes(content)
        return path, content

    return make


@pytest.fixture
def make_zeros(tmp_path: Path) -> Callable[[int], Path]:
    """make_zeros(size) -> the path of a file of zeros, which takes no room on the disk."""

    def make(size: int) -> Path:
        path = tmp_path / "zeros"
        path.touch()
        os.truncate(path, size)
        return path

    return make


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    """rig(**options) -> a coalescer whose disk and clock the test holds in its hands."""
    made: list[Rig] = []

    def make(**options: Any) -> Rig:
        made.append(Rig(tmp_path, **options))
        return made[-1]

    yield make
    for each in made:
        each.end()


@pytest.fixture(scope="session")
def real_stderr(request: pytest.FixtureRequest) -> Iterator[int]:
    """Standard error as it is outside pytest's capture, so that a hang's traceback is seen."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        fd = os.dup(2)
    yield fd
    os.close(fd)


@pytest.fixture(autouse=True)
def _no_hang(real_stderr: int) -> Iterator[None]:
    faulthandler.dump_traceback_later(HANG_S, exit=True, file=real_stderr)
    yield
    faulthandler.cancel_dump_traceback_later()
