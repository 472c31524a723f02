"""The replay engine: windows against a naive oracle, addresses, hashes, and the file's life."""

from __future__ import annotations

import errno
import os
from collections import namedtuple
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_traces import shared_trace

from iolift import _replay_data, _replay_sides, _replay_window, replay
from iolift._replay_data import AddressMap, Content, PreparedFile, WriteData, file_hash, union
from iolift._replay_sides import Coalesced, OneByOne
from iolift._replay_window import Window, overlaps, windows
from iolift.replay import Options, ReplayError
from iolift.traces import READ, SYNC, WRITE, Trace, read_trace

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


def quiet(stage: str, done: int, total: int, unit: str) -> None:
    assert 0 <= done <= total, stage


def make_trace(*requests: tuple[int, int, int]) -> Trace:
    """A trace of (kind, offset, length)."""
    kind, offset, length = np.array(requests, np.int64).reshape(-1, 3).T
    time = np.arange(len(kind))
    return Trace(time, kind.astype(np.uint8), offset.copy(), length.copy(), "made", "csv")


def run(trace: Trace, **options: Any) -> replay.Result:
    return replay.replay(trace, Options(**options), quiet)


requests = st.one_of(
    st.tuples(st.sampled_from([READ, WRITE]), st.integers(0, 60), st.integers(0, 30)),
    st.tuples(st.sampled_from([READ, WRITE, WRITE]), st.integers(0, 900), st.integers(0, 300)),
    st.just((SYNC, 0, 0)),
)


def written_by(index: int, length: int) -> bytes:
    out = memoryview(bytearray(length))
    WriteData().put(out, np.array([index]), np.array([0]), np.array([length]))
    return bytes(out)


def oracle(trace: Trace, data: bytearray) -> list[bytes]:
    """Every request alone, on a bytearray: what the reads give. `data` is changed."""
    got = []
    columns = (trace.kind, trace.offset, trace.length)
    for i, (kind, offset, length) in enumerate(zip(*map(np.ndarray.tolist, columns), strict=True)):
        if kind == READ:
            got.append(bytes(data[offset : offset + length]))
        elif kind == WRITE and length:
            data.extend(bytes(max(0, offset - len(data))))
            data[offset : offset + length] = written_by(i, length)
    return got


def play(side: Any, trace: Trace, size: int) -> bytes:
    """All windows on one side: what was read, in one piece."""
    got = b""
    try:
        for window in windows(trace, trace.offset, size):
            side.ready(window)
            side.go()
            got += b"".join(bytes(piece) for piece in side.reads())
            side.ios()
        side.sync()
    finally:
        side.close()
    return got


@settings(max_examples=80, deadline=None)
@given(
    items=st.lists(requests, max_size=40),
    size=st.integers(0, 700),
    window=st.integers(1, 16),
    gap=st.integers(0, 64),
    max_io=st.sampled_from([1, 7, 64, MIB]),
    order=st.sampled_from(["elevator", "fifo"]),
)
def test_windows_act_as_one_by_one(
    tmp_path_factory: pytest.TempPathFactory,
    items: list[tuple[int, int, int]],
    size: int,
    window: int,
    gap: int,
    max_io: int,
    order: str,
) -> None:
    """Also past the end of a file that is too short, which grows by its own writes."""
    trace = make_trace(*items)
    before = bytes(Content().at(0, size))
    data = bytearray(before)
    want = b"".join(oracle(trace, data))
    path = tmp_path_factory.getbasetemp() / "windows"
    options = Options(gap=gap, max_io=max_io, order=order)
    nothing = np.zeros(0, np.int64)
    for coalesced in (False, True):
        path.write_bytes(before)
        fd = os.open(path, os.O_RDWR)
        addresses = AddressMap(nothing, nothing, nothing, 0)
        empty = (nothing, nothing)
        file = PreparedFile(str(path), fd, size, False, True, addresses, empty, Content())
        try:
            side = Coalesced(file, options) if coalesced else OneByOne(file, False, (1, 1))
            assert play(side, trace, window) == want
        finally:
            os.close(fd)
        assert path.read_bytes() == data


