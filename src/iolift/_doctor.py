"""What this machine and a file's device give iolift, measured in a few seconds.

    describe (kernel, backend, file system, device) -> measure (small and large reads, alone and
                                                       many at once) -> Costs -> gap and depth

1. It reads the file it is given and writes nothing to it. For a directory it makes a file of its
   own there, of SIZE bytes, which is gone afterwards, whatever happens.
2. What is measured comes from the device: with O_DIRECT, else after the page cache was told to
   forget; where it does not forget, `measured` says so.
3. A stage ends when its share of SECONDS is over, or its reads are.
"""

from __future__ import annotations

import os
import platform
import stat
import statistics
import tempfile
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from time import perf_counter, perf_counter_ns
from typing import TYPE_CHECKING, Any

import numpy as np

from ._coalescer import Coalescer
from ._costs import Costs
from ._replay_data import filesystem
from ._version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._file import File
    from ._replay_data import Progress

SIZE = 256 << 20
SMALL, LARGE = 4 << 10, 128 << 10
SECONDS = 3.0  # for all that is measured
WRITING_SECONDS = 1.5
BATCH = 64  # reads at once
# So many large reads have room, with a hole between any two: neighbours would become one I/O.
LEAST = 2 * BATCH * LARGE
DEPTHS = (1, 2, 4, 8, 16, 32, 64, 128)
ENOUGH = 0.9  # of the best rate: the depth that is worth having


@dataclass(frozen=True)
class Cost:
    """io_us: of an I/O, microseconds. byte_ns: of a byte. gap: bytes that cost what an I/O does."""

    io_us: float
    byte_ns: float
    gap: int


@dataclass(frozen=True)
class Diagnosis:
    """All that `iolift doctor` says; sizes in bytes.

    path: what was asked about. backend_reason: why it is this one. direct_reason: why no O_DIRECT.
    alignment: of (memory, offsets) for O_DIRECT. device: its name. rotational: it says so.
    measured: "direct", "buffered, cold" or "in memory". alone, together: the costs of one read at a
    time, and of BATCH. reads_per_s: of SMALL bytes, by depth. depth: the least that comes near the
    best of these; auto_depth: what depth="auto" is.
    """

    iolift: str
    kernel: str
    python: str
    cpus: int
    path: str
    backend: str
    backend_reason: str
    direct_reason: str
    alignment: tuple[int, int]
    filesystem: str
    device: str
    rotational: bool | None
    scheduler: str
    measured: str
    alone: Cost
    together: Cost
    reads_per_s: dict[int, float]
    depth: int
    auto_depth: int

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def diagnose(path: str, progress: Progress) -> Diagnosis:
    """Look at `path`, a file of at least LEAST bytes or a directory; takes about four seconds.

    Raises OSError where it can't be read or written, ValueError where the file is too small.
    """
    with _file_to_read(path, progress) as name:
        with Coalescer(gap=0, max_io=LARGE) as coalescer:
            direct_reason = ""
            try:
                file = coalescer.open(name, direct=True)
            except OSError as error:
                direct_reason = error.strerror or str(error)
                file = coalescer.open(name)
            with file:
                probe = _Probe(file)
                costs = _measure_costs(probe, progress)
                backend, reason = coalescer.backend, coalescer.backend_reason
                alignment, auto_depth = file.alignment, coalescer.depth
        rates = _measure_depths(name, not direct_reason, progress)
        device, rotational, scheduler = device_of(name)
        best = max(rates.values())
        return Diagnosis(
            iolift=__version__,
            kernel=f"{platform.system()} {platform.release()}",
            python=platform.python_version(),
            cpus=os.cpu_count() or 1,
            path=path,
            backend=backend,
            backend_reason=reason,
            direct_reason=direct_reason,
            alignment=alignment,
            filesystem=filesystem(name),
            device=device,
            rotational=rotational,
            scheduler=scheduler,
            measured=probe.measured,
            alone=_cost(costs, 1),
            together=_cost(costs, BATCH),
            reads_per_s=rates,
            depth=min(depth for depth, rate in rates.items() if rate >= ENOUGH * best),
            auto_depth=auto_depth,
        )


def _cost(costs: Costs, requests: int) -> Cost:
    io_ns, byte_ns = costs.estimate(requests)
    return Cost(io_ns / 1000, byte_ns, costs.gap(requests))


@contextmanager
def _file_to_read(path: str, progress: Progress) -> Iterator[str]:
    if not os.path.isdir(path):
        size = _size_of(path)
        if size < LEAST:
            raise ValueError(f"{path} has {size} bytes: too few to measure, {LEAST} are needed")
        yield path
        return
    ends = perf_counter() + WRITING_SECONDS
    with tempfile.NamedTemporaryFile(prefix="iolift-doctor-", dir=path) as file:
        part = np.random.default_rng(0).bytes(8 << 20)
        for done in range(0, SIZE, len(part)):
            if done >= LEAST and perf_counter() > ends:
                break
            progress("writing a file", done, SIZE, "B")
            file.write(part)
            file.flush()
            os.fsync(file.fileno())
        progress("writing a file", SIZE, SIZE, "B")
        yield file.name


