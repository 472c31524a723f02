"""Goal: what Prometheus scrapes is what stats() says, in both formats of the exposition.

The text is read back by prometheus_client's own two parsers, of which the one of OpenMetrics is
strict about names, order and buckets.
"""

from __future__ import annotations

import gc
import math
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("prometheus_client")

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_strict
from prometheus_client.parser import text_string_to_metric_families as parse_plain

import iolift
from iolift import metrics

if TYPE_CHECKING:
    from pathlib import Path

Samples = dict[tuple[str, str, str], float]  # by name, label coalescer and label le


def plain(registry: CollectorRegistry) -> Samples:
    return samples(parse_plain(generate_latest(registry).decode()))


def strict(registry: CollectorRegistry) -> Samples:
    return samples(parse_strict(openmetrics.generate_latest(registry).decode()))


def samples(families: Any) -> Samples:
    found: Samples = {}
    for family in families:
        for sample in family.samples:
            key = (sample.name, sample.labels["coalescer"], sample.labels.get("le", ""))
            assert key not in found
            found[key] = sample.value
    return found


def names(registry: CollectorRegistry) -> set[str]:
    return {coalescer for _, coalescer, _ in plain(registry)}


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def busy(rig: Any) -> Any:
    """A coalescer that has done something of everything, and still has some of it held."""
    r = rig()
    f = r.open(bytes(1 << 16))
    r.occupy()
    f.submit_pwrite(b"12345678", 0)
    f.submit_pwrite(b"abcd", 2)
    f.submit_pread(4, 2)
    reads = [f.submit_pread(100, at) for at in (1000, 1000, 1100, 9000)]
    f.submit_pread(7, 5000).cancel()
    r.clock.advance(5_000_000)
    for ticket in reads:
        ticket.result()
    f.sync()
    r.held = f.submit_pread(33, 20_000)
    return r


def expected(stats: iolift.Stats) -> dict[tuple[str, str], float]:
    """By name and le: written down here by hand, not taken from the tables of the module."""
    flat = {
        "iolift_held_requests": stats.held_requests,
        "iolift_held_bytes": stats.held_bytes,
        "iolift_batches_in_flight": stats.batches_in_flight,
        "iolift_requests_total": stats.requests,
        "iolift_reads_total": stats.reads,
        "iolift_writes_total": stats.writes,
        "iolift_batches_total": stats.batches,
        "iolift_extents_total": stats.extents,
        "iolift_duplicates_total": stats.duplicates,
        "iolift_joins_total": stats.joins,
        "iolift_overlay_hits_total": stats.overlay_hits,
        "iolift_cancelled_total": stats.cancelled,
        "iolift_syncs_asked_total": stats.syncs_asked,
        "iolift_syncs_issued_total": stats.syncs_issued,
        "iolift_read_asked_bytes_total": stats.bytes_asked,
        "iolift_read_moved_bytes_total": stats.bytes_moved,
        "iolift_written_bytes_total": stats.bytes_written,
        "iolift_superseded_bytes_total": stats.bytes_superseded,
        "iolift_merge_factor": stats.requests / stats.extents,
        "iolift_open": 1,
        "iolift_coalescer_info": 1,
    }
    return {(name, ""): float(value) for name, value in flat.items()}


@pytest.mark.parametrize("scrape", [plain, strict])
def test_it_is_what_stats_says(registry: CollectorRegistry, busy: Any, scrape: Any) -> None:
    metrics.register(busy.c, name="main", registry=registry)
    stats = busy.c.stats()
    scraped = scrape(registry)
    assert {coalescer for _, coalescer, _ in scraped} == {"main"}
    flat = {(name, le): value for (name, _, le), value in scraped.items() if not le}
    assert flat == expected(stats)
    assert stats.held_requests
    assert stats.cancelled
    assert stats.bytes_superseded


@pytest.mark.parametrize("scrape", [plain, strict])
@pytest.mark.parametrize("kind", ["hold", "service"])
def test_buckets(registry: CollectorRegistry, busy: Any, scrape: Any, kind: str) -> None:
    metrics.register(busy.c, name="main", registry=registry)
    counts = getattr(busy.c.stats(), f"{kind}_histogram_us")
    found = [
        (math.inf if le == "+Inf" else float(le), value)
        for (name, _, le), value in scrape(registry).items()
        if name == f"iolift_{kind}_seconds_bucket"
    ]
    bounds = [*(2**k / 1e6 for k in range(31)), math.inf]
    assert found == [(bound, sum(counts[: k + 1])) for k, bound in enumerate(bounds)]
    assert found[-1][1] == sum(counts) > 0


def test_no_sum_is_made_up(registry: CollectorRegistry, busy: Any) -> None:
    metrics.register(busy.c, name="main", registry=registry)
    assert not [name for name, *_ in plain(registry) if name.endswith(("_sum", "_count"))]


def test_a_new_coalescer_has_no_merge_factor_yet(registry: CollectorRegistry) -> None:
    with iolift.Coalescer(backend="posix") as c:
        metrics.register(c, name="new", registry=registry)
        scraped = plain(registry)
        assert ("iolift_merge_factor", "new", "") not in scraped
        assert scraped["iolift_requests_total", "new", ""] == 0
        assert scraped["iolift_hold_seconds_bucket", "new", "+Inf"] == 0


