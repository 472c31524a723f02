"""Goal: one checksum, by whichever way this CPU computes it.

The oracle goes bit by bit, from the polynomial alone. google-crc32c, where it is installed, is a
second opinion. Every length up to a few words, at every alignment, and those around three lanes,
because that is where one loop ends and the next goes on.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from iolift._crc32c import IMPLEMENTATION, crc32c, crc32c_software

if TYPE_CHECKING:
    from collections.abc import Callable

WAYS = [crc32c, crc32c_software]


def bitwise(data: bytes, value: int = 0) -> int:
    crc = value ^ 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


# RFC 3720, appendix B.4, and the check value of the catalogues of CRCs.
KNOWN = [
    (b"", 0),
    (b"123456789", 0xE3069283),
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(range(31, -1, -1)), 0x113FDB5C),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("data", "crc"), KNOWN)
def test_known_values(way: Callable[..., int], data: bytes, crc: int) -> None:
    assert way(data) == crc == bitwise(data)


@pytest.mark.parametrize("way", WAYS)
def test_every_short_length_at_every_alignment(way: Callable[..., int]) -> None:
    data = random.Random(1).randbytes(64)
    for begin in range(9):
        for size in range(40):
            part = memoryview(data)[begin : begin + size]
            assert way(part) == bitwise(bytes(part)), (begin, size)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [1007, 1008, 1009, 1015, 1016, 2015, 2016, 2017, 4096])
def test_where_lanes_end(way: Callable[..., int], size: int) -> None:
    data = random.Random(size).randbytes(size + 1)
    for begin in (0, 1):
        part = data[begin : begin + size]
        assert way(part, 0x12345678) == bitwise(part, 0x12345678)


@pytest.mark.parametrize("way", WAYS)
def test_a_crc_is_extended(way: Callable[..., int]) -> None:
    chance = random.Random(2)
    data = chance.randbytes(5000)
    whole = bitwise(data)
    for _ in range(50):
        cut = chance.randint(0, len(data))
        assert way(data[cut:], way(data[:cut])) == whole


def test_a_second_opinion() -> None:
    google = pytest.importorskip("google_crc32c")
    chance = random.Random(3)
    for size in (1, 63, 64, 4096, 1 << 20):
        data = chance.randbytes(size)
        assert crc32c(data) == crc32c_software(data) == google.value(data)
        assert crc32c(data, 0xDEADBEEF) == google.extend(0xDEADBEEF, data)


def test_any_buffer_and_nothing_else() -> None:
    assert crc32c(bytearray(b"123456789")) == crc32c(memoryview(b"123456789")) == 0xE3069283
    with pytest.raises(TypeError, match="data"):
        crc32c("123456789")
    with pytest.raises(ValueError, match="value"):
        crc32c(b"", 1 << 32)


def test_it_says_which_way() -> None:
    assert IMPLEMENTATION in ("sse4.2", "armv8", "software")
