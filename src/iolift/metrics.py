"""Metrics: what coalescers count, for Prometheus, through prometheus_client.

1. Nothing is sampled or counted here: a scrape takes one `Coalescer.stats()` of each coalescer, so
   whatever is not scraped costs nothing.
2. A registry knows a coalescer by a weak reference: one that is gone takes its series along. One
   that is closed keeps its last counts, since a scrape has yet to see them, until it is gone or
   its name is given to another one.
3. In a forked child none of the parent's is exported: it would be the counts of the fork's moment.
4. Histograms have no sum and no count of their own: what is counted is a number of times per power
   of two, and a sum made of that would look exact. The bucket "+Inf" is the count.

    register -> Collector of the registry -> (a scrape) stats() -> metric families

Who may call: any thread.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, NamedTuple

from ._coalescer import Coalescer

try:
    from prometheus_client import REGISTRY, CollectorRegistry
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        InfoMetricFamily,
        Metric,
    )
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ImportError(
        "iolift.metrics needs prometheus_client: pip install 'iolift[metrics]'"
    ) from error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._report import Stats

__all__ = ["register", "unregister"]

LABELS = ["coalescer"]

# Guards every table here. Reentrant: a finalizer that runs in between may end up here again.
_lock = threading.RLock()


def _forget_lock() -> None:
    global _lock
    _lock = threading.RLock()  # a thread of the parent may have held it


os.register_at_fork(after_in_child=_forget_lock)

# Of Stats: name, field, help. Prometheus adds "_total" to the names of counters.
GAUGES = (
    ("iolift_held_requests", "held_requests", "Requests submitted and not ended"),
    ("iolift_held_bytes", "held_bytes", "Bytes of the requests submitted and not ended"),
    ("iolift_batches_in_flight", "batches_in_flight", "Batches dispatched and not landed"),
)
COUNTERS = (
    ("iolift_requests", "requests", "Reads and writes asked for"),
    ("iolift_reads", "reads", "Reads asked for"),
    ("iolift_writes", "writes", "Writes asked for"),
    ("iolift_batches", "batches", "Batches dispatched"),
    ("iolift_extents", "extents", "I/Os dispatched"),
    ("iolift_duplicates", "duplicates", "Reads of the same bytes as another one of their batch"),
    ("iolift_joins", "joins", "Reads that shared one already under way"),
    ("iolift_overlay_hits", "overlay_hits", "Reads answered by writes not yet in the file"),
    ("iolift_cancelled", "cancelled", "Requests withdrawn"),
    ("iolift_syncs_asked", "syncs_asked", "Syncs asked for"),
    ("iolift_syncs_issued", "syncs_issued", "fdatasync calls made"),
    ("iolift_read_asked_bytes", "bytes_asked", "Bytes of the reads asked for"),
    ("iolift_read_moved_bytes", "bytes_moved", "Bytes read from the files, gaps included"),
    ("iolift_written_bytes", "bytes_written", "Bytes written to the files"),
    (
        "iolift_superseded_bytes",
        "bytes_superseded",
        "Bytes never written, because younger writes covered them",
    ),
)
HISTOGRAMS = (
    ("iolift_hold_seconds", "hold_histogram_us", "Time of a ticket from submit to dispatch"),
    ("iolift_service_seconds", "service_histogram_us", "Time of a ticket from dispatch to its end"),
)


class _Entry(NamedTuple):
    coalescer: weakref.ref[Coalescer]
    pid: int

    def alive(self) -> Coalescer | None:
        return self.coalescer() if self.pid == os.getpid() else None


class _Counts(NamedTuple):
    backend: str
    order: str
    closed: bool
    stats: Stats


class _Collector(Collector):
    """All coalescers of one registry."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    def add(self, name: str, coalescer: Coalescer) -> None:
        with _lock:
            for known, other in self._alive().items():
                if other is coalescer and known != name:
                    raise ValueError(f"the coalescer is registered already, as {known!r}")
                if known == name and other is not coalescer and not other.closed:
                    raise ValueError(f"name = {name!r} is that of another open coalescer")
            self._entries[name] = _Entry(weakref.ref(coalescer), os.getpid())

    def remove(self, name: str) -> None:
        with _lock:
            if name not in self._alive():
                raise KeyError(f"no coalescer is registered as {name!r}")
            del self._entries[name]

    def _alive(self) -> dict[str, Coalescer]:
        # Held: _lock. Those that are gone are dropped by the way.
        found = {name: entry.alive() for name, entry in self._entries.items()}
        self._entries = {name: self._entries[name] for name, c in found.items() if c is not None}
        return {name: c for name, c in found.items() if c is not None}

    def describe(self) -> Iterator[Metric]:
        return _families({})

    def collect(self) -> Iterator[Metric]:
        # Only counts leave the lock: a scrape keeps no coalescer alive, or one that its program has
        # dropped would now and then still have its name.
        with _lock:
            counts = {
                name: _Counts(c.backend, c.order, c.closed, c.stats())
                for name, c in self._alive().items()
            }
        return _families(counts)


