"""What a report says of a recording, as numbers and arrays: no drawing, no clock, no files.

1. A figure is about what the recording holds: what was lost is no part of it.
2. `thinned` drops marks only where another of the same kind stays within the same small cell of the
   picture, so that what is left looks like all of it; how many went is for the page to say.
3. Time is O(n log n) in requests and I/Os.
"""

from __future__ import annotations

import errno
import os
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ._replay_data import human
from .recording import REASONS, file_name, phases

if TYPE_CHECKING:
    from .recording import Recording

READ, WRITE, SYNC = range(3)
DONE, FAILED, CANCELLED = range(3)
MAX_STEPS = 600
BARS = 32
NAMED_FILES = 12
LOWEST_US = 0.1

# Of reads, writes and syncs: three that all eyes tell apart (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#666666")
COUNT_COLOUR, INK, GRID = "#009E73", "#333333", "#dddddd"

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """The numbers at the top of a report. None: there was nothing to take it of.

    requests: all recorded; reads, writes, syncs: of these, those that were not cancelled.
    ios: reads and writes that were made for them; syncs_issued: fdatasync calls.
    merge_factor: reads and writes, the cancelled ones left out, for each I/O.
    bytes_asked: by reads and writes that were not cancelled. bytes_moved: by I/Os, in both
    directions. bytes_wasted: read for gaps; waste_share: of the bytes asked of reading I/Os.
    hold: from submit to dispatch; service: from there to the end. Percentiles, by nearest rank, of
    the requests that had a batch and were not cancelled, in microseconds.
    most_in_flight: I/Os at once. seconds: from the first submit to the last end.
    """

    requests: int
    reads: int
    writes: int
    syncs: int
    failed: int
    cancelled: int
    ios: int
    syncs_issued: int
    merge_factor: float | None
    bytes_asked: int
    bytes_moved: int
    bytes_wasted: int
    waste_share: float | None
    hold_p50_us: float | None
    hold_p99_us: float | None
    service_p50_us: float | None
    service_p99_us: float | None
    most_in_flight: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The same as a dict, ready for JSON."""
        return asdict(self)


def covered(recording: Recording) -> Recording:
    """What both rings have: where one of them was overwritten up to a moment, the other's rows up
    to it are lost, too, as there is nothing to compare them with."""
    requests, ios = recording.requests, recording.ios
    if not (recording.lost_requests or recording.lost_ios) or not (len(requests) and len(ios)):
        return recording
    # From when on each ring has all: the I/Os of the oldest request began with it.
    first_request = int(phases(requests)[:, 2].min()) if recording.lost_requests else 0
    first_io = int(ios["done_ns"].min()) if recording.lost_ios else 0
    if first_io > first_request:
        kept = requests[requests["ended_ns"] >= first_io], ios
    else:
        kept = requests, ios[ios["submitted_ns"] >= first_request]
    return replace(
        recording,
        requests=kept[0],
        ios=kept[1],
        lost_requests=recording.lost_requests + len(requests) - len(kept[0]),
        lost_ios=recording.lost_ios + len(ios) - len(kept[1]),
    )


def summarize(recording: Recording) -> Summary:
    """The figures of a recording that is `covered`; pure."""
    requests, ios = recording.requests, recording.ios
    kept = requests[requests["state"] != CANCELLED]
    moves, move_ios = kept[kept["kind"] != SYNC], ios[ios["kind"] != SYNC]
    reading = ios[ios["kind"] == READ]
    wasted = total(np.maximum(reading["length"] - reading["asked"], 0))
    asked_of_ios = total(reading["asked"])
    hold, service = hold_us(recording), service_us(recording)
    begin, end = ios["submitted_ns"], ios["done_ns"]
    span = 0
    if len(requests):
        span = int(requests["ended_ns"].max()) - int(requests["submitted_ns"].min())
    return Summary(
        requests=len(requests),
        reads=int((kept["kind"] == READ).sum()),
        writes=int((kept["kind"] == WRITE).sum()),
        syncs=int((kept["kind"] == SYNC).sum()),
        failed=int((requests["state"] == FAILED).sum()),
        cancelled=len(requests) - len(kept),
        ios=len(move_ios),
        syncs_issued=len(ios) - len(move_ios),
        merge_factor=len(moves) / len(move_ios) if len(move_ios) else None,
        bytes_asked=total(moves["length"]),
        bytes_moved=total(np.maximum(move_ios["result"], 0)),
        bytes_wasted=wasted,
        waste_share=wasted / asked_of_ios if asked_of_ios else None,
        hold_p50_us=percentile(hold, 50),
        hold_p99_us=percentile(hold, 99),
        service_p50_us=percentile(service, 50),
        service_p99_us=percentile(service, 99),
        most_in_flight=int(in_flight(begin, end)[1].max(initial=0)),
        seconds=max(span, 0) / 1e9,
    )


def total(values: Ints) -> int:
    """Their sum, also where it is beyond 2**63."""
    if float(values.sum(dtype=np.float64)) < 2**62:
        return int(values.sum())
    return sum(values.tolist())


def percentile(values: Floats, percent: int) -> float | None:
    """By nearest rank: the smallest that so many percent are not above."""
    if not len(values):
        return None
    rank = -(-percent * len(values) // 100) - 1
    return float(np.partition(values, rank)[rank])


def dispatched(recording: Recording) -> NDArray[np.bool_]:
    """Which requests had a batch and were not cancelled: what hold and service are measured of."""
    requests = recording.requests
    had: NDArray[np.bool_] = (requests["dispatched_ns"] > 0) & (requests["state"] != CANCELLED)
    return had


def hold_us(recording: Recording) -> Floats:
    """From submit to dispatch, of those of `dispatched`."""
    times = phases(recording.requests[dispatched(recording)])
    return (times[:, 1] - times[:, 0]) / 1000


def service_us(recording: Recording) -> Floats:
    """From dispatch to the end, of those of `dispatched`."""
    times = phases(recording.requests[dispatched(recording)])
    return (times[:, 3] - times[:, 1]) / 1000


def in_flight(
    begin: NDArray[np.int64], end: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(moments, count): how many of the intervals [begin, end) there are from each moment on.

    Moments ascend, and the count differs from one to the next. O(n log n).
    """
    moments = np.concatenate([begin, np.maximum(begin, end)])
    steps = np.repeat(np.array([1, -1]), len(begin))
    distinct, place = np.unique(moments, return_inverse=True)
    change = np.zeros(len(distinct), np.int64)
    np.add.at(change, place, steps)
    some = change != 0
    return distinct[some], np.cumsum(change)[some]


