"""Goal: a disk that can crash anywhere, and keeps no more of what was not synced than it must.

The journal's storage in memory (iolift._storage.Storage). What is written is seen at once; what is
on the device is what was synced. After a crash each write that was not flushed is kept, dropped or
torn into sectors of 512 bytes, each by itself; each name that was made, changed or removed since
the last sync of the directory is the old one or the new one.

A process that is killed takes nothing with it: what was written is still seen (`copy_of`), and may
be lost by a crash that comes later.

A `Recorder` notes what happens, so that one run of a workload gives the state of the disk after
each of its operations: `replay` walks through them.
"""

from __future__ import annotations

import errno
import itertools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

SECTOR = 512


class Inode:
    """A file. content: as it is seen; durable: as it is on the device; pending: what lies between,
    ("write", offset, data) or ("truncate", size)."""

    def __init__(self, durable: bytes = b"") -> None:
        self.content = bytearray(durable)
        self.durable = durable
        self.pending: list[tuple[Any, ...]] = []

    def change(self, change: tuple[Any, ...]) -> None:
        change_bytes(self.content, change)
        self.pending.append(change)

    def flush(self) -> None:
        self.durable = bytes(self.content)
        self.pending.clear()

    def crash(self, chance: random.Random, mood: str) -> Inode:
        after = bytearray(self.durable)
        for change in self.pending:
            fate = mood if mood != "any" else chance.choice(("keep", "drop", "tear"))
            if fate == "drop":
                continue
            if fate == "keep" or change[0] == "truncate":
                change_bytes(after, change)
                continue
            for part in torn(change, chance):
                change_bytes(after, part)
        return Inode(bytes(after))


def change_bytes(content: bytearray, change: tuple[Any, ...]) -> None:
    if change[0] == "truncate":
        size = change[1]
        content[size:] = b""
        content.extend(bytes(size - len(content)))
        return
    _, offset, data = change
    content.extend(bytes(max(0, offset - len(content))))
    content[offset : offset + len(data)] = data