def _size_of(path: str) -> int:
    kind = os.stat(path).st_mode
    if not stat.S_ISREG(kind) and not stat.S_ISBLK(kind):
        raise ValueError(f"{path} is no file, directory or block device")
    with open(path, "rb", buffering=0) as file:
        return file.seek(0, os.SEEK_END)  # of a device, too


class _Probe:
    """Reads at places that were not read before, as far as there are any."""

    def __init__(self, file: File) -> None:
        self.file = file
        self.size = file.seek(0, os.SEEK_END)
        self.measured = "direct" if file.direct else "buffered, cold"
        status = os.fstat(file.fileno())
        if stat.S_ISREG(status.st_mode) and 2 * 512 * status.st_blocks < self.size:
            self.measured += ", mostly holes"
        self._rng = np.random.default_rng(1)

    def places(self, n: int, length: int) -> Any:
        """int64[n]: distinct, where there are enough, and none begins where another one ends."""
        room = max(1, self.size // (2 * length))
        return self._rng.choice(room, n, replace=room < n) * 2 * length

    def read(self, n: int, length: int) -> int:
        """n reads at once; returns the nanoseconds."""
        length = min(length, self.size)
        places = self.places(n, length)
        if not self.file.direct:
            self._forget(int(places[0]))
        began = perf_counter_ns()
        if n == 1:
            self.file.pread(length, int(places[0]))
        else:
            self.file.read_ranges(places, length)
        return max(1, perf_counter_ns() - began)

    def _forget(self, place: int) -> None:
        fd = self.file.fileno()
        if not hasattr(os, "posix_fadvise"):
            self.measured = "in memory"
            return
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            os.preadv(fd, [bytearray(1)], place, os.RWF_NOWAIT)
            self.measured = "in memory"
        except (BlockingIOError, AttributeError):
            return
        except OSError:
            self.measured = "through the page cache"


def _measure_costs(probe: _Probe, progress: Progress) -> Costs:
    """Small and large reads in turns, alone and together, into one Costs."""
    costs = Costs()
    for n, rounds in ((1, 200), (BATCH, 40)):
        stage = "reading alone" if n == 1 else f"reading {BATCH} at once"
        times: dict[int, list[int]] = {SMALL: [], LARGE: []}
        ends = perf_counter() + SECONDS / 4
        for done in range(rounds):
            progress(stage, done, rounds, "rounds")
            for length, spent in times.items():
                spent.append(probe.read(n, length))
            if perf_counter() > ends:
                break
        progress(stage, rounds, rounds, "rounds")
        # The medians are what counts: no neighbour of this machine is to decide the gap.
        for _ in range(len(times[SMALL])):
            for length, spent in times.items():
                costs.learn(n, n, n * length, int(statistics.median(spent)))
    return costs


def _measure_depths(name: str, direct: bool, progress: Progress) -> dict[int, float]:
    """Small reads a second at each of DEPTHS; of a device that is slow, not at the deepest."""
    rates: dict[int, float] = {}
    whole = perf_counter() + SECONDS
    for place, depth in enumerate(DEPTHS):
        if rates and 8 * depth / max(rates.values()) > whole - perf_counter():
            break
        progress("reading at every depth", place, len(DEPTHS), "depths")
        with (
            Coalescer(gap=0, max_io=SMALL, depth=depth) as coalescer,
            coalescer.open(name, direct=direct) as file,
        ):
            probe = _Probe(file)
            n = 4 * depth
            spent = [probe.read(n, SMALL) for _ in range(2)]
            ends = perf_counter() + SECONDS / 2 / len(DEPTHS)
            while perf_counter() < ends:
                spent.append(probe.read(n, SMALL))
            rates[depth] = n / statistics.median(spent[1:]) * 1e9
    progress("reading at every depth", len(DEPTHS), len(DEPTHS), "depths")
    return rates


def device_of(path: str) -> tuple[str, bool | None, str]:
    """(name, whether it has an arm, its I/O scheduler), as far as the system says."""
    status = os.stat(path)
    number = status.st_rdev if stat.S_ISBLK(status.st_mode) else status.st_dev
    folder = f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"
    if not os.path.isdir(folder):
        return "none", None, ""
    real = os.path.realpath(folder)
    name = os.path.basename(real)
    if not os.path.isdir(os.path.join(real, "queue")):
        real = os.path.dirname(real)  # of a partition, its disk

    def read(entry: str) -> str:
        try:
            with open(os.path.join(real, "queue", entry), encoding="ascii") as file:
                return file.read().strip()
        except OSError:
            return ""

    rotational, scheduler = read("rotational"), read("scheduler")
    chosen = scheduler[scheduler.find("[") + 1 : scheduler.find("]")] if "[" in scheduler else ""
    return name, rotational == "1" if rotational else None, chosen or scheduler