def envelope(moments: Ints, count: Ints, steps: int = MAX_STEPS) -> tuple[Floats, Floats]:
    """(moments, highest): a step curve of at most `steps` steps that hides no peak.

    Where there are more, each of `steps` equal times has the highest that the curve reaches in it.
    """
    if len(moments) <= steps:
        return moments.astype(np.float64), count.astype(np.float64)
    edges = np.linspace(moments[0], moments[-1], steps + 1)[:-1]
    place = np.searchsorted(edges, moments, "right") - 1
    # What a step begins with is what the last change before it left.
    before = np.searchsorted(moments, edges, "right") - 1
    highest = count[np.maximum(before, 0)].copy()
    np.maximum.at(highest, place, count)
    return edges, highest.astype(np.float64)


# ------------------------------------------------------------------------------- offset over time


@dataclass(frozen=True, eq=False)
class Marks:
    """Ranges of files at moments: what one panel shows, by time.

    kind: READ or WRITE. seconds: float64[k] since the recording's first moment. low, high:
    float64[k], bytes, in the stacked files of a `Stack`. offset, length: the same, of the file.
    all: how many there were before they were thinned.
    """

    kind: NDArray[np.uint8]
    seconds: Floats
    low: Floats
    high: Floats
    offset: Floats
    length: Floats
    all: int


@dataclass(frozen=True, eq=False)
class Stack:
    """Files one above the other: place i + 1 of `base`, bytes, is where files[i] begins, place 0
    where unknown files do. named: (base, name) of those that are worth a label. top: the end."""

    base: Floats
    named: tuple[tuple[float, str], ...]
    top: float


def stack(recording: Recording) -> Stack:
    """A place for every file that something was done to."""
    size = np.zeros(len(recording.files) + 1)
    work = np.zeros(len(size))
    for rows in (recording.requests, recording.ios):
        np.maximum.at(size, rows["file"] + 1, (rows["offset"] + rows["length"]).astype(float))
        np.add.at(work, rows["file"] + 1, 1)
    used = np.flatnonzero(work)
    gap = float(size[used].sum()) * (0.02 if len(used) <= NAMED_FILES else 0.0)
    base, at = np.zeros(len(size)), 0.0
    for i in used.tolist():
        base[i], at = at, at + size[i] + gap
    busiest = sorted(used[np.argsort(-work[used], kind="stable")][:NAMED_FILES].tolist())
    named = tuple((float(base[i]), file_name(recording, i - 1)) for i in busiest)
    return Stack(base, named, max(at - gap, 1.0))


def zero_ns(recording: Recording) -> int:
    """The first moment that a picture shows."""
    firsts = [recording.requests["submitted_ns"], recording.ios["submitted_ns"]]
    return min((int(moments.min()) for moments in firsts if len(moments)), default=0)


