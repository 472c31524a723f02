"""Goal: what was written is read back, and nothing else is ever believed.

Pure: no files. Records, segment headers and checkpoint slots are encoded, then bent in every way
that a disk or a stranger may bend them.
"""

from __future__ import annotations

import doctest
import random
from typing import Any

import pytest
from journal_rules import forge, kept, look, seeds

from iolift import _format
from iolift._crc32c import crc32c
from iolift._format import BLOCK, SegmentHeader, Slot
from iolift._records import LIMITS, all_zeros, encode, scan, voucher

START: dict[str, Any] = {"sequence": 5, "salt": 77, "durable": 4, "previous": 99}


def write(offset: int, data: bytes, key: bytes = b"", more: bool = False) -> tuple[Any, ...]:
    return ("write", 0, offset, key, data, more)


def two_batches() -> tuple[bytes, list[bytes]]:
    """Bytes of a segment without its header, and the data of its five records."""
    one, crc = encode([write(10, b"first"), write(4000, b"x" * 5000, b"key")], **START)
    second = [write(0, b"", b"k"), ("truncate", 1, 123, b"", b"", False), write(1 << 40, b"end")]
    two, _ = encode(second, sequence=7, salt=77, durable=6, previous=crc)
    return one + two + bytes(2 * BLOCK), [b"first", b"x" * 5000, b"", b"", b"end"]


def contents(segment: bytes, **changes: Any) -> list[bytes]:
    return [segment[e.data_begin : e.data_end] for e in scan(segment, 0, **{**START, **changes})[0]]


def test_what_was_written_is_read_back() -> None:
    segment, data = two_batches()
    entries, end, clean = scan(segment, 0, **START)
    assert contents(segment) == data
    assert (end, clean) == (3 * BLOCK, True)
    assert [(e.sequence, e.type, e.target, e.offset, e.key) for e in entries] == [
        (5, "write", 0, 10, b""),
        (6, "write", 0, 4000, b"key"),
        (7, "write", 0, 0, b"k"),
        (8, "truncate", 1, 123, b""),
        (9, "write", 0, 1 << 40, b""),
    ]
    assert [e.durable for e in entries] == [4, 4, 6, 6, 6]