def naive_overlaps(window: Window) -> tuple[dict[int, list[int]], list[bool]]:
    """For each read the byte's last older writer, byte by byte; and who is covered."""
    reads, writes = window.of(READ).tolist(), window.of(WRITE).tolist()
    pairs, covered = {}, []
    for r, i in enumerate(reads):
        owner: dict[int, int] = {}
        for w, j in enumerate(writes):
            if j < i:
                start = int(window.offset[j])
                for byte in range(start, start + int(window.length[j])):
                    owner[byte] = w
        mine = range(int(window.offset[i]), int(window.offset[i] + window.length[i]))
        pairs[r] = sorted({owner[b] for b in mine if b in owner})
        covered.append(bool(mine) and all(b in owner for b in mine))
    return pairs, covered


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([READ, WRITE]), st.integers(0, 40), st.integers(0, 12)),
        max_size=24,
    ),
    st.sampled_from([1, 5, 1 << 21]),
)
def test_overlaps_against_a_naive_search(items: list[tuple[int, int, int]], at_once: int) -> None:
    trace = make_trace(*items)
    for window in windows(trace, trace.offset, 1000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_replay_window, "PAIRS_AT_ONCE", at_once)
            r, w, covered = overlaps(window)
        pairs, want = naive_overlaps(window)
        assert covered.tolist() == want
        found: dict[int, list[int]] = {i: [] for i in pairs}
        for i, j in zip(r.tolist(), w.tolist(), strict=True):
            found[i].append(j)
        for i, mine in found.items():
            assert mine == sorted(set(mine))
            assert set(pairs[i]) <= set(mine)


def test_a_read_covered_by_older_writes_does_no_io() -> None:
    trace = make_trace((WRITE, 0, 4096), (WRITE, 4096, 4096), (READ, 100, 8000), (READ, 50000, 10))
    result = run(trace)
    assert result.agree
    kinds = result.coalesced.ios[:, 0].tolist()
    assert kinds == [READ, WRITE]
    assert result.coalesced.ios[0].tolist() == [READ, 50000, 10]


def test_windows_end_at_their_size_at_syncs_and_at_their_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_replay_window, "WINDOW_BYTES", 100)
    trace = make_trace(
        *[(READ, i, 1) for i in range(5)],
        (SYNC, 0, 0),
        (SYNC, 0, 0),
        (READ, 0, 60),
        (READ, 0, 40),
        (READ, 0, 1),
        (READ, 0, 300),
        (READ, 0, 1),
    )
    got = [(w.first, len(w.kind), w.sync) for w in windows(trace, trace.offset, 3)]
    assert got == [
        (0, 3, False),
        (3, 2, True),
        (5, 0, True),
        (5, 2, False),
        (7, 1, False),
        (8, 1, False),
        (9, 1, False),
    ]


# --------------------------------------------------------------------------------------- addresses

