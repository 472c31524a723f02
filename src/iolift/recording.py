"""What a coalescer recorded of its requests and I/Os: kept, saved, merged, exported.

1. A `Recording` is two numpy arrays and a few facts. It is checked when it is made, never changes,
   and its times are CLOCK_MONOTONIC in nanoseconds; 0 is a moment that never came.
2. A file is whole or not there: it is written beside its name and renamed. What is damaged, or no
   recording, is refused as a whole with a `RecordingError`; nothing in a file is ever executed.
3. With IOLIFT_RECORD=<directory> in the environment every coalescer records, and each process
   leaves one file there when it ends as an interpreter does. What ends by os._exit, by exec or by a
   signal that nobody handles leaves nothing. A forked child saves what it did, not its parent's.
4. Recording for the environment costs a bounded amount of memory: of closed coalescers the last
   `capacity()` requests and I/Os are kept, and what goes is counted.

The file is a .npz, which numpy.load reads, of three arrays: `requests` and `ios`, and `about`, one
JSON object in ASCII as bytes: format, version, and the other fields.

Who may call: any thread; `attach` and `keep` also from a finalizer.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import io
import json
import os
import stat
import struct
import sys
import threading
import time
import weakref
import zipfile
import zlib
from collections import deque
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TextIO

import numpy as np

try:
    from lzma import LZMAError
except ImportError:  # then there is nothing to be found damaged by it
    from zlib import error as LZMAError  # type: ignore[assignment]  # noqa: N812

from ._report import Explanation
from .traces import TraceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

__all__ = ["IO", "KINDS", "REASONS", "REQUEST", "SOURCES", "STATES", "Recording", "RecordingError"]
__all__ += ["attach", "capacity", "keep", "merge"]

KINDS = ("read", "write", "sync")
SOURCES = ("device", "overlay", "joined")
STATES = ("done", "failed", "cancelled")
REASONS = ("", "alone", "time", "bytes", "count", "flush", "demand", "turn", "close", "call")

REQUEST = np.dtype(
    [
        ("file", "<i4"),  # index in Recording.files, -1: unknown
        ("kind", "u1"),  # index in KINDS
        ("source", "u1"),  # in SOURCES
        ("state", "u1"),  # in STATES
        ("reason", "u1"),  # in REASONS: what ended the hold
        ("errno", "<i4"),
        ("companions", "<u4"),  # other requests of the first I/O that carried it
        ("offset", "<i8"),
        ("length", "<i8"),
        ("submitted_ns", "<i8"),
        ("dispatched_ns", "<i8"),  # with its batch
        ("started_ns", "<i8"),  # the first I/O of the batch
        ("ended_ns", "<i8"),
        ("batch", "<u8"),  # 0: none
        ("extent_offset", "<i8"),  # the first I/O that carried it
        ("extent_length", "<i8"),  # 0: none did
    ]
)
IO = np.dtype(
    [
        ("file", "<i4"),
        ("kind", "<i4"),
        ("result", "<i8"),  # bytes, or -errno
        ("offset", "<i8"),
        ("length", "<i8"),
        ("asked", "<i8"),  # bytes of it that somebody asked for; a read's others are waste
        ("batch", "<u8"),
        ("submitted_ns", "<i8"),
        ("done_ns", "<i8"),
        ("in_flight", "<u4"),
        ("pad", "<u4"),
    ]
)

FORMAT, VERSION = "iolift recording", 1
DEFAULT_CAPACITY = 1 << 18


class RecordingError(TraceError):
    """File `name` can't be read as a recording; `why` says what is wrong with it."""

    def __init__(self, name: str, why: str) -> None:
        ValueError.__init__(self, f"{name}: {why}")
        self.name, self.line, self.why = name, 0, why


