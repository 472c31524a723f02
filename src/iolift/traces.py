"""Readers of recorded I/O: a trace file in, numpy columns out.

What they keep:

1. The format is found out from the content, never from the name: fio iolog v2 and v3, MSR Cambridge
   CSV, and CSV with the header ``time_us,op,offset,length``. Each may be gzipped, which its first
   two bytes tell. A recording of iolift (`iolift.recording`) is one, too, but not gzipped.
2. A trace is read whole or not at all. What is unknown or damaged raises `TraceError` with the name
   of the file and the line: a wrong field, a negative number, an end beyond 2**63-1, gzip data that
   stops early, bytes that are not UTF-8, no requests.
3. Requests keep the order of the file, which is the order of their arrival; those of a recording
   are put into it, and those that were cancelled are left out.
4. Several files (fio, recordings) or disks (MSR) lie one behind another in one address space: each
   begins at a multiple of 1 MiB beyond the end of the one before, with a hole of 1 MiB or more
   between them, so that none can be merged with its neighbour.
5. Reading is streamed: beside the columns only one chunk of text is in memory.

A chunk is parsed by one regular expression; only when some line of it does not match are its lines
walked one by one, to say which line it is and what is wrong with it.
"""

from __future__ import annotations

import os
import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, ClassVar, NoReturn

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["READ", "SYNC", "WRITE", "Trace", "TraceError", "read_trace"]

READ, WRITE, SYNC = 0, 1, 2

MIB = 1 << 20
MAX_END = 2**63 - 1
MAX_LINE_BYTES = 1 << 16
CHUNK_BYTES = 1 << 21

NUMBER = rb"([0-9]{1,19})"
ZIP = b"PK\x03\x04"
CSV_HEADER = b"time_us,op,offset,length"
MSR_HEADER = b"timestamp,hostname,disknumber,type,offset,size,responsetime"
KNOWN = (
    "fio iolog version 2 or 3, MSR Cambridge CSV, or CSV with the header line "
    f"{CSV_HEADER.decode()}, plain or gzipped; or a recording of iolift"
)

Ints = NDArray[np.int64]


class TraceError(ValueError):
    """A trace that can't be read: file `name`, line `line` (the first is 1), reason `why`."""

    def __init__(self, name: str, line: int, why: str) -> None:
        super().__init__(f"{name}: line {line}: {why}")
        self.name, self.line, self.why = name, line, why


@dataclass(frozen=True, eq=False)
class Trace:
    """Requests in the order of their arrival; the arrays have one length and can't be written to.

    kind is 0 for a read, 1 for a write, 2 for a sync (whose offset and length are 0).
    """

    time_us: Ints
    kind: NDArray[np.uint8]
    offset: Ints
    length: Ints
    name: str
    format: str

    def __post_init__(self) -> None:
        for column in (self.time_us, self.kind, self.offset, self.length):
            column.flags.writeable = False

    def __len__(self) -> int:
        return len(self.kind)


def read_trace(path: str | os.PathLike[str]) -> Trace:
    """The trace in `path`; TraceError when it isn't one, OSError when the file can't be read."""
    name = os.fspath(path)
    with open(path, "rb") as raw:
        if raw.peek(len(ZIP)).startswith(ZIP):
            return _Recorded(name).read(raw)
        chunks = _chunks(raw, name)
        reader: _Reader | None = None
        line, body = 1, b""
        for line, body in chunks:
            if reader is None:
                start = len(body) - len(body.lstrip(b"\r\n \t"))
                if start == len(body):
                    continue
                line += body.count(b"\n", 0, start)
                body = body[start:]
                reader, skip = _detect(name, line, body)
                line, body = line + (1 if skip else 0), body[skip:]
            reader.feed(line, body)
        last = line + body.count(b"\n") - (not body or body.endswith(b"\n"))
        if reader is None:
            raise TraceError(name, 1, "the file is empty")
        return reader.finish(last)


# ------------------------------------------------------------------------------------------- text


