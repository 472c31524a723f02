"""What iolift tells about itself: Explanation of one ticket, Stats of a coalescer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
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