@pytest.mark.parametrize("name", ["a", 'ß " \\ \n {}', "x" * 1000])
def test_several_and_strange_names(registry: CollectorRegistry, name: str, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(100))
    with iolift.Coalescer(backend="posix") as one, iolift.Coalescer(backend="posix") as two:
        metrics.register(one, name="one", registry=registry)
        metrics.register(two, name=name, registry=registry)
        with one.open(tmp_path / "data") as f:
            f.pread(10, 0)
        for scraped in (plain(registry), strict(registry)):
            assert scraped["iolift_reads_total", "one", ""] == 1
            assert scraped["iolift_reads_total", name, ""] == 0


def test_one_that_is_gone_takes_its_series_along(registry: CollectorRegistry) -> None:
    c = iolift.Coalescer(backend="posix")
    metrics.register(c, name="gone", registry=registry)
    assert names(registry) == {"gone"}
    del c
    gc.collect()
    assert names(registry) == set()
    with pytest.raises(KeyError, match="gone"):
        metrics.unregister("gone", registry=registry)


def test_one_that_is_closed_keeps_its_counts(registry: CollectorRegistry, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(100))
    with iolift.Coalescer(backend="posix") as c:
        metrics.register(c, name="main", registry=registry)
        with c.open(tmp_path / "data") as f:
            f.pread(10, 0)
    scraped = plain(registry)
    assert scraped["iolift_open", "main", ""] == 0
    assert scraped["iolift_reads_total", "main", ""] == 1
    with iolift.Coalescer(backend="posix") as after:
        metrics.register(after, name="main", registry=registry)
        scraped = plain(registry)
        assert scraped["iolift_open", "main", ""] == 1
        assert scraped["iolift_reads_total", "main", ""] == 0


def test_names_are_for_one(registry: CollectorRegistry) -> None:
    with iolift.Coalescer(backend="posix") as one, iolift.Coalescer(backend="posix") as two:
        metrics.register(one, name="main", registry=registry)
        metrics.register(one, name="main", registry=registry)
        with pytest.raises(ValueError, match="name = 'main' is that of another open coalescer"):
            metrics.register(two, name="main", registry=registry)
        with pytest.raises(ValueError, match="registered already, as 'main'"):
            metrics.register(one, name="other", registry=registry)
        assert names(registry) == {"main"}
        metrics.register(two, name="main", registry=CollectorRegistry())
        metrics.unregister("main", registry=registry)
        metrics.register(two, name="main", registry=registry)
        assert names(registry) == {"main"}


def test_bad_arguments(registry: CollectorRegistry) -> None:
    with iolift.Coalescer(backend="posix") as c:
        for wrong in (None, "c", iolift.Coalescer):
            with pytest.raises(TypeError, match="coalescer must be an iolift"):
                metrics.register(wrong, name="main", registry=registry)  # type: ignore[arg-type]
        for name in (None, b"main", 1):
            with pytest.raises(TypeError, match="name must be a string"):
                metrics.register(c, name=name, registry=registry)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="written as UTF-8"):
            metrics.register(c, name="/data/\udcff", registry=registry)
        with pytest.raises(ValueError, match="name must not be empty"):
            metrics.register(c, name="", registry=registry)
        with pytest.raises(TypeError, match="registry must be a CollectorRegistry"):
            metrics.register(c, name="main", registry=None)  # type: ignore[arg-type]
    assert names(registry) == set()


def test_a_registry_with_such_a_metric_refuses(registry: CollectorRegistry) -> None:
    Gauge("iolift_held_bytes", "somebody else's", registry=registry)
    with iolift.Coalescer(backend="posix") as c:
        for _ in range(2):
            with pytest.raises(ValueError, match="iolift_held_bytes"):
                metrics.register(c, name="main", registry=registry)


def test_a_forked_child_exports_none_of_its_parents(registry: CollectorRegistry) -> None:
    with iolift.Coalescer(backend="posix") as c:
        metrics.register(c, name="main", registry=registry)
        with metrics._lock:  # as another thread might
            pid = os.fork()
            if pid == 0:
                found = []
                reader = threading.Thread(target=lambda: found.append(names(registry)))
                reader.start()
                reader.join(20)
                os._exit(0 if found == [set()] else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert names(registry) == {"main"}


def test_a_scrape_keeps_no_coalescer_alive(registry: CollectorRegistry) -> None:
    c = iolift.Coalescer(backend="posix")
    metrics.register(c, name="main", registry=registry)
    scrape = registry.collect()
    next(family for family in scrape if family.name == "iolift_open")
    del c
    with iolift.Coalescer(backend="posix") as other:
        metrics.register(other, name="main", registry=registry)
    assert next(scrape).name == "iolift_merge_factor"


def test_scrapes_beside_registrations(registry: CollectorRegistry) -> None:
    scraping, failed = threading.Event(), []

    def scrape() -> None:
        try:
            while not scraping.is_set():
                strict(registry)
        except BaseException as error:
            failed.append(error)

    reader = threading.Thread(target=scrape)
    reader.start()
    for k in range(100):
        metrics.register(iolift.Coalescer(backend="posix"), name=f"c{k % 7}", registry=registry)
    scraping.set()
    reader.join()
    gc.collect()
    assert failed == []
    assert names(registry) == set()


def test_without_the_package_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['prometheus_client'] = None; import iolift; import iolift.metrics"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'iolift[metrics]'" in done.stderr.splitlines()[-1]
