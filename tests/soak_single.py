"""Goal: the operations of a round, by chance: what is submitted, and what is noted of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from oracle import (
    PENDING,
    READ,
    ROW,
    SENTINEL,
    SIZE,
    TRUNCATE,
    UNSURE,
    VOID,
    WRITE,
    Noted,
)
from soak_round import FILL, LUCK, POOL, SIZE_ODDS, SIZES, Round

import iolift

if TYPE_CHECKING:
    from collections.abc import Callable

    from soak_round import Subject

BEHIND = "behind"  # in place of a ticket: nobody asks how it went


class SingleRound(Round):
    """One coalescer, a few files and `count` operations; `play()` raises what is wrong."""

    def draw(self, dice: np.random.Generator) -> None:
        """All chances of the round at once: one by one they would cost more than the requests."""
        n = self.count * 3 + 3000
        span = self.span
        hot = dice.integers(0, span, 6)
        offsets = np.where(
            dice.random(n) < 0.7,
            hot[dice.integers(0, 6, n)] + dice.choice([0, 0, 0, 1, -1, 64, 512, -512, 4096], n),
            dice.integers(0, span, n),
        )
        self.offsets = iter(np.maximum(offsets, 0).tolist())
        odds = SIZE_ODDS / SIZE_ODDS.sum()
        self.sizes = iter(SIZES[dice.choice(len(SIZES), n, p=odds)].tolist())
        self.luck = iter(dice.integers(0, LUCK, 2 * n).tolist())
        kinds = self.kinds()
        weights = np.array([weight for weight, _ in kinds], float)
        chosen = dice.choice(len(kinds), self.count, p=weights / weights.sum()).tolist()
        self.todo = [kinds[k][1] for k in chosen]

    def kinds(self) -> list[tuple[float, Callable[[Subject], None]]]:
        # A real device takes milliseconds for these.
        slow = 0.1 if self.disk is None else 1
        return [
            (26, self.submit_read), (26, self.submit_write), (8, self.cancel), (5, self.drop),
            (8, self.wait), (4, self.pread), (3, self.pwrite), (1, self.preadv),
            (1, self.pwritev), (1, self.read_ranges), (1, self.write_ranges), (4, self.write),
            (2, self.seek), (2, self.readinto), (1, self.end), (1, self.flush),
            (0.3 * slow, self.sync), (0.5 * slow, self.submit_sync), (0.4 * slow, self.truncate),
            (0.1, self.reopen), (0.2, self.flush_all), (5, self.pass_time),
        ]  # fmt: skip

    # ------------------------------------------------------------------------------- the round

    def play(self) -> int:
        try:
            self.draw(np.random.default_rng(self.chance.randrange(LUCK)))
            self.begin()
            subjects, luck, check = self.subjects, self.luck, self.c._check
            one, every = len(subjects) == 1, self.check_every
            for step, operation in enumerate(self.todo):
                s = subjects[0] if one else subjects[next(luck) % len(subjects)]
                operation(s)
                if step % every == 0:
                    check()
                    if step % 64 == 0:
                        self.bounds()
            self.finish()
        except BaseException as error:
            error.add_note(str(self))
            raise
        finally:
            self.close()
        return self.count

    # ------------------------------------------------------------------------------- operations

    def submit_read(self, s: Subject) -> None:
        offset, n = next(self.offsets), next(self.sizes)
        buffer = None
        if next(self.luck) & 3 == 0:
            buffer = bytearray(FILL[:n])
            ticket = s.f.submit_pread(n, offset, into=buffer)
        else:
            ticket = s.f.submit_pread(n, offset)
        noted = Noted(READ, offset, n, None, PENDING, ticket, buffer)
        s.log.append(noted)
        s.live.append(noted)

    def submit_write(self, s: Subject) -> None:
        offset, n, luck = next(self.offsets), next(self.sizes), next(self.luck)
        start = luck % (len(POOL) - 200_000)
        data = POOL[start : start + n]
        form = luck & 7
        if form > 2:
            ticket = s.f.submit_pwrite(data, offset)
        else:
            # The caller may do with its memory what it likes as soon as submit has returned.
            memory = bytearray(data)
            if form == 0:
                ticket = s.f.submit_pwrite(memory, offset)
            elif form == 1:
                ticket = s.f.submit_pwrite(memoryview(memory), offset)
            else:
                ticket = s.f.submit_pwrite(np.frombuffer(memory, np.uint8), offset)
            memory[:] = FILL[:n]
        noted = Noted(WRITE, offset, data, None, PENDING, ticket)
        s.log.append(noted)
        s.live.append(noted)

    def pick(self, s: Subject) -> Noted | None:
        """Any of the tickets that are held, which then is not any more."""
        live = s.live
        if not live:
            return None
        k = next(self.luck) % len(live)
        live[k], live[-1] = live[-1], live[k]
        return live.pop()

    def cancel(self, s: Subject) -> None:
        noted = self.pick(s)
        if noted is None:
            return
        if noted.ticket.cancel():
            assert noted.ticket.cancelled(), noted.ticket.state
            assert noted.ticket.done(), noted.ticket.state
            noted.fate, noted.ticket = VOID, None
            if noted.buffer is not None:
                # What the overlay had of it may be there; after this, nothing may come.
                s.cancelled.append((noted, bytes(noted.buffer)))
        else:
            assert not noted.ticket.cancelled(), noted.ticket.state
            s.live.append(noted)

    def drop(self, s: Subject) -> None:
        noted = self.pick(s)
        if noted is None:
            return
        noted.ticket = None
        if noted.kind == WRITE:
            s.behind.append(noted)
        else:
            noted.fate = VOID

    def wait(self, s: Subject) -> None:
        noted = self.pick(s)
        if noted is not None:
            self.collect(s, noted)

    def at_once(self, s: Subject, kind: int, offset: int, payload: Any, call: Any) -> None:
        """A call that reads or writes and returns when that is done."""
        noted = Noted(kind, offset, payload)
        s.log.append(noted)
        try:
            answer = call()
        except OSError as error:
            self.blame(s, kind, offset, noted.length, error)
            noted.fate = UNSURE
            return
        if kind == WRITE:
            assert answer == len(payload), f"{answer} of {noted}"
        else:
            noted.answer = answer

    def pread(self, s: Subject) -> None:
        offset, n = next(self.offsets), next(self.sizes)
        self.at_once(s, READ, offset, n, lambda: s.f.pread(n, offset))

    def pwrite(self, s: Subject) -> None:
        offset, data = next(self.offsets), self.some_bytes()
        self.at_once(s, WRITE, offset, data, lambda: s.f.pwrite(data, offset))

    def some_bytes(self) -> bytes:
        start = next(self.luck) % (len(POOL) - 200_000)
        return POOL[start : start + next(self.sizes)]

    def preadv(self, s: Subject) -> None:
        offset = next(self.offsets)
        memory = [bytearray(next(self.sizes)) for _ in range(next(self.luck) % 5)]

        def call() -> bytes:
            got = s.f.preadv(memory, offset)
            return b"".join(memory)[:got]

        self.at_once(s, READ, offset, sum(map(len, memory)), call)

    def pwritev(self, s: Subject) -> None:
        offset = next(self.offsets)
        rows = [self.some_bytes() for _ in range(next(self.luck) % 5)]
        self.at_once(s, WRITE, offset, b"".join(rows), lambda: s.f.pwritev(rows, offset))

    def ranges(self) -> tuple[list[int], list[int], Any]:
        k = next(self.luck) % 20
        offsets = [next(self.offsets) for _ in range(k)]
        if next(self.luck) & 1:
            n = min(next(self.sizes), 4097)
            return offsets, [n] * k, n
        lengths = [next(self.sizes) for _ in range(k)]
        return offsets, lengths, lengths

    def read_ranges(self, s: Subject) -> None:
        offsets, lengths, given = self.ranges()
        out = np.full(sum(lengths), SENTINEL, np.uint8)
        if isinstance(given, int):
            out = out.reshape(len(offsets), given)
        errnos: dict[int, int] = {}
        short = None
        try:
            assert s.f.read_ranges(offsets, given, out=out) is out
        except iolift.RangeError as error:
            errnos = error.errnos
        except iolift.ShortReadError as error:
            short = error.index, error.offset, error.length
        if short is not None:
            assert short[1:] == (offsets[short[0]], lengths[short[0]]), short
        flat, at = out.tobytes(), 0
        for k, (offset, n) in enumerate(zip(offsets, lengths, strict=True)):
            if k in errnos:
                self.blame(s, READ, offset, n, OSError(errnos[k], "in read_ranges"))
            else:
                s.log.append(Noted(ROW, offset, n, flat[at : at + n]))
            at += n

    def write_ranges(self, s: Subject) -> None:
        offsets, lengths, given = self.ranges()
        rows = []
        for n in lengths:
            start = next(self.luck) % (len(POOL) - 200_000)
            rows.append(POOL[start : start + n])
        noted = [Noted(WRITE, o, row) for o, row in zip(offsets, rows, strict=True)]
        s.log += noted
        try:
            assert s.f.write_ranges(offsets, b"".join(rows), lengths=given) == sum(lengths)
        except iolift.RangeError as error:
            for k, code in error.errnos.items():
                self.blame(s, WRITE, offsets[k], lengths[k], OSError(code, "in write_ranges"))
                noted[k].fate = UNSURE

    def write(self, s: Subject) -> None:
        data = self.some_bytes()
        if next(self.luck) & 1:
            s.position = next(self.offsets)
            assert s.f.seek(s.position) == s.position
        assert s.f.write(data) == len(data)
        noted = Noted(WRITE, s.position, data, None, PENDING, BEHIND)
        s.log.append(noted)
        s.behind.append(noted)
        s.position += len(data)

    def seek(self, s: Subject) -> None:
        step = next(self.offsets) - self.span // 2
        step = max(step, -s.position)
        s.position += step
        assert s.f.seek(step, 1) == s.position == s.f.tell()

    def readinto(self, s: Subject) -> None:
        offset, n = s.position, next(self.sizes)

        def call() -> bytes:
            if next(self.luck) & 1:
                data: bytes = s.f.read(n)
            else:
                memory = bytearray(n)
                got = s.f.readinto(memory)
                data = bytes(memory[:got])
            s.position += len(data)
            return data

        self.at_once(s, READ, offset, n, call)

    def end(self, s: Subject) -> None:
        s.position = s.f.seek(0, 2)
        s.log.append(Noted(SIZE, 0, 0, s.position))

    def flush(self, s: Subject) -> None:
        self.flushed(s, s.f.flush)

    def sync(self, s: Subject) -> None:
        self.flushed(s, s.f.sync, durable=True)

    def flush_all(self, s: Subject) -> None:
        if self.fault in ("none", "short", "again"):
            self.c.flush()
            for other in self.subjects:
                self.flushed(other, other.f.flush)

    def submit_sync(self, s: Subject) -> None:
        ticket = s.f.submit_sync()
        if next(self.luck) & 3 == 0 and ticket.cancel():
            assert ticket.cancelled(), ticket.state
            return
        self.flushed(s, ticket.result, durable=True)

    def truncate(self, s: Subject) -> None:
        size = next(self.offsets)
        assert s.f.truncate(size) == size
        s.log.append(Noted(TRUNCATE, 0, size))

    def reopen(self, s: Subject) -> None:
        self.flushed(s, s.f.close)
        self.open_again(s)

    def pass_time(self, s: Subject) -> None:
        if self.clock is not None:
            self.clock.advance((next(self.luck) % 20) ** 8)
            self.c.tick()