def _chunks(raw: BinaryIO, name: str) -> Iterator[tuple[int, bytes]]:
    """(number of its first line, some whole lines) until the end. Checked to be UTF-8 text."""
    line, rest = 1, b""
    for i, piece in enumerate(_unpacked(raw, name)):
        if i == 0:
            piece = piece.removeprefix(b"\xef\xbb\xbf")
        cut = piece.rfind(b"\n") + 1
        if not cut:
            rest += piece
            _check_line(rest, name, line)
            continue
        body, rest = rest + piece[:cut], piece[cut:]
        _check_text(body, name, line)
        yield line, body
        line += body.count(b"\n")
        _check_line(rest, name, line)
    if rest:
        _check_text(rest, name, line)
        yield line, rest


def _unpacked(raw: BinaryIO, name: str) -> Iterator[bytes]:
    """The file's bytes in pieces, unzipped if they are gzip (of one or more members)."""
    magic = raw.read(2)
    data = magic + raw.read(CHUNK_BYTES)
    if magic != b"\x1f\x8b":
        while data:
            yield data
            data = raw.read(CHUNK_BYTES)
        return
    line = 1
    member = zlib.decompressobj(31)
    while True:
        if member.eof:
            data = (member.unused_data or data).lstrip(b"\0") or raw.read(CHUNK_BYTES).lstrip(b"\0")
            if not data:
                return
            member = zlib.decompressobj(31)
        if not data and not (data := raw.read(CHUNK_BYTES)):
            raise TraceError(name, line, "the gzip data ends early: the file is cut off")
        try:
            piece = member.decompress(data, CHUNK_BYTES)
        except zlib.error as error:
            raise TraceError(name, line, f"damaged gzip data: {error}") from None
        data = b"" if member.eof else member.unconsumed_tail
        line += piece.count(b"\n")
        if piece:
            yield piece


def _check_line(rest: bytes, name: str, line: int) -> None:
    if len(rest) > MAX_LINE_BYTES:
        if not rest.isascii():
            _check_text(rest[:MAX_LINE_BYTES], name, line)
        raise TraceError(name, line, f"longer than {MAX_LINE_BYTES} bytes: not a trace; {KNOWN}")


def _check_text(body: bytes, name: str, line: int) -> None:
    at = -1
    if not body.isascii():
        try:
            body.decode()
        except UnicodeDecodeError as error:
            at = error.start
    zero = body.find(b"\0")
    if zero >= 0 and (at < 0 or zero < at):
        at = zero
    if at >= 0:
        line += body.count(b"\n", 0, at)
        why = f"not text: byte 0x{body[at]:02x}, which UTF-8 text can't have here"
        raise TraceError(name, line, why)


# ---------------------------------------------------------------------------------------- readers


