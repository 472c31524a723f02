"""Goal: the modelled disk of bench/seek_disk.py is the drive of its data sheet, and what reaches it
through the kernel is what was asked, in the order that each side stands for.

Counts and order only: no time of this machine is looked at.
"""

from __future__ import annotations

import itertools
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

import _drive
import seek_disk
from _work import UnavailableError

BLOCK = seek_disk.BLOCK


# -------------------------------------------------------------------------------------- the model


def test_the_seek_curve_goes_through_the_data_sheets_points() -> None:
    distance = np.arange(_drive.CYLINDERS)
    curve = _drive.seek_ms(distance)
    assert curve[0] == 0
    assert curve[1] == pytest.approx(0.5)
    assert curve[-1] == pytest.approx(17.35)
    # The manual's average is over all pairs of cylinders: so many lie so far apart.
    pairs = (_drive.CYLINDERS - distance[1:]).astype(float)
    assert np.average(curve[1:], weights=pairs) == pytest.approx(8.0, rel=1e-3)


def test_a_longer_seek_takes_longer_and_each_cylinder_less() -> None:
    step = np.diff(_drive.seek_ms(np.arange(_drive.CYLINDERS)))
    assert (step > 0).all()
    assert (np.diff(step[1:]) < 0).all()


def test_the_geometry_holds_500_gb_at_the_zones_rates() -> None:
    assert pytest.approx(500e9, rel=1e-3) == _drive.SIZE
    assert _drive.TRACK_BYTES[0] / _drive.TRACK_BYTES[-1] == pytest.approx(142 / 75, rel=1e-2)
    cylinder, head, angle, _ = _drive.locate([0, _drive.SIZE - 1])
    assert cylinder.tolist() == [0, _drive.CYLINDERS - 1]
    assert head.tolist() == [0, _drive.HEADS - 1]
    assert angle[0] == 0


def test_the_same_block_comes_by_once_a_turn() -> None:
    arm = _drive.Arm()
    first, second = (arm.serve(123_456_789 * BLOCK % _drive.SIZE, BLOCK) for _ in range(2))
    assert second.seek_ms == 0
    assert second.ended_ms - first.ended_ms == pytest.approx(60_000 / 7200)


def test_tracks_back_to_back_are_read_without_a_lost_turn() -> None:
    track = int(_drive.TRACK_BYTES[0])
    arm = _drive.Arm()
    long = arm.serve(0, 10 * track)
    assert long.transfer_ms == pytest.approx(10 * _drive.TURN_MS + 9 * _drive.SINGLE_MS)
    assert (arm.cylinder, arm.head) == (1, 3)  # the tenth track: six to a cylinder
    # Just where a request of its own would find it, but for the skew that is still to go.
    _, wait = arm.reach(10 * track)
    assert wait == pytest.approx((-_drive.OVERHEAD_MS) % _drive.TURN_MS)


def test_scattered_reads_take_the_data_sheets_average() -> None:
    served = _drive.in_order(seek_disk.scattered(3000), BLOCK)
    # A little less than 8 ms: there is more to read on the outer cylinders than on the inner.
    assert np.mean([service.seek_ms for service in served]) == pytest.approx(8.0, rel=0.05)
    assert np.mean([service.rotation_ms for service in served]) == pytest.approx(4.17, rel=0.05)


def test_each_service_begins_where_the_last_one_ended() -> None:
    served = _drive.in_order(seek_disk.scattered(100), BLOCK)
    for before, after in itertools.pairwise(served):
        assert after.began_ms == before.ended_ms
        assert 0 <= after.rotation_ms < _drive.TURN_MS


def test_elevator_order_leaves_the_rotation_and_sptf_takes_that_too() -> None:
    offsets = seek_disk.scattered(1000)
    arrival = _drive.in_order(offsets, BLOCK)
    elevator = _drive.in_order(sorted(offsets), BLOCK)
    sptf = _drive.shortest_positioning_first(offsets, BLOCK)
    assert sorted(service.offset for service in sptf) == sorted(offsets)
    assert arrival[-1].ended_ms > 2 * elevator[-1].ended_ms > 3 * sptf[-1].ended_ms
    # Half a turn, whatever is sorted: why sorting alone cannot reach 3x on such a drive.
    floor = _drive.OVERHEAD_MS + _drive.SINGLE_MS + _drive.TURN_MS / 2
    assert arrival[-1].ended_ms / len(offsets) < 3 * floor


def test_content_is_a_function_of_the_offset() -> None:
    whole = _drive.content(0, 3 * BLOCK)
    for offset, length in ((0, 0), (1, 1), (7, 2), (8, 8), (4093, 4100)):
        assert _drive.content(offset, length) == whole[offset : offset + length]
    blocks = {_drive.content(offset, BLOCK) for offset in seek_disk.scattered(500)}
    assert len(blocks) == 500


def test_scattered_blocks_are_too_far_apart_to_merge() -> None:
    offsets = np.sort(seek_disk.scattered(20_000))
    assert np.diff(offsets).min() >= 64 << 10
    assert offsets[-1] + BLOCK <= _drive.SIZE
    assert not (offsets % BLOCK).any()


