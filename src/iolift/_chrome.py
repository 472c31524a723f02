"""A recording as Chrome trace event JSON, the format that Perfetto and chrome://tracing open.

1. Each file is a "process", its requests lie in "threads" (lanes) of it: a slice from submit to end
   around the slices held, queued and served, of which those that took no time are left out. The
   I/Os are one more process, with a counter of how many are in flight.
2. Slices of a lane never overlap but by holding each other whole. A lane is taken by the next
   request that comes when it is free; after MAX_LANES at once one is left out, and counted.
3. Times are microseconds since the first moment of the recording, exact to the nanosecond.

O((n + m) log) time; what is written is streamed.
"""

from __future__ import annotations

import heapq
import io
import itertools
import json
import os
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from ._report_data import in_flight
from .recording import KINDS, REASONS, SOURCES, STATES, file_name, phases, replacing

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from numpy.typing import NDArray

    from .recording import Recording

MAX_LANES = 4096
IO_PID = 1
PHASES = ("held", "queued", "served")
IO_FIELDS = ("offset", "length", "asked", "result", "batch")


def write_chrome(recording: Recording, file: str | os.PathLike[str] | TextIO) -> None:
    """See Recording.to_chrome."""
    if isinstance(file, (str, os.PathLike)):
        with replacing(file) as raw, io.TextIOWrapper(raw, "ascii") as text:
            _write(recording, text)
    else:
        _write(recording, file)


def _write(recording: Recording, out: TextIO) -> None:
    dropped = {"requests": 0, "ios": 0}
    out.write('{"displayTimeUnit":"ns","traceEvents":[\n')
    for i, event in enumerate(_events(recording, dropped)):
        out.write(f",\n{event}" if i else event)
    other = {
        "backend": recording.backend,
        "pid": recording.pid,
        "began_at": recording.began_at,
        "lost_requests": recording.lost_requests,
        "lost_ios": recording.lost_ios,
        "left_out_requests": dropped["requests"],
        "left_out_ios": dropped["ios"],
    }
    out.write('\n],"otherData":' + json.dumps(other) + "}\n")


def _events(recording: Recording, dropped: dict[str, int]) -> Iterator[str]:
    requests, ios = recording.requests, recording.ios
    times = phases(requests)
    begin = ios["submitted_ns"]
    end = np.maximum(ios["done_ns"], begin)
    zero = min((int(moments.min()) for moments in (times[:, 0], begin) if len(moments)), default=0)
    yield from _name(IO_PID, "I/Os", 0)
    dropped["ios"] += yield from _ios(recording, begin - zero, end - zero)
    for at, count in zip(*(a.tolist() for a in in_flight(begin - zero, end - zero)), strict=True):
        common = f'{{"ph":"C","pid":{IO_PID},"tid":0,"name":"I/Os in flight"'
        yield f'{common},"ts":{at / 1000},"args":{{"I/Os":{count}}}}}'
    for pid, index in enumerate(np.unique(requests["file"]).tolist(), IO_PID + 1):
        yield from _name(pid, f"requests: {file_name(recording, index)}", pid)
        mine = np.flatnonzero(requests["file"] == index)
        dropped["requests"] += yield from _requests(requests[mine], times[mine] - zero, pid)


def _name(pid: int, name: str, place: int) -> Iterator[str]:
    common = f'{{"ph":"M","pid":{pid},"tid":0,"name":"process'
    yield f'{common}_name","args":{{"name":{json.dumps(name)}}}}}'
    yield f'{common}_sort_index","args":{{"sort_index":{place}}}}}'


def _threads(pid: int, used: int, what: str) -> Iterator[str]:
    for lane in range(used):
        common = f'{{"ph":"M","pid":{pid},"tid":{lane + 1},"name":"thread'
        yield f'{common}_name","args":{{"name":"{what} {lane + 1}"}}}}'
        yield f'{common}_sort_index","args":{{"sort_index":{lane}}}}}'


def _slice(pid: int, tid: int, what: str, begin_ns: int, end_ns: int, args: str = "") -> str:
    when = f'"ts":{begin_ns / 1000},"dur":{(end_ns - begin_ns) / 1000}'
    return f'{{"ph":"X","pid":{pid},"tid":{tid},{what},{when},"args":{{{args}}}}}'


def _lanes(begin: NDArray[np.int64], end: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """(index, lane) in order of begin; lane -1: there are MAX_LANES others at that time."""
    free: list[int] = []
    busy: list[tuple[int, int]] = []
    made = 0
    for i in np.lexsort((end, begin)).tolist():
        now = int(begin[i])
        while busy and busy[0][0] <= now:
            heapq.heappush(free, heapq.heappop(busy)[1])
        if free:
            lane = heapq.heappop(free)
        elif made < MAX_LANES:
            made, lane = made + 1, made
        else:
            yield i, -1
            continue
        heapq.heappush(busy, (int(end[i]), lane))
        yield i, lane


def _requests(rows: NDArray[Any], times: NDArray[np.int64], pid: int) -> Generator[str, None, int]:
    """Its value, and that of _ios, is how many were left out."""
    used = left_out = 0
    for i, lane in _lanes(times[:, 0], times[:, 3]):
        if lane < 0:
            left_out += 1
            continue
        used = max(used, lane + 1)
        row, moments = _as_dict(rows[i]), times[i].tolist()
        args = f'"offset":{row["offset"]},"length":{row["length"]}'
        args += f',"state":"{STATES[row["state"]]}","source":"{SOURCES[row["source"]]}"'
        if row["errno"]:
            args += f',"error":{json.dumps(os.strerror(row["errno"]))}'
        if row["batch"]:
            args += f',"batch":{row["batch"]},"hold_ended_by":"{REASONS[row["reason"]]}"'
        if row["extent_length"]:
            args += f',"extent_offset":{row["extent_offset"]}'
            args += f',"extent_length":{row["extent_length"]},"companions":{row["companions"]}'
        what = f'"cat":"request","name":"{KINDS[row["kind"]]}"'
        yield _slice(pid, lane + 1, what, moments[0], moments[3], args)
        if not row["dispatched_ns"]:
            continue
        for name, (begin, end) in zip(PHASES, itertools.pairwise(moments), strict=True):
            if end > begin:
                yield _slice(pid, lane + 1, f'"cat":"phase","name":"{name}"', begin, end)
    yield from _threads(pid, used, "requests")
    return left_out


def _ios(
    recording: Recording, begin: NDArray[np.int64], end: NDArray[np.int64]
) -> Generator[str, None, int]:
    names = {i: json.dumps(file_name(recording, i)) for i in range(-1, len(recording.files))}
    used = left_out = 0
    for i, lane in _lanes(begin, end):
        if lane < 0:
            left_out += 1
            continue
        used = max(used, lane + 1)
        row = _as_dict(recording.ios[i])
        args = ",".join(f'"{field}":{row[field]}' for field in IO_FIELDS)
        args += f',"file":{names[row["file"]]}'
        what = f'"cat":"io","name":"{KINDS[row["kind"]]}"'
        yield _slice(IO_PID, lane + 1, what, int(begin[i]), int(end[i]), args)
    yield from _threads(IO_PID, used, "I/Os")
    return left_out


def _as_dict(row: Any) -> dict[str, int]:
    return dict(zip(row.dtype.names, row.item(), strict=True))