def _families(counts: dict[str, _Counts]) -> Iterator[Metric]:
    stats = {name: c.stats for name, c in counts.items()}
    about = InfoMetricFamily("iolift_coalescer", "Its backend", labels=LABELS)
    state = GaugeMetricFamily("iolift_open", "1, or 0 when it is closed", labels=LABELS)
    for name, c in counts.items():
        about.add_metric([name], {"backend": c.backend, "order": c.order})
        state.add_metric([name], float(not c.closed))
    yield from (about, state, _merge_factor(stats))
    for metric, field, text in GAUGES:
        gauge = GaugeMetricFamily(metric, text, labels=LABELS)
        for name, s in stats.items():
            gauge.add_metric([name], getattr(s, field))
        yield gauge
    for metric, field, text in COUNTERS:
        counter = CounterMetricFamily(metric, text, labels=LABELS)
        for name, s in stats.items():
            counter.add_metric([name], getattr(s, field))
        yield counter
    for metric, field, text in HISTOGRAMS:
        histogram = HistogramMetricFamily(metric, text, labels=LABELS)
        for name, s in stats.items():
            histogram.add_metric([name], _buckets(getattr(s, field)), None)
        yield histogram


def _merge_factor(stats: dict[str, Stats]) -> Metric:
    family = GaugeMetricFamily(
        "iolift_merge_factor", "Requests for each I/O since the coalescer was made", labels=LABELS
    )
    for name, s in stats.items():
        if s.extents:
            family.add_metric([name], s.requests / s.extents)
    return family


def _buckets(counts: tuple[int, ...]) -> list[tuple[str, float]]:
    """Cumulative, by upper bound in seconds; the last place is whatever took longer."""
    buckets, total = [], 0
    for place, count in enumerate(counts):
        total += count
        bound = "+Inf" if place == len(counts) - 1 else repr(2**place / 1e6)
        buckets.append((bound, float(total)))
    return buckets


_collectors: weakref.WeakKeyDictionary[CollectorRegistry, _Collector] = weakref.WeakKeyDictionary()


def register(coalescer: Coalescer, *, name: str, registry: CollectorRegistry = REGISTRY) -> None:
    """Export what a coalescer counts, with the label coalescer=name, until it is gone.

    Again with the same name is no error. The name of a coalescer that is closed or gone may be
    given to another one, whose counters begin at 0.

    Raises ValueError where the name is empty or that of another open coalescer, where this one has
    another name already, or where the registry has metrics of these names from elsewhere;
    TypeError for arguments of other types.
    """
    if not isinstance(coalescer, Coalescer):
        raise TypeError(f"coalescer must be an iolift.Coalescer, not {coalescer!r}")
    _check_name(name)
    _collector_of(registry, make=True).add(name, coalescer)


def unregister(name: str, *, registry: CollectorRegistry = REGISTRY) -> None:
    """Export a coalescer no longer. Raises KeyError where none that is alive has this name."""
    _check_name(name)
    _collector_of(registry, make=False).remove(name)


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, not {name!r}")
    if not name:
        raise ValueError("name must not be empty")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"name = {name!r} can't be written as UTF-8: {error.reason}") from None


def _collector_of(registry: CollectorRegistry, make: bool) -> _Collector:
    if not isinstance(registry, CollectorRegistry):
        raise TypeError(f"registry must be a CollectorRegistry, not {registry!r}")
    with _lock:
        collector = _collectors.get(registry)
        if collector is None:
            collector = _Collector()
            if make:
                registry.register(collector)
                _collectors[registry] = collector
        return collector