def torn(change: tuple[Any, ...], chance: random.Random) -> Iterator[tuple[Any, ...]]:
    """Some of the sectors that a write touches: the first ones, the last ones, or any."""
    _, offset, data = change
    cuts = [offset, *range(offset // SECTOR * SECTOR + SECTOR, offset + len(data), SECTOR)]
    cuts.append(offset + len(data))
    parts = list(itertools.pairwise(cuts))
    how = chance.randrange(3)
    at = chance.randint(0, len(parts))
    kept = parts[:at] if how == 0 else parts[at:] if how == 1 else None
    for begin, end in parts if kept is None else kept:
        if kept is not None or chance.random() < 0.5:
            yield "write", begin, data[begin - offset : end - offset]


class ModelDisk:
    """The storage. Targets are inodes without a name: their handles are 0, 1, 2, ..."""

    def __init__(self, targets: int = 1) -> None:
        self.names_now: dict[str, Inode] = {}
        self.names_durable: dict[str, Inode] = {}
        self.targets = [Inode() for _ in range(targets)]
        self.handles: dict[int, Inode] = dict(enumerate(self.targets))
        self.next_handle = 1000
        self.locked = False
        self.changes = 0

    # ---------------------------------------------------------------------------------- the seam

    def _happens(self, operation: tuple[Any, ...]) -> None:
        """Before each operation; a subclass may note it, or raise."""
        if operation[0] not in ("read", "sync", "sync_directory"):
            self.changes += 1

    def lock(self, shared: bool = False) -> None:
        if self.locked:
            raise BlockingIOError(errno.EAGAIN, "locked")
        self.locked = True

    def close(self) -> None:
        self.locked = False

    def names(self) -> list[str]:
        return list(self.names_now)

    def create(self, name: str) -> int:
        self._happens(("create", name))
        if name in self.names_now:
            raise FileExistsError(errno.EEXIST, "exists", name)
        self.names_now[name] = Inode()
        return self._handle(self.names_now[name])

    def open(self, name: str) -> int:
        if name not in self.names_now:
            raise FileNotFoundError(errno.ENOENT, "not there", name)
        return self._handle(self.names_now[name])

    def _handle(self, inode: Inode) -> int:
        self.next_handle += 1
        self.handles[self.next_handle] = inode
        return self.next_handle

    def shut(self, handle: int) -> None:
        del self.handles[handle]

    def size(self, handle: int) -> int:
        return len(self.handles[handle].content)

    def read(self, handle: int, n: int, offset: int) -> bytes:
        self._happens(("read",))
        return bytes(self.handles[handle].content[offset : offset + n])

    def write(self, handle: int, data: Any, offset: int) -> int:
        data = bytes(data)
        self._happens(("write", handle, data, offset))
        self.handles[handle].change(("write", offset, data))
        return len(data)

    def truncate(self, handle: int, size: int) -> None:
        self._happens(("truncate", handle, size))
        self.handles[handle].change(("truncate", size))

    def sync(self, handle: int) -> None:
        self._happens(("sync", handle))
        self.handles[handle].flush()

    def rename(self, old: str, new: str) -> None:
        self._happens(("rename", old, new))
        self.names_now[new] = self.names_now.pop(old)

    def unlink(self, name: str) -> None:
        if name not in self.names_now:
            raise FileNotFoundError(errno.ENOENT, "not there", name)
        self._happens(("unlink", name))
        del self.names_now[name]

    def sync_directory(self) -> None:
        self._happens(("sync_directory",))
        self.names_durable = dict(self.names_now)

    def identity(self, handle: int) -> bytes:
        return bytes([handle]) * 32

    # ------------------------------------------------------------------------------------ crashes

    def crash(self, chance: random.Random) -> ModelDisk:
        """A disk as it may be found after the power went now."""
        mood = chance.choice(("any", "any", "any", "keep", "drop", "tear"))
        inodes: dict[int, Inode] = {}

        def found(inode: Inode) -> Inode:
            if id(inode) not in inodes:
                inodes[id(inode)] = inode.crash(chance, mood)
            return inodes[id(inode)]

        after = type(self)(0) if type(self) is ModelDisk else ModelDisk(0)
        for name in sorted(self.names_now.keys() | self.names_durable.keys()):
            old, new = self.names_durable.get(name), self.names_now.get(name)
            keeps = mood == "keep" or (mood == "any" and chance.random() < 0.5)
            inode = new if keeps else old
            if inode is not None:
                after.names_now[name] = found(inode)
        after.names_durable = dict(after.names_now)
        after.targets = [found(target) for target in self.targets]
        after.handles = dict(enumerate(after.targets))
        return after

    def contents(self) -> tuple[bytes, ...]:
        """Of the targets, as they are seen."""
        return tuple(bytes(target.content) for target in self.targets)

    def image(self) -> dict[str, bytes]:
        """Of everything else, but for the lock."""
        return {name: bytes(inode.content) for name, inode in self.names_now.items()}


class Recorder(ModelDisk):
    """Notes every change, and what the workload has to say (`note`)."""

    def __init__(self, targets: int = 1) -> None:
        super().__init__(targets)
        self.log: list[tuple[Any, ...]] = []

    def _happens(self, operation: tuple[Any, ...]) -> None:
        super()._happens(operation)
        if operation[0] != "read":
            self.log.append(operation)

    def open(self, name: str) -> int:
        handle = super().open(name)
        self.log.append(("open", name))
        return handle

    def shut(self, handle: int) -> None:
        super().shut(handle)
        self.log.append(("shut", handle))

    def note(self, *what: Any) -> None:
        self.log.append(("note", *what))


def copy_of(state: ModelDisk, copy: ModelDisk) -> ModelDisk:
    """The same disk, for another process: with all that is not on the device yet, and unlocked."""
    inodes: dict[int, Inode] = {}

    def found(inode: Inode) -> Inode:
        if id(inode) not in inodes:
            new = inodes[id(inode)] = Inode(inode.durable)
            new.content, new.pending = bytearray(inode.content), list(inode.pending)
        return inodes[id(inode)]

    copy.names_now = {name: found(inode) for name, inode in state.names_now.items()}
    copy.names_durable = {name: found(inode) for name, inode in state.names_durable.items()}
    copy.targets = [found(target) for target in state.targets]
    copy.handles = dict(enumerate(copy.targets))
    return copy


def record_on(state: ModelDisk) -> Recorder:
    """A recorder that begins with the state of another disk."""
    recorder = Recorder(0)
    copy_of(state, recorder)
    return recorder


def replay(
    start: ModelDisk, log: list[tuple[Any, ...]], noted: Callable[..., None]
) -> Iterator[ModelDisk]:
    """The disk after each change of a log that began on `start`. Notes are told in between."""
    disk = copy_of(start, ModelDisk(0))
    for name, *arguments in log:
        if name == "note":
            noted(*arguments)
            continue
        getattr(disk, name)(*arguments)
        if name not in ("open", "shut"):
            yield disk