@dataclass(frozen=True, eq=False)
class Recording:
    """Requests and I/Os of one coalescer, of one process, or of several (`merge`).

    requests: REQUEST[n], in the order in which they ended. ios: IO[m], in that of completion.
    Neither can be written to. files: the names that "file" of both is an index of.
    lost_requests, lost_ios: older ones, for which there was no room.
    backend: its name; of several, all of them. pid: 0 if of several processes.
    began_ns, began_at: CLOCK_MONOTONIC and time.time() when recording began.

    Raises TypeError for arrays of another dtype or shape, ValueError for a row that can't be.
    """

    requests: NDArray[Any]
    ios: NDArray[Any]
    files: tuple[str, ...]
    lost_requests: int
    lost_ios: int
    backend: str
    pid: int
    began_ns: int
    began_at: float

    def __post_init__(self) -> None:
        for name, dtype in (("requests", REQUEST), ("ios", IO)):
            rows = getattr(self, name)
            if not isinstance(rows, np.ndarray) or rows.dtype != dtype or rows.ndim != 1:
                raise TypeError(f"{name} must be a numpy array of recording.{dtype_name(dtype)}[n]")
            limits = {"kind": len(KINDS), "file": len(self.files)}
            if dtype == REQUEST:
                limits |= {"source": len(SOURCES), "state": len(STATES), "reason": len(REASONS)}
            for field, limit in limits.items():
                least = -1 if field == "file" else 0
                check_rows(name, field, rows[field], least, limit - 1)
            for field in ("offset", "length"):
                check_rows(name, field, rows[field], 0, 2**63 - 1)
            check_rows(name, "length", rows["length"], 0, 2**63 - 1 - rows["offset"])
            view = rows.view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)
        object.__setattr__(self, "files", tuple(self.files))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to `path`, whole or not at all. OSError where that can't be done."""
        about = asdict(replace(self, requests=self.requests[:0], ios=self.ios[:0]))
        del about["requests"], about["ios"]
        text = json.dumps({"format": FORMAT, "version": VERSION} | about)
        arrays = {
            "about": np.frombuffer(text.encode("ascii"), np.uint8),
            "requests": self.requests,
            "ios": self.ios,
        }
        with (
            replacing(path) as file,
            zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, True, 1) as z,
        ):
            for name, array in arrays.items():
                with z.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recording:
        """The recording in `path`. RecordingError where it is none, OSError if it can't be read."""
        with open(path, "rb") as file:
            return read_recording(file, os.fsdecode(path))

    def explain(self, index: int) -> Explanation:
        """What became of request `index`, as Ticket.explain would say it; O(n + m).

        A state "failed" stands beside those of a ticket. Of a batch, as far as it was not lost.
        """
        row = self.requests[index]
        landed = bool(row["started_ns"])
        batch = int(row["batch"]) or None
        mates = self.requests["batch"] == row["batch"]
        ios = self.ios[self.ios["batch"] == row["batch"]]
        carried = bool(row["extent_length"])
        plain = KINDS[row["kind"]], SOURCES[row["source"]], STATES[row["state"]]
        submitted, dispatched, started, ended = phases(self.requests[[index]])[0].tolist()
        return Explanation(
            kind=plain[0],
            offset=int(row["offset"]),
            length=int(row["length"]),
            state=plain[2],
            source=plain[1],
            superseded=plain[:2] == ("write", "device") and landed and not carried,
            batch=batch,
            hold_ended_by=REASONS[row["reason"]] or None if batch else None,
            requests=int(mates.sum()) if batch else None,
            extents=len(ios) if batch else None,
            extent_offset=int(row["extent_offset"]) if carried else None,
            extent_length=int(row["extent_length"]) if carried else None,
            companions=int(row["companions"]) if carried else None,
            held_us=(dispatched - submitted) / 1000 if row["dispatched_ns"] else None,
            queued_us=(started - dispatched) / 1000 if landed else None,
            served_us=(ended - started) / 1000 if landed else None,
            waste_share=_share(row, self.requests[mates], ios) if batch else 0.0,
        )

    def to_chrome(self, file: str | os.PathLike[str] | TextIO) -> None:
        """Write it as Chrome trace event JSON, which https://ui.perfetto.dev opens.

        file: a path, or a text file. A track group for each file shows its requests, with the time
        that each was held, queued and served; another one the I/Os and how many are in flight.
        Of more than 4096 at once of a file the rest is left out; "otherData" says how many.
        """
        from ._chrome import write_chrome

        write_chrome(self, file)

    def to_html(self, path: str | os.PathLike[str], title: str | None = None) -> None:
        """Write one page that works offline, of less than 10 MB: figures, plots, slowest requests.

        title: its headline. Raises ImportError without bokeh, the extra `report`.
        """
        from ._report_html import write_html

        write_html(self, path, title or _title(self))

    def to_png(self, path: str | os.PathLike[str], title: str | None = None) -> None:
        """Write the same plots as one picture.

        Raises ImportError without matplotlib, the extra `report`.
        """
        from ._report_png import write_png

        write_png(self, path, title or _title(self))

    def __repr__(self) -> str:
        return (
            f"<iolift.recording.Recording {len(self.requests)} requests, {len(self.ios)} I/Os, "
            f"{len(self.files)} files, backend {self.backend!r}>"
        )


