"""Goal: gap="auto" finds what a hole is worth on any device, and reads none where none pays."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest

import iolift
from iolift._costs import Costs

KIB = 1024
BLOCK = 4096

DEVICES = {  # nanoseconds an I/O, nanoseconds a byte
    "a disk's queue": (20e3, 0.7),
    "a disk, alone": (100e3, 0.7),
    "an arm": (8e6, 6.6),
    "NVMe": (2e3, 0.2),
    "memory": (500, 0.1),
    "a network": (1e6, 10),
}


def serve(rng: random.Random, device: tuple[float, float], ios: int, size: int) -> int:
    """What a batch takes: noisy, and ten times as long now and then."""
    io, byte = device
    late = 10 if rng.random() < 0.03 else 1
    return max(1, int((ios * io + size * byte) * rng.lognormvariate(0, 0.3) * late))


def waste(device: tuple[float, float], gap: int) -> float:
    """The worst that `gap` costs beside the right one, of all holes: how much longer an I/O takes.

    A hole is paid for with an I/O where it is wider than the gap, else with its bytes.
    """
    io, byte = device
    return max(
        (io if hole > gap else hole * byte) / min(io, hole * byte)
        for hole in (1 << k for k in range(9, 23))
    )


@pytest.mark.parametrize("requests", [1, 4, 20, 300])
@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
@pytest.mark.parametrize("seed", range(2))
def test_the_right_gap_is_found(device, requests, seed):
    rng, costs = random.Random(seed), Costs()
    for _ in range(100):
        size = requests * rng.choice((4, 16, 64, 256)) * KIB
        costs.learn(requests, requests, size, serve(rng, device, requests, size))
    assert waste(device, costs.gap(requests)) <= 4.5
    io, byte = costs.estimate(requests)
    assert io / byte == pytest.approx(costs.gap(requests), rel=0.01)


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_of_small_ios_alone_the_common_disk_decides(device):
    # Their sum is right, and what a byte costs is not far from where it was guessed.
    rng, costs = random.Random(1), Costs()
    for _ in range(200):
        costs.learn(100, 100, 100 * BLOCK, serve(rng, device, 100, 100 * BLOCK))
    io, byte = costs.estimate(100)
    assert io + BLOCK * byte == pytest.approx(device[0] + BLOCK * device[1], rel=0.35)
    assert 0.1 < byte < 4


def test_what_is_old_is_forgotten():
    rng, costs = random.Random(2), Costs()
    for device in (DEVICES["an arm"], DEVICES["NVMe"], DEVICES["an arm"]):
        for _ in range(300):
            size = 100 * rng.choice((4, 64, 256)) * KIB
            costs.learn(100, 100, size, serve(rng, device, 100, size))
        assert waste(device, costs.gap(100)) <= 4.5


@pytest.mark.parametrize("seed", range(2))
def test_a_dense_file_does_not_hide_what_a_small_io_costs(seed):
    # All holes are 12 KiB. Read through, 100 requests are one I/O; else each is one.
    device = io, byte = 10e3, 2.0  # worth reading: holes of 5 KiB
    rng, costs = random.Random(seed), Costs()
    for _ in range(100):
        ios, size = (
            (1, 100 * 16 * KIB) if costs.gap_for_batch(100) >= 12 * KIB else (100, 400 * KIB)
        )
        costs.learn(100, ios, size, serve(rng, device, ios, size))
    assert io / byte / 4 <= costs.gap(100) < 12 * KIB


def test_sizes_of_batches_do_not_mix():
    costs = Costs()
    before = costs.gap(1)
    for _ in range(100):
        costs.learn(100, 100, 100 * BLOCK, 100 * 10**7)
    assert costs.gap(100) > before == costs.gap(1) == costs.gap(8) == costs.gap(32) == 32 * KIB


def test_one_late_batch_is_no_new_device():
    rng, costs = random.Random(3), Costs()
    for _ in range(50):
        size = 100 * rng.choice((4, 64, 256)) * KIB
        costs.learn(100, 100, size, serve(rng, DEVICES["NVMe"], 100, size))
    before = costs.gap(100)
    costs.learn(100, 100, 100 * BLOCK, 10**13)
    assert before / 2 <= costs.gap(100) <= before * 2


@pytest.mark.parametrize("batch", [(0, 0, 0, 0), (5, 0, 0, 1), (1, 1, 0, 1), (1, 1, 1, 0)])
def test_what_says_nothing_is_not_learnt(batch):
    costs = Costs()
    costs.learn(*batch)
    assert [costs.gap(n) for n in (1, 3, 20, 100)] == [32 * KIB] * 4
    costs.learn(2**62, 2**62, 2**62, 2**62)
    assert costs.gap(2**62) > 0


# ------------------------------------------------------------------------------ in the coalescer


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(np.random.default_rng(0).bytes(4 << 20))
    with open(path, "rb+") as f:
        os.fsync(f)
    return path


def forget(path):
    """Out of the page cache; skips where that does not work."""
    with open(path, "rb") as f:
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            os.preadv(f.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
        except BlockingIOError:
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            return
        except OSError as error:
            pytest.skip(f"the page cache is not to be asked: {error}")
    pytest.skip("the page cache does not forget")


def moved(f, offsets):
    before = f.coalescer.stats().bytes_moved
    got = f.read_ranges(offsets, BLOCK)
    data = np.fromfile(f.name, np.uint8)
    assert all((row == data[o : o + BLOCK]).all() for row, o in zip(got, offsets, strict=True))
    return f.coalescer.stats().bytes_moved - before


HOLES = np.arange(0, 4 << 20, 5 * BLOCK)  # of 16 KiB: an eighth of the first guess below


@pytest.mark.parametrize("backend", ["uring", "posix"])
def test_nothing_is_read_in_vain_of_what_is_in_memory(path, backend):
    with open(path, "rb") as f:
        f.read()
        try:
            os.preadv(f.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
        except OSError as error:
            pytest.skip(f"the page cache is not to be asked: {error}")
    with open_or_skip(path, backend) as f:
        for _ in range(20):
            assert moved(f, HOLES) == len(HOLES) * BLOCK


@pytest.mark.parametrize("backend", ["uring", "posix"])
def test_holes_of_what_is_on_the_device_are_read_through(path, backend):
    forget(path)
    with open_or_skip(path, backend) as f:
        assert moved(f, HOLES) > 2 * len(HOLES) * BLOCK
        assert moved(f, HOLES) == len(HOLES) * BLOCK  # it is in memory now


def test_max_waste_bounds_what_is_learnt(path):
    forget(path)
    with iolift.open(path, max_waste=0.5) as f:
        assert moved(f, HOLES) <= 1.5 * len(HOLES) * BLOCK


def test_a_fixed_gap_is_kept(path):
    forget(path)
    with iolift.open(path, gap=8 * KIB, max_waste=100) as f:
        assert moved(f, HOLES) == len(HOLES) * BLOCK
    forget(path)
    with iolift.open(path, gap=16 * KIB, max_waste=100, max_io=8 << 20) as f:
        assert moved(f, HOLES) == (5 * (len(HOLES) - 1) + 1) * BLOCK


def open_or_skip(path, backend):
    try:
        return iolift.open(path, backend=backend, max_waste=100)
    except OSError as error:
        pytest.skip(f"no {backend}: {error}")
