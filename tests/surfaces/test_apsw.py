"""Goal: SQLite over the VFS of iolift is SQLite: same bytes, same locks, same safety.

The same random work on the plain VFS gives the same file. Locks outlive every close that does not
own them. The crash test takes the writes and syncs that reached the backend, lets the power go at
many places, with every unsynced sector kept or lost by chance, and asks SQLite what is there.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import child
import pytest
from faulty import FaultyDisk

import iolift

apsw = pytest.importorskip("apsw")

import iolift.apsw  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

JOURNAL_MODES = ("delete", "truncate", "persist", "wal", "wal exclusive", "memory")
SECTOR = 512


@pytest.fixture
def vfs(backend: Any) -> Iterator[iolift.apsw.VFS]:
    made = iolift.apsw.VFS(**backend.options())
    yield made
    made.close()
    assert not iolift.apsw._inodes


def connect(path: Path, vfs: str = "iolift", mode: str = "delete") -> Any:
    db = apsw.Connection(str(path), vfs=vfs)
    db.set_busy_timeout(60_000)
    if mode.endswith("exclusive"):
        db.pragma("locking_mode", "exclusive")
    assert db.pragma("journal_mode", mode.split()[0]) == mode.split()[0]
    return db


def check(path: Path) -> list[Any]:
    """What a SQLite that knows nothing of iolift reads, after it found nothing to complain of."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("pragma integrity_check").fetchall() == [("ok",)]
        return db.execute("select * from t order by id").fetchall()


# --------------------------------------------------------------------------------- the same file


def step(db: Any, chance: random.Random) -> None:
    size = chance.choice((10, 300, 9000))
    keys = [chance.randrange(400) for _ in range(chance.randrange(1, 15))]
    what = chance.randrange(10)
    if what < 5:
        rows = [(k, chance.randbytes(size)) for k in keys]
        db.executemany("insert or replace into t(id, data) values (?, ?)", rows)
    elif what < 7:
        db.executemany(
            "update t set data = cast(data || 'x' as blob) where id = ?", [(k,) for k in keys]
        )
    elif what < 9:
        db.executemany("delete from t where id between ? and ? + 5", [(k, k) for k in keys])
    else:
        db.execute("update t set data = substr(data, 2) where id % 3 = 0")


def work(db: Any, seed: int) -> None:
    chance = random.Random(seed)
    for number in range(24):
        db.execute("begin immediate")
        for level in range(chance.randrange(1, 4)):
            db.execute(f"savepoint s{level}")
            step(db, chance)
            if chance.random() < 0.3:
                db.execute(f"rollback to s{level}")
        db.execute("rollback" if chance.random() < 0.2 else "commit")
        if number % 12 == 11:
            db.execute("vacuum")


def do(path: Path, vfs: str, mode: str, seed: int) -> None:
    with contextlib.closing(connect(path, vfs, mode)) as db:
        db.pragma("cache_size", 10)  # pages are spilled before the commit, and read again
        db.execute("create table t(id integer primary key, data blob); create index i on t(data)")
        db.pragma("synchronous", "normal" if seed % 2 else "off")
        work(db, seed)