places = st.one_of(st.integers(0, 1 << 16), st.integers(0, 1 << 34), st.integers(0, 2**62))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(places, st.integers(1, 3 * MIB)), min_size=1, max_size=30),
    st.sampled_from([0, 1, 4096, 16384, MIB - 1, MIB, 5 * MIB + 3]),
)
def test_compaction_keeps_order_adjacency_and_alignment(
    items: list[tuple[int, int]], gap: int
) -> None:
    offset, length = np.array(items, np.int64).T
    addresses = AddressMap.of(offset, length, gap=gap, compact=True)
    moved = addresses.to_file(offset)
    assert (moved % MIB == offset % MIB).all()
    assert (addresses.to_trace(moved) == offset).all()
    assert (addresses.to_trace(moved + length) == offset + length).all()
    assert addresses.needed == int((moved + length).max())
    assert 0 <= addresses.size - addresses.needed < 4096
    order = np.argsort(offset, kind="stable")
    start, end = offset[order], np.maximum.accumulate((offset + length)[order])
    hole = start[1:] - end[:-1]
    start, end = moved[order], np.maximum.accumulate((moved + length)[order])
    new = start[1:] - end[:-1]
    narrow = hole <= gap
    assert (new[narrow] == hole[narrow]).all()
    assert (new[~narrow] > gap).all()
    assert (new <= np.maximum(gap // MIB * MIB + 2 * MIB + 2 * 4096, 0)).all()
    assert int(start[0]) < MIB


def test_without_compaction_addresses_stay() -> None:
    offset, length = np.array([1 << 40, 5]), np.array([10, 10])
    addresses = AddressMap.of(offset, length, gap=0, compact=False)
    assert (addresses.to_file(offset) == offset).all()
    assert addresses.bytes == 2 * 4096


def test_union_of_nothing() -> None:
    nothing = np.zeros(0, np.int64)
    assert [len(x) for x in union(nothing, nothing)] == [0, 0]
    assert AddressMap.of(nothing, nothing, gap=0, compact=True).size == 0


def test_content_differs_in_every_mib_and_is_never_a_hole() -> None:
    content = Content()
    blocks = {content.at(i * MIB, 4096).tobytes() for i in range(50)}
    assert len(blocks) == 50
    assert (content.at(8, 16) == content.at(0, 24)[8:]).all()
    assert all(content.at(i * 4096, 4096).any() for i in range(256))


def test_write_data_differs_by_request_and_repeats_itself() -> None:
    assert len({written_by(i, 64) for i in range(3000)}) == 3000
    long = written_by(3, 3 * MIB + 5)
    assert long == written_by(3, 3 * MIB + 5)
    assert long[:MIB] != long[MIB : 2 * MIB]


# -------------------------------------------------------------------------------------------- hash


def hash_of(path: Path) -> str:
    with open(path, "rb") as file:
        return file_hash(file.fileno(), _replay_data.data_spans(file.fileno()), "x", quiet)


def test_file_hash_sees_every_byte_and_no_difference_between_holes_and_zeros(
    tmp_path: Path,
) -> None:
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        file.truncate(3 * MIB)
        file.seek(MIB + 5)
        file.write(b"x" * 5000)
    plain = hash_of(path)
    with open(path, "r+b") as file:
        file.seek(2 * MIB)
        file.write(bytes(200_000))
    assert hash_of(path) == plain
    seen = {plain}
    for at in (0, MIB + 5, 2 * MIB + 77, 3 * MIB - 1):
        with open(path, "r+b") as file:
            file.seek(at)
            file.write(b"y")
        seen.add(hash_of(path))
    with open(path, "r+b") as file:
        file.truncate(3 * MIB + 1)
    seen.add(hash_of(path))
    assert len(seen) == 6


# -------------------------------------------------------------------------------------- whole runs

MIXED = make_trace(
    (READ, 0, 4096),
    (READ, 4096, 4096),
    (READ, 1 << 30, 512),
    (WRITE, 4096, 512),
    (READ, 0, 8192),
    (SYNC, 0, 0),
    (WRITE, (1 << 30) + 512, 512),
    (READ, 0, 4096),
    (READ, 0, 4096),
    (WRITE, 1 << 30, 512),
)


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("backend", ["auto", "posix"])
def test_figures_are_what_happened(
    backend: str, compact: bool, direct: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    try:
        result = run(MIXED, direct=direct, compact=compact, backend=backend, gap=0)
    except ReplayError as error:
        if not direct:
            raise
        pytest.skip(str(error))
    one, two = result.one_by_one, result.coalesced
    assert result.agree
    assert (one.requests, two.requests, one.syncs, two.syncs) == (9, 9, 1, 1)
    assert (len(one.ios), one.duplicates, two.duplicates) == (9, 1, 0)
    assert one.bytes_asked == two.bytes_asked == one.bytes_moved == 4 * 4096 + 8192 + 4 * 512
    assert two.ios.tolist() == [
        [READ, 0, 8192],
        [READ, 1 << 30, 512],
        [WRITE, 4096, 512],
        [READ, 0, 4096],
        [WRITE, 1 << 30, 1024],
    ]
    far = 1 << 30
    assert two.head_travel == (far - 8192) + (far + 512 - 4096) + 4608 + (far - 4096)
    assert one.ios[:, 1].tolist() == MIXED.offset[MIXED.kind != SYNC].tolist()
    assert list(tmp_path.iterdir()) == []


def test_unaligned_requests_when_direct() -> None:
    trace = make_trace((READ, 3, 100), (WRITE, 1000, 600), (READ, 512, 1024), (WRITE, 0, 512))
    try:
        assert run(trace, direct=True).agree
    except ReplayError as error:
        pytest.skip(str(error))


def test_only_syncs_between_and_zero_lengths() -> None:
    trace = make_trace((READ, 5, 0), (SYNC, 0, 0), (SYNC, 0, 0), (WRITE, 9, 0), (READ, 0, 1))
    result = run(trace)
    assert result.agree
    assert (len(result.one_by_one.ios), len(result.coalesced.ios)) == (1, 1)


def test_a_broken_overlap_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that misses an older write of its window changes the hash of what was read."""

    def blind(window: Window) -> tuple[Any, ...]:
        none = np.zeros(0, np.int64)
        return none, none, np.zeros(len(window.of(READ)), bool)

    monkeypatch.setattr(_replay_sides, "overlaps", blind)
    result = run(MIXED)
    assert (result.reads_agree, result.files_agree) == (False, True)


def test_writes_in_the_wrong_order_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def backwards(side: Any) -> None:
        window = side._window
        for i in reversed(window.of(WRITE).tolist()):
            at = int(np.flatnonzero(window.of(WRITE) == i)[0])
            start = int(side._at_out[at])
            data = side._out.view[start : start + int(window.length[i])]
            os.pwrite(side._fd, data, int(window.offset[i]))

    monkeypatch.setattr(Coalesced, "go", backwards)
    monkeypatch.setattr(Coalesced, "reads", lambda self: iter(()))
    result = run(make_trace((WRITE, 0, 100), (WRITE, 50, 100)))
    assert not result.files_agree


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"window": 0}, "--window must be 1 to 65536, not 0"),
        ({"window": 1 << 17}, "--window"),
        ({"gap": -1}, "--gap must be at least 0"),
        ({"max_io": 0}, "--max-io must be at least 1"),
        ({"depth": 0}, "--depth must be at least 1"),
    ],
)
def test_bad_options(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ReplayError, match=why):
        run(MIXED, **options)


def test_a_request_too_long_for_memory() -> None:
    with pytest.raises(ReplayError, match="request 1 has 1073741825 bytes"):
        run(make_trace((READ, 0, 1), (READ, 0, (1 << 30) + 1)))


# -------------------------------------------------------------------------------------------- file


def test_a_given_file_is_never_written_to_without_leave(tmp_path: Path) -> None:
    path = tmp_path / "mine"
    path.write_bytes(b"precious" * 2000)
    reads = make_trace((READ, 0, 100), (READ, 8000, 100))
    assert run(reads, file=str(path)).agree
    with pytest.raises(ReplayError, match="--overwrite"):
        run(make_trace((WRITE, 0, 10)), file=str(path))
    assert path.read_bytes() == b"precious" * 2000
    assert run(make_trace((WRITE, 0, 10)), file=str(path), overwrite=True).agree
    data = path.read_bytes()
    assert len(data) == 16000
    assert data[:10] == written_by(0, 10)
    assert data[4096:] == (b"precious" * 2000)[4096:]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_given_file_must_be_big_enough(overwrite: bool, tmp_path: Path) -> None:
    path = tmp_path / "small"
    path.write_bytes(b"x" * 5000)
    kind = WRITE if overwrite else READ
    assert run(make_trace((kind, 0, 5000)), file=str(path), overwrite=overwrite).agree
    with pytest.raises(ReplayError, match="has 5000 bytes, fewer than the 5001"):
        run(make_trace((kind, 0, 5001)), file=str(path), overwrite=overwrite)


def test_a_given_file_that_does_not_exist_is_made_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "new"
    assert run(MIXED, file=str(path)).agree
    assert path.stat().st_size >= 8192


@pytest.mark.parametrize("given_file", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "full")])
@pytest.mark.parametrize("where", ["fill", "run"])
def test_nothing_is_left_after_an_error(
    where: str,
    error: Any,
    given_file: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    if where == "fill":
        monkeypatch.setattr(_replay_data, "write_all", fail)
    else:
        monkeypatch.setattr(Coalesced, "go", fail)
    with pytest.raises((KeyboardInterrupt, OSError)):
        run(MIXED, file=str(tmp_path / "new") if given_file else None)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(MIB, 0, MIB))
    monkeypatch.setattr(_replay_data, "write_all", None)
    with pytest.raises(ReplayError, match="has 1 MiB free"):
        run(MIXED)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["folder", "pipe"])
def test_files_that_are_none(what: str, tmp_path: Path) -> None:
    path = tmp_path / what
    if what == "pipe":
        os.mkfifo(path)
        with pytest.raises(ReplayError, match="not a regular file"):
            run(MIXED, file=str(path), overwrite=True)
    else:
        path.mkdir()
        with pytest.raises(IsADirectoryError):
            run(MIXED, file=str(path), overwrite=True)


def test_the_beginning_of_the_shared_trace() -> None:
    trace = read_trace(shared_trace())
    part = slice(6300, 7300)
    first = Trace(
        trace.time_us[part],
        trace.kind[part],
        trace.offset[part],
        trace.length[part],
        trace.name,
        trace.format,
    )
    result = run(first)
    assert result.agree
    assert len(result.one_by_one.ios) == 1000
    assert len(result.coalesced.ios) < 750
