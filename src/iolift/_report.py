"""What iolift tells about itself: Explanation of one ticket, Stats of a coalescer.

In a notebook Stats are a table with two small histograms: markup that needs no script and nothing
from elsewhere, in the colours of the text around it, so that it is legible in the dark, too.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from html import escape
from typing import Any


@dataclass(frozen=True)
class Explanation:
    """What became of one request; str() says it in a sentence.

    kind: "read", "write" or "sync". offset, length: what was asked, in bytes.
    state: "parked", "held", "flying", "done" or "cancelled".
    source: "device" (its batch moved the bytes), "overlay" (writes that were held or flying had
    all of them) or "joined" (a read that was already under way had them).
    superseded: of a write: younger ones of its batch covered every byte, so none was moved.
    batch: its number, None before dispatch; requests, extents: how many that batch had.
    hold_ended_by: "alone", "time", "bytes", "count", "flush", "demand", "turn" or "close".
    extent_offset, extent_length: the first I/O that carried it, in bytes; companions: how many
    other requests that I/O carried.
    held_us, queued_us, served_us: microseconds from submit to dispatch, to the first I/O, to the
    end of the batch.
    waste_share: its share, by size, of the bytes that the batch read and threw away.
    """

    kind: str
    offset: int
    length: int
    state: str
    source: str
    superseded: bool
    batch: int | None
    hold_ended_by: str | None
    requests: int | None
    extents: int | None
    extent_offset: int | None
    extent_length: int | None
    companions: int | None
    held_us: float | None
    queued_us: float | None
    served_us: float | None
    waste_share: float

    def __str__(self) -> str:
        what = self.kind
        if self.kind != "sync":
            what += f" of {self.length} bytes at {self.offset}"
        if self.source == "overlay":
            return f"{what}: {self.state}, answered by writes not yet in the file, without I/O"
        if self.batch is None or self.held_us is None:
            return f"{what}: {self.state}"
        text = (
            f"{what}: {self.state} in batch {self.batch} ({self.requests} requests, "
            f"held {self.held_us:.1f} us until {self.hold_ended_by}"
        )
        if self.queued_us is None or self.served_us is None:
            return text + ")"
        text += f", queued {self.queued_us:.1f} us, served {self.served_us:.1f} us)"
        if self.source == "joined":
            text += ", joined to a read that was already under way"
        elif self.superseded:
            text += ", every byte superseded by younger writes"
        elif self.extent_offset is not None:
            text += (
                f", by an I/O of {self.extent_length} bytes at {self.extent_offset} "
                f"with {self.companions} others"
            )
        if self.waste_share:
            text += f", {self.waste_share:.0f} bytes of waste are its share"
        return text


@dataclass(frozen=True)
class Stats:
    """Counters of a coalescer since it was made, but for what is held and flying now.

    held_requests, held_bytes: submitted and not ended, the flying ones included.
    batches_in_flight: dispatched and not landed.
    requests, reads, writes: submitted, or called for one at a time; bulk calls count each range.
    batches, extents: dispatched; single calls that went straight to the file are one of each.
    duplicates: reads of exactly the same bytes as another one of their batch.
    bytes_asked: of reads. bytes_moved: read from the files, gaps included.
    bytes_written: to the files. bytes_superseded: asked to be written, and never written, because
    younger writes covered them.
    joins: reads that shared one already under way. overlay_hits: reads that held or flying writes
    answered in whole. cancelled: withdrawn tickets.
    syncs_asked, syncs_issued: asked for by callers, and fdatasync calls made.
    hold_histogram_us, service_histogram_us: 32 counts each, of tickets by the time from submit to
    dispatch, and from there to the end: place k counts times of at least 2**(k-1) and less than
    2**k microseconds.
    """

    held_requests: int
    held_bytes: int
    batches_in_flight: int
    requests: int
    reads: int
    writes: int
    batches: int
    extents: int
    duplicates: int
    bytes_asked: int
    bytes_moved: int
    bytes_written: int
    bytes_superseded: int
    joins: int
    overlay_hits: int
    cancelled: int
    syncs_asked: int
    syncs_issued: int
    hold_histogram_us: tuple[int, ...]
    service_histogram_us: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """The same as a dict, ready for JSON."""
        return asdict(self)

    def _repr_html_(self) -> str:
        rows = [
            f'<tr><th style="text-align:left" colspan="2" scope="colgroup">{group}</th></tr>'
            + "".join(_html_row(name, getattr(self, name), unit) for name, unit in counters)
            for group, counters in GROUPS
        ]
        charts = [
            _html_histogram("held", self.hold_histogram_us),
            _html_histogram("served", self.service_histogram_us),
        ]
        return (
            '<div style="display:flex;flex-wrap:wrap;gap:2em;align-items:flex-start">'
            f"<table><tbody>{''.join(rows)}</tbody></table>"
            f"<div>{''.join(charts)}</div></div>"
        )


# ------------------------------------------------------------------------------------ in a notebook

# Every counter of Stats has its row, by group; "B" are bytes.
GROUPS = (
    ("now", (("held_requests", ""), ("held_bytes", "B"), ("batches_in_flight", ""))),
    ("asked", (("requests", ""), ("reads", ""), ("writes", ""), ("cancelled", ""))),
    ("I/Os", (("batches", ""), ("extents", ""), ("syncs_asked", ""), ("syncs_issued", ""))),
    ("without an I/O", (("duplicates", ""), ("joins", ""), ("overlay_hits", ""))),
    (
        "bytes",
        (
            ("bytes_asked", "B"),
            ("bytes_moved", "B"),
            ("bytes_written", "B"),
            ("bytes_superseded", "B"),
        ),
    ),
)
BAR, HEIGHT = 9, 60  # of a histogram: the width of a place and the height of the highest, in px


def _html_row(name: str, value: int, unit: str) -> str:
    text = _binary(value) if unit else f"{value:,}"
    exact = f' title="{value:,} bytes"' if unit else ""
    return (
        f'<tr><td style="text-align:left">{escape(name.replace("_", " "))}</td>'
        f'<td style="text-align:right"{exact}>{escape(text)}</td></tr>'
    )


def _binary(size: int) -> str:
    """Bytes in binary units, of at least 1 and less than 1024 of them where there are any left."""
    units = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
    step = min(max(abs(size).bit_length() - 1, 0) // 10, len(units) - 1)
    return f"{size / (1 << 10 * step):,.1f} {units[step]}" if step else f"{size:,} B"


def _duration(us: int) -> str:
    """Microseconds, a power of two, in the largest unit that they fill."""
    for size, unit in ((1_000_000, "s"), (1_000, "ms")):
        if us >= size:
            return f"{us / size:.3g} {unit}" if us < 1000 * size else f"{us // size} {unit}"
    return f"{us} us"


def _html_histogram(title: str, counts: tuple[int, ...]) -> str:
    """The places from the first to the last with any ticket; to hover: each one's range, count."""
    total = sum(counts)
    caption = f"{title}: {total:,} tickets"
    used = [place for place, count in enumerate(counts) if count]
    if not used:
        return f"<div>{escape(caption)}</div>"
    first, last = used[0], used[-1]
    width = BAR * (last - first + 1)
    bars = []
    for place in range(first, last + 1):
        count = counts[place]
        # What is there is seen: at least one pixel.
        height = max(HEIGHT * count / max(counts), 1.0) if count else 0.0
        low, high = _duration(2**place >> 1), _duration(2**place)
        span = f"{low} to {high}" if place < len(counts) - 1 else f"{low} and more"
        bars.append(
            f'<rect x="{BAR * (place - first)}" y="{HEIGHT - height:.1f}" width="{BAR - 1}" '
            f'height="{height:.1f}" fill="currentColor" fill-opacity="0.6">'
            f"<title>{escape(f'{span}: {count:,}')}</title></rect>"
        )
    ends = f"{_duration(2**first >> 1)} to {_duration(2**last)}"
    return (
        f'<div style="margin-bottom:1em"><div>{escape(caption)}</div>'
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{width}" '
        f'height="{HEIGHT + 1}" viewBox="0 0 {width} {HEIGHT + 1}">'
        f"<title>{escape(f'{caption}, {ends}')}</title>{''.join(bars)}"
        f'<line x1="0" x2="{width}" y1="{HEIGHT + 0.5}" y2="{HEIGHT + 0.5}" '
        f'stroke="currentColor" stroke-opacity="0.5"/></svg>'
        f'<div style="font-size:smaller">{escape(ends)}</div></div>'
    )