def test_batches_are_whole_blocks() -> None:
    chance = random.Random(1)
    for _ in range(50):
        records = [write(0, chance.randbytes(chance.randrange(3000))) for _ in range(5)]
        batch, _ = encode(records, **START)
        assert len(batch) % BLOCK == 0
        used = sum(64 + -(-len(r[4]) // 8) * 8 for r in records)
        assert len(batch) - used < BLOCK


def test_every_byte_flipped() -> None:
    segment, data = two_batches()
    entries, _, _ = scan(segment, 0, **START)
    used = [range(e.position, e.data_end) for e in entries]
    for place in range(3 * BLOCK):
        bent = bytearray(segment)
        bent[place] ^= 1 << place % 8
        found = contents(bytes(bent))
        hit = [i for i, part in enumerate(used) if place in part]
        # Up to the record that was hit, or all where nothing but padding was.
        assert found == data[: hit[0] if hit else 5], place


@pytest.mark.parametrize(
    "size", [0, 1, 63, 64, 69, 100, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK - 1]
)
def test_every_truncation_is_a_prefix(size: int) -> None:
    segment, data = two_batches()
    found = contents(segment[:size])
    assert found == data[: len(found)]


@pytest.mark.parametrize(
    "changes",
    [{"sequence": 6}, {"salt": 78}, {"previous": 98}, {"durable": 5}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_record_from_elsewhere_is_none_of_ours(changes: dict[str, int]) -> None:
    assert contents(two_batches()[0], **changes) == []


def forged(**fields: int) -> bytes:
    """A record whose CRCs are right and whose fields are not."""
    batch, _ = encode([write(10, b"hello")], **START)
    record = bytearray(batch)
    places = {"type": (4, 2), "key_size": (6, 2), "size": (24, 4), "durable": (32, 8),
              "target": (40, 4), "offset": (48, 8), "flags": (56, 4)}  # fmt: skip
    for name, value in fields.items():
        at, width = places[name]
        record[at : at + width] = value.to_bytes(width, "little")
    record[60:64] = crc32c(record[:60]).to_bytes(4, "little")
    return bytes(record)


def test_a_forger_who_changes_nothing_is_believed() -> None:
    assert contents(forged()) == [b"hello"]


@pytest.mark.parametrize(
    "fields",
    [
        {"type": 0},
        {"type": 4},
        {"key_size": 6},
        {"key_size": 256, "size": 300},
        {"size": 2**32 - 1},
        {"size": LIMITS["part"] + LIMITS["key"] + 1},
        {"size": BLOCK},
        {"type": 2},
        {"target": LIMITS["targets"]},
        {"offset": 2**63 - 5},
        {"offset": 2**64 - 1},
        {"flags": 8},
        {"durable": 5},
        {"durable": 3},
    ],
    ids=str,
)
def test_caps_hold_whatever_the_crc_says(fields: dict[str, int]) -> None:
    assert contents(forged(**fields)) == []


def test_a_payload_is_believed_by_its_crc() -> None:
    segment = bytearray(two_batches()[0])
    segment[64] ^= 1
    assert contents(bytes(segment)) == []
    assert len(contents(bytes(segment), check_payload=False)) == 5


def test_a_later_record_vouches_for_what_was_durable() -> None:
    segment, _ = two_batches()
    second = segment.index(b"IOL1", 2 * BLOCK - 8)
    assert voucher(segment, 0, salt=77, lost=5) == voucher(segment, 0, salt=77, lost=6) == second
    assert voucher(segment, 0, salt=77, lost=4) == 0
    assert voucher(segment, 0, salt=77, lost=7) == -1
    assert voucher(segment, 0, salt=76, lost=5) == -1
    assert voucher(segment[: second + 63], 0, salt=77, lost=5) == -1
    assert voucher(segment, len(segment) + 100, salt=77, lost=1) == -1


def test_zeros() -> None:
    assert all_zeros(b"")
    for size in (1, 7, 8, 9, 4096):
        assert all_zeros(bytes(size))
        for place in {0, size // 2, size - 1}:
            assert not all_zeros(bytes(place) + b"\1" + bytes(size - place - 1))


def test_encode_refuses_what_no_reader_would_take() -> None:
    for record in (
        write(0, bytes(LIMITS["part"] + 1)),
        write(0, b"", bytes(256)),
        ("rename", 0, 0, b"", b"", False),
    ):
        with pytest.raises(ValueError, match="no record may be"):
            encode([record], **START)
    with pytest.raises(ValueError, match="outside"):
        scan(b"", 1, **START)


def test_the_worked_example_works() -> None:
    tried = doctest.testmod(_format)
    assert tried.attempted
    assert not tried.failed


# ------------------------------------------------------------------------------- headers and slots

HEADER = SegmentHeader(b"j" * 16, 3, 1000, 0xABCD, 1 << 20, (b"a" * 32, b"b" * 32))
SLOT = Slot(b"j" * 16, 9, 500, 2, 700, 0xABCD, 1 << 20, (b"a" * 32,))


@pytest.mark.parametrize(
    ("thing", "encoder", "decoder"),
    [
        (HEADER, _format.encode_header, _format.decode_header),
        (SLOT, _format.encode_slot, _format.decode_slot),
    ],
    ids=["header", "slot"],
)
def test_headers_and_slots_are_read_back_or_refused(thing: Any, encoder: Any, decoder: Any) -> None:
    block = encoder(thing)
    assert len(block) == BLOCK
    assert decoder(block) == thing
    end = len(block.rstrip(b"\0"))
    for place in range(end):
        bent = bytearray(block)
        bent[place] ^= 0x10
        with pytest.raises(ValueError, match=r"magic|CRC|targets|version"):
            decoder(bytes(bent))
    for size in (0, 8, end - 1, BLOCK - 1):
        with pytest.raises(ValueError, match="magic"):
            decoder(block[:size])


@pytest.mark.parametrize("size", [0, BLOCK, 3 * BLOCK + 1, 1 << 31])
def test_a_size_that_no_segment_has(size: int) -> None:
    block = _format.encode_header(SegmentHeader(b"j" * 16, 3, 1, 0, size, ()))
    with pytest.raises(ValueError, match="segments of"):
        _format.decode_header(block)


def test_a_checkpoint_of_more_than_there_is() -> None:
    slot = Slot(b"j" * 16, 9, 500, 2, 499, 0, 1 << 20, ())
    with pytest.raises(ValueError, match="checkpoint 500 of 499"):
        _format.decode_slot(_format.encode_slot(slot))


def test_names_of_segments() -> None:
    assert _format.segment_number(_format.segment_name(0xABC)) == 0xABC
    for name in ("lock", "abc.seg", "G" * 16 + ".seg", "0" * 15 + "A.seg", "0" * 17 + ".seg",
                 "../" + "0" * 13 + ".seg", "0" * 16 + ".sex"):  # fmt: skip
        assert _format.segment_number(name) is None
    with pytest.raises(ValueError, match="65 targets"):
        _format.encode_slot(Slot(b"j" * 16, 1, 0, 1, 0, 0, 1 << 20, (b"a" * 32,) * 65))


@pytest.mark.parametrize("last", [2**63 - 1, 2**63, 2**64 - 1])
def test_the_last_number_that_a_record_may_have(last: int) -> None:
    # The number after it has 64 bits as well, also where somebody forged this one.
    batch, _ = encode([write(0, b"a")], **{**START, "sequence": last})
    entries, _, _ = scan(batch, 0, **{**START, "sequence": last})
    assert [entry.sequence for entry in entries] == [last] * (last < 2**63)
    slot = _format.encode_slot(Slot(b"j" * 16, 1, last, 0, last, 99, 2 * BLOCK, ()))
    look(slot + slot + b"x" * 2 * BLOCK)
    if last < 2**63:
        assert _format.decode_slot(slot).sequence == last
    else:
        with pytest.raises(ValueError, match=f"checkpoint {last} of {last} records"):
            _format.decode_slot(slot)


def test_forged_headers() -> None:
    # A little, in every run; guided by coverage, and for longer: tests/fuzz_journal.py.
    chance = random.Random(1)
    inputs = seeds()
    behaviours = {look(forge(chance.choice(inputs), chance)) for _ in range(5_000)}
    assert len(behaviours) > 30


def test_what_the_fuzzer_found() -> None:
    inputs = kept()
    assert len({look(data) for data in inputs}) > 40