def dtype_name(dtype: np.dtype[Any]) -> str:
    """What the module calls it."""
    return "REQUEST" if dtype == REQUEST else "IO"


def check_rows(array: str, field: str, values: Any, least: int, most: Any) -> None:
    """ValueError with the first row of which the field is out of its range."""
    wrong = (values < least) | (values > most)
    if wrong.any():
        i = int(wrong.argmax())
        raise ValueError(f"{array}[{i}]: {field} = {values[i]} is out of range")


def phases(requests: NDArray[Any]) -> NDArray[np.int64]:
    """int64[n, 4]: submitted, dispatched, started, ended in ns, each not before the one before.

    What joined a read under way was dispatched before it came: its hold is 0. A moment that never
    came is that of the end.
    """
    times = np.empty((len(requests), 4), np.int64)
    times[:, 0] = requests["submitted_ns"]
    times[:, 3] = np.maximum(requests["ended_ns"], times[:, 0])
    for i, field in ((1, "dispatched_ns"), (2, "started_ns")):
        moment = requests[field]
        moment = np.where(moment == 0, times[:, 3], moment)
        times[:, i] = np.minimum(np.maximum(moment, times[:, i - 1]), times[:, 3])
    return times


def file_name(recording: Recording, index: int) -> str:
    """The name of file `index`, so that every character of it can be seen."""
    if index < 0:
        return "unknown file"
    return shown(recording.files[index])