# ------------------------------------------------------------------------------ the drive's queue


def served(ncq: int, offsets: list[int]) -> list[int]:
    """The order in which a drive serves them that has all of them in its queue."""
    disk = seek_disk.Disk(None, ncq)
    requests = [seek_disk.Request(offset, BLOCK, 0.0) for offset in offsets]
    disk.waiting += requests
    threading.Thread(target=disk.move_arm, daemon=True).start()
    assert all(request.done.wait(timeout=30) for request in requests)
    return [service.offset for service in disk.served]


def test_of_those_that_wait_the_first_reached_is_next() -> None:
    offsets = seek_disk.scattered(20)
    ideal = _drive.shortest_positioning_first(offsets, BLOCK)
    assert served(20, offsets) == [service.offset for service in ideal]


def test_equal_requests_are_all_served() -> None:
    assert served(8, [BLOCK] * 8) == [BLOCK] * 8


# --------------------------------------------------------------------------- through the kernel


def measured(name: str, reads: int, speed: float | None = None, ncq: int = 1) -> list[int]:
    """The offsets in the order in which the disk saw them; `measure` checks bytes and counts."""
    (side,) = (side for side in seek_disk.SIDES if side.name == name)
    try:
        outcome = seek_disk.measure(side, seek_disk.scattered(reads), speed, ncq)
    except UnavailableError as why:
        pytest.skip(str(why))
    return [service.offset for service in outcome.served]


@pytest.mark.parametrize("name", [seek_disk.PEER, "iolift, fifo"])
def test_in_order_of_arrival(name: str) -> None:
    assert measured(name, 50) == seek_disk.scattered(50)


def test_in_elevator_order() -> None:
    assert measured(seek_disk.ELEVATOR, 50) == sorted(seek_disk.scattered(50))


def test_tickets_are_in_elevator_order_but_for_the_first_that_is_never_held(
    monkeypatch: Any,
) -> None:
    # A machine that is busy may need longer than the window for 50 of them.
    patient = partial(seek_disk.tickets, read_window_us=1_000_000)
    monkeypatch.setattr(seek_disk, "SIDES", (seek_disk.Side("patient", patient),))
    first, *held = measured("patient", 50)
    arrival = seek_disk.scattered(50)
    assert first == arrival[0]
    ahead = [offset for offset in held if offset > first]
    behind = [offset for offset in held if offset < first]
    assert held in (sorted(held), sorted(ahead) + sorted(behind))


@pytest.mark.parametrize("speed", [None, 20.0])
def test_a_drive_with_a_queue_serves_each_once_in_an_order_of_its_own(speed: float | None) -> None:
    seen = measured(seek_disk.ELEVATOR, 50, speed, ncq=8)
    assert sorted(seen) == sorted(seek_disk.scattered(50)) != seen


def test_nothing_is_cached_read_ahead_or_rounded() -> None:
    try:
        with seek_disk.mounted() as disk, open(disk.path, "rb", buffering=0) as f:
            for offset, length in ((0, 5), (0, 5), (BLOCK, BLOCK), (BLOCK, BLOCK), (3, 70_000)):
                f.seek(offset)
                assert f.read(length) == _drive.content(offset, length)
            f.seek(_drive.SIZE - 5)
            assert len(f.read(BLOCK)) == 5
    except UnavailableError as why:
        pytest.skip(str(why))
    seen = [(service.offset, service.length) for service in disk.served]
    assert seen[:5] == [(0, 5), (0, 5), (BLOCK, BLOCK), (BLOCK, BLOCK), (3, 70_000)]
    assert seen[5] == (_drive.SIZE - 5, 5)


def test_what_was_not_asked_of_the_disk_is_noticed(monkeypatch: Any) -> None:
    def lazy(path: str, offsets: list[int]) -> list[bytes]:
        blocks = seek_disk.one_by_one(path, offsets[1:])
        return [_drive.content(offsets[0], BLOCK), *blocks]

    monkeypatch.setattr(seek_disk, "SIDES", (seek_disk.Side("lazy", lazy),))
    with pytest.raises(AssertionError, match="lazy: the disk saw"):
        measured("lazy", 3)


def test_without_fuse_the_reason_is_said(monkeypatch: Any) -> None:
    monkeypatch.setattr("os.path.exists", lambda path: path != "/dev/fuse")
    with pytest.raises(UnavailableError, match="FUSE is not available: no /dev/fuse"):
        seek_disk.require_fuse()
    monkeypatch.setattr(sys, "argv", ["seek_disk.py"])
    with pytest.raises(SystemExit, match="bench: FUSE is not available"):
        seek_disk.main()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--reads", "0"], "must be positive"),
        (["--real", "--speed", "nan"], "must be positive"),
        (["--real", "--speed", "inf"], "must be positive"),
        (["--speed", "2"], "--speed needs --real"),
        (["--ncq", "0"], "must be positive"),
        (["--reads", "500000"], "--reads"),
    ],
)
def test_bad_options_are_refused(
    options: list[str], why: str, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["seek_disk.py", *options])
    with pytest.raises(SystemExit):
        seek_disk.main()
    assert why in capsys.readouterr().err
