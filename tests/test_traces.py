"""traces.py: every format good and damaged, by a table; the numbers by a naive parser."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iolift import traces
from iolift.traces import MIB, Trace, TraceError, read_trace

CSV = "time_us,op,offset,length\n"
MSR = "Timestamp,Hostname,DiskNumber,Type,Offset,Size,ResponseTime\n"
V2 = "fio version 2 iolog\n"
V3 = "fio version 3 iolog\n"
MAX = 2**63 - 1


def shared_trace() -> Path:
    """The big trace that may lie beside the repository."""
    beside = Path(__file__).parents[2] / "shared" / "traces"
    folder = Path(os.environ.get("IOLIFT_TRACES", beside))
    path = folder / "cloudphysics-first50k.csv.gz"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    return path


def read(tmp_path: Path, data: str | bytes) -> Trace:
    path = tmp_path / "trace"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return read_trace(path)


def rows(trace: Trace) -> list[tuple[int, ...]]:
    columns = (trace.time_us, trace.kind, trace.offset, trace.length)
    return list(zip(*(column.tolist() for column in columns), strict=True))


GOOD = {
    "csv": (CSV + "0,R,4096,512\n5,W,0,10\n", "csv", [(0, 0, 4096, 512), (5, 1, 0, 10)]),
    "csv, long names, any case": (
        CSV + "1,read,1,2\n1,WRITE,3,4\n2,Sync,9,9\n",
        "csv",
        [(1, 0, 1, 2), (1, 1, 3, 4), (2, 2, 0, 0)],
    ),
    "csv, time goes back, zero length, empty lines, CRLF, no newline at the end": (
        CSV.replace("\n", "\r\n") + "\n9,r,0,0\r\n\r\n3,w,7,1",
        "csv",
        [(9, 0, 0, 0), (3, 1, 7, 1)],
    ),
    "csv, the last address": (CSV + f"0,R,{MAX - 1},1\n", "csv", [(0, 0, MAX - 1, 1)]),
    "csv, byte order mark and empty lines first": (
        "\ufeff\n\n" + CSV + "0,R,1,1\n",
        "csv",
        [(0, 0, 1, 1)],
    ),
    "msr": (
        MSR + "128166372003061629,hm,0,Read,383496192,32768,413\n"
        "128166372016382155,hm,0,Write,2822144,4096,421\n",
        "msr",
        [(0, 0, 383496192, 32768), (1332052, 1, 2822144, 4096)],
    ),
    "msr, no header, several disks": (
        "128166372003061629,hm,0,Read,100,10,1\n"
        "128166372003061639,hm,1,Write,50,5,1\n"
        "128166372003061619,hm,0,Read,0,1,1\n"
        "128166372003061629,src,0,Read,0,1,1\n",
        "msr",
        [(1, 0, 100, 10), (2, 1, 2 * MIB + 50, 5), (0, 0, 0, 1), (1, 0, 4 * MIB, 1)],
    ),
    "fio v2": (
        V2 + "/a add\n/a open\n/a read 0 4096\n/a wait 150 0\n/a write 8192 512\n"
        "/a wait 50 0\n/a sync 0 0\n/a datasync 77 0\n/a close\n",
        "fio-v2",
        [(0, 0, 0, 4096), (150, 1, 8192, 512), (200, 2, 0, 0), (200, 2, 0, 0)],
    ),
    "fio v3": (
        V3 + "22 /a add\n209 /a open\n214 /a read 61440 4096\n300 /a write 0 8\n9 /a close\n",
        "fio-v3",
        [(214, 0, 61440, 4096), (300, 1, 0, 8)],
    ),
    "fio v3, three files, the first of which ends at a multiple of 1 MiB": (
        V3 + "0 a add\n0 b add\n0 c add\n0 c read 0 1\n0 a write 0 1048576\n0 b read 5 10\n",
        "fio-v3",
        [(0, 0, 5 * MIB, 1), (0, 1, 0, MIB), (0, 0, 3 * MIB + 5, 10)],
    ),
    "fio v3, a file that is only synced takes no room": (
        V3 + "0 a add\n0 b add\n0 a sync 0 0\n0 b read 0 1\n",
        "fio-v3",
        [(0, 2, 0, 0), (0, 0, 0, 1)],
    ),
    "fio v3, names in UTF-8": (V3 + "0 grün add\n0 grün read 3 4\n", "fio-v3", [(0, 0, 3, 4)]),
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("case", GOOD)
def test_good(case: str, zipped: bool, tmp_path: Path) -> None:
    text, format_, wanted = GOOD[case]
    data = text.encode()
    trace = read(tmp_path, gzip.compress(data) if zipped else data)
    assert rows(trace) == wanted
    assert trace.format == format_
    assert trace.name == str(tmp_path / "trace")
    assert len(trace) == len(wanted)
    dtypes = [c.dtype for c in (trace.time_us, trace.kind, trace.offset, trace.length)]
    assert dtypes == [np.int64, np.uint8, np.int64, np.int64]


ZIP = gzip.compress((CSV + "0,R,0,1\n" * 5000).encode(), mtime=0)

DAMAGED: dict[str, tuple[str | bytes, int, str]] = {
    "nothing": ("", 1, "the file is empty"),
    "only empty lines": ("\n\n", 1, "the file is empty"),
    "csv, header alone": (CSV, 1, "no requests"),
    "csv, header and empty lines": (CSV + "\n\n", 3, "no requests"),
    "csv, only syncs": (CSV + "0,S,0,0\n0,S,0,0\n", 3, "no reads and no writes"),
    "csv, header missing": ("0,R,0,1\n", 1, "header line time_us,op,offset,length is missing"),
    "csv, too few fields": (CSV + "0,R,0,1\n0,R,0\n", 3, "4 fields .* 3 found"),
    "csv, too many fields": (CSV + "0,R,0,1,2\n", 2, "4 fields .* 5 found"),
    "csv, unknown op": (CSV + "0,X,0,1\n", 2, "op is neither"),
    "csv, empty field": (CSV + "0,R,,1\n", 2, "offset is not a whole number: ''"),
    "csv, negative offset": (CSV + "0,R,-5,1\n", 2, "offset is negative: -5"),
    "csv, negative length": (CSV + "0,R,5,-1\n", 2, "length is negative: -1"),
    "csv, negative time": (CSV + "-1,R,5,1\n", 2, "time_us is negative: -1"),
    "csv, fraction": (CSV + "0.5,R,5,1\n", 2, "time_us is not a whole number"),
    "csv, underscore": (CSV + "0,R,1_0,1\n", 2, "offset is not a whole number"),
    "csv, digits of another script": (CSV + "0,R,\u0665,1\n", 2, "offset is not a whole"),
    "csv, spaces": (CSV + "0,R, 5,1\n", 2, "offset is not a whole number"),
    "csv, offset too big": (CSV + f"0,R,0,1\n0,R,{MAX + 1},1\n", 3, r"offset is beyond 2\*\*63"),
    "csv, offset absurd": (CSV + "0,R," + "9" * 30 + ",1\n", 2, r"offset is beyond 2\*\*63-1"),
    "csv, length too big": (CSV + f"0,R,0,{MAX + 1}\n", 2, r"length is beyond 2\*\*63-1"),
    "csv, end too big": (CSV + f"\n0,R,{MAX},1\n", 3, r"offset \+ length is beyond 2\*\*63-1"),
    "csv, second header": (CSV + CSV, 2, "time_us is not a whole number"),
    "msr, too few fields": (MSR + "1,h,0,Read,0\n", 2, "7 fields .* 5 found"),
    "msr, type": (MSR + "1,h,0,Trim,0,1,1\n", 2, "neither Read nor Write"),
    "msr, disk": (MSR + "1,h,C:,Read,0,1,1\n", 2, "DiskNumber is not a whole number"),
    "msr, negative size": ("1,h,0,Read,0,1,1\n1,h,0,Read,0,-1,1\n", 2, "Size is negative"),
    "msr, response time": (MSR + "1,h,0,Read,0,1,x\n", 2, "ResponseTime is not a whole number"),
    "msr, header alone": (MSR, 1, "no requests"),
    "msr, disks reach too far": (
        MSR + f"1,h,0,Read,{MAX - 10},1,1\n1,h,1,Read,5,1,1\n",
        3,
        "together reach beyond",
    ),
    "fio v1": ("fio version 1 iolog\n", 1, "version 1 is not known"),
    "fio v4": ("fio version 4 iolog\n", 1, "version 4 is not known"),
    "fio v2, not added": (V2 + "/a read 0 1\n", 2, "read of '/a', which no line before has added"),
    "fio v2, opened, not added": (V2 + "/a open\n", 2, "open of '/a', which no line"),
    "fio v2, trim": (V2 + "/a add\n/a trim 0 4096\n", 3, "trim can't be replayed"),
    "fio v3, trim": (V3 + "0 /a add\n0 /a trim 0 4096\n", 3, "trim can't be replayed"),
    "fio v3, wait": (V3 + "0 /a add\n0 /a wait 100 0\n", 3, "no action wait"),
    "fio v2, waits too long": (
        V2 + f"/a add\n/a wait {MAX} 0\n/a wait 1 0\n/a read 0 1\n",
        4,
        "waits add up",
    ),
    "fio v2, unknown action": (V2 + "/a add\n/a append 0 1\n", 3, "unknown action: 'append'"),
    "fio v2, no action": (V2 + "/a\n", 2, "no action"),
    "fio v2, read without length": (V2 + "/a add\n/a read 0\n", 3, "read takes an offset and a"),
    "fio v2, add with offset": (V2 + "/a add 0 1\n", 2, "add takes neither"),
    "fio v2, negative": (V2 + "/a add\n/a read -1 1\n", 3, "offset is negative"),
    "fio v2, too big": (V2 + f"/a add\n/a read {MAX + 1} 1\n", 3, r"offset is beyond 2\*\*63-1"),
    "fio v3, no timestamp": (V3 + "/a add\n", 2, "timestamp is not a whole number"),
    "fio v3, timestamp too big": (
        V3 + f"0 /a add\n{MAX + 1} /a read 0 1\n",
        3,
        r"timestamp is beyond 2\*\*63-1",
    ),
    "fio v3, header alone": (V3, 1, "no requests"),
    "fio v3, files reach too far": (
        V3 + f"0 a add\n0 b add\n0 a read {MAX - 1} 1\n0 b read 0 1\n",
        5,
        "together reach beyond",
    ),
    "another text": ("hello\nworld\n", 1, "not a trace: 'hello'"),
    "rubbish": (bytes(range(256)), 1, "not text: byte 0x00"),
    "rubbish without end": (b"x" * 200_000, 1, "longer than 65536 bytes"),
    "rubbish later": (CSV.encode() + b"0,R,0,1\n0,R,0,\xff\n", 3, "not text: byte 0xff"),
    "a zero byte later": (CSV.encode() + b"0,R,0,1\n\0\n", 3, "not text: byte 0x00"),
    "half a character at the end": (CSV.encode() + b"\n\xc3", 3, "not text: byte 0xc3"),
    "gzip, cut off": (ZIP[:-20], 1, "the gzip data ends early"),
    "gzip, check sum": (ZIP[:-8] + bytes(8), 1, "damaged gzip data"),
    "gzip, head alone": (ZIP[:10], 1, "the gzip data ends early"),
    "gzip, damaged": (ZIP[:15] + b"\xff" * 20, 1, "damaged gzip data"),
    "gzip, rubbish behind": (ZIP + b"rubbish", 5002, "damaged gzip data"),
    "gzip of rubbish": (gzip.compress(b"\xff\xfe\xfd\n"), 1, "not text: byte 0xff"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged(case: str, tmp_path: Path) -> None:
    data, line, why = DAMAGED[case]
    with pytest.raises(TraceError, match=why) as caught:
        read(tmp_path, data)
    error = caught.value
    if not case.startswith("gzip, c"):  # how much of a cut file can be unpacked is zlib's affair
        assert error.line == line
    assert str(error) == f"{tmp_path / 'trace'}: line {error.line}: {error.why}"
    assert isinstance(error, ValueError)


def test_gzip_of_several_members_and_padding(tmp_path: Path) -> None:
    parts = gzip.compress(CSV.encode()) + gzip.compress(b"0,R,0,1\n1,W,") + gzip.compress(b"2,3\n")
    assert rows(read(tmp_path, parts + bytes(512))) == [(0, 0, 0, 1), (1, 1, 2, 3)]


def test_chunks_of_any_size_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = CSV + "".join(f"{i},{'RW'[i % 2]},{i * i},{i}\n" for i in range(1, 300))
    want = rows(read(tmp_path, text))
    for size in (3, 7, 100):
        monkeypatch.setattr(traces, "CHUNK_BYTES", size)
        assert rows(read(tmp_path, text)) == want
        assert rows(read(tmp_path, gzip.compress(text.encode()))) == want
        with pytest.raises(TraceError) as caught:
            read(tmp_path, text + "x\n")
        assert caught.value.line == 301


def test_arrays_cannot_be_written_to(tmp_path: Path) -> None:
    trace = read(tmp_path, CSV + "0,R,0,1\n")
    with pytest.raises(ValueError, match="read-only"):
        trace.offset[0] = 1
    with pytest.raises(AttributeError):
        trace.name = "x"  # type: ignore[misc]


def test_a_missing_file_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_trace(tmp_path / "none")


number = st.integers(0, 2**40)


@given(st.lists(st.tuples(number, st.sampled_from("RW"), number, number), min_size=1, max_size=30))
def test_csv_as_a_naive_parser_reads_it(
    tmp_path_factory: pytest.TempPathFactory, items: list[tuple[int, str, int, int]]
) -> None:
    text = CSV + "".join(",".join(map(str, item)) + "\n" for item in items)
    path = tmp_path_factory.getbasetemp() / "naive.csv"
    path.write_text(text)
    assert rows(read_trace(path)) == [(t, "RW".index(op), o, n) for t, op, o, n in items]


def test_the_shared_trace() -> None:
    trace = read_trace(shared_trace())
    assert (len(trace), trace.format) == (50_000, "csv")
    assert np.bincount(trace.kind).tolist() == [21830, 28170]
    assert (int(trace.offset.min()), int(trace.offset.max())) == (27901440, 33584872960)