def shown(text: str) -> str:
    """A text in which what is no character, or can't be seen, is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _title(recording: Recording) -> str:
    first, more = recording.files[:3], len(recording.files) - 3
    return ", ".join([*first, *([f"and {more:,} more"] if more > 0 else [])]) or "recording"


def _share(row: Any, mates: NDArray[Any], ios: NDArray[Any]) -> float:
    """The part, by size, that a read has in what its batch read and threw away."""
    reads = ios[ios["kind"] == 0]
    waste = int(np.maximum(reads["length"] - reads["asked"], 0).sum())
    asked = int(mates["length"][(mates["kind"] == 0) & (mates["source"] == 0)].sum())
    if not asked or row["kind"] or row["source"]:
        return 0.0
    return waste * int(row["length"]) / asked


def read_recording(file: BinaryIO, name: str) -> Recording:
    """The recording in an open file."""
    if not file.seekable():
        raise RecordingError(name, "is a pipe, and a recording is only read from a file")
    # What zipfile says of bytes that it can't make sense of.
    damage = (
        *(zipfile.BadZipFile, zlib.error, LZMAError, struct.error),
        *(EOFError, KeyError, RuntimeError),
    )
    try:
        with zipfile.ZipFile(file) as archive:
            about = json.loads(bytes(_member(archive, "about", np.dtype(np.uint8))))
            if about.pop("format") != FORMAT:
                raise RecordingError(name, "is no recording of iolift")
            version = about.pop("version")
            if version != VERSION:
                why = f"is a recording of version {version!r}, and {VERSION} is known"
                raise RecordingError(name, why)
            fields: dict[str, Any] = {"requests": REQUEST, "ios": IO}
            for field, dtype in fields.items():
                fields[field] = _member(archive, field, dtype)
            return Recording(**fields, **_parse_about(about))
    except RecordingError:
        raise
    except OSError as error:
        if error.errno not in (errno.EINVAL, None):  # a place before the beginning; of bz2
            raise
        raise RecordingError(name, f"is a damaged recording: {error}") from None
    except damage as error:
        why = f"is no recording, or a damaged one: {str(error) or type(error).__name__}"
        raise RecordingError(name, why) from None
    except (AttributeError, TypeError, ValueError) as error:
        raise RecordingError(name, f"is a damaged recording: {error}") from None


def _parse_about(about: dict[str, Any]) -> dict[str, Any]:
    for field in ("lost_requests", "lost_ios", "pid", "began_ns"):
        if type(about[field]) is not int:
            raise ValueError(f"{field} is {about[field]!r}")
    if type(about["began_at"]) is not float or type(about["backend"]) is not str:
        raise ValueError(f"began_at is {about['began_at']!r}, backend {about['backend']!r}")
    if not 0 <= about["began_at"] < 1e11 or min(about["lost_requests"], about["lost_ios"]) < 0:
        raise ValueError(f"began_at is {about['began_at']!r}, or less than nothing was lost")
    if type(about["files"]) is not list or not all(isinstance(n, str) for n in about["files"]):
        raise ValueError("not all names of files are text")
    return about


def _member(archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
    """An array of the archive. It is looked at only after its checksum was found right."""
    data = archive.read(f"{name}.npy")
    head = io.BytesIO(data)
    version = np.lib.format.read_magic(head)
    if version != (1, 0):
        raise ValueError(f"{name} has version {version} of the .npy format")
    shape, _, found = np.lib.format.read_array_header_1_0(head)
    if found != dtype or len(shape) != 1:
        raise ValueError(f"{name} has another layout: {found}, of shape {shape}")
    if len(data) - head.tell() != shape[0] * dtype.itemsize:
        raise ValueError(f"{name} has another size than it says")
    return np.frombuffer(data, dtype, shape[0], head.tell())


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[io.BufferedWriter]:
    """A new file that takes the place of `path` when all went well, and is gone if not.

    It takes the place of what a symbolic link points to, and its permissions. What is no regular
    file, as /dev/stdout, is written to.
    """
    target = os.path.realpath(os.fsdecode(path))
    try:
        mode = os.stat(target).st_mode
    except OSError:
        mode = 0
    if mode and not stat.S_ISREG(mode):
        with open(target, "wb") as file:
            yield file
        return
    name = os.path.join(
        os.path.dirname(target), f".iolift-{os.getpid()}-{threading.get_ident()}.tmp"
    )
    try:
        with open(name, "xb") as file:
            yield file
        if mode:
            os.chmod(name, stat.S_IMODE(mode))
        os.replace(name, target)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        if isinstance(error, OSError) and error.filename == name:
            raise type(error)(error.errno, error.strerror, os.fsdecode(path)) from None
        raise


def merge(recordings: Iterable[Recording]) -> Recording:
    """One recording of several, of the same boot of a machine, which has one CLOCK_MONOTONIC.

    Files of the same name are one. Batches are numbered anew: those of one stay in their order.
    ValueError if there are none.
    """
    parts = list(recordings)
    if not parts:
        raise ValueError("recordings is empty: there is nothing to merge")
    files: dict[str, int] = {}
    requests: list[NDArray[Any]] = []
    ios: list[NDArray[Any]] = []
    batches = 0
    for part in parts:
        # The last place is that of -1.
        place = np.array([*(files.setdefault(f, len(files)) for f in part.files), -1], np.int32)
        most = 0
        for rows, into in ((part.requests, requests), (part.ios, ios)):
            moved = rows.copy()
            moved["file"] = place[rows["file"]]
            moved["batch"][rows["batch"] > 0] += np.uint64(batches)
            most = max(most, int(rows["batch"].max(initial=0)))
            into.append(moved)
        batches += most
    first = min(parts, key=lambda part: part.began_ns)
    pids = {part.pid for part in parts}
    return Recording(
        _in_order(np.concatenate(requests), "ended_ns"),
        _in_order(np.concatenate(ios), "done_ns"),
        tuple(files),
        sum(part.lost_requests for part in parts),
        sum(part.lost_ios for part in parts),
        ", ".join(sorted({name for part in parts for name in part.backend.split(", ")})),
        pids.pop() if len(pids) == 1 else 0,
        first.began_ns,
        first.began_at,
    )


def _in_order(rows: NDArray[Any], field: str) -> NDArray[Any]:
    ordered: NDArray[Any] = rows[np.argsort(rows[field], kind="stable")]
    return ordered


# --------------------------------------------------------------- recording for the environment


class _Recorded(Protocol):
    """As much of a coalescer as is needed here; it can be referred to weakly."""

    def recording(self) -> Recording: ...


class _Process:
    """What this process has to save when it ends."""

    def __init__(self, directory: str) -> None:
        self.path = os.path.join(directory, f"{os.getpid()}-{time.monotonic_ns()}.npz")
        self.lock = threading.RLock()  # a finalizer may come in between
        self.live: weakref.WeakSet[_Recorded] = weakref.WeakSet()
        self.attached: set[int] = set()  # the garbage collector clears weak references first
        self.kept: deque[Recording] = deque()
        self.rows = 0
        self.lost_requests = self.lost_ios = 0

    def keep(self, recording: Recording) -> None:
        """Keep it, and let the oldest go of which the rest alone is as much as may be kept."""
        room = 2 * capacity()
        with self.lock:
            self.kept.append(recording)
            self.rows += _rows(recording)
            while self.rows - _rows(self.kept[0]) >= room:
                gone = self.kept.popleft()
                self.rows -= _rows(gone)
                self.lost_requests += len(gone.requests) + gone.lost_requests
                self.lost_ios += len(gone.ios) + gone.lost_ios

    def save(self) -> None:
        """Write all that there is by now to this process's file."""
        with self.lock:
            parts = [*self.kept, *(coalescer.recording() for coalescer in list(self.live))]
            if parts:
                whole = merge(parts)
                lost = self.lost_requests + whole.lost_requests, self.lost_ios + whole.lost_ios
                replace(whole, lost_requests=lost[0], lost_ios=lost[1]).save(self.path)


