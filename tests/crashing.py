"""Goal: what the journal promises, checked on every state that a crash may leave.

A workload writes to its targets through a journal on a recording disk, and notes what it asked for
and what it was told. Then the power goes after each operation, or the process dies, the next one
opens the journal, and the power goes after that. The journal is opened again, and the targets must
be as after some prefix of the requests that has every receipt.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, NamedTuple

from modeldisk import ModelDisk, Recorder, record_on, replay

from iolift._journal import Journal
from iolift.errors import JournalDamagedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from iolift._log import Receipt

SEGMENT = 32 << 10
FILE = 24 << 10
KEYS = 12  # that small segments have room for: the youngest, received or not


class LostError(AssertionError):
    """A promise was broken."""


class Told(NamedTuple):
    """asked: the targets after each request; asked_keys: all keys. received, keys: what was
    promised so far."""

    asked: list[Any]
    received: int
    keys: list[bytes]
    asked_keys: list[bytes]


class Worker:
    """A user of a journal: asks, waits, writes back. states: the targets after each request."""

    def __init__(self, disk: ModelDisk, chance: random.Random, **options: Any) -> None:
        self.disk, self.chance = disk, chance
        self.pending: list[tuple[Receipt, tuple[Any, ...]]] = []
        self.options = options
        self.keys: dict[int, bytes] = {}  # by request
        self.journal = open_journal(disk, self.write_back, max_bytes=5 * SEGMENT, **options)
        self.states = [disk.contents()]
        self.written = self.journal.checkpointed  # sequence

    def note(self, *what: Any) -> None:
        if isinstance(self.disk, Recorder):
            self.disk.note(*what)

    def ask(self) -> Receipt:
        chance = self.chance
        target = chance.randrange(len(self.disk.targets))
        before = bytearray(self.states[-1][target])
        if chance.random() < 0.1:
            size = chance.randrange(FILE)
            receipt = self.journal.truncate(target, size)
            change: tuple[Any, ...] = ("truncate", target, size)
            before[size:] = b""
            before.extend(bytes(size - len(before)))
        else:
            size = chance.choice((chance.randrange(1, 700), chance.randrange(1, 6000), 16000))
            offset = chance.randrange(FILE - size)
            data = chance.randbytes(size)
            key = chance.randbytes(4) if chance.random() < 0.2 else b""
            receipt = self.journal.write(target, offset, data, key)
            if key:
                self.keys[len(self.states)] = key
                self.note("asked key", key)
            change = ("write", target, offset, data)
            before.extend(bytes(max(0, offset - len(before))))
            before[offset : offset + size] = data
        self.pending.append((receipt, change))
        state = list(self.states[-1])
        state[target] = bytes(before)
        self.states.append(tuple(state))
        self.note("asked", self.states[-1])
        return receipt

    def wait(self, receipt: Receipt, asked: int) -> None:
        receipt.wait()
        self.note("received", asked)
        if asked in self.keys:
            self.note("key", self.keys[asked])

    def write_back(self) -> int:
        """What was received goes into the targets, in order."""
        while self.pending and self.pending[0][0].state == "received":
            receipt, (kind, target, *change) = self.pending.pop(0)
            if kind == "write":
                offset, data = change
                self.disk.write(target, data, offset)
            else:
                self.disk.truncate(target, change[0])
            self.written = receipt.sequence
        return self.written

    def step(self) -> None:
        chance = self.chance
        does = chance.random()
        if does < 0.75:
            count = chance.choice((1, 1, 2, 5))
            receipts = [(self.ask(), len(self.states) - 1) for _ in range(count)]
            for receipt, asked in receipts[chance.randrange(count) :]:
                self.wait(receipt, asked)
        elif does < 0.87:
            written = self.write_back()
            if chance.random() < 0.7:
                self.journal.checkpoint(written)
        else:
            self.journal.prepare_ahead()


def open_journal(disk: ModelDisk, write_back: Callable[[], int], **options: Any) -> Journal:
    options = {"segment_bytes": SEGMENT, "max_bytes": 4 * SEGMENT, "background": False, **options}
    return Journal(disk, range(len(disk.targets)), write_back=write_back, **options)


def reopen(state: ModelDisk, **options: Any) -> Journal:
    """After a crash. Raises LostError where the journal takes it for damage."""
    try:
        return open_journal(state, lambda: 0, **options)
    except JournalDamagedError as error:
        raise LostError(f"a crash looks like damage: {error}") from error


class Explorer:
    """Crashes one run after each operation, `per_point` times, and each recovery again, `deep`
    times. kills: how often it is the process that dies. Counts the states that it has seen."""

    def __init__(
        self,
        seed: int,
        *,
        per_point: int = 1,
        deep: int = 2,
        kills: float = 0.1,
        **options: Any,
    ) -> None:
        self.chance = random.Random(seed)
        self.per_point, self.deep, self.options = per_point, deep, options
        self.kills = kills
        self.states = 0

    def run(self, steps: int, targets: int = 1, disk: Recorder | None = None) -> None:
        recorder = Recorder(targets) if disk is None else disk
        worker = Worker(recorder, self.chance, **self.options)
        for _ in range(steps):
            worker.step()
        if self.chance.random() < 0.3:
            worker.journal.close()
        nothing = Told([worker.states[0]], 0, [], [])
        self.crash_all(ModelDisk(targets), recorder.log, nothing)

    def crash_all(self, start: ModelDisk, log: list[tuple[Any, ...]], before: Told) -> None:
        asked, received = list(before.asked), [before.received]
        first = len(asked) - 1  # the log counts from what it began with
        keys, asked_keys = list(before.keys), list(before.asked_keys)

        def noted(what: str, value: Any) -> None:
            if what == "asked":
                asked.append(value)
            elif what == "key":
                keys.append(value)
            elif what == "asked key":
                asked_keys.append(value)
            else:
                received.append(max(received[-1], first + value))

        for disk in replay(start, log, noted):
            for _ in range(self.per_point):
                known = [key for key in keys if key in asked_keys[-KEYS:]]
                told = Told(asked, received[-1], known, asked_keys)
                if self.deep and self.chance.random() < self.kills:
                    self.kill(disk, told, self.deep)
                else:
                    self.look(disk.crash(self.chance), told, self.deep)

    def look(self, state: ModelDisk, told: Told, deep: int) -> None:
        self.states += 1
        if deep and self.chance.random() < 0.3:
            self.crash_recovery(state, told, deep)
        elif deep and self.chance.random() < 0.02:
            self.go_on(state, told)
        else:
            journal = reopen(state, **self.options)
            check(state, told)
            check_keys(journal, told)
            if self.chance.random() < 0.05:
                self.again(state)

    def kill(self, state: ModelDisk, told: Told, deep: int) -> None:
        """The process dies, and the system does not: what is found may be on no device yet."""
        if self.chance.random() < 0.1:
            self.go_on(state, told)
        else:
            self.crash_recovery(state, told, deep)

    def crash_recovery(self, state: ModelDisk, told: Told, deep: int) -> None:
        """The power goes while the journal is being opened, or just after."""
        recorder = record_on(state)
        journal = reopen(recorder, **self.options)
        check(recorder, told)
        check_keys(journal, told)
        steps = sum(op[0] not in ("open", "shut") for op in recorder.log)
        stop = self.chance.randint(0, steps)
        if stop == steps:  # what was found is found again
            told = told._replace(received=told.asked.index(recorder.contents(), told.received))
            self.look(recorder.crash(self.chance), told, deep - 1)
            return
        for i, disk in enumerate(replay(state, recorder.log, lambda *_: None)):
            if i == stop:
                self.look(disk.crash(self.chance), told, deep - 1)
                return

    def again(self, state: ModelDisk) -> None:
        """Recovering twice changes nothing."""
        state.close()
        contents, image, changes = state.contents(), state.image(), state.changes
        reopen(state, **self.options)
        if (state.contents(), state.image()) != (contents, image) or state.changes != changes:
            raise LostError("a second recovery changed something")

    def go_on(self, state: ModelDisk, told: Told) -> None:
        """Recovery, more work, and another crash anywhere in either."""
        recorder = record_on(state)
        worker = Worker(recorder, self.chance, **self.options)
        check_contents(worker.states[0], told)
        found = told.asked.index(worker.states[0], told.received)
        told = told._replace(asked=told.asked[: found + 1])
        recorder.note("received", 0)  # from here on, what was found is found again
        for _ in range(4):
            worker.step()
        before = self.per_point, self.deep
        self.per_point, self.deep = 2, 0
        self.crash_all(state, recorder.log, told)
        self.per_point, self.deep = before


def check(state: ModelDisk, told: Told) -> None:
    check_contents(state.contents(), told)


def check_contents(contents: tuple[bytes, ...], told: Told) -> None:
    asked, received = told.asked, told.received
    if contents not in asked[received:]:
        where = [i for i, each in enumerate(asked) if each == contents]
        raise LostError(
            f"{received} of {len(asked) - 1} were received, the targets are as after {where}"
        )


def check_keys(journal: Journal, told: Told) -> None:
    for key in told.keys:
        if journal.find(key) is None:
            raise LostError("a key was received, and is not known")