def marks(recording: Recording, rows: NDArray[Any], place: Stack, limit: int) -> Marks:
    """The reads and writes among `rows`, requests or I/Os, at their submit; at most `limit`."""
    rows = rows[(rows["kind"] != SYNC) & (rows["length"] > 0)]
    rows = rows[np.argsort(rows["submitted_ns"], kind="stable")]
    seconds = (rows["submitted_ns"] - zero_ns(recording)) / 1e9
    base = place.base[rows["file"] + 1]
    middle = base + rows["offset"] + rows["length"] / 2
    kept = thinned(seconds, middle, rows["kind"].astype(np.int64), limit)
    rows, base = rows[kept], base[kept]
    kind = rows["kind"].astype(np.uint8)
    offset, length = rows["offset"].astype(np.float64), rows["length"].astype(np.float64)
    low, high = base + offset, base + offset + length
    return Marks(kind, seconds[kept], low, high, offset, length, len(seconds))


def thinned(x: Floats, y: Floats, kind: Ints, limit: int) -> Ints:
    """Indices, ascending, of at most `limit` points: of those of a kind in one cell of a grid, one.

    The grid is as fine as the limit allows. limit: 2 or more.
    """
    columns, lines = 1 << 17, 1 << 13
    kept = np.arange(len(x))
    while len(kept) > limit:
        cell = (_steps(x, columns) * lines + _steps(y, lines)) * 2 + kind
        kept = np.sort(np.unique(cell, return_index=True)[1])
        columns, lines = max(columns * 3 // 4, 1), max(lines * 3 // 4, 1)
    return kept


def _steps(values: Floats, count: int) -> Ints:
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return np.zeros(len(values), np.int64)
    scaled = (values - low) / (high - low) * count
    return np.minimum(scaled.astype(np.int64), count - 1)


# ---------------------------------------------------------------------------------- distributions


def histogram(values_us: Floats, edges: Floats) -> Ints:
    """int64[len(edges) - 1]; what is below the first edge is in the first bar."""
    place = np.searchsorted(edges, np.maximum(values_us, edges[0]), "right") - 1
    return np.bincount(np.minimum(place, len(edges) - 2), minlength=len(edges) - 1)


def edges_us(values_us: Floats) -> Floats:
    """Edges of BARS bars around all of these, each wider than the one before by the same factor.

    The first is LOWEST_US or more.
    """
    most = float(values_us.max(initial=LOWEST_US))
    least = max(float(values_us.min(initial=most)), LOWEST_US)
    return np.geomspace(least, max(most, 2 * least), BARS + 1)


@dataclass(frozen=True)
class Ending:
    """How many holds a reason ended, and the median of how long they were."""

    reason: str
    requests: int
    hold_p50_us: float


def endings(recording: Recording) -> list[Ending]:
    """What ended the holds, the most frequent first."""
    reason = recording.requests["reason"][dispatched(recording)]
    hold = hold_us(recording)
    found = []
    for i in np.unique(reason).tolist():
        of = hold[reason == i]
        found.append(Ending(REASONS[i] or "unknown", len(of), percentile(of, 50) or 0.0))
    return sorted(found, key=lambda ending: -ending.requests)


# ------------------------------------------------------------------------------ the worst requests


@dataclass(frozen=True)
class Worst:
    """One of the slowest requests: seconds since the first moment, microseconds, a sentence."""

    seconds: float
    file: str
    total_us: float
    held_us: float
    queued_us: float
    served_us: float
    sentence: str


def worst(recording: Recording, count: int) -> list[Worst]:
    """Those that took the longest from submit to end, of each batch the first such one alone.

    The cancelled ones are left out.
    """
    requests = recording.requests
    times = phases(requests)
    took = times[:, 3] - times[:, 0]
    order = np.argsort(-took, kind="stable")
    order = order[requests["state"][order] != CANCELLED]
    batch = requests["batch"][order]
    first = np.zeros(len(order), bool)
    first[np.unique(batch, return_index=True)[1]] = True
    order = order[first | (batch == 0)][:count]
    zero = zero_ns(recording)
    found = []
    for i in order.tolist():
        moments = times[i]
        held, queued, served = (np.diff(moments) / 1000).tolist()
        sentence = str(recording.explain(i))
        if requests["errno"][i]:
            code = int(requests["errno"][i])
            sentence += f"; {errno.errorcode.get(code, code)}: {os.strerror(code)}"
        seconds = (int(moments[0]) - zero) / 1e9
        name = file_name(recording, int(requests["file"][i]))
        found.append(Worst(seconds, name, took[i] / 1000, held, queued, served, sentence))
    return found


# ------------------------------------------------------------------------------------------- words


def show_us(value: float | None) -> str:
    """A time with the unit that suits it."""
    if value is None:
        return "-"
    scale, unit = next((u for u in ((1e6, "s"), (1e3, "ms")) if value >= u[0]), (1.0, "us"))
    value /= scale
    return f"{value:.3g} {unit}" if value < 100 else f"{value:,.0f} {unit}"


# ------------------------------------------------------------------------------------ all together


@dataclass(frozen=True, eq=False)
class Curve:
    """Steps: `count` from `seconds` on, until the next."""

    seconds: Floats
    count: Floats


@dataclass(frozen=True, eq=False)
class Bars:
    """Counts of requests between `edges_us`, by kind, with the two percentiles."""

    edges_us: Floats
    counts: dict[int, Ints]
    p50_us: float | None
    p99_us: float | None


@dataclass(frozen=True, eq=False)
class Picture:
    """What the drawings of a recording have in common."""

    summary: Summary
    stack: Stack
    before: Marks
    after: Marks
    waiting: Curve
    in_flight: Curve
    hold: Bars
    service: Bars
    seconds: float

    @property
    def notes(self) -> tuple[str, ...]:
        """What is not drawn, in sentences."""
        notes = []
        for what, panel in (("requests", self.before), ("I/Os", self.after)):
            drawn = len(panel.seconds)
            if drawn < panel.all:
                notes.append(
                    f"Of {panel.all:,} {what}, {drawn:,} are drawn: of those so close together "
                    "that they would hide each other, one. All figures are of all."
                )
        if self.summary.syncs:
            notes.append("Syncs have no offset: they are not among the dots.")
        return tuple(notes)


def picture(recording: Recording, limit: int) -> Picture:
    """What is to be drawn; each panel has at most `limit` marks."""
    requests, ios = recording.requests, recording.ios
    place, zero = stack(recording), zero_ns(recording)
    asked = requests[requests["state"] != CANCELLED]
    kind = requests["kind"][dispatched(recording)]
    summary = summarize(recording)
    times = phases(requests)
    ends = [zero, *(int(t.max()) for t in (times[:, 3], ios["done_ns"]) if len(t))]

    def curve(begin: Ints, end: Ints) -> Curve:
        moments, count = envelope(*in_flight(begin, end))
        return Curve((moments - zero) / 1e9, count)

    def bars(values: Floats, p50: float | None, p99: float | None) -> Bars:
        edges = edges_us(values)
        kinds = {k: histogram(values[kind == k], edges) for k in np.unique(kind).tolist()}
        return Bars(edges, kinds, p50, p99)

    return Picture(
        summary,
        place,
        marks(recording, asked, place, limit),
        marks(recording, ios, place, limit),
        curve(times[:, 0], times[:, 3]),
        curve(ios["submitted_ns"], ios["done_ns"]),
        bars(hold_us(recording), summary.hold_p50_us, summary.hold_p99_us),
        bars(service_us(recording), summary.service_p50_us, summary.service_p99_us),
        max(max(ends) - zero, 1) / 1e9,
    )


def unit_of_time(seconds: float) -> tuple[float, str]:
    """(how many of it a second has, its name): for an axis of so many seconds."""
    return (1.0, "s") if seconds >= 2 else (1e3, "ms") if seconds >= 2e-3 else (1e6, "us")


def unit_of_size(size: float) -> tuple[float, str]:
    """(its bytes, its name): for an axis of so many bytes."""
    for power, name in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size >= 2 << power:
            return float(1 << power), name
    return 1.0, "bytes"


def figures(summary: Summary) -> list[tuple[str, str]]:
    """(name, value) of what stands at the top, as text."""

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    return [
        ("requests", f"{summary.requests:,}"),
        ("I/Os", f"{summary.ios:,}"),
        ("merge factor", number(summary.merge_factor, ".2f")),
        ("bytes asked", human(summary.bytes_asked)),
        ("bytes moved", human(summary.bytes_moved)),
        ("wasted", human(summary.bytes_wasted)),
        ("waste per byte asked", number(summary.waste_share, ".1%")),
        ("hold p50", show_us(summary.hold_p50_us)),
        ("hold p99", show_us(summary.hold_p99_us)),
        ("service p50", show_us(summary.service_p50_us)),
        ("service p99", show_us(summary.service_p99_us)),
        ("most I/Os in flight", f"{summary.most_in_flight:,}"),
        ("syncs asked", f"{summary.syncs:,}"),
        ("fdatasyncs", f"{summary.syncs_issued:,}"),
        ("failed", f"{summary.failed:,}"),
        ("cancelled", f"{summary.cancelled:,}"),
        ("time", show_us(summary.seconds * 1e6)),
    ]
