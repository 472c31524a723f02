"""Journal: an append-only log of what is to be written, between a caller and its files.

    write -> gathered -> received (one sync for many) -> in the targets -> checkpoint -> gone

1. Nothing reaches a target before its record is received, and no segment goes before the records
   in it are in the targets, and synced there: target writes, their sync, slot, its sync, unlink.
2. Segments are filled with zeros and synced ahead, under a name of their own, and renamed when
   they are whole. They are never used again.
3. Bounded: the live segments take at most max_bytes. Who finds them full waits for a checkpoint;
   nothing is dropped. Keys: the `max_keys` youngest are remembered, and carried from segment to
   segment.
4. One opener. The first error of a write or a sync is the last thing that is written. Of a target
   that can't be synced the kernel has forgotten what is missing: no checkpoint is made from then
   on, and the next open replays all.

Who may call: any thread; the owner says what is in the targets (`write_back`). A forked child gets
ForkedError: the lock and the descriptors are the parent's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ._calls import in_call
from ._format import (
    BLOCK,
    CHECKPOINT_NAME,
    MAX_SEGMENT_BYTES,
    SEGMENT_SUFFIX,
    TAIL_SUFFIX,
    SegmentHeader,
    Slot,
    encode_header,
    encode_slot,
    segment_name,
)
from ._log import Log, Receipt
from ._records import LIMITS
from ._recovery import PREPARED_SUFFIX, pending_targets, recover, write_slot
from ._storage import LOCK, Storage, write_all
from ._survey import Survey, survey
from ._threads import begin_aside
from .errors import ForeignJournalError, JournalError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ZEROS = bytes(1 << 20)
MIN_SEGMENT_BYTES = 8 * BLOCK
# So many segments are made ready where there is time for it, after a checkpoint: a burst that fits
# in them has the disk for itself.
SPARES = 3
KEY_ROOM = LIMITS["header"] + 256


def create(storage: Storage, identities: Sequence[bytes], segment_bytes: int) -> None:
    """A journal without records. A crash leaves it whole or not there at all."""
    slot = Slot(os.urandom(16), 0, 0, 1, 0, 0, segment_bytes, tuple(identities))
    name = CHECKPOINT_NAME + PREPARED_SUFFIX
    with contextlib.suppress(FileNotFoundError):
        storage.unlink(name)
    handle = storage.create(name)
    try:
        write_all(storage, handle, encode_slot(slot) + bytes(BLOCK), 0)
        storage.sync(handle)
    finally:
        storage.shut(handle)
    storage.rename(name, CHECKPOINT_NAME)
    storage.sync_directory()


class Journal:
    """A journal that is open for writing, after recovery.

    storage: locked by this object until close(). targets: handles of all files that the journal is
    for; a new journal is made for them, an existing one must be theirs.
    write_back: called when the journal is full, perhaps in the middle of a commit: brings what was
    received to the targets and returns a sequence up to which all records are there.
    segment_bytes: of new journals, a multiple of 4096. max_bytes: of all live segments.
    keep_segments: old segments stay, as history. max_keys: so many idempotency keys are remembered.
    background: prepares segments ahead, in a thread. extend: targets that an existing journal does
    not know are added to it, if it knows any of the others. commit_aside: has a thread commit what
    has gathered, without waiting.

    Raises BlockingIOError where it is open already, ForeignJournalError for other targets,
    JournalDamagedError, OSError; ValueError for a bad size.
    """

    def __init__(
        self,
        storage: Storage,
        targets: Sequence[int],
        *,
        write_back: Callable[[], int],
        segment_bytes: int = 16 << 20,
        max_bytes: int = 256 << 20,
        keep_segments: bool = False,
        max_keys: int = 4096,
        background: bool = True,
        extend: bool = False,
        commit_aside: Callable[[], None] | None = None,
    ) -> None:
        check_sizes(segment_bytes, max_bytes)
        self._storage = storage
        self._write_back = write_back
        self._max_bytes = max_bytes
        self._keep_segments = keep_segments
        self._max_keys = max_keys
        self._background = background
        self.commit_aside = commit_aside or self._commit_in_thread
        self._pid = os.getpid()
        self._closed = False
        self._ends = False  # nothing is prepared any more
        self._preparing = threading.Lock()
        self._checkpointing = threading.RLock()  # which knows its owner: nobody enters it twice
        self._spares: list[tuple[int, int]] = []  # number, handle
        self.log: Log = None  # type: ignore[assignment]  # until it is open
        self._target_error: OSError | None = None
        self._slot_error: OSError | None = None
        try:
            storage.lock()
            self._open(targets, segment_bytes, extend)
        except BaseException:
            if self.log is not None:
                for _, handle in self.log.drop_before(1 << 63):
                    storage.shut(handle)
            storage.close()
            raise

    def _open(self, targets: Sequence[int], segment_bytes: int, extend: bool) -> None:
        storage = self._storage
        identities = [storage.identity(target) for target in targets]
        if len(set(identities)) < len(identities):
            raise ValueError("a target is given twice")
        if is_new(storage):
            create(storage, identities, segment_bytes)
        found = survey(storage)
        # Of a journal that is there already, its own size of segments counts.
        check_sizes(found.slot.segment_bytes, self._max_bytes)
        # By its place in the journal's table.
        self.targets = match_targets(found, identities, targets, extend)
        self.recovered = recover(storage, found, self.targets, keep_segments=self._keep_segments)
        self._slot, self._place = self.recovered.slot, self.recovered.place
        numbers = [*found.history, *(segment.number for segment in found.segments)]
        self._next_number = max([self._slot.first_segment, *(n + 1 for n in numbers)])
        self.log = Log(
            self,
            storage,
            segment_bytes=self._slot.segment_bytes,
            sequence=found.sequence,
            previous=found.previous,
            keys=self.recovered.keys,
            max_keys=self._max_keys,
        )
        self.log.max_segments = self._max_bytes // self._slot.segment_bytes
        self.log.established = self._slot.first_segment
        for segment in found.segments:
            if segment.header and segment.number >= self._slot.first_segment:
                self.log.adopt_segment(segment.number, storage.open(segment.name))
        for target in targets:
            self.adopt(target)

    def adopt(self, target: int) -> int:
        """The number of a target in the journal's table, where it is put if it is not there yet.

        Raises OSError; ValueError where the table is full.
        """
        identity = self._storage.identity(target)
        try:
            with self._alone():
                if identity in self._slot.targets:
                    number = self._slot.targets.index(identity)
                else:
                    number = len(self._slot.targets)
                    slot = replace(
                        self._slot,
                        generation=self._slot.generation + 1,
                        targets=(*self._slot.targets, identity),
                    )
                    self._write_slot(slot)
                self.targets[number] = target
                return number
        finally:
            self._tell_of_slot_error()

    def release(self, number: int) -> None:
        """The file of a target is about to be closed, with all its records in it: after this
        checkpoint the journal has nothing to do with it, unless another file holds the checkpoint
        back. Idempotent. O(targets) syncs.

        Raises OSError where the file's own sync failed; no checkpoint is made from then on.
        """
        through = self._write_back()
        try:
            with held_whatever_comes(self._checkpointing):
                target = self.targets.pop(number, None)
                if target is None or self._closed or self._target_error is not None:
                    return
                try:
                    self._storage.sync(target)
                except BaseException as error:
                    # Also one that was interrupted: nobody knows how far it came.
                    failure = error if isinstance(error, OSError) else None
                    self._target_error = failure or OSError(errno.EIO, repr(error))
                    raise
                with contextlib.suppress(OSError):  # which whoever makes the next one hears of
                    self._checkpoint(through, is_last=False)
        finally:
            self._tell_of_slot_error()

    def is_held_here(self) -> bool:
        """Whether this thread is in the middle of a checkpoint: a finalizer or a handler asks."""
        return bool(self._checkpointing._is_owned())  # type: ignore[attr-defined]

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        if self.is_held_here():
            raise OSError(errno.EDEADLK, "a checkpoint in the middle of a checkpoint")
        with self._checkpointing:
            yield

    # ------------------------------------------------------------------------------------ writing

    def write(self, target: int, offset: int, data: Any, key: bytes = b"") -> Receipt:
        """Gather a write of data, any buffer, to a target's offset; returns its Receipt. O(1).

        key: where the journal has it already, nothing is gathered, and the receipt is the first
        one's. Raises PoisonedError, ForkedError, TypeError; ValueError for more than
        `max_request` bytes.
        """
        self.log.check()
        if memoryview(data).nbytes > self.max_request:
            raise ValueError(
                f"data has {memoryview(data).nbytes} bytes, a journal with max_bytes = "
                f"{self._max_bytes} takes at most {self.max_request} at once"
            )
        return self.log.write(target, offset, data, key)

    def truncate(self, target: int, size: int) -> Receipt:
        """Gather a change of a target's size, bytes; returns its Receipt. O(1)."""
        self.log.check()
        return self.log.truncate(target, size)

    def find(self, key: bytes) -> Receipt | None:
        """The receipt of the write with this key; None where the journal does not know it."""
        return self.log.find(key)

    @property
    def max_request(self) -> int:
        """Bytes that one write may have: so many always fit, however segments are filled."""
        size = self._slot.segment_bytes
        return (self._max_bytes // size - 2) * (size // 4) - BLOCK

    @property
    def checkpointed(self) -> int:
        """Every record up to this one is in the targets, and synced there."""
        return self._slot.sequence

    @property
    def closed(self) -> bool:
        """True when close() is over."""
        return self._closed

    @property
    def live_bytes(self) -> int:
        """What the live segments take of the disk, the one that is ready included."""
        return (self.log.live_segments + len(self._spares)) * self._slot.segment_bytes

    def _commit_in_thread(self) -> None:
        try:
            begin_aside(self.log.drain, "iolift journal")
        except RuntimeError:  # the interpreter ends
            self.log.commit_here()

    # ----------------------------------------------------------------------------------- segments

    def begin_segment(self, needed: int) -> None:
        """Called by the log, in a commit: what is needed does not fit into the segment."""
        size = self._slot.segment_bytes
        if not self._spares and (self.log.live_segments + 1) * size > self._max_bytes:
            self.checkpoint(self._write_back())
            if (self.log.live_segments + 1) * size > self._max_bytes:
                raise JournalError(errno.ENOSPC, f"the journal is full: {self._max_bytes} bytes")
        with self._preparing:
            if not self._spares:
                self._spares.append(self._prepare())
            number, handle = self._spares.pop(0)
            try:
                self._go_on_in(number, handle)
            except BaseException:
                self._spares.insert(0, (number, handle))
                raise
        if not self._spares:
            self._aside(lambda: self.prepare_ahead(1))
        if 2 * self.live_bytes > self._max_bytes:
            self._aside(self._checkpoint_quietly)

    def _go_on_in(self, number: int, handle: int) -> None:
        durable, previous = self.log.checkpointable
        header = SegmentHeader(
            self._slot.journal_id,
            number,
            durable + 1,
            previous,
            self._slot.segment_bytes,
            self._slot.targets,
        )
        room = (self._slot.segment_bytes // 4 - BLOCK) // KEY_ROOM
        keys = list(self.log.keys.items())[-room:] if room > 0 else []
        self.log.begin_segment(number, handle, encode_header(header), header.salt, keys)

    def _prepare(self) -> tuple[int, int]:
        """A segment of zeros, whole, synced, and known by its name."""
        storage, number = self._storage, self._next_number
        name = segment_name(number) + PREPARED_SUFFIX
        with contextlib.suppress(FileNotFoundError):
            storage.unlink(name)
        handle = storage.create(name)
        try:
            position = 0
            while position < self._slot.segment_bytes:
                part = ZEROS[: min(len(ZEROS), self._slot.segment_bytes - position)]
                write_all(storage, handle, part, position)
                position += len(part)
            storage.sync(handle)
            storage.rename(name, segment_name(number))
            name = segment_name(number)
            storage.sync_directory()
        except BaseException:
            storage.shut(handle)
            with contextlib.suppress(OSError):
                storage.unlink(name)
            raise
        self._next_number = number + 1
        return number, handle

    def _aside(self, work: Callable[[], None]) -> None:
        # RuntimeError: the interpreter ends, and what was to be made ahead is made when needed.
        if self._background:
            with contextlib.suppress(RuntimeError):
                begin_aside(lambda: in_call(work), "iolift journal")

    def _checkpoint_quietly(self) -> None:
        """Before the journal is full, so that nobody waits for it. An error shows when it is."""
        with contextlib.suppress(OSError, ValueError):
            self.checkpoint(self._write_back())

    def prepare_ahead(self, count: int = 1) -> None:
        """Have the next segments ready before they are needed. An error shows when they are."""
        with contextlib.suppress(OSError, ValueError), self._preparing:
            while len(self._spares) < count and not self._ends and self.log.poison is None:
                if self.live_bytes + self._slot.segment_bytes > self._max_bytes:
                    break
                self._spares.append(self._prepare())

    # --------------------------------------------------------------------------------- checkpoint

    def checkpoint(self, through: int, *, is_last: bool = False) -> None:
        """Every record up to `through` is in the targets: sync them, say so, drop old segments.

        An error of a target's sync is raised, now and ever after, and all segments stay; one of the
        slot poisons the journal. O(targets) syncs, one slot, one sync.
        """
        try:
            with self._alone():
                self._checkpoint(through, is_last)
        finally:
            self._tell_of_slot_error()
        if not is_last:
            self._aside(lambda: self.prepare_ahead(SPARES))

    def _checkpoint(self, through: int, is_last: bool) -> None:
        if self._target_error is not None:
            error = self._target_error
            raise JournalError(error.errno, f"a target failed before ({error.strerror})")
        durable, previous = self.log.checkpointable
        # A segment may have become old since the last checkpoint, which was for as many records.
        through = max(min(through, durable), self._slot.sequence)
        first = self.log.first_needed_after(through)
        if is_last and through == durable and not self.log.keys:
            first = self._next_number
        is_news = through > self._slot.sequence or first > self._slot.first_segment
        if not is_news or self.log.poison is not None or self._closed:
            return
        self._sync_targets()
        slot = replace(
            self._slot,
            generation=self._slot.generation + 1,
            sequence=through,
            first_segment=first,
            durable=durable,
            previous=previous,
        )
        self._write_slot(slot)
        for number, handle in self.log.drop_before(first):
            self._storage.shut(handle)
            if not self._keep_segments:
                with contextlib.suppress(OSError):
                    self._storage.unlink(segment_name(number))

    def _sync_targets(self) -> None:
        for target in self.targets.values():
            try:
                self._storage.sync(target)
            except OSError as error:
                self._target_error = error
                raise

    def _write_slot(self, slot: Slot) -> None:
        if self._slot_error is not None:
            raise self._slot_error
        handle = self._storage.open(CHECKPOINT_NAME)  # where that fails, nothing has happened
        try:
            write_slot(self._storage, handle, slot, 1 - self._place)
        except OSError as error:
            self._slot_error = error
            raise
        finally:
            self._storage.shut(handle)
        self._slot, self._place = slot, 1 - self._place

    def _tell_of_slot_error(self) -> None:
        # Without the lock: who hears of it may close the journal.
        if self._slot_error is not None and self.log.poison is None:
            self.log.fail(self._slot_error)

    def close(self) -> None:
        """Receive what has gathered, write it back, checkpoint, let go of the lock. Idempotent.

        Raises what failed first; the lock is let go of whatever comes.
        """
        if self._closed:
            return
        # In a forked child the locks may be held by threads that it does not have.
        is_owner = os.getpid() == self._pid
        locks = (self._checkpointing, self._preparing) if is_owner else ()
        try:
            if is_owner:
                self._finish()
        finally:
            self.log.close()
            with held_whatever_comes(*locks):
                self._ends = self._closed = True
                with contextlib.ExitStack() as stack:  # the lock goes last
                    stack.callback(self._storage.close)
                    for _, handle in self.log.drop_before(1 << 63):
                        stack.callback(self._storage.shut, handle)
                    while self._spares:
                        stack.callback(self._storage.shut, self._spares.pop()[1])

    def _finish(self) -> None:
        self.log.seal()
        if self.log.poison is not None:
            return
        with self._preparing:
            self._ends = True
            while self._spares:
                number, handle = self._spares.pop()
                self._storage.shut(handle)
                with contextlib.suppress(OSError):
                    self._storage.unlink(segment_name(number))
        self.checkpoint(self._write_back(), is_last=True)


@contextlib.contextmanager
def held_whatever_comes(*locks: Any) -> Iterator[None]:
    """Hold these: whoever has one is about to let go of it. A Ctrl-C is heard afterwards."""
    interrupt = None
    for lock in locks:
        is_held = False
        while not is_held:
            try:
                is_held = lock.acquire()
            except KeyboardInterrupt as error:
                interrupt = error
    try:
        yield
    finally:
        for lock in locks:
            lock.release()
    if interrupt is not None:
        raise interrupt


def is_new(storage: Storage) -> bool:
    """Whether there is no journal yet in a directory that may have one. Raises JournalError."""
    names = storage.names()
    if CHECKPOINT_NAME in names or any(name.endswith(SEGMENT_SUFFIX) for name in names):
        return False
    known = (PREPARED_SUFFIX, TAIL_SUFFIX)
    others = [name for name in names if name != LOCK and not name.endswith(known)]
    if others:
        raise JournalError(errno.ENOTEMPTY, f"no journal, and not empty: {min(others)!r}")
    return True


def check_sizes(segment_bytes: int, max_bytes: int) -> None:
    """Raise ValueError or TypeError for sizes that no journal has."""
    for name, value in (("segment_bytes", segment_bytes), ("max_bytes", max_bytes)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an integer, not {value!r}")
    if segment_bytes % BLOCK or not MIN_SEGMENT_BYTES <= segment_bytes <= MAX_SEGMENT_BYTES:
        raise ValueError(
            f"segment_bytes = {segment_bytes} must be a multiple of {BLOCK} between "
            f"{MIN_SEGMENT_BYTES} and {MAX_SEGMENT_BYTES}"
        )
    if max_bytes < 4 * segment_bytes:
        raise ValueError(f"max_bytes = {max_bytes} must be at least four segments")


def match_targets(
    found: Survey, identities: Sequence[bytes], targets: Sequence[int], extend: bool = False
) -> dict[int, int]:
    """Number in the journal's table -> handle.

    Raises ForeignJournalError for a target that is not in the table, unless it is to be extended
    and another one is there, and where one that has records is not among those given.
    """
    table = {identity: number for number, identity in enumerate(found.slot.targets)}
    count = len(table.keys() | set(identities))
    if count > LIMITS["targets"]:
        raise ValueError(f"{count} targets: at most {LIMITS['targets']} share a journal")
    extend = extend and not table.keys().isdisjoint(identities)
    matched: dict[int, int] = {}
    for identity, target in zip(identities, targets, strict=True):
        if identity in table:
            matched[table[identity]] = target
        elif not extend:
            raise ForeignJournalError(
                errno.EINVAL, "the journal belongs to other files than the one it was given for"
            )
    if found.damage is None:
        missing = pending_targets(found) - matched.keys()
        if missing:
            raise ForeignJournalError(
                errno.EINVAL, f"the journal has records for other files, too: {sorted(missing)}"
            )
    return matched
