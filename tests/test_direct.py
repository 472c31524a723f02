"""Goal: O_DIRECT never shows: any address, offset and length gives what a buffered file gives.

All combinations of misalignment, relative to what the file itself asks for, around the end of the
file too, by reads and by writes, on every backend. Memory around what was asked is guarded.
"""

from __future__ import annotations

import itertools
import mmap
import os
import random
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import iolift

if TYPE_CHECKING:
    from collections.abc import Iterator

GUARD = 0xEE


def takes_direct(directory: Path) -> bool:
    try:
        with iolift.open(directory / "probe", "w+", direct=True) as f:
            f.pwrite(bytes(8192), 0)
            return f.pread(8192, 0) == bytes(8192)
    except OSError:
        return False
    finally:
        (directory / "probe").unlink(missing_ok=True)


@pytest.fixture
def direct_dir(tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system that does direct I/O: the temporary one, or one here."""
    if takes_direct(tmp_path):
        yield tmp_path
        return
    import tempfile

    for place in (Path("/var/tmp"), Path(__file__).parent, Path.home()):
        try:
            with tempfile.TemporaryDirectory(dir=place) as name:
                if takes_direct(Path(name)):
                    yield Path(name)
                    return
        except OSError:
            continue
    pytest.skip("no file system here does direct I/O")


class Memory:
    """Page-aligned memory in which a view may begin at any address, with guards all around."""

    def __init__(self, size: int) -> None:
        self.map = mmap.mmap(-1, size)
        self.bytes = np.frombuffer(self.map, np.uint8)

    def guarded(self, skip: int, length: int) -> np.ndarray[Any, Any]:
        self.bytes[:] = GUARD
        self.begin, self.end = 4096 + skip, 4096 + skip + length
        return self.bytes[self.begin : self.end]

    def unharmed(self, used: int | None = None) -> bool:
        end = self.end if used is None else self.begin + used
        return bool((self.bytes[: self.begin] == GUARD).all() and (self.bytes[end:] == GUARD).all())


def read_into(f: Any, offsets: Any, lengths: Any, out: Any) -> tuple[int, int] | None:
    """The index of the first short request and what it got, None if all got all."""
    try:
        f.read_ranges(offsets, lengths, out=out)
    except iolift.ShortReadError as error:
        return error.index, error.got
    return None


def combinations(memory: int, block: int, size: int) -> list[tuple[int, int, int]]:
    """(address, offset, length), each aligned, just not, and hopelessly not."""
    skips = sorted({0, 1, memory, memory // 2, block, block - 1})
    ends = [0, block, 3 * block, size // block * block, size // block * block - block]
    offsets = sorted({max(0, e + d) for e in ends for d in (-1, 0, 1, block // 2)})
    lengths = [1, block - 1, block, block + 1, 2 * block, 3 * block + 7]
    return list(itertools.product(skips, offsets, lengths))


@pytest.mark.parametrize("tail", [0, 1, 100, 512])
def test_misaligned_reads(backend: Any, direct_dir: Path, tail: int) -> None:
    size = 6 * 4096 + tail
    content = random.Random(tail).randbytes(size)
    path = direct_dir / "data"
    path.write_bytes(content)
    memory = Memory(16 * 4096)
    with backend.open(path, direct=True) as f:
        for skip, offset, length in combinations(*f.alignment, size):
            expected = content[offset : offset + length]
            view = memory.guarded(skip, length)
            assert f.preadv([view], offset) == len(expected)
            assert view[: len(expected)].tobytes() == expected
            assert memory.unharmed()
            assert f.pread(length, offset) == expected
            whole = expected + bytes([GUARD]) * (length - len(expected))
            view = memory.guarded(skip, 2 * length)
            short = read_into(f, [offset, 0], length, view)
            assert short == ((0, len(expected)) if len(expected) < length else None)
            assert view.tobytes() == whole + content[:length]
            assert memory.unharmed()


@pytest.mark.parametrize("tail", [0, 77])
def test_misaligned_writes(backend: Any, direct_dir: Path, tail: int) -> None:
    size = 6 * 4096 + tail
    model = bytearray(random.Random(tail).randbytes(size))
    path = direct_dir / "data"
    path.write_bytes(model)
    memory = Memory(16 * 4096)
    source = random.Random(9)
    with backend.open(path, "r+", direct=True) as f, path.open("rb") as other:
        for skip, offset, length in source.sample(combinations(*f.alignment, size), 250):
            view = memory.guarded(skip, length)
            fresh = source.randbytes(length)
            view[:] = np.frombuffer(fresh, np.uint8)
            if source.random() < 0.5:
                assert f.pwritev([view[: length // 2], view[length // 2 :]], offset) == length
            else:
                assert f.write_ranges([offset], view, lengths=length) == length
            assert memory.unharmed()
            assert view.tobytes() == fresh
            model.extend(bytes(max(0, offset + length - len(model))))
            model[offset : offset + length] = fresh
            assert os.pread(other.fileno(), len(model) + 1, 0) == model
        f.sync()
        assert f.pread(len(model) + 1, 0) == model


def test_what_lies_past_the_end_is_not_touched(backend: Any, direct_dir: Path) -> None:
    # The device moves whole blocks, and the kernel zeroes the rest: not into the caller's row.
    path = direct_dir / "data"
    path.write_bytes(b"x" * 1000)
    memory = Memory(8 * 4096)
    with backend.open(path, direct=True) as f:
        for length in (1001, 1024, 4096, 5 * 4096):
            view = memory.guarded(0, length)
            with pytest.raises(iolift.ShortReadError):
                f.read_ranges([0], length, out=view)
            assert view[:1000].tobytes() == b"x" * 1000
            assert memory.unharmed(used=1000)


@pytest.mark.parametrize("gap", [0, 3000, 1 << 20])
@pytest.mark.parametrize("seed", range(4))
def test_random_batches_of_reads(backend: Any, direct_dir: Path, gap: int, seed: int) -> None:
    # Overlaps, duplicates, containment, holes, ends of file: with rows at odd addresses.
    chance = random.Random(seed)
    size = chance.choice([5000, 300_000, 1_000_000])
    content = chance.randbytes(size)
    path = direct_dir / "data"
    path.write_bytes(content)
    with backend.open(
        path, direct=True, gap=gap, max_io=chance.choice([4096, 70_000, 1 << 20])
    ) as f:
        for _ in range(15):
            n = chance.randint(1, 300)
            longest = chance.choice([10, 600, 9000, 200_000])
            lengths = [chance.randint(0, longest) for _ in range(n)]
            if sum(lengths) > 8 << 20:
                continue
            step = chance.choice([1, 512, 4096])
            offsets = [chance.randrange(0, size + 2, step) for _ in range(n)]
            skip = chance.choice([0, 1, 4, 512])
            out = np.full(sum(lengths) + skip + 1, GUARD, np.uint8)
            expected = b"".join(
                content[o : o + k].ljust(k, bytes([GUARD]))
                for o, k in zip(offsets, lengths, strict=True)
            )
            cut = (
                (i, max(0, size - offsets[i]))
                for i in range(n)
                if lengths[i] and offsets[i] + lengths[i] > size
            )
            assert read_into(f, offsets, lengths, out[skip:-1]) == next(cut, None)
            assert out[skip:-1].tobytes() == expected
            assert (out[:skip] == GUARD).all()
            assert out[-1] == GUARD


@pytest.mark.parametrize("order", ["elevator", "fifo"])
@pytest.mark.parametrize("seed", range(3))
def test_random_batches_of_writes(backend: Any, direct_dir: Path, order: str, seed: int) -> None:
    chance = random.Random(seed)
    model = bytearray(chance.randbytes(200_000))
    path = direct_dir / "data"
    path.write_bytes(model)
    with backend.open(path, "r+", direct=True, order=order) as f:
        for _ in range(15):
            n = chance.randint(1, 200)
            longest = chance.choice([10, 5000, 30_000])
            step = chance.choice([1, 512, 4096])
            lengths = [chance.randint(0, longest) // step * step for _ in range(n)]
            offsets = [chance.randrange(0, 200_000, step) for _ in range(n)]
            data = chance.randbytes(sum(lengths))
            f.write_ranges(offsets, data, lengths=lengths)
            at = 0
            for o, k in zip(offsets, lengths, strict=True):
                if k:
                    model.extend(bytes(max(0, o + k - len(model))))
                    model[o : o + k] = data[at : at + k]
                at += k
            assert path.read_bytes() == model


def test_more_blocks_than_one_call_has_segments(backend: Any, direct_dir: Path) -> None:
    content = bytearray(random.Random(2).randbytes(1100 * 4096))
    path = direct_dir / "data"
    path.write_bytes(content)
    with backend.open(path, "r+", direct=True, max_io=1 << 24) as f:
        block = f.alignment[1]
        offsets = [i * block for i in range(1100)]
        random.Random(3).shuffle(offsets)  # neighbours on the device are none in memory
        rows = f.read_ranges(offsets, block)
        assert rows.tobytes() == b"".join(content[o : o + block] for o in offsets)
        assert f.write_ranges(offsets, rows[::-1].copy()) == 1100 * block
    for o, row in zip(offsets, rows[::-1], strict=True):
        content[o : o + block] = row.tobytes()
    assert path.read_bytes() == content


def test_a_hole_that_is_wider_than_the_bounce_buffer(backend: Any, direct_dir: Path) -> None:
    content = random.Random(4).randbytes(400_000)
    path = direct_dir / "data"
    path.write_bytes(content)
    with backend.open(path, direct=True, gap=1 << 20) as f:
        memory, block = f.alignment
        first = max(memory, block)
        offsets, lengths = [10, 80 * 4096], [first, 2 * block]  # the second one sits right
        expected = b"".join(content[o : o + n] for o, n in zip(offsets, lengths, strict=True))
        assert f.read_ranges(offsets, lengths).tobytes() == expected


def test_ragged_writes_of_many_threads_share_pages(backend: Any, direct_dir: Path) -> None:
    # Each thread owns every 13th stretch of 100 bytes: all pages are written by all of them.
    path = direct_dir / "data"
    path.write_bytes(bytes(13 * 100 * 60))
    with backend.open(path, "r+", direct=True) as f:
        for disk in backend.disks:
            disk.depth, disk.hazards = disk.capacity, False  # many batches at once

        def work(k: int) -> None:
            mine = np.arange(60) * 1300 + k * 100
            for turn in range(4):
                f.write_ranges(mine, np.full((60, 100), k + 13 * turn, np.uint8))
                failed.extend(() if (f.read_ranges(mine, 100) == k + 13 * turn).all() else [k])

        failed: list[int] = []
        threads = [threading.Thread(target=work, args=(k,)) for k in range(13)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failed == []
    got = np.fromfile(path, np.uint8).reshape(60, 13, 100)
    assert (got == np.arange(39, 52, dtype=np.uint8)[None, :, None]).all()