def _rows(recording: Recording) -> int:
    return len(recording.requests) + len(recording.ios)


_process: _Process | None = None


def capacity() -> int:
    """How many requests, and how many I/Os, each coalescer is to record; 0: the environment asks
    for none. ValueError where IOLIFT_RECORD_CAPACITY is no number from 1 to 2**30."""
    if not os.environ.get("IOLIFT_RECORD"):
        return 0
    text = os.environ.get("IOLIFT_RECORD_CAPACITY") or str(DEFAULT_CAPACITY)
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 1 << 30):
        raise ValueError(f"$IOLIFT_RECORD_CAPACITY must be 1 to 2**30, not {text!r}")
    return int(text)


def attach(coalescer: _Recorded) -> None:
    """From now on what it recorded is saved when the process ends. It is referred to weakly."""
    global _process
    if _process is None:
        _process = _Process(os.path.abspath(os.environ["IOLIFT_RECORD"]))
        if "multiprocessing.util" in sys.modules:
            # Its children end without atexit before Python 3.13, and with an emptied one since.
            from multiprocessing import parent_process, util

            if parent_process() is not None:
                util.Finalize(None, _save_at_exit, exitpriority=-100)
    _process.attached.add(id(coalescer))
    _process.live.add(coalescer)


def keep(coalescer: _Recorded) -> None:
    """Take what it recorded, now that no more will come: it may be collected."""
    if _process is not None and id(coalescer) in _process.attached:
        _process.attached.discard(id(coalescer))
        _process.live.discard(coalescer)
        _process.keep(coalescer.recording())


def _save_at_exit() -> None:
    if _process is not None:
        try:
            _process.save()
        except Exception as error:
            print(f"iolift: the recording was not saved: {error}", file=sys.stderr)


def _after_fork() -> None:
    global _process
    _process = None


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_save_at_exit)
