"""A 7200 rpm disk with one arm, as a model: where a byte lies, and how long it takes to get there.

The drive is the Seagate Constellation ST9500430SS (500 GB, 7200 rpm). Every figure is of its
manual's table of performance (Constellation SAS Product Manual, Rev. E, section 5); what the
manual leaves open is marked as assumed.

1. Seek: `seek_ms(d)` over d cylinders is 0 at 0, and c + a*sqrt(d-1) + b*(d-1) from there, with
   a, b and c such that a seek over one cylinder, the average over all pairs of cylinders and the
   full stroke take what the manual says (Lee and Katz, "An Analytic Performance Model of Disk
   Arrays", SIGMETRICS 1993). It is steep where it is short and straight where it is long, as
   drives are (Ruemmler and Wilkes, "An Introduction to Disk Drive Modeling", IEEE Computer, 1994).
2. Rotation: the angle under the heads is the model's time, modulo a turn. Nothing is random: a
   block is where it is, and the arm waits until it comes by.
3. Transfer: at the zone's rate. Tracks are skewed by a seek over one track, so that what lies back
   to back is read without a lost turn.
4. One request after the other: overhead, seek (or head switch), rotation, transfer. No track
   buffer and no read-ahead: scattered blocks have no use for either.

Times are milliseconds, offsets and lengths bytes, angles turns. Functions take numbers or arrays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

TURN_MS = 60_000 / 7200
OVERHEAD_MS = 0.2  # a command's: the manual's access times with and without the controller's
SINGLE_MS, AVERAGE_MS, FULL_MS = 0.5, 8.0, 17.35  # seeks to read, without overhead, typical
HEADS = 6
CYLINDERS = 123_148
OUTER_RATE, INNER_RATE = 142, 75  # of zones, MB/s: only their ratio is used
CAPACITY = 500e9
ZONES = 24  # assumed, of as many cylinders each; sectors per track fall evenly from zone to zone
SECTOR = 512

BEYOND = CYLINDERS - 2  # what the longest seek has beyond the first cylinder
C = SINGLE_MS
A = (-10 * SINGLE_MS + 15 * AVERAGE_MS - 5 * FULL_MS) / (3 * math.sqrt(BEYOND))
B = (7 * SINGLE_MS - 15 * AVERAGE_MS + 8 * FULL_MS) / (3 * BEYOND)


def seek_ms(distance: Any) -> Any:
    """How long the arm takes over so many cylinders."""
    beyond = np.maximum(np.asarray(distance) - 1, 0)
    return np.where(np.asarray(distance) > 0, C + A * np.sqrt(beyond) + B * beyond, 0.0)


def _zones() -> tuple[Any, Any, Any]:
    """First cylinder, bytes per track and first byte of each zone, and one past the last."""
    first = np.linspace(0, CYLINDERS, ZONES + 1).astype(np.int64)
    rate = np.linspace(OUTER_RATE, INNER_RATE, ZONES)
    tracks = np.diff(first) * HEADS
    per_track = (rate * CAPACITY / (rate @ tracks)).astype(np.int64) // SECTOR * SECTOR
    return first, per_track, np.concatenate([[0], np.cumsum(tracks * per_track)])


FIRST_CYLINDER, TRACK_BYTES, FIRST_BYTE = _zones()
SIZE = int(FIRST_BYTE[-1]) // 4096 * 4096
SKEW = SINGLE_MS / TURN_MS


def locate(offset: Any) -> tuple[Any, Any, Any, Any]:
    """Cylinder, head, angle and the bytes of that track, for 0 <= offset < SIZE."""
    offset = np.asarray(offset)
    zone = np.searchsorted(FIRST_BYTE, offset, side="right") - 1
    track_bytes = TRACK_BYTES[zone]
    track, within = np.divmod(offset - FIRST_BYTE[zone], track_bytes)
    track += FIRST_CYLINDER[zone] * HEADS
    return track // HEADS, track % HEADS, (within / track_bytes + track * SKEW) % 1.0, track_bytes


@dataclass
class Service:
    """One request's way through the disk: when it began, and what its time went into."""

    offset: int
    length: int
    began_ms: float
    seek_ms: float
    rotation_ms: float
    transfer_ms: float

    @property
    def ended_ms(self) -> float:
        """When its last byte was read."""
        work = self.seek_ms + self.rotation_ms + self.transfer_ms
        return self.began_ms + OVERHEAD_MS + work


class Arm:
    """The heads: where they are, at which time. Begins at cylinder 0, at time 0."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        self.cylinder = 0
        self.head = 0

    def reach(self, offset: Any) -> tuple[Any, Any]:
        """Seek and rotation from here and now to each offset. O(1) each; moves nothing."""
        cylinder, head, angle, _ = locate(offset)
        seek = seek_ms(np.abs(cylinder - self.cylinder))
        seek = np.where((cylinder == self.cylinder) & (head != self.head), SINGLE_MS, seek)
        arrival = (self.now_ms + OVERHEAD_MS + seek) / TURN_MS
        return seek, (angle - arrival) % 1.0 * TURN_MS

    def nearest(self, offsets: Any) -> int:
        """Which one is reached first: the index. O(n)."""
        seek, rotation = self.reach(offsets)
        return int(np.argmin(seek + rotation))

    def serve(self, offset: int, length: int) -> Service:
        """Read it: the heads are behind it then, and the time is when that was."""
        seek, rotation = self.reach(offset)
        transfer, end = 0.0, min(offset + length, SIZE)
        at = offset
        while at < end:
            cylinder, head, _, track_bytes = locate(at)
            zone = np.searchsorted(FIRST_BYTE, at, side="right") - 1
            left = int(track_bytes - (at - FIRST_BYTE[zone]) % track_bytes)
            step = min(left, end - at)
            transfer += step / int(track_bytes) * TURN_MS
            at += step
            if at < end:
                transfer += SINGLE_MS  # the skew: the next track's first byte comes by just then
            self.cylinder, self.head = int(cylinder), int(head)
        served = Service(offset, length, self.now_ms, float(seek), float(rotation), transfer)
        self.now_ms = served.ended_ms
        return served


def in_order(offsets: Any, length: int) -> list[Service]:
    """What the model says of these requests, one after the other."""
    arm = Arm()
    return [arm.serve(int(offset), length) for offset in offsets]


def shortest_positioning_first(offsets: Any, length: int) -> list[Service]:
    """All known, always the one that is reached first: what only the drive could do. O(n^2).

    The best order is a travelling salesman's with a clock; this greedy one is what the literature
    measures others against (Seltzer, Chen and Ousterhout, "Disk Scheduling Revisited", USENIX
    1990; Jacobson and Wilkes, "Disk scheduling algorithms based on rotational position", 1991).
    """
    arm, left, served = Arm(), np.array(offsets, np.int64), []
    while len(left):
        k = arm.nearest(left)
        served.append(arm.serve(int(left[k]), length))
        left = np.delete(left, k)
    return served


def content(offset: int, length: int) -> bytes:
    """The disk's bytes: each 8-byte word is its offset, multiplied so that all its bytes change."""
    first, end = offset // 8, -(-(offset + length) // 8)
    words = np.arange(first, end, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return words.astype("<u8").tobytes()[offset % 8 :][:length]