class _Reader:
    """Collects columns from chunks of lines. A format gives `row`, `take` and `blame`."""

    format: str
    row: re.Pattern[bytes]

    def __init__(self, name: str) -> None:
        self.name = name
        self.groups: dict[object, int] = {}
        self.columns: list[list[Ints]] = [[], [], [], [], [], []]

    def feed(self, line: int, body: bytes) -> None:
        """Take the lines of `body`, of which the first has the number `line`."""
        rows = self.row.findall(body)
        numbers: Sequence[int] = range(line, line + len(rows))
        if len(rows) != body.count(b"\n") + (not body.endswith(b"\n") and bool(body)):
            rows, numbers = self._walk(line, body)
        if rows:
            self.take(rows, numbers)

    def _walk(self, line: int, body: bytes) -> tuple[list[tuple[bytes, ...]], list[int]]:
        rows: list[tuple[bytes, ...]] = []
        numbers: list[int] = []
        for number, text in enumerate(body.split(b"\n"), line):
            if not text.strip():
                continue
            match = self.row.fullmatch(text)
            if match is None:
                self.blame(number, text.strip(b"\r").decode(errors="replace"))
            rows.append(match.groups(b""))
            numbers.append(number)
        return rows, numbers

    def take(self, rows: list[tuple[bytes, ...]], numbers: Sequence[int]) -> None:
        raise NotImplementedError

    def blame(self, line: int, text: str) -> NoReturn:
        raise NotImplementedError

    def fail(self, line: int, why: str) -> NoReturn:
        raise TraceError(self.name, line, why)

    def add(self, *columns: object) -> None:
        """Append to line, time, kind, group, offset and length."""
        for have, more in zip(self.columns, columns, strict=True):
            have.append(np.asarray(more, np.int64))

    def ints(self, what: str, column: Sequence[bytes | int], numbers: Sequence[int]) -> Ints:
        try:
            return np.array(list(map(int, column)), np.int64)
        except OverflowError:
            for number, text in zip(numbers, column, strict=True):
                if int(text) > MAX_END:
                    self.fail(number, f"{what} is beyond 2**63-1: {int(text)}")
            raise

    def check_int(self, line: int, what: str, text: str) -> None:
        """Fail unless `text` is a number that a row may have."""
        if re.fullmatch("-[0-9]+", text):
            self.fail(line, f"{what} is negative: {text}")
        if not re.fullmatch("[0-9]+", text):
            self.fail(line, f"{what} is not a whole number: {_short(text)}")
        if len(text) > 19 or int(text) > MAX_END:
            self.fail(line, f"{what} is beyond 2**63-1: {_short(text)}")

    def finish(self, last_line: int) -> Trace:
        """The trace. `last_line` numbers the file's last line: what only the end shows is there."""
        if not self.columns[0]:
            self.fail(last_line, "the trace has no requests")
        line, time, kind, group, offset, length = (np.concatenate(c) for c in self.columns)
        self.columns = [[], [], [], [], [], []]
        moves = kind != SYNC
        if not moves.any():
            self.fail(last_line, "the trace has no reads and no writes")
        offset[~moves] = 0
        length[~moves] = 0
        beyond = length > MAX_END - offset
        if beyond.any():
            i = int(beyond.argmax())
            self.fail(int(line[i]), f"offset + length is beyond 2**63-1: {offset[i]} + {length[i]}")
        if len(self.groups) > 1:
            offset += self._bases(line, group, offset + length, moves)[group] * moves
        return Trace(time, kind.astype(np.uint8), offset, length, self.name, self.format)

    def _bases(self, line: Ints, group: Ints, end: Ints, moves: NDArray[np.bool_]) -> Ints:
        """Where each file begins (4 above). A file that nobody reads or writes takes no room."""
        ends = np.zeros(len(self.groups), np.int64)
        np.maximum.at(ends, group[moves], end[moves])
        bases, at = np.zeros(len(ends), np.int64), 0
        for i, size in enumerate(ends.tolist()):
            if not size:
                continue
            if at + size > MAX_END:
                first = int((moves & (group == i)).argmax())
                self.fail(int(line[first]), "the files together reach beyond 2**63-1")
            bases[i] = at
            at = ((at + size) // MIB + 2) * MIB
        return bases


def _row(*fields: bytes) -> re.Pattern[bytes]:
    return re.compile(rb"(?mi)^" + b",".join(fields) + rb"\r?$")


class _Csv(_Reader):
    """time_us,op,offset,length - op is read, write or sync, or its first letter, in any case."""

    format = "csv"
    row = _row(NUMBER, rb"(read|write|sync|[rws])", NUMBER, NUMBER)
    fields = ("time_us", "op", "offset", "length")

    def take(self, rows: list[tuple[bytes, ...]], numbers: Sequence[int]) -> None:
        time, op, offset, length = zip(*rows, strict=True)
        self.add(
            numbers,
            self.ints("time_us", time, numbers),
            [b"rws".index(text[:1].lower()) for text in op],
            np.zeros(len(rows), np.int64),
            self.ints("offset", offset, numbers),
            self.ints("length", length, numbers),
        )
        self.groups = {"": 0}

    def blame(self, line: int, text: str) -> NoReturn:
        fields = _fields(self, line, text, self.fields)
        self.check_int(line, "time_us", fields[0])
        if fields[1].lower() not in ("r", "w", "s", "read", "write", "sync"):
            self.fail(line, f"op is neither read, write nor sync: {_short(fields[1])}")
        self.check_int(line, "offset", fields[2])
        self.check_int(line, "length", fields[3])
        self.fail(line, f"can't be read: {_short(text)}")


class _Msr(_Reader):
    """Timestamp,Hostname,DiskNumber,Type,Offset,Size,ResponseTime.

    Timestamps are Windows file times, in ticks of 100 ns. The header line may be missing, as it is
    in the published files.
    """

    format = "msr"
    row = _row(NUMBER, rb"([^,\r\n]*)", NUMBER, rb"(read|write)", NUMBER, NUMBER, NUMBER)
    fields = ("Timestamp", "Hostname", "DiskNumber", "Type", "Offset", "Size", "ResponseTime")

    def take(self, rows: list[tuple[bytes, ...]], numbers: Sequence[int]) -> None:
        time, host, disk, op, offset, length, _ = zip(*rows, strict=True)
        groups = self.groups
        self.add(
            numbers,
            self.ints("Timestamp", time, numbers),
            [b"rw".index(text[:1].lower()) for text in op],
            [groups.setdefault(key, len(groups)) for key in zip(host, disk, strict=True)],
            self.ints("Offset", offset, numbers),
            self.ints("Size", length, numbers),
        )

    def blame(self, line: int, text: str) -> NoReturn:
        fields = _fields(self, line, text, self.fields)
        for i in (0, 2):
            self.check_int(line, self.fields[i], fields[i])
        if fields[3].lower() not in ("read", "write"):
            self.fail(line, f"Type is neither Read nor Write: {_short(fields[3])}")
        for i in (4, 5, 6):
            self.check_int(line, self.fields[i], fields[i])
        self.fail(line, f"can't be read: {_short(text)}")

    def finish(self, last_line: int) -> Trace:
        if self.columns[1]:
            first = min(int(times.min()) for times in self.columns[1])
            self.columns[1] = [(times - first) // 10 for times in self.columns[1]]
        return super().finish(last_line)


class _Fio(_Reader):
    """``[timestamp] filename action [offset length]``; version 3 has the timestamp, in us."""

    kinds: ClassVar = {b"read": READ, b"write": WRITE, b"sync": SYNC, b"datasync": SYNC}
    takes: ClassVar = {"add": 0, "open": 0, "close": 0} | dict.fromkeys(
        ("wait", "read", "write", "sync", "datasync", "trim"), 2
    )

    def __init__(self, name: str, version: int) -> None:
        super().__init__(name)
        self.format = f"fio-v{version}"
        stamp = NUMBER + rb"[ \t]+" if version == 3 else rb"()"
        moves = rb"(wait|read|write|sync|datasync|trim)[ \t]+" + NUMBER + rb"[ \t]+" + NUMBER
        actions = rb"(\S+)[ \t]+(?:(add|open|close)|" + moves + rb")"
        self.row = re.compile(rb"(?m)^[ \t]*" + stamp + actions + rb"[ \t]*\r?$")
        self.stamped = version == 3
        self.clock_us = 0

    def take(self, rows: list[tuple[bytes, ...]], numbers: Sequence[int]) -> None:
        out: list[tuple[int, bytes | int, int, int, bytes, bytes]] = []
        groups, kinds, clock = self.groups, self.kinds, self.clock_us
        for number, row in zip(numbers, rows, strict=True):
            stamp, file, manage, action, offset, length = row
            kind = kinds.get(action)
            if manage == b"add":
                groups.setdefault(file, len(groups))
                continue
            group = groups.get(file)
            if group is None:
                what = f"{(manage or action).decode()} of {_short(file.decode())}"
                self.fail(number, f"{what}, which no line before has added")
            if kind is not None:
                out.append((number, stamp or clock, kind, group, offset, length))
            elif action == b"wait":
                clock = self._wait(number, clock, int(offset))
            elif action == b"trim":
                self.fail(number, "trim can't be replayed: it would have to punch a hole")
        self.clock_us = clock
        if out:
            lines, times, kind_of, group_of, offsets, lengths = zip(*out, strict=True)
            self.add(
                lines,
                self.ints("timestamp", times, lines),
                kind_of,
                group_of,
                self.ints("offset", offsets, lines),
                self.ints("length", lengths, lines),
            )

    def _wait(self, line: int, clock: int, wait_us: int) -> int:
        if self.stamped:
            self.fail(line, "version 3 has no action wait: its lines carry timestamps")
        if clock + wait_us > MAX_END:
            self.fail(line, "the waits add up to more than 2**63-1 microseconds")
        return clock + wait_us

    def blame(self, line: int, text: str) -> NoReturn:
        fields = text.split()
        if self.stamped:
            self.check_int(line, "timestamp", fields.pop(0))
        if len(fields) < 2:
            self.fail(line, f"no action: {_short(text)}")
        numbers = self.takes.get(fields[1])
        if numbers is None:
            self.fail(line, f"unknown action: {_short(fields[1])}")
        if len(fields) != 2 + numbers:
            wanted = "an offset and a length" if numbers else "neither offset nor length"
            self.fail(line, f"{fields[1]} takes {wanted}: {_short(text)}")
        for what, field in zip(("offset", "length"), fields[2:], strict=False):
            self.check_int(line, what, field)
        self.fail(line, f"can't be read: {_short(text)}")


class _Recorded(_Reader):
    """The requests of a recording, by the time of their submit. Files that have none are none."""

    format = "recording"

    def read(self, raw: BinaryIO) -> Trace:
        from .recording import STATES, read_recording

        rows = read_recording(raw, self.name).requests
        rows = rows[rows["state"] != STATES.index("cancelled")]
        rows = rows[np.argsort(rows["submitted_ns"], kind="stable")]
        if len(rows):
            files, group = np.unique(rows["file"], return_inverse=True)
            self.groups = {file: i for i, file in enumerate(files.tolist())}
            time_us = (rows["submitted_ns"] - rows["submitted_ns"][0]) // 1000
            line = np.arange(1, len(rows) + 1)
            self.add(line, time_us, rows["kind"], group, rows["offset"], rows["length"])
        return self.finish(len(rows))

    def fail(self, line: int, why: str) -> NoReturn:
        from .recording import RecordingError

        raise RecordingError(self.name, why)


def _detect(name: str, line: int, body: bytes) -> tuple[_Reader, int]:
    """The reader for a text that begins with `body`, and how many bytes of it are its header."""
    first, newline, _ = body.partition(b"\n")
    skip = len(first) + len(newline)
    text = first.strip()
    fio = re.fullmatch(rb"fio version ([0-9]+) iolog", text)
    if fio is not None:
        if fio[1] not in (b"2", b"3"):
            why = f"fio iolog version {fio[1].decode()} is not known; 2 and 3 are"
            raise TraceError(name, line, why)
        return _Fio(name, int(fio[1])), skip
    squeezed = text.replace(b" ", b"").lower()
    if squeezed == CSV_HEADER:
        return _Csv(name), skip
    if squeezed == MSR_HEADER:
        return _Msr(name), skip
    fields = text.split(b",")
    if len(fields) == 7 and fields[3].lower() in (b"read", b"write"):
        return _Msr(name), 0
    if _Csv.row.fullmatch(text):
        raise TraceError(name, line, f"the header line {CSV_HEADER.decode()} is missing")
    why = f"not a trace: {_short(text.decode())} is the beginning of none of these: {KNOWN}"
    raise TraceError(name, line, why)


def _fields(reader: _Reader, line: int, text: str, names: Sequence[str]) -> list[str]:
    fields = text.split(",")
    if len(fields) != len(names):
        wanted = f"{len(names)} fields ({','.join(names)}) are wanted"
        reader.fail(line, f"{wanted}, {len(fields)} found: {_short(text)}")
    return fields


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
