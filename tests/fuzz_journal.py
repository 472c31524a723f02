"""Goal: whatever bytes a journal is made of, the parser neither crashes nor believes nonsense.

    python tests/fuzz_journal.py --seconds 600 --seed 1 [--corpus ZIP]

To be run with a build under AddressSanitizer (CONTRIBUTING.md says how); a build without it still
checks the rules below. Inputs are segments, headers and slots: good ones at first, then bent: bytes
flipped, set to edges, cut, doubled, moved, numbers of headers replaced with the CRC made right
again. An input that shows a new behaviour (which verdicts, how many records, which errors) is kept
in the corpus, a zip archive, and bent further. An input that breaks a rule is printed, with its
seed.

Rules: what is found lies within the input, in order, and below the caps; the same input gives the
same answer; a found voucher is where it says; decoders return or raise ValueError.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import re
import time
import zipfile
from pathlib import Path

from iolift._crc32c import crc32c
from iolift._format import (
    BLOCK,
    SegmentHeader,
    Slot,
    decode_header,
    decode_slot,
    encode_header,
    encode_slot,
)
from iolift._records import LIMITS, all_zeros, encode, scan, voucher

START = {"sequence": 5, "salt": 77, "durable": 4, "previous": 99}
EDGES = [0, 1, 2, 4, 63, 64, 255, 256, 4095, 4096, 2**16 - 1, 2**20, 2**31 - 1, 2**31, 2**32 - 1]
FIELDS = [(4, 2), (6, 2), (8, 8), (16, 8), (24, 4), (28, 4), (32, 8), (40, 4), (48, 8), (56, 4)]


def seeds() -> list[bytes]:
    """Good inputs."""
    one, crc = encode(
        [("write", 0, 10, b"", b"first", False), ("write", 1, 99, b"key", b"x" * 5000, True)],
        **START,
    )
    two, _ = encode(
        [("write", 0, 2**40, b"k", b"", False), ("truncate", 1, 123, b"", b"", False)],
        sequence=7,
        salt=77,
        durable=6,
        previous=crc,
    )
    targets = (b"a" * 32, b"b" * 32)
    return [
        one + two + bytes(BLOCK),
        encode_header(SegmentHeader(b"j" * 16, 3, 1000, 0xABCD, 1 << 20, targets)),
        encode_slot(Slot(b"j" * 16, 9, 500, 2, 700, 0xABCD, 1 << 20, targets)),
        b"",
    ]


def bend(data: bytes, chance: random.Random) -> bytes:
    """A few changes."""
    bent = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4))):
        how = chance.randrange(6)
        at = chance.randrange(len(bent) + 1)
        if how == 0 and at < len(bent):
            bent[at] ^= 1 << chance.randrange(8)
        elif how == 1:
            bent[at:] = b""
        elif how == 2:
            size = chance.choice((8, 64, 512, BLOCK))
            bent[at:at] = bent[at : at + size]
        elif how == 3 and len(bent) > 16:
            width = chance.choice((1, 2, 4, 8))
            bent[at : at + width] = (chance.choice(EDGES) % 256**width).to_bytes(width, "little")
        elif how == 4:
            bent[at : at + chance.choice((8, 512))] = b""
        else:
            forge(bent, chance)
    return bytes(bent[: 16 * BLOCK])


def forge(bent: bytearray, chance: random.Random) -> None:
    """A number of a record's header, and its CRC made right again."""
    place = bent.find(b"IOL1", chance.randrange(len(bent) + 1))
    if place < 0 or place + 64 > len(bent):
        return
    at, width = chance.choice(FIELDS)
    value = chance.choice((chance.choice(EDGES), chance.getrandbits(64))) % 256**width
    bent[place + at : place + at + width] = value.to_bytes(width, "little")
    bent[place + 60 : place + 64] = crc32c(bent[place : place + 60]).to_bytes(4, "little")


def look(data: bytes) -> tuple[object, ...]:
    """The behaviour; AssertionError where a rule is broken."""
    entries, end, clean = scan(data, 0, **START)
    assert 0 <= end <= len(data)
    assert not clean or all_zeros(data[end:])
    before = 0
    for number, entry in enumerate(entries, START["sequence"]):
        assert entry.sequence == number
        assert before <= entry.position < entry.data_begin <= entry.data_end <= len(data)
        assert len(entry.key) <= LIMITS["key"]
        assert entry.length <= LIMITS["part"]
        assert entry.target < LIMITS["targets"]
        assert entry.offset + entry.length < 2**63
        before = entry.data_end
    found = voucher(data, 0, salt=77, lost=5)
    assert found == -1 or data[found : found + 4] == b"IOL1"
    said = []
    for decoder in (decode_header, decode_slot):
        try:
            said.append(type(decoder(data[:BLOCK])).__name__)
        except ValueError as error:
            said.append(re.sub(r"\d+", "N", str(error))[:12])
    kinds = tuple((entry.type, entry.more, bool(entry.key)) for entry in entries[:6])
    return kinds, len(entries), clean, found >= 0, *said


def kept(corpus: Path) -> list[bytes]:
    """What is in a corpus."""
    if not corpus.exists():
        return []
    with zipfile.ZipFile(corpus) as archive:
        return [archive.read(name) for name in archive.namelist()]


def fuzz(seconds: float, seed: int, corpus: Path | None, most: int = 1 << 60) -> tuple[int, int]:
    """Returns how many inputs were looked at, and how many behaviours seen."""
    chance = random.Random(seed)
    inputs = seeds()
    if corpus is not None:
        inputs += kept(corpus)
    seen = {look(data) for data in inputs}
    until = time.monotonic() + seconds
    tried = 0
    while tried < most and (tried % 1000 or time.monotonic() < until):
        tried += 1
        data = bend(chance.choice(inputs), chance)
        try:
            behaviour = look(data)
            assert look(data) == behaviour
        except Exception:
            print(f"seed {seed}, input {tried}: {data.hex()}")
            raise
        if behaviour not in seen:
            seen.add(behaviour)
            inputs.append(data)
            if corpus is not None:
                with zipfile.ZipFile(corpus, "a", zipfile.ZIP_DEFLATED) as archive:
                    name = zipfile.ZipInfo(hashlib.sha256(data).hexdigest()[:16])
                    archive.writestr(name, data, zipfile.ZIP_DEFLATED)
    return tried, len(seen)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path)
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    tried, seen = fuzz(arguments.seconds, arguments.seed, arguments.corpus)
    print(f"{tried} inputs, {seen} behaviours, all well")


if __name__ == "__main__":
    main()
