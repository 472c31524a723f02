"""Goal: a device that fails under the journal costs no received write, and gives none falsely.

A file system in an image that is larger than what holds it: the device takes no more in the middle
of everything, and the kernel says so when it is synced. Where nothing may be mounted it is skipped.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

import iolift
from iolift.errors import PoisonedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BLOCKS = 64
SIZE = 4096


def run(*command: Any) -> None:
    everywhere = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    subprocess.run([str(part) for part in command], check=True, capture_output=True, env=everywhere)


class FailingDevice:
    """An ext4 in an image of 64 MiB, for which there are `room` MiB. `image` is where it lies."""

    def __init__(self, folder: Path) -> None:
        self.below, self.place = folder / "below", folder / "place"
        self.image = self.below / "image"

    def begin(self, room: int) -> None:
        self.below.mkdir()
        self.place.mkdir()
        run("mount", "-t", "tmpfs", "-o", f"size={room}m", "none", self.below)
        with open(self.image, "wb") as image:
            image.truncate(64 << 20)
        run("mkfs.ext4", "-q", "-F", "-E", "nodiscard", self.image)
        run("mount", "-o", "loop", self.image, self.place)

    def mend(self) -> None:
        """From now on the device fails no more."""
        run("umount", self.place)
        run("mount", "-o", "remount,size=128m", self.below)
        run("mount", "-o", "loop", self.image, self.place)

    def end(self) -> None:
        for place in (self.place, self.below):
            subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True)


@pytest.fixture(params=[7, 8, 10, 13])
def device(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[FailingDevice]:
    device = FailingDevice(tmp_path)
    try:
        try:
            device.begin(request.param)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"nothing may be mounted here: {error}")
        yield device
    finally:
        device.end()


def test_a_device_that_fails_under_the_journal(device: FailingDevice) -> None:
    rng = random.Random(1)
    options: dict[str, Any] = {
        "journal": device.place / "journal",
        "journal_segment_bytes": 1 << 20,
        "journal_max_bytes": 32 << 20,
    }
    path = device.place / "data"
    path.write_bytes(bytes(BLOCKS * SIZE))
    f = iolift.open(path, "r+", **options)
    received: dict[int, bytes] = {}
    block, data = 0, b""

    def write_until_it_fails() -> None:
        nonlocal block, data
        for _ in range(20_000):
            block, data = rng.randrange(BLOCKS), rng.randbytes(SIZE)
            f.submit_pwrite(data, block * SIZE).received()
            received[block] = data

    with pytest.raises(OSError, match="journal"):
        write_until_it_fails()
    unknown = {block: data}
    if f._journal.log.poison is not None:
        with pytest.raises(PoisonedError):
            f.submit_pwrite(b"more", 0)
    with contextlib.suppress(OSError):  # the checkpoint may fail as well
        f.close()
    device.mend()
    with iolift.open(path, "r+", **options) as f:
        for block, data in received.items():
            assert f.pread(SIZE, block * SIZE) in (data, unknown.get(block)), block
