"""Goal: recordings as a coalescer would make them, from a seed, without one.

`make(n, seed)` plays n requests through a model of the window: they come in bursts, are held 100 us
at most, sorted and merged where they touch, and served by a disk that does `depth` I/Os at once.
What it makes keeps what a true recording keeps: each request's moments ascend, its batch has I/Os,
its extent holds it. `strange` is the share of requests that had another end: cancelled, failed,
answered by the overlay, superseded, joined to a read that was dispatched before they came.
"""

from __future__ import annotations

import heapq
import os
import random
from typing import Any

import numpy as np

from iolift.recording import IO, REASONS, REQUEST, Recording

BEGAN_NS = 5_000_000_000_000


def make(
    n: int, seed: int = 0, *, files: tuple[str, ...] = ("data.bin",), **more: Any
) -> Recording:
    """n requests and the I/Os that served them. more: fields of the Recording."""
    rng = random.Random(seed)
    model = _Model(rng, len(files), depth=more.pop("depth", 16))
    now, left = BEGAN_NS, n
    while left:
        burst = min(left, 1 + int(rng.expovariate(1 / 24)))
        model.batch(now, burst)
        left -= burst
        now += int(rng.expovariate(1 / 250_000))
    facts: dict[str, Any] = {
        "lost_requests": 0,
        "lost_ios": 0,
        "backend": "uring",
        "pid": os.getpid(),
        "began_ns": BEGAN_NS,
        "began_at": 1_700_000_000.25,
    }
    requests = np.array(model.requests, REQUEST)
    _make_strange(requests, rng, more.pop("strange", 0.0))
    ios = np.array(model.ios, IO)
    return Recording(
        requests[np.argsort(requests["ended_ns"], kind="stable")],
        ios[np.argsort(ios["done_ns"], kind="stable")],
        files,
        **(facts | more),
    )


def _make_strange(requests: Any, rng: random.Random, share: float) -> None:
    """Give some of the requests another end, each as the core would note it."""
    for row in requests:
        if rng.random() >= share:
            continue
        what = rng.choice(["cancelled", "failed", "overlay", "joined", "superseded"])
        if what == "cancelled":
            row["state"] = 2
        elif what == "failed":
            row["state"], row["errno"] = 1, rng.choice([5, 28])
        elif what == "overlay" and row["kind"] == 0:
            row["source"] = 1
        elif what == "joined" and row["kind"] == 0:
            row["source"] = 2
            row["dispatched_ns"] = row["submitted_ns"] - 10
        elif what == "superseded" and row["kind"] == 1:
            row["extent_offset"] = row["extent_length"] = row["companions"] = 0
        if what == "cancelled" or row["source"] == 1:
            row["ended_ns"] = row["submitted_ns"] + (1000 if what == "cancelled" else 0)
            for field in ("dispatched_ns", "started_ns", "batch", "reason", "companions"):
                row[field] = 0
            row["extent_offset"] = row["extent_length"] = 0
            row["file"] = row["file"] if rng.random() < 0.9 else -1


class _Model:
    def __init__(self, rng: random.Random, files: int, depth: int) -> None:
        self.rng, self.files, self.depth = rng, files, depth
        self.requests: list[tuple[int, ...]] = []
        self.ios: list[tuple[int, ...]] = []
        self.busy: list[int] = []  # when each I/O in flight is done
        self.number = 0

    def batch(self, now: int, count: int) -> None:
        """`count` requests of one kind to one file; one batch."""
        rng = self.rng
        self.number += 1
        file, kind = rng.randrange(self.files), int(rng.random() < 0.3)
        if rng.random() < 0.05:
            kind = 2
        reason = REASONS.index(rng.choice(["time", "demand", "turn", "flush", "count"]))
        held = 0 if count == 1 else rng.randrange(20_000, 100_000)
        # A slow walk through the file, with jumps about it.
        base = (now - BEGAN_NS) // 1000 % (1 << 18) * 4096
        came = sorted(now + rng.randrange(held + 1) for _ in range(count))
        asks = [(base + rng.randrange(64) * 4096, rng.choice([4096, 8192])) for _ in range(count)]
        if kind == 2:
            asks = [(0, 0)] * count
        dispatched = now + held
        ends: dict[int, tuple[int, int, int]] = {}
        landed = started = 0
        for lo, hi, carried in _merged(asks):
            begin, end = self._serve(dispatched, hi - lo)
            started = started or begin
            landed = max(landed, end)
            unique = sum(b - a for a, b in _union([asks[i] for i in carried]))
            row = (file, kind, hi - lo, lo, hi - lo, unique, self.number, begin, end)
            self.ios.append((*row, len(self.busy), 0))
            for i in carried:
                ends[i] = (lo, hi - lo, len(carried) - 1)
        for i, (offset, length) in enumerate(asks):
            extent = ends[i]
            row = (file, kind, 0, 0, reason, 0, extent[2], offset, length)
            moments = (came[i], dispatched, started, landed)
            self.requests.append((*row, *moments, self.number, *extent[:2]))

    def _serve(self, now: int, length: int) -> tuple[int, int]:
        while len(self.busy) >= self.depth:
            now = max(now, heapq.heappop(self.busy))
        while self.busy and self.busy[0] <= now:
            heapq.heappop(self.busy)
        end = now + 40_000 + length // 2 + self.rng.randrange(60_000)
        heapq.heappush(self.busy, end)
        return now, end


def _merged(asks: list[tuple[int, int]]) -> list[tuple[int, int, list[int]]]:
    """(begin, end, which of the asks) of each I/O: what touches, or leaves at most 4 KiB out."""
    out: list[tuple[int, int, list[int]]] = []
    for i in sorted(range(len(asks)), key=lambda i: asks[i]):
        begin, end = asks[i][0], sum(asks[i])
        if out and begin <= out[-1][1] + 4096:
            out[-1] = (out[-1][0], max(out[-1][1], end), [*out[-1][2], i])
        else:
            out.append((begin, end, [i]))
    return out


def _union(asks: list[tuple[int, int]]) -> list[tuple[int, int]]:
    out: list[tuple[int, int]] = []
    for offset, length in sorted(asks):
        if out and offset <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], offset + length))
        else:
            out.append((offset, offset + length))
    return out