@pytest.mark.parametrize("mode", JOURNAL_MODES)
def test_the_same_work_makes_the_same_file(vfs: Any, mode: str, tmp_path: Path) -> None:
    paths = {name: tmp_path / name for name in ("iolift", "unix")}
    for name, path in paths.items():
        do(path, name, mode, seed=len(mode))
    ours, theirs = paths.values()
    assert check(ours) == check(theirs)
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_threads_with_connections_of_their_own(vfs: Any, mode: str, tmp_path: Path) -> None:
    path, threads, rounds = tmp_path / "db", 3, 4
    with contextlib.closing(connect(path, mode=mode)) as db:
        db.pragma("synchronous", "off")
        db.execute("create table t(id integer primary key, n integer); insert into t values (0, 0)")
    troubles: list[BaseException] = []

    def count(number: int) -> None:
        try:
            for k in range(rounds):
                with contextlib.closing(connect(path, mode=mode)) as db:  # opened, closed each time
                    db.pragma("synchronous", "off")
                    db.execute("begin immediate; update t set n = n + 1 where id = 0")
                    db.execute("insert into t values (?, ?)", (1 + number * rounds + k, k))
                    db.execute("commit")
        except BaseException as error:
            troubles.append(error)

    workers = [threading.Thread(target=count, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not troubles
    rows = check(path)
    assert rows[0] == (0, threads * rounds)
    assert len(rows) == 1 + threads * rounds


@pytest.mark.parametrize("flags", [0, apsw.SQLITE_OPEN_NOFOLLOW])
@pytest.mark.parametrize("below", ["real", "link", "link/../link", "link/../real", "/real"])
def test_below_a_link(vfs: Any, below: str, flags: int, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with contextlib.closing(connect(tmp_path / "real" / "db")) as db:
        db.execute("create table t(id integer primary key, n); insert into t values (1, 2)")
    found = {}
    for name in "iolift", "unix":
        try:
            path = f"{tmp_path}/{below}/db"
            with contextlib.closing(
                apsw.Connection(path, vfs=name, flags=apsw.SQLITE_OPEN_READWRITE | flags)
            ) as db:
                found[name] = db.execute("select * from t").fetchall(), db.filename
        except apsw.CantOpenError as error:
            found[name] = type(error), bool(str(error)), error.extendedresult
    assert found["iolift"] == found["unix"]


def test_an_error_says_where_and_why(tmp_path: Path) -> None:
    disk = FaultyDisk()
    vfs = iolift.apsw.VFS("faulty", backend=disk)
    try:
        with contextlib.closing(connect(tmp_path / "db", "faulty")) as db:
            disk.fail(errno.EIO, kind="write")
            with pytest.raises(apsw.IOError, match=f"{tmp_path}/db.*Input/output error") as caught:
                db.execute("create table t(x)")
            disk.faults.clear()
        assert isinstance(caught.value.__cause__, OSError)
    finally:
        vfs.close()


def test_a_coalescer_that_is_none_is_refused() -> None:
    with pytest.raises(TypeError, match=r"must be an iolift\.Coalescer, not 5"):
        iolift.apsw.VFS("never", coalescer=5)  # type: ignore[arg-type]


def test_several_connections_see_what_the_others_committed(vfs: Any, tmp_path: Path) -> None:
    path = tmp_path / "db"
    for mode in ("delete", "wal"):
        with (
            contextlib.closing(connect(path, mode=mode)) as a,
            contextlib.closing(connect(path, mode=mode)) as b,
        ):
            a.execute("create table if not exists t(id integer primary key, n)")
            for k in range(20):
                writer, reader = (a, b) if k % 2 else (b, a)
                writer.execute("insert into t(n) values (?)", (k,))
                newest = "select n from t order by id desc limit 1"
                assert reader.execute(newest).get == k


def test_attached_temporary_readonly_and_memory(vfs: Any, tmp_path: Path) -> None:
    path = tmp_path / "db"
    with contextlib.closing(connect(path)) as db:
        db.pragma("temp_store", "file")
        db.pragma("cache_size", 5)
        db.execute("create table t(id integer primary key, n)")
        db.execute(f"attach '{tmp_path / 'other'}' as other; create table other.t(id, n)")
        with db:  # of two files: by way of a super-journal
            db.executemany("insert into t values (?, ?)", [(k, k % 7) for k in range(5000)])
            db.execute("insert into other.t select * from t")
        db.execute("create temp table s as select n, id from t order by n, id desc")
        assert db.execute("select count(distinct n) from s").get == 7
    assert check(path) == check(tmp_path / "other")
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    with contextlib.closing(apsw.Connection(f"file:{path}?mode=ro", flags, "iolift")) as db:
        assert db.execute("select count(*) from t").get == 5000
        with pytest.raises(apsw.ReadOnlyError):
            db.execute("delete from t")
    with contextlib.closing(apsw.Connection(":memory:", vfs="iolift")) as db:
        db.execute("create table t(n)")
    with pytest.raises(apsw.CantOpenError):
        apsw.Connection(str(tmp_path / "no" / "db"), vfs="iolift")


# ----------------------------------------------------------------------------------------- locks

OTHER_PROCESS = """
import apsw, sys
db = apsw.Connection(sys.argv[1], vfs="unix")
try:
    db.execute("begin immediate")
    print("not locked")
except apsw.BusyError:
    print("locked")
"""


def asked_by_another(path: Path) -> str:
    command = [sys.executable, "-c", OTHER_PROCESS, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_locks_outlive_the_connections_that_do_not_own_them(
    vfs: Any, mode: str, tmp_path: Path
) -> None:
    """Of POSIX locks it is enough that any descriptor of the file is closed to lose them."""
    path = tmp_path / "db"
    with contextlib.closing(connect(path, mode=mode)) as db:
        db.execute("create table t(id)")
        db.execute("begin immediate")
        assert asked_by_another(path) == "locked"
        flags = apsw.SQLITE_OPEN_READONLY
        for other in (connect(path, mode=mode), apsw.Connection(str(path), flags, "iolift")):
            other.execute("select * from t")
            other.close()
            assert asked_by_another(path) == "locked"
        with contextlib.closing(iolift.apsw.VFS("second", backend="posix")):
            connect(path, "second", mode).close()
            assert asked_by_another(path) == "locked"
        assert all(len(i.descriptors) == len(i.files) for i in iolift.apsw._inodes.values())
        db.execute("commit")
        assert asked_by_another(path) == "not locked"


def test_a_refused_open_costs_no_lock(vfs: Any, tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "db"
    with contextlib.closing(connect(path)) as db:
        db.execute("create table t(id); begin immediate")
        monkeypatch.setattr(iolift.apsw, "File", lambda *_, **__: 1 / 0)
        with pytest.raises(apsw.CantOpenError):
            apsw.Connection(str(path), apsw.SQLITE_OPEN_READONLY, "iolift").execute(
                "select 1 from t"
            )
        assert asked_by_another(path) == "locked"


# ---------------------------------------------------------------------------------------- errors


@contextlib.contextmanager
def on_a_disk(path: Path) -> Iterator[tuple[Any, FaultyDisk]]:
    disk = FaultyDisk(queue=0.5, max_ops=10**9)
    vfs = iolift.apsw.VFS(backend=disk)
    db = connect(path)
    try:
        db.execute("create table t(id integer primary key, data)")
        db.execute("insert into t values (1, 'kept')")
        yield db, disk
    finally:
        db.close()
        vfs.close()
        disk.check()


@pytest.mark.parametrize("kind", ["read", "write", "sync"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_an_error_is_told_and_rolled_back(tmp_path: Path, kind: str, error: int) -> None:
    path = tmp_path / "db"
    expected = apsw.FullError if error == errno.ENOSPC else apsw.IOError
    with on_a_disk(path) as (db, disk):
        db.pragma("cache_size", 2)
        if kind == "read":
            db.execute("pragma shrink_memory")  # so that a page has to be read
        disk.fail(error, kind=kind, times=None)
        with pytest.raises(expected):
            db.execute("insert into t values (2, zeroblob(100000))")
        disk.faults.clear()
    assert check(path) == [(1, "kept")]


def test_a_failed_sync_of_the_database_is_for_good(tmp_path: Path) -> None:
    """Nobody knows what is on the device: until all its connections are closed it is not written.
    The journal stays, and the next who opens the file rolls it back."""
    path = tmp_path / "db"
    with on_a_disk(path) as (db, disk):
        db.pragma("journal_mode", "memory")
        disk.fail(errno.EIO, kind="sync", times=1)
        with pytest.raises(apsw.IOError):
            db.execute("insert into t values (2, 'lost')")
        for _ in range(2):
            with pytest.raises(apsw.IOError):
                db.execute("insert into t values (3, 'refused')")


def test_a_sync_is_asked_for_where_sqlite_asks(tmp_path: Path) -> None:
    with on_a_disk(tmp_path / "db") as (db, disk):
        for level, syncs in (("off", 0), ("normal", 2), ("full", 3)):
            db.pragma("synchronous", level)
            before = len(disk.ops("sync"))
            db.execute("update t set data = data || '.'")
            assert len(disk.ops("sync")) - before >= syncs
            assert bool(len(disk.ops("sync")) - before) == bool(syncs)


# --------------------------------------------------------------------------------------- crashes


class Recorder(FaultyDisk):
    """Remembers what reached the disk: (file, offset, bytes), or (file, -1, b"") for a sync."""

    def __init__(self) -> None:
        super().__init__(queue=0.0, max_ops=10**9)
        self.events: list[tuple[str, int, bytes]] = []

    def _run(self, op: Any) -> int:
        result = super()._run(op)
        if op.kind != "read":
            assert result >= 0
            name = os.path.basename(os.readlink(f"/proc/self/fd/{op.fd}"))
            written = b"".join(op.buffers)[:result] if op.kind == "write" else b""
            self.events.append((name, op.offset if op.kind == "write" else -1, written))
        return result


def put(image: bytearray, offset: int, data: bytes) -> None:
    if len(image) < offset + len(data):
        image.extend(bytes(offset + len(data) - len(image)))
    image[offset : offset + len(data)] = data


def crashed(
    start: dict[str, bytes], events: list[tuple[str, int, bytes]], chance: random.Random
) -> dict[str, bytearray]:
    """The files when the power goes after `events`: of what no sync covers, sectors by chance."""
    images = {name: bytearray(content) for name, content in start.items()}
    share = chance.choice((0.0, 0.1, 0.5, 0.9, 1.0))
    last_sync = {name: k for k, (name, offset, _) in enumerate(events) if offset < 0}
    for k, (name, offset, data) in enumerate(events):
        for begin in range(0, len(data), SECTOR):
            if k < last_sync.get(name, -1) or chance.random() < share:
                put(images.setdefault(name, bytearray()), offset + begin, data[begin:][:SECTOR])
    return images


@pytest.mark.parametrize("mode", ["persist", "wal exclusive"])
def test_what_was_committed_is_there_after_a_crash(mode: str, tmp_path: Path) -> None:
    """In modes that neither make nor delete nor cut a file: those changes no backend sees."""
    (tmp_path / "live").mkdir()
    disk = Recorder()
    with (
        contextlib.closing(iolift.apsw.VFS(backend=disk)),
        contextlib.closing(connect(tmp_path / "live" / "db", mode=mode)) as db,
    ):
        db.pragma("synchronous", "full")
        db.pragma("wal_autocheckpoint", 15)
        db.execute("create table t(id integer primary key, k, data)")
        db.executemany("insert into t values (?, 0, zeroblob(2000))", [(i,) for i in range(30)])
        disk.events.clear()
        start = {path.name: path.read_bytes() for path in (tmp_path / "live").iterdir()}
        committed = [0]  # how many events there were when transaction k was
        for k in range(1, 13):
            db.execute("update t set k = ?, data = randomblob(2000)", (k,))
            committed.append(len(disk.events))
    chance = random.Random(7)
    for number in range(60):
        at = chance.randrange(committed[-1] + 1)
        directory = tmp_path / str(number)
        directory.mkdir()
        for name, content in crashed(start, disk.events[:at], chance).items():
            (directory / name).write_bytes(content)
        found = {k for _, k, _ in check(directory / "db")}
        assert len(found) == 1, f"half a transaction, {at} of {committed}"
        acknowledged = max(k for k, events in enumerate(committed) if events <= at)
        assert found <= {acknowledged, acknowledged + 1}, f"{at} of {committed}"


TRACED = """
import apsw, iolift.apsw, sys
vfs = iolift.apsw.VFS(backend="posix")
db = apsw.Connection(sys.argv[1], vfs="iolift")
db.execute("create table t(id); insert into t values (1)")
db.close()
vfs.close()
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_a_new_journal_is_synced_by_its_name_also(tmp_path: Path) -> None:
    """One that its directory has forgotten after a crash rolls nothing back."""
    path, log = tmp_path / "db", tmp_path / "log"
    strace = ["strace", "-f", "-y", "-o", str(log), "-e", "trace=fsync,fdatasync"]
    done = subprocess.run([*strace, sys.executable, "-c", TRACED, str(path)], check=False)
    if done.returncode:
        pytest.skip("strace may not trace here")
    calls = [line for line in log.read_text().splitlines() if "sync(" in line]
    synced = [line.split("<", 1)[1].split(">", 1)[0] for line in calls if "<" in line]
    journal, directory = f"{path}-journal", str(tmp_path)
    assert synced.index(journal) < synced.index(directory) < synced.index(str(path))


# ----------------------------------------------------------------------------------- the VFS itself


def test_options_are_those_of_a_coalescer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gap"):
        iolift.apsw.VFS("bad", gap=-1)
    with iolift.Coalescer() as c:
        with pytest.raises(TypeError, match="gap"):
            iolift.apsw.VFS("bad", coalescer=c, gap=5)
        with contextlib.closing(iolift.apsw.VFS("shared", coalescer=c)):
            connect(tmp_path / "db", "shared").close()
            assert c.stats().requests > 0
        assert not c.closed
    assert "bad" not in apsw.vfs_names()
    assert "shared" not in apsw.vfs_names()


def test_without_apsw_the_extra_is_named(monkeypatch: Any) -> None:
    monkeypatch.delitem(sys.modules, "iolift.apsw")
    monkeypatch.setitem(sys.modules, "apsw", None)
    with pytest.raises(ImportError, match=r"pip install 'iolift\[apsw\]'"):
        importlib.import_module("iolift.apsw")


def test_a_connection_that_is_collected_while_the_vfs_opens_or_closes(tmp_path: Path) -> None:
    child.run(
        """
        import gc, os, sys, warnings
        warnings.simplefilter("ignore")
        import apsw
        import iolift.apsw as ours
        vfs = ours.VFS("lifted")
        class Holder:
            pass
        def unclosed():
            h = Holder()
            h.me = h
            h.db = apsw.Connection(sys.argv[1], vfs="lifted")
            h.db.execute("create table if not exists t(x)")
        gc.disable()
        real_file, real_close = ours.File, ours._close_unused
        def collecting(real):
            def call(*arguments, **options):
                gc.collect()
                return real(*arguments, **options)
            return call
        ours.File = collecting(real_file)
        ours._close_unused = collecting(real_close)
        for _ in range(5):
            unclosed()
            apsw.Connection(sys.argv[1] + "x", vfs="lifted").close()
            gc.collect()
        assert not ours._inodes and not ours._late, (ours._inodes, ours._late)
        """,
        tmp_path / "db",
    )
