"""The console script's ``iolift journal``: look into a journal, and bring files back from it.

1. `show` and `verify` only read, and say so where somebody writes meanwhile.
2. `recover` does what the next open would do. `salvage` and `restore` write to a file that is
   named, and never touch the journal.
3. Exit codes: 0 done, 1 the journal is damaged, 2 bad input or usage or a system that says no.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ._format import CHECKPOINT_NAME
from ._history import history, last_checkpoint, restore, salvage
from ._journal import match_targets
from ._recovery import apply, recover, write_slot
from ._storage import DirectoryStorage, Room
from ._survey import survey
from .errors import JournalDamagedError, JournalError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._records import Entry

COLUMNS = ("sequence", "type", "target", "offset", "length", "key", "durable", "segment", "at")


def add_journal(commands: Any) -> None:
    """Adds `journal` and its subcommands to the parser of the console script."""
    parser = commands.add_parser("journal", help="look into a journal, or bring files back from it")
    parts = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> Any:
        part = parts.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        part.add_argument("journal", metavar="JOURNAL", help="the journal's directory")
        part.set_defaults(run=run)
        return part

    part = add("show", _show, "list the records that are there, old segments included")
    part.add_argument("--json", action="store_true", help="one JSON object a line")
    part = add("verify", _verify, "check every record, and say where the journal ends and how")
    part.add_argument("--json", action="store_true", help="one JSON object")
    part = add("recover", _recover, "write what is in the journal to its files, as an open would")
    part.add_argument("files", nargs="+", metavar="FILE", help="all files that it is for")
    part.add_argument(
        "--adopt",
        action="store_true",
        help="the files are copies, or came back from a backup: take them for the journal's own, "
        "in the order of its table, from now on",
    )
    part = add("salvage", _salvage, "write every record that can still be read to a copy of a file")
    _add_into(part)
    part = add("restore", _restore, "bring a copy of a file to what it was after a record")
    _add_into(part)
    part.add_argument("--at", type=_number, required=True, metavar="SEQ", help="that record")
    part.add_argument(
        "--base",
        type=_number,
        default=0,
        metavar="SEQ",
        help="the copy is as it was after this record (default: 0, before the first one)",
    )


def _add_into(part: Any) -> None:
    part.add_argument("--into", required=True, metavar="COPY", help="is written to")
    part.add_argument(
        "--target", type=_number, default=0, metavar="N", help="which of its files (default: 0)"
    )


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"not a whole number: {text!r}")
    return int(text)


@contextmanager
def _reading(path: str) -> Iterator[DirectoryStorage]:
    storage = DirectoryStorage(path, read_only=True)
    try:
        try:
            storage.lock(shared=True)
        except BlockingIOError:
            print("iolift: the journal is open: this is a moment of it", file=sys.stderr)
        except FileNotFoundError:
            raise JournalError(
                errno.ENOENT, "there is no journal in this directory", path
            ) from None
        yield storage
    finally:
        storage.close()


@contextmanager
def _file(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _damaged(error: JournalDamagedError) -> int:
    name = os.fsdecode(error.filename)
    print(f"iolift: error: {name}: {error.strerror}", file=sys.stderr)
    return 1


# ------------------------------------------------------------------------------------ show, verify


def _row(name: str, entry: Entry) -> dict[str, Any]:
    return {
        "sequence": entry.sequence,
        "type": entry.type + ("..." if entry.more else ""),
        "target": entry.target,
        "offset": entry.offset,
        "length": entry.length,
        "key": entry.key.hex(),
        "durable": entry.durable,
        "segment": name,
        "at": entry.position,
    }


def _show(arguments: argparse.Namespace) -> int:
    if not arguments.json:
        print("  ".join(_cell(name, name) for name in COLUMNS).rstrip())
    try:
        with _reading(arguments.journal) as storage:
            for name, _, entries in history(storage):
                for entry in entries:
                    row = _row(name, entry)
                    if arguments.json:
                        print(json.dumps(row))
                    else:
                        print("  ".join(_cell(c, row[c]) for c in COLUMNS).rstrip())
            damage = survey(storage).damage
    except JournalDamagedError as error:
        return _damaged(error)
    return 0 if damage is None else _damaged(damage)


def _cell(column: str, value: Any) -> str:
    width = {"type": 11, "offset": 16, "key": 18, "segment": 20}.get(column, 9)
    text = str(value)
    return text.ljust(width) if column in ("type", "key", "segment") else text.rjust(width)


def _verify(arguments: argparse.Namespace) -> int:
    with _reading(arguments.journal) as storage:
        found = survey(storage)
    damage = found.damage
    end = "damaged" if damage else "torn" if found.is_torn else "clean"
    about = {
        "end": end,
        "records": sum(len(segment.entries) for segment in found.segments),
        "last": found.sequence,
        "checkpoint": found.slot.sequence,
        "to_replay": sum(e.sequence > found.slot.sequence for _, e in found.entries()),
        "segments": len(found.segments),
        "history": len(found.history),
        "segment_bytes": found.slot.segment_bytes,
        "targets": len(found.slot.targets),
        "bad_slots": found.bad_slots,
        "tails": {s.name: s.end for s in found.segments if s.tail},
        "damage": str(damage.strerror) if damage else None,
    }
    if arguments.json:
        print(json.dumps(about))
    else:
        for name, value in about.items():
            print(f"{name.replace('_', ' '):<14} {value if value not in (None, {}) else '-'}")
    return 0 if damage is None else _damaged(damage)


# ----------------------------------------------------------------------- recover, salvage, restore


def _recover(arguments: argparse.Namespace) -> int:
    storage = DirectoryStorage(arguments.journal, create=False)
    handles: list[int] = []
    try:
        storage.lock()
        found = survey(storage)
        handles = [os.open(path, os.O_RDWR | os.O_CLOEXEC) for path in arguments.files]
        identities = tuple(storage.identity(handle) for handle in handles)
        if arguments.adopt:
            if len(handles) != len(found.slot.targets):
                raise JournalError(
                    errno.EINVAL, f"{len(handles)} files for {len(found.slot.targets)} targets"
                )
            targets = dict(enumerate(handles))
        else:
            targets = match_targets(found, identities, handles)
        # Who keeps the history may be another one than who opens the journal next.
        done = recover(storage, found, targets, keep_segments=True)
        if arguments.adopt and done.slot.targets != identities:
            slot = replace(done.slot, generation=done.slot.generation + 1, targets=identities)
            checkpoint = storage.open(CHECKPOINT_NAME)
            handles.append(checkpoint)
            write_slot(storage, checkpoint, slot, 1 - done.place)
    except JournalDamagedError as error:
        return _damaged(error)
    finally:
        for handle in handles:
            os.close(handle)
        storage.close()
    print(f"{done.records} records replayed, {done.bytes_written} bytes written")
    for name in done.tails:
        print(f"a torn tail, which nobody was told of, is in {name}")
    return 0


def _salvage(arguments: argparse.Namespace) -> int:
    with _reading(arguments.journal) as storage, _file(arguments.into) as handle:
        slot = last_checkpoint(storage)
        if slot is None:
            print("lost: the checkpoint; every record that is there is written")
        last, count = slot.sequence if slot else 0, 0
        room = Room()
        for _, data, entry in salvage(storage, slot):
            if entry.sequence <= last:
                continue
            if (last or slot) and entry.sequence != last + 1:
                print(f"lost: records {last + 1} to {entry.sequence - 1}")
            last = entry.sequence
            if entry.target == arguments.target and entry.type != "key":
                apply(storage, handle, [entry], data, room)
                count += 1
        os.fsync(handle)
    print(f"{count} records written, the last one of all is {last}; the journal is as it was")
    return 0


def _restore(arguments: argparse.Namespace) -> int:
    try:
        with _reading(arguments.journal) as storage, _file(arguments.into) as handle:
            count = restore(storage, arguments.target, handle, base=arguments.base, at=arguments.at)
            os.fsync(handle)
    except JournalDamagedError as error:
        return _damaged(error)
    print(f"{count} records applied: {arguments.into} is as after record {arguments.at}")
    return 0
